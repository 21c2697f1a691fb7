"""Stage `assess`: before any training, is distilling this team under this metric likely to help?

    assessment.json     Metric Freedom of outputs and traces, p, interval, the rule's advice, the warnings
    skill_card.md       what the team knows, for people
    skill_card.json     the same for programs: system prompt, demonstrations, tools, knowledge
    skill_agent.yaml    the card as a team of one agent on the team's engine (where the team file is known)
    traces.jsonl.gz     the runs it was found on

Either recorded runs are read (several runs per question), or the team is run. Two scores: `verdict`, 1 for
a correct final answer and 0 otherwise, which is what a student is judged by; and `turns`, the share of a
run's judged turns that were correct, a continuous score of our own for questions on which every run ends
the same. Advice follows `verdict` unless the config says otherwise, and only ever advises.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import Field

from soloist.kernels.errors import DataError, UsageError
from soloist.toolchain.assess.card import agent_of, make_card, render
from soloist.toolchain.assess.decide import decide
from soloist.toolchain.assess.distances import Array, output_distances, trace_distances
from soloist.toolchain.assess.metric_freedom import ENOUGH, FEWEST, Table, metric_freedom, warnings
from soloist.toolchain.assess.result import (
    ASSESSMENT,
    Assessment,
    Freedom,
    Of,
    Outlook,
    Rule,
    Score,
    read_assessment,
    sentence,
)
from soloist.toolchain.core.artifact import MANIFEST, Artifact, Facts, stage
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import sha256_file, write_atomic
from soloist.toolchain.record.repeats import Sampled, record_repeats
from soloist.toolchain.tasks.base import Question, question_key, questions_digest
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.teams.engines.base import Embedder, Engine
from soloist.toolchain.teams.team import open_engine
from soloist.toolchain.traces.recording import TRACES, traces_at
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import read_runs, write_runs

STAGE = "assess"
_RUNS = "runs"
Distance = Literal["auto", "edit", "embedding"]


class AssessConfig(Sampled):
    """`distance` auto: hidden states where the team is run and its engine shows them, else edits of tokens.

    `examples` per family stand in the card.
    """

    rule: Rule = "v3"
    score: Score = "verdict"
    distance: Distance = "auto"
    examples: int = Field(default=1, ge=0)


class AssessFacts(Facts):
    """The finding in short; `metric_freedom` and `p` are None where Metric Freedom is undefined."""

    team: str
    rule: Rule
    metric_freedom: float | None = None
    p: float | None = None
    outlook: Outlook
    runs: int
    questions: int
    seconds: float


def assess(
    config: AssessConfig,
    team: TeamConfig | None,
    out: Path,
    *,
    questions: Sequence[Question] = (),
    recordings: Sequence[Path] = (),
    known: Sequence[Path] = (),
    engine: Engine | None = None,
    events: EventLog = QUIET,
) -> Artifact:
    """Assess `recordings`, or fresh runs of `team` on `questions`; `known` traces only add to the card.

    Raises DataError where no question has the runs, or the verdicts, that Metric Freedom needs.
    """
    files = [traces_at(path) for path in recordings]
    extra = [traces_at(path) for path in known]
    if team is None:
        team = next(filter(None, map(_team_of, recordings)), None)
    if not files and (team is None or not questions):
        raise DataError("nothing to look at: give recorded runs, or a team and questions to put to it")
    if files and config.distance == "embedding":
        raise UsageError("distance 'embedding' needs a team that is run: recorded runs have no engine")
    plan = config.model_dump(mode="json") | {
        "team": team.model_dump(mode="json") if team else None,
        "questions": None if files else questions_digest(questions),
        "recordings": [sha256_file(file)[:16] for file in files],
        "known": [sha256_file(file)[:16] for file in extra],
    }

    def build(folder: Path) -> AssessFacts:
        if files:
            runs, repeated = _distinct(files)
            groups = _by_question(runs)
            assessment = evaluate(config, groups, team.name if team else "", repeated=repeated)
        else:
            assert team is not None
            with contextlib.nullcontext(engine) if engine else contextlib.closing(open_engine(team)) as opened:
                embedder = _embedder(config, team, opened)
                runs = record_repeats(team, questions, folder / _RUNS, config, opened, events, stage=STAGE)
                groups = _by_question(runs)
                assessment = evaluate(config, groups, team.name, embedder, live=True)
        runs = list(itertools.chain.from_iterable(groups.values()))
        write_runs(runs, folder / TRACES)
        more = itertools.chain.from_iterable(map(read_runs, extra))
        _write(folder, config, assessment, [*runs, *more], team)
        for text in assessment.warnings:
            events.emit(STAGE, "warning", text=text)
        return _facts(assessment, len(runs))

    return stage(STAGE, out, plan, [], build, events=events, scratch=(_RUNS,))


def _team_of(path: Path) -> TeamConfig | None:
    """The team that a folder of ours was recorded from."""
    if not (path / MANIFEST).is_file():
        return None
    team = Artifact.open(path, verify=False).manifest["config"].get("team")
    return TeamConfig.model_validate(team) if team else None


def _embedder(config: AssessConfig, team: TeamConfig, engine: Engine) -> Embedder | None:
    """The engine, where distances are between its hidden states. Raises UsageError where they must be and cannot."""
    if config.distance == "edit":
        return None
    if isinstance(engine, Embedder):
        return engine
    if config.distance == "embedding":
        raise UsageError(f"distance 'embedding': the engine of team '{team.name}' shows no hidden states")
    return None


def _distinct(files: Sequence[Path]) -> tuple[list[Run], int]:
    """The runs of all recordings without those that an earlier one holds, and how many these were.

    A run and its copy are no two runs: they are 0 apart and score alike, which looks like correlation.
    """
    distinct: list[Run] = []
    earlier: set[str] = set()
    repeated = 0
    for file in files:
        own = set()
        for run in read_runs(file):
            record = run.model_dump_json()
            own.add(record)
            if record in earlier:
                repeated += 1
            else:
                distinct.append(run)
        earlier |= own
    return distinct, repeated


def _by_question(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by question. A run that the engine failed on says nothing about the team, nor one without a verdict."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        group = groups.setdefault(question_key(run.question.question), [])
        if run.error is None and run.verdict != "unknown":
            group.append(run)
    return groups


def score_of(run: Run, score: Score) -> float | None:
    """A run's score; None where nothing of it was judged."""
    if score == "verdict":
        return float(run.verdict == "correct")
    judged = [turn.verdict == "correct" for turn in run.turns if turn.verdict in ("correct", "wrong")]
    return sum(judged) / len(judged) if judged else None


