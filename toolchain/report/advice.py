"""The assessment on the page: the finding, what to keep, Metric Freedom of outputs and traces, the warnings."""

from __future__ import annotations

from soloist.toolchain.assess.result import Assessment, Freedom, kept, sentence
from soloist.toolchain.report.svg import esc, table

_SCORES = {"verdict": "correct or not", "turns": "share of correct turns (our own)"}


def section(assessment: Assessment | None) -> str:
    """The section; nothing where none was made."""
    if assessment is None:
        return ""
    head = ("Distance between", "Score", "Metric Freedom", "95% interval", "p", "Questions")
    how = f"temperature {assessment.temperature:g}" if assessment.temperature is not None else "recorded runs"
    caption = (
        f"{assessment.runs} runs of {assessment.questions} questions, {how}; output distance: {assessment.distance}"
    )
    reasons = "".join(f"<li>{esc(line)}</li>" for line in assessment.advice.reasons)
    weak = "".join(f"<li>{esc(line)}</li>" for line in assessment.warnings)
    return (
        f"<p><b>{esc(sentence(assessment))}</b></p><p>{esc(kept(assessment.advice))}.</p><ul>{reasons}</ul>"
        f"{table(head, [_row(one) for one in assessment.freedom], caption)}"
        + (f"<h3>What makes it weak</h3><ul>{weak}</ul>" if weak else "")
        + '<p class="note">Metric Freedom is 1 − r, r the rank correlation between how far apart two runs of a '
        "question are and how far apart they score; p by permuting runs. The skill card is in <code>assess</code>.</p>"
    )


def _row(one: Freedom) -> list[str]:
    span = "n/a" if one.low is None or one.high is None else f"{one.low:.2f} – {one.high:.2f}"
    p = "n/a" if one.p is None else f"{one.p:.3f}{' (exact)' if one.exact else ''}"
    value = "undefined" if one.value is None else f"{one.value:.2f}"
    return [f"{one.of}s", _SCORES[one.score], value, span, p, f"{one.defined} of {len(one.questions)}"]
