"""What is compared: the team, its baselines, the student and every compiled file, each as a team of its own.

A lone model is a team of one agent, so all systems are asked, timed and counted by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from soloist.targets.formats import ENGINES, parse
from soloist.toolchain.bench.records import REPORTED, SELECTION, Kind
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.config import Config
from soloist.toolchain.student.ask import student_team
from soloist.toolchain.student.student import Student, open_student, parent_of
from soloist.toolchain.tasks.base import Split
from soloist.toolchain.teams.config import (
    AgentConfig,
    Demonstration,
    SamplingConfig,
    TeamConfig,
)
from soloist.toolchain.teams.lone import BASE_PROMPT, lone
from soloist.toolchain.traces.recording import TraceFacts
from soloist.toolchain.verify.fidelity import runs_here
from soloist.toolchain.verify.verdict import ExportFacts, latest_verdict

Share = Annotated[float, Field(ge=0, le=1)]
BASE_TOKENS = 64
_TARGETS = {
    "gguf": "GGUF",
    "onnx": "ONNX",
    "onnx-cuda": "ONNX CUDA",
    "onnx-portable": "ONNX portable",
    "tensorrt-rtx": "TensorRT-RTX",
    "tensorrt": "TensorRT",
}


class System(Config):
    """One system. `shares` asks it only a share of a split's questions (expensive systems); `warmup` questions first.

    `usd_per_million` (in, out) prices a hosted model by hand; without it the list of genai-prices does.
    """

    id: str
    kind: Kind
    team: TeamConfig
    format: str | None = None
    size_mb: float | None = None
    shares: dict[Split, Share] = Field(default_factory=dict)
    warmup: int = Field(default=2, ge=0)
    usd_per_million: tuple[float, float] | None = None

    def share(self, split: Split) -> float:
        """The share of a split's questions that it is asked."""
        return self.shares.get(split, 1.0)


def baselines(
    team: TeamConfig,
    examples: Sequence[Demonstration],
    tools: Sequence[str],
    budget: int,
    undebated: TeamConfig | None = None,
    shares: Mapping[Split, float] | None = None,
) -> list[System]:
    """What the team is compared with, beside its student; none is asked the questions that files are chosen on.

    The base model alone, one tool-using agent, self-consistency at the team's token budget, and the team without its
    debate: what a sensible engineer would deploy before distilling.

    Args:
        examples: demonstrations of the tool-using agent.
        budget: tokens that the team reads and writes per question.
        shares: of the team's questions that the team without its debate is asked.
    """
    alone = AgentConfig(name="base", role="solver", prompt=BASE_PROMPT, sampling=SamplingConfig(max_tokens=BASE_TOKENS))
    drawn = alone.model_copy(update={"sampling": SamplingConfig(max_tokens=BASE_TOKENS, temperature=0.7, top_p=0.95)})
    voting = lone("self-consistency", team, drawn, topology="self-consistency", samples=64, max_tokens_total=budget)
    systems = [
        System(id="base", kind="base", team=lone("base", team, alone), shares=_reported(0.25)),
        System(id="self-consistency", kind="self-consistency", team=voting, warmup=0, shares=_reported(0.02)),
    ]
    if undebated is not None:
        systems.append(
            System(id="undebated", kind="undebated", team=undebated, shares=_reported(1) | dict(shares or {}))
        )
    if tools:
        acting = AgentConfig(
            name="agent",
            role="solver",
            tools=tuple(tools),
            demonstrations=tuple(examples),
            sampling=SamplingConfig(max_tokens=64),
        )
        agent = lone("tool-agent", team, acting)
        systems.append(System(id="tool-agent", kind="tool-agent", team=agent, shares=_reported(0.25)))
    return systems


def _reported(share: float) -> dict[Split, float]:
    """This share of the questions that are reported, and none of those that files are chosen on."""
    return {**dict.fromkeys(REPORTED, share), **dict.fromkeys(SELECTION, 0.0)}


def format_title(format: str, bits: int | None = None) -> str:
    """A format as people call it, "GGUF Q8_0"; "GGUF 4-bit" where it carries the integers of a quantized student."""
    parsed = parse(format)
    precision = parsed.precision or ""
    if parsed.target == "tensorrt" and precision:
        precision = f"JetPack {precision}"
    elif parsed.target == "gguf":
        precision = precision.upper()
    if bits is not None and parsed.target != "tensorrt":
        precision = f"{bits}-bit"
    return f"{_TARGETS[parsed.target]} {precision}".strip()


def torch_system(student: Student, entries: Sequence[str], share: float) -> System:
    """The float student in torch, the reference of its files; it is slow, so it is asked a share."""
    size = sum((folder / "model.safetensors").stat().st_size for folder in student.models.values()) / 1e6
    return System(
        id="student-torch",
        kind="student",
        format="torch",
        size_mb=round(size, 1),
        shares=_reported(share),
        team=student_team(student.path, student.called_tools, entries),
    )


def file_systems(export: Artifact, student: Student, entries: Sequence[str]) -> list[System]:
    """The formats of an export that have passed and whose device is here, by the latest verdict on each."""
    systems = []
    for format, made in export.read(ExportFacts).formats.items():
        if latest_verdict(export, format).verdict.verdict != "pass":
            continue
        if parse(format).target in ENGINES and not runs_here(export.path / format):
            continue
        systems.append(
            System(
                id=file_id(format, student.bits),
                kind="artifact",
                format=format_title(format, student.bits),
                size_mb=made.size_mb,
                team=student_team(export.path / made.path, student.called_tools, entries),
            )
        )
    return systems


def compared_systems(
    team: TeamConfig | None,
    student: Student,
    exports: Sequence[Artifact],
    traces: Artifact | None = None,
    *,
    examples: Sequence[Demonstration] = (),
    undebated: TeamConfig | None = None,
    warmup: int = 2,
    team_shares: Mapping[Split, float] | None = None,
    usd_per_million: tuple[float, float] | None = None,
    entries: Sequence[str] = (),
) -> list[System]:
    """The team, its baselines, the torch student and its files, as one comparison; without a team the last two.

    Args:
        exports: of the student, or of one quantized from it.
        traces: what the team spent on them per question is the budget of self-consistency.
        warmup: questions the team is asked before it is timed.
        entries: where the student's tools are [default: where the team's are].
    """
    systems: list[System] = []
    if team is not None:
        entries = entries or team.tools
        shares: dict[Split, float] = dict(team_shares or {})
        shares.update(dict.fromkeys(SELECTION, 0.0))
        systems.append(System(id="team", kind="team", team=team, warmup=warmup, shares=shares))
        systems += baselines(team, examples, student.called_tools, _budget(traces), undebated, team_shares)
        systems = [system.model_copy(update={"usd_per_million": usd_per_million}) for system in systems]
    elif student.called_tools:
        entries = student.entries(entries)
    systems.append(torch_system(student, entries, share=0.05))
    for export in exports:
        systems += file_systems(export, open_student(parent_of(export)), entries)
    return systems


def _budget(traces: Artifact | None) -> int:
    """Tokens that the team read and wrote per recorded question; of imported traces without counts, one."""
    if traces is None:
        return 1
    facts = traces.read(TraceFacts)
    return max(1, (facts.tokens_in + facts.tokens_out) // max(1, facts.runs))


def file_id(format: str, bits: int | None) -> str:
    """What a compiled format is called among the systems: `student-gguf-q8_0`, `student-4bit-gguf`."""
    return f"student-{format}" if bits is None else f"student-{bits}bit-{format}"