def evaluate(
    config: AssessConfig,
    groups: Mapping[str, Sequence[Run]],
    name: str,
    embedder: Embedder | None = None,
    *,
    live: bool = False,
    repeated: int = 0,
) -> Assessment:
    """Metric Freedom and advice from runs by question. Raises DataError where there is nothing to compare.

    Args:
        name: of the team, where it is known.
        live: the runs were made for this, and their time counts.
        repeated: how many runs were left out as copies of others, for the warning.
    """
    usable = [group for group in groups.values() if len(group) >= FEWEST]
    if not usable:
        raise DataError(_missing(groups.values()))
    runs = list(itertools.chain.from_iterable(usable))
    teams = sorted({run.team for run in runs})
    if len(teams) > 1:
        raise DataError(f"runs of several teams ({', '.join(teams)}): Metric Freedom is of one; give one's recordings")
    freedoms = _freedoms(usable, embedder, config.seed)
    decisive = next((one for one in freedoms if (one.of, one.score) == ("output", config.score)), None)
    if decisive is None:
        raise DataError("no run has a judged turn: the score 'turns' cannot be used, take 'verdict'")
    weaknesses = []
    if len(usable) < len(groups):
        left_out = len(groups) - len(usable)
        weaknesses.append(f"{left_out} of {len(groups)} questions left out: fewer than {FEWEST} judged runs")
    if repeated:
        weaknesses.append(f"{repeated} runs stand in more than one of the recordings; each counts once")
    if len(usable) < ENOUGH:
        weaknesses.append(
            f"{len(usable)} questions; the published operating point is {ENOUGH} runs of {ENOUGH} questions"
        )
    return Assessment(
        team=name or runs[0].team,
        distance="1 - cosine of hidden states" if embedder else "edits of tokens",
        temperature=config.temperature if live else None,
        runs=len(runs),
        questions=len(usable),
        mean_score=float(np.mean([score_of(run, "verdict") for run in runs])),
        seconds=round(sum(run.wall for run in runs), 1) if live else 0.0,
        freedom=tuple(freedoms),
        decided_on=config.score,
        advice=decide(config.rule, decisive),
        warnings=(*weaknesses, *warnings(decisive)),
    )


