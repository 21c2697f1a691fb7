"""What a run is asked to do: a task (a team and its questions), and how its student is made and paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soloist.kernels.errors import UsageError
from soloist.toolchain.bench.cost import LocalPrice
from soloist.toolchain.quantize.stage import QuantizeConfig
from soloist.toolchain.student.artifact import Mode
from soloist.toolchain.tasks.base import Question, Split, spread
from soloist.toolchain.tasks.files import load_questions
from soloist.toolchain.teams.config import Demonstration, TeamConfig, load_team, shipped_teams
from soloist.toolchain.traces.recording import TRACES, open_traces
from soloist.toolchain.traces.store import read_runs

FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-q4_0", "gguf", "onnx")
_CARRIERS = ("gguf", "onnx", "onnx-portable")  # without a precision they carry the integers of a quantized student
_SELECTION = 60
_ENOUGH = 5 * _SELECTION  # training questions from which some are kept to choose among files


@dataclass(frozen=True)
class Task:
    """A team, and the questions it is recorded on and measured with.

    Args:
        team: None where there are only traces of it: nothing is then compared with one.
        test: held-out questions (split `held-out` or `unseen-wording`): what the report is about.
        selection: questions that files are chosen on (splits `selection`, `selection-wording`).
        train: questions to record; empty where there are `traces`.
        examples: demonstrations of the tool-using baseline.
        warmup: asked before anything is timed.
        undebated: the team without its debate, a baseline.
        team_shares: the share of a split's questions that the team is asked, where it is slow.
        notes: what a reader of the report must know of this task.
    """

    team: TeamConfig | None
    test: Sequence[Question]
    selection: Sequence[Question] = ()
    train: Sequence[Question] = ()
    traces: Path | None = None
    examples: Sequence[Demonstration] = ()
    warmup: Sequence[Question] = ()
    undebated: TeamConfig | None = None
    team_shares: Mapping[Split, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def asked(self) -> list[Question]:
        """All questions that systems are measured with."""
        return [*self.test, *self.selection]


@dataclass(frozen=True)
class Job:
    """One whole run. `quantize` None: no student of integers is made. `mode` None: tools where the traces call any."""

    task: Task
    base: str
    out: Path
    mode: Mode | None = None
    method: str = "sft"
    options: Mapping[str, Any] = field(default_factory=dict)
    formats: Sequence[str] = FORMATS
    quantize: QuantizeConfig | None = field(default_factory=lambda: QuantizeConfig(samples=16))
    epochs: int | None = None
    limit: int | None = None
    seed: int = 42
    price: LocalPrice = field(default_factory=LocalPrice)
    usd_per_million: tuple[float, float] | None = None
    command: str = ""
    assess: bool = False

    @property
    def name(self) -> str:
        """Of the team, or of the folder where there is none."""
        return self.task.team.name if self.task.team is not None else self.out.name

    @property
    def float_formats(self) -> tuple[str, ...]:
        """Formats that are made from the float student."""
        return tuple(format for format in self.formats if format not in self.carried_formats)

    @property
    def carried_formats(self) -> tuple[str, ...]:
        """Formats that carry the integers of the quantized student."""
        if self.quantize is None:
            return ()
        return tuple(format for format in self.formats if format in _CARRIERS)


def team_of_traces(traces: Path) -> str | None:
    """The name of the team that traces were recorded from, if it ships with Soloist.

    Another team's file may name code; that is opened when the user names the file, never on the word of traces.
    """
    team = open_traces(traces).manifest["config"].get("team") or {}
    name = team.get("name")
    return name if name in shipped_teams() else None


def own_task(team: str | None, test: Path, *, train: Path | None = None, traces: Path | None = None) -> Task:
    """A team of the user's on questions of the user's, recorded anew or from traces that are there already.

    Where there are many questions to record, some are kept to choose among files; else files are chosen on questions
    that the student was trained on.

    Raises:
        UsageError: neither questions to record nor traces, or both.
    """
    config = load_team(team) if team is not None else None
    if (train is None) == (traces is None):
        raise UsageError(
            "a team of your own needs questions to be recorded on, or traces that are there: "
            "give one of --train FILE.jsonl and --traces FOLDER"
        )
    held_out = load_questions(test, split="held-out").questions
    if train is not None:
        pool = list(load_questions(train, split="train").questions)
    else:
        assert traces is not None
        open_traces(traces)
        pool = [run.question for run in read_runs(traces / TRACES)]
    selection = spread(pool, min(_SELECTION, len(pool)))
    recorded = pool
    if len(pool) >= _ENOUGH and train is not None:
        kept = {question.id for question in selection}
        recorded = [question for question in pool if question.id not in kept]
    return Task(
        team=config,
        test=held_out,
        selection=[question.model_copy(update={"split": "selection"}) for question in selection],
        train=() if train is None else recorded,
        traces=traces,
        examples=agent_examples(config) if config is not None else (),
        warmup=recorded[:2],
    )


def agent_examples(config: TeamConfig) -> list[Demonstration]:
    """Demonstrations a lone tool-using agent is given: those the team's own agents have."""
    examples: list[Demonstration] = []
    for agent in config.agents:
        if isinstance(agent.demonstrations, tuple):
            examples += agent.demonstrations
    return examples
