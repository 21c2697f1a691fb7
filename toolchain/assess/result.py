"""What `soloist assess` finds, as records: assessment.json, and the section of the report that is made from it.

Numbers that do not exist are null, with the reason beside them: an undefined Metric Freedom is never
written as 0 (rigid) or 1 (free), which would both be findings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from soloist.kernels.errors import DataError
from soloist.toolchain.core.config import Config, describe

ASSESSMENT = "assessment.json"
Rule = Literal["v1", "v3"]
Of = Literal["output", "trace"]
Score = Literal["verdict", "turns"]
Fate = Literal["keep", "drop", "undecided"]
Side = Literal["rigid", "free", "undefined"]
Outlook = Literal["likely to help", "test both", "unlikely to help", "cannot say"]


class OfQuestion(Config):
    """Metric Freedom of one question: r and p are null where `why` says what is missing."""

    question: str
    runs: int
    mean_score: float
    r: float | None
    p: float | None
    permutations: int
    why: str = ""


class Freedom(Config):
    """Metric Freedom of a set of questions: 1 - the mean r of those questions where r is defined."""

    of: Of
    score: Score
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    exact: bool
    tied: float = Field(ge=0, le=1)  # share of the pairs of runs that tie in score
    questions: tuple[OfQuestion, ...]

    @property
    def defined(self) -> int:
        return sum(question.r is not None for question in self.questions)


class Advice(Config):
    """What a rule makes of it.

    `certain`: the interval lies on one side of the border between rigid and free, and where it is rigid the
    correlation is not likely chance.
    """

    rule: Rule
    side: Side
    outlook: Outlook
    refine: bool | None
    keep: dict[str, Fate]
    certain: bool
    reasons: tuple[str, ...]


class Assessment(Config):
    """The whole of assessment.json. `temperature` is null, and `seconds` 0, where runs were read and not made."""

    schema_version: Literal[1] = 1
    team: str
    distance: str
    temperature: float | None
    runs: int
    questions: int
    mean_score: float
    seconds: float
    freedom: tuple[Freedom, ...]
    decided_on: Score
    advice: Advice
    warnings: tuple[str, ...]

    def find(self, of: Of, score: Score) -> Freedom:
        """One of the Metric Freedoms. Raises DataError."""
        for one in self.freedom:
            if (one.of, one.score) == (of, score):
                return one
        raise DataError(f"this assessment holds no Metric Freedom of {of} under {score}")


def read_assessment(path: Path) -> Assessment:
    """Read assessment.json; a DataError names every field that does not fit."""
    try:
        return Assessment.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it with 'soloist assess'") from error
    except ValidationError as error:
        raise DataError(f"{path}: not an assessment: {describe(error)}") from error


def sentence(assessment: Assessment) -> str:
    """The finding in one line, the version of the rule in it."""
    freedom, advice = assessment.find("output", assessment.decided_on), assessment.advice
    questions = len(freedom.questions)
    if freedom.value is None:
        return (
            f"Metric Freedom is undefined ({freedom.defined} of {questions} questions can show it): rule "
            f"{advice.rule} cannot say whether distilling helps. Advice only."
        )
    part = "" if freedom.defined == questions else f" on {freedom.defined} of {questions} questions"
    span = "" if freedom.low is None or freedom.high is None else f" ({freedom.low:.2f} to {freedom.high:.2f})"
    refining = "refine" if advice.refine else "do not refine"
    sure = "" if advice.certain else ", which so few runs cannot make certain"
    return (
        f"Metric Freedom {freedom.value:.2f}{span}{part}, {advice.side}{sure}: rule {advice.rule} says distilling is "
        f"'{advice.outlook}', {refining}. Advice only."
    )


def kept(advice: Advice) -> str:
    """What to keep and what to drop, in one line."""
    parts = []
    for fate in ("keep", "drop", "undecided"):
        names = [name for name, given in advice.keep.items() if given == fate]
        if names:
            parts.append(f"{fate}: {', '.join(names)}")
    return "; ".join(parts)