def _freedoms(groups: Sequence[Sequence[Run]], embedder: Embedder | None, seed: int) -> list[Freedom]:
    """Metric Freedom of outputs and of traces under both scores, where any question has a score for every run."""
    distances: dict[Of, list[Array]] = {
        "output": [output_distances(group, embedder) for group in groups],
        "trace": [trace_distances(group) for group in groups],
    }
    freedoms = []
    scores: tuple[Score, ...] = ("verdict", "turns")
    for score in scores:
        for of, squares in distances.items():
            tables = []
            for group, square in zip(groups, squares, strict=True):
                given = [score_of(run, score) for run in group]
                if None not in given:
                    tables.append(Table(group[0].question.id, square, np.asarray(given, dtype=np.float64)))
            if tables:
                freedoms.append(metric_freedom(tables, of, score, seed=seed))
    return freedoms


def _missing(groups: Iterable[Sequence[Run]]) -> str:
    """Why none of these questions can be compared, and what to do."""
    most = max(map(len, groups), default=0)
    if not most:
        return (
            "no run ended with a verdict: Metric Freedom compares scores, which failed runs and questions without a "
            "known answer do not have"
        )
    what = "one run per question" if most == 1 else f"at most {most} runs per question"
    return (
        f"{what}: Metric Freedom compares at least {FEWEST} ({ENOUGH} are advised) runs of the same question; record "
        "it with other seeds and give all recordings, or let 'soloist assess TEAM' run the team"
    )


def _write(
    folder: Path, config: AssessConfig, assessment: Assessment, runs: Sequence[Run], team: TeamConfig | None
) -> None:
    write_atomic(folder / ASSESSMENT, assessment.model_dump_json(indent=1) + "\n")
    card = make_card(runs, assessment.advice, team, name=assessment.team, examples=config.examples)
    write_atomic(folder / "skill_card.json", card.model_dump_json(indent=1) + "\n")
    write_atomic(folder / "skill_card.md", render(card, assessment.advice, sentence(assessment)))
    if team is not None:
        agent = agent_of(card, team).model_dump(mode="json", exclude_defaults=True)
        write_atomic(folder / "skill_agent.yaml", yaml.safe_dump(agent, sort_keys=False, allow_unicode=True))


def _facts(assessment: Assessment, runs: int) -> AssessFacts:
    decisive = assessment.find("output", assessment.decided_on)
    return AssessFacts(
        team=assessment.team,
        rule=assessment.advice.rule,
        metric_freedom=decisive.value,
        p=decisive.p,
        outlook=assessment.advice.outlook,
        runs=runs,
        questions=assessment.questions,
        seconds=assessment.seconds,
    )


def assessment_of(folder: Path, team: str) -> Assessment | None:
    """The assessment of this team in a job's folder, if there is one."""
    path = folder / STAGE
    if not (path / MANIFEST).is_file():
        return None
    assessment = read_assessment(Artifact.open(path, stage=STAGE).path / ASSESSMENT)
    return assessment if assessment.team == team else None
