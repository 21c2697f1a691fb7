"""Which compiled file to hand over, chosen on questions that no reported number rests on.

Two sets: `selection` (questions like those of training) and `selection-wording` (wordings that occur nowhere in
training). A file's score is the mean of its accuracies on the sets, so that forgetting unseen wordings counts as much
as forgetting known ones. Of the files whose score is within `MARGIN` of the best, the fastest is taken. What it then
scores on held-out questions is not flattered by the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from soloist.toolchain.bench.records import SELECTION, Measurement
from soloist.toolchain.core.artifact import Facts
from soloist.toolchain.core.statistics import percentile

MARGIN = 0.02  # of the score; a hundred questions tell files no further apart


class Candidate(Facts):
    """A file: right answers over questions on each set, its score (share, 0 to 1), its median seconds a question."""

    system: str
    correct: dict[str, int]
    n: dict[str, int]
    score: float
    p50_s: float
    size_mb: float | None = None


class Recommendation(Facts):
    """The file to hand over, why, and all that were considered, best score first."""

    system: str
    reason: str
    candidates: tuple[Candidate, ...]


def recommend(measurements: Sequence[Measurement]) -> Recommendation | None:
    """Choose among the compiled files. None where no file was asked selection questions."""
    candidates = []
    for system in dict.fromkeys(m.system_id for m in measurements if m.kind == "artifact" and m.split in SELECTION):
        own = [m for m in measurements if m.system_id == system and m.split in SELECTION]
        seconds: list[float] = []
        for one in own:
            seconds += [answer.seconds for answer in one.answers]
        candidates.append(
            Candidate(
                system=system,
                correct={one.split: one.correct for one in own},
                n={one.split: len(one.answers) for one in own},
                score=fmean(one.correct / len(one.answers) for one in own),
                p50_s=percentile(seconds, 0.5),
                size_mb=own[0].size_mb,
            )
        )
    if not candidates:
        return None
    candidates.sort(key=lambda one: (-one.score, one.p50_s))
    best = candidates[0]
    near = [one for one in candidates if one.score >= best.score - MARGIN]
    chosen = min(near, key=lambda one: one.p50_s)
    asked = " and ".join(f"{count} of {split}" for split, count in chosen.n.items())
    reason = (
        f"{len(candidates)} files were asked {asked} questions; {len(near)} score within {100 * MARGIN:g} points of "
        f"the best ({best.system}, {100 * best.score:.1f} %), and of these {chosen.system} "
        f"({100 * chosen.score:.1f} %) is the fastest, {chosen.p50_s:.3f} s a question"
    )
    return Recommendation(system=chosen.system, reason=reason, candidates=tuple(candidates))
