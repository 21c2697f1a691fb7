"""Stage `assess`: before any training, is distilling this team under this metric likely to help?

    assessment.json           Metric Freedom of outputs and traces, p, interval, the rule's advice, the warnings
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

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field

from soloist.kernels.errors import DataError, UsageError
from soloist.toolchain.assess.card import agent_of, make_card, render
from soloist.toolchain.assess.decide import decide
from soloist.toolchain.assess.distances import Array, output_distances, trace_distances
from soloist.toolchain.assess.metric_freedom import ENOUGH, FEWEST, Table, metric_freedom, warnings
from soloist.toolchain.assess.result import ASSESSMENT, Assessment, Freedom, Of, Rule, Score, read_assessment, sentence
from soloist.toolchain.core.artifact import MANIFEST, Artifact, stage
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import sha256_file, write_atomic
from soloist.toolchain.record.repeats import Sampled, record_repeats
from soloist.toolchain.tasks.base import Question, interleave, question_key
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
    team = team or next((found for path in recordings if (found := _team_of(path)) is not None), None)
    if not files and (team is None or not questions):
        raise DataError("nothing to look at: give recorded runs, or a team and questions to put to it")
    if files and config.distance == "embedding":
        raise UsageError("distance 'embedding' needs a team that is run: recorded runs have no engine")
    asked = hashlib.sha256("\n".join(question.model_dump_json() for question in questions).encode()).hexdigest()
    plan = config.model_dump(mode="json") | {
        "team": team.model_dump(mode="json") if team else None,
        "questions": None if files else asked[:16],
        "recordings": [sha256_file(file)[:16] for file in files],
        "known": [sha256_file(file)[:16] for file in extra],
    }

    def build(folder: Path) -> Mapping[str, Any]:
        embedder: Embedder | None = None
        opened: Engine | None = None
        try:
            repeated = 0
            if files:
                recorded, repeated = _once(files)
                runs = _grouped(recorded)
            else:
                assert team is not None
                opened = engine or open_engine(team)
                if isinstance(opened, Embedder):
                    embedder = None if config.distance == "edit" else opened
                elif config.distance == "embedding":
                    raise UsageError(f"distance 'embedding': the engine of team '{team.name}' shows no hidden states")
                runs = _grouped(record_repeats(team, questions, folder / _RUNS, config, opened, events, stage=STAGE))
            found = find(config, runs, team.name if team else "", embedder, live=not files, repeated=repeated)
        finally:
            if opened is not None and engine is None:
                opened.close()
        every = [run for group in runs.values() for run in group]
        write_runs(every, folder / TRACES)
        _write(folder, config, found, [*every, *(run for file in extra for run in read_runs(file))], team)
        for text in found.warnings:
            events.emit(STAGE, "warning", text=text)
        return _facts(found, every)

    return stage(STAGE, out, plan, [], build, events=events, scratch=(_RUNS,))


def _team_of(path: Path) -> TeamConfig | None:
    """The team that a folder of ours was recorded from."""
    if not (path / MANIFEST).is_file():
        return None
    said = Artifact.open(path, verify=False).manifest["config"].get("team")
    return TeamConfig.model_validate(said) if said else None


def _once(files: Sequence[Path]) -> tuple[list[Run], int]:
    """The runs of all recordings without those that an earlier one holds, and how many these were.

    A run and its copy are no two runs: they are 0 apart and score alike, which looks like correlation.
    """
    found: list[Run] = []
    earlier: set[str] = set()
    repeated = 0
    for file in files:
        own = [(run.model_dump_json(), run) for run in read_runs(file)]
        fresh = [run for record, run in own if record not in earlier]
        found += fresh
        repeated += len(own) - len(fresh)
        earlier.update(record for record, _ in own)
    return found, repeated


def _grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by question. A run that the engine failed on says nothing about the team, nor one without a verdict."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        group = found.setdefault(question_key(run.question.question), [])
        if run.error is None and run.verdict != "unknown":
            group.append(run)
    return found


def score_of(run: Run, score: Score) -> float | None:
    """A run's score; None where nothing of it was judged."""
    if score == "verdict":
        return float(run.verdict == "correct")
    judged = [turn.verdict == "correct" for turn in run.turns if turn.verdict in ("correct", "wrong")]
    return sum(judged) / len(judged) if judged else None


