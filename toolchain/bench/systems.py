"""What is compared: the team, its rivals, the student and every compiled file, each as a team of its own.

A lone model is a team of one agent, so all systems are asked, timed and counted by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from soloist.targets.formats import parse
from soloist.targets.open import PARTS, parts
from soloist.toolchain.bench.records import Kind
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.config import Config
from soloist.toolchain.student.artifact import read_card
from soloist.toolchain.teams.config import (
    AgentConfig,
    Demonstration,
    SamplingConfig,
    StudentEngineConfig,
    TeamConfig,
)
from soloist.toolchain.teams.lone import BASE_PROMPT, lone

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
    """One system. `share` < 1 asks it only that share of the questions (dear rivals); `warmup` questions first.

    `usd_per_million` (in, out) prices a hosted model by hand; without it the list of genai-prices does.
    """

    id: str
    kind: Kind
    team: TeamConfig
    format: str | None = None
    size_mb: float | None = None
    share: float = Field(default=1.0, gt=0, le=1)
    warmup: int = Field(default=2, ge=0)
    usd_per_million: tuple[float, float] | None = None


def rivals(team: TeamConfig, examples: Sequence[Demonstration], tools: Sequence[str], budget: int) -> list[System]:
    """The cheap rivals: the base model alone, one tool-using agent, self-consistency at the team's token budget."""
    alone = AgentConfig(name="base", role="solver", prompt=BASE_PROMPT, sampling=SamplingConfig(max_tokens=BASE_TOKENS))
    drawn = alone.model_copy(update={"sampling": SamplingConfig(max_tokens=BASE_TOKENS, temperature=0.7, top_p=0.95)})
    found = [
        System(id="base", kind="base", team=lone("base", team, alone)),
        System(
            id="self-consistency",
            kind="self-consistency",
            share=0.04,
            warmup=0,
            team=lone(
                "self-consistency", team, drawn, topology="self-consistency", samples=64, max_tokens_total=budget
            ),
        ),
    ]
    if tools:
        acting = AgentConfig(
            name="agent",
            role="solver",
            tools=tuple(tools),
            demonstrations=tuple(examples),
            sampling=SamplingConfig(max_tokens=64),
        )
        found.append(System(id="tool-agent", kind="tool-agent", team=lone("tool-agent", team, acting)))
    return found


def student_team(path: Path, tools: Sequence[str], entries: Sequence[str]) -> TeamConfig:
    """A student, alone: no prompt, no demonstrations, the same tools as its team (none: it answers in words).

    A student of two models is one system as well: its decomposer asks, its solver calls the tools.
    """
    sampling = SamplingConfig(max_tokens=64 if tools else 256)
    student = AgentConfig(name="student", role="student", tools=tuple(tools), sampling=sampling)
    topology, agents = "solo", [student]
    if parts(path):
        topology = "socratic"
        agents = [
            student.model_copy(update={"name": name, "role": name, "model": name, "tools": called})
            for name, called in zip(PARTS, ((), student.tools), strict=True)
        ]
    return TeamConfig(
        name="student",
        topology=topology,
        engine=StudentEngineConfig(kind="student", path=str(path)),
        agents=tuple(agents),
        tools=tuple(entries) if tools else (),
    )


def format_title(format: str) -> str:
    """A format as people call it, "GGUF Q8_0"."""
    found = parse(format)
    precision = found.precision or ""
    if found.target == "tensorrt" and precision:
        precision = f"JetPack {precision}"
    return f"{_TARGETS[found.target]} {precision.upper() if found.target == 'gguf' else precision}".strip()


def students(student: Artifact, compiled: Artifact, formats: Sequence[str], entries: Sequence[str]) -> list[System]:
    """The torch student and these compiled formats of it."""
    tools = student_tools(student)
    models = parts(student.path).values() or [student.path]
    size = sum((model / "model.safetensors").stat().st_size for model in models) / 1e6
    found = [
        System(
            id="student-torch",
            kind="student",
            format="torch",
            size_mb=round(size, 1),
            share=0.1,
            team=student_team(student.path, tools, entries),
        )
    ]
    for name in formats:
        facts = compiled.facts["formats"][name]
        found.append(
            System(
                id=f"student-{name}",
                kind="artifact",
                format=format_title(name),
                size_mb=facts["size_mb"],
                team=student_team(compiled.path / facts["path"], tools, entries),
            )
        )
    return found


def student_tools(student: Artifact) -> list[str]:
    """The tools a student was taught to call; none for a student that answers in words."""
    return list(read_card(student.path).called_tools)