def find(
    config: AssessConfig,
    groups: Mapping[str, Sequence[Run]],
    name: str,
    embedder: Embedder | None,
    *,
    live: bool,
    repeated: int = 0,
) -> Assessment:
    """Metric Freedom and advice from runs by question. Raises DataError where there is nothing to compare."""
    usable = [group for group in groups.values() if len(group) >= FEWEST]
    _refuse(groups, usable)
    teams = sorted({run.team for group in usable for run in group})
    if len(teams) > 1:
        raise DataError(f"runs of several teams ({', '.join(teams)}): Metric Freedom is of one; give one's recordings")
    output = [output_distances(group, embedder) for group in usable]
    trace = [trace_distances(group) for group in usable]
    freedom: list[Freedom] = []
    scores: tuple[Score, ...] = ("verdict", "turns")
    for score in scores:
        given = [[score_of(run, score) for run in group] for group in usable]
        kinds: tuple[tuple[Of, list[Array]], ...] = (("output", output), ("trace", trace))
        for of, distances in kinds:
            tables = [
                _table(group, d, s) for group, d, s in zip(usable, distances, given, strict=True) if None not in s
            ]
            if tables:
                freedom.append(metric_freedom(tables, of, score, seed=config.seed))
    decided = next((one for one in freedom if (one.of, one.score) == ("output", config.score)), None)
    if decided is None:
        raise DataError("no run has a judged turn: the score 'turns' cannot be used, take 'verdict'")
    runs = [run for group in usable for run in group]
    left_out = len(groups) - len(usable)
    said = [f"{left_out} of {len(groups)} questions left out: fewer than {FEWEST} judged runs"] if left_out else []
    if repeated:
        said.append(f"{repeated} runs stand in more than one of the recordings; each counts once")
    if len(usable) < ENOUGH:
        said.append(f"{len(usable)} questions; the published operating point is {ENOUGH} runs of {ENOUGH} questions")
    return Assessment(
        team=name or runs[0].team,
        distance="1 - cosine of hidden states" if embedder else "edits of tokens",
        temperature=config.temperature if live else None,
        runs=len(runs),
        questions=len(usable),
        mean_score=float(np.mean([score_of(run, "verdict") for run in runs])),
        seconds=round(sum(run.wall for run in runs), 1) if live else 0.0,
        freedom=tuple(freedom),
        decided_on=config.score,
        advice=decide(config.rule, decided),
        warnings=(*said, *warnings(decided)),
    )


def _table(group: Sequence[Run], distances: Array, scores: Sequence[float | None]) -> Table:
    return Table(group[0].question.id, distances, np.asarray(scores, dtype=np.float64))


def _refuse(groups: Mapping[str, Sequence[Run]], usable: Sequence[Sequence[Run]]) -> None:
    if usable:
        return
    most = max((len(group) for group in groups.values()), default=0)
    if not most:
        raise DataError(
            "no run ended with a verdict: Metric Freedom compares scores, which failed runs and questions without a "
            "known answer do not have"
        )
    what = "one run per question" if most == 1 else f"at most {most} runs per question"
    raise DataError(
        f"{what}: Metric Freedom compares at least {FEWEST} ({ENOUGH} are advised) runs of the same question; record "
        "it with other seeds and give all recordings, or let 'soloist assess TEAM' run the team"
    )


def _write(folder: Path, config: AssessConfig, found: Assessment, runs: Sequence[Run], team: TeamConfig | None) -> None:
    write_atomic(folder / ASSESSMENT, found.model_dump_json(indent=1) + "\n")
    card = make_card(runs, found.advice, team, name=found.team, examples=config.examples)
    write_atomic(folder / "skill_card.json", card.model_dump_json(indent=1) + "\n")
    write_atomic(folder / "skill_card.md", render(card, found.advice, sentence(found)))
    if team is not None:
        agent = agent_of(card, team).model_dump(mode="json", exclude_defaults=True)
        write_atomic(folder / "skill_agent.yaml", yaml.safe_dump(agent, sort_keys=False, allow_unicode=True))


def _facts(found: Assessment, runs: Sequence[Run]) -> dict[str, Any]:
    decided = found.find("output", found.decided_on)
    return {
        "team": found.team,
        "rule": found.advice.rule,
        "metric_freedom": decided.value,
        "p": decided.p,
        "outlook": found.advice.outlook,
        "runs": len(runs),
        "questions": found.questions,
        "seconds": found.seconds,
    }


def spread(questions: Sequence[Question], count: int) -> list[Question]:
    """`count` questions, evenly over the families, each text once."""
    families: dict[str, list[Question]] = {}
    for question in {question_key(q.question): q for q in questions}.values():
        families.setdefault(question.task, []).append(question)
    if count < len(families):
        names = list(families)
        return [families[names[i * len(names) // count]][0] for i in range(count)]
    return interleave(list(families.values()))[:count]


def assessment_of(folder: Path, team: str) -> Assessment | None:
    """The finding a job's folder holds about this team, if any."""
    path = folder / STAGE
    if not (path / MANIFEST).is_file():
        return None
    found = read_assessment(Artifact.open(path, stage=STAGE).path / ASSESSMENT)
    return found if found.team == team else None
