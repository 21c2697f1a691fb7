"""A tiny student with its traces, for whatever quantizes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

for package in ("torch", "transformers", "gguf", "safetensors"):
    pytest.importorskip(package)

from soloist.toolchain.core.artifact import Artifact, stage  # noqa: E402
from soloist.toolchain.student.student import Student, open_student  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.traces.schema import Run, ToolUse, Turn  # noqa: E402
from soloist.toolchain.traces.store import write_runs  # noqa: E402


def _run(number: int, verdict: str = "correct") -> Run:
    total = number + 5
    call = ToolUse(
        name="add", arguments={}, call=f"add({number} | 5)", result=str(total), steps=(f"{number} + 5 = {total}",)
    )
    question = Question(
        id=f"q{number}", question=f"What is {number} + 5?", gold=str(total), split="train", scorer="number"
    )
    turn = Turn(id=0, agent="a", role="a", text=call.call, tools=(call,))
    return Run(question=question, team="t", turns=(turn,), path=(0,), answer=str(total), verdict=verdict)


@pytest.fixture(scope="session")
def traces_in() -> Callable[..., Artifact]:
    """Traces of a team that adds, in a folder: how many, with which verdict."""

    def made(folder: Path, count: int = 12, verdict: str = "correct") -> Artifact:
        def build(partial):
            write_runs([_run(number, verdict) for number in range(count)], partial / "traces.jsonl.gz")
            return {}

        return stage("record", folder, {"count": count}, [], build)

    return made


@pytest.fixture(scope="session")
def traces(tmp_path_factory, traces_in) -> Artifact:
    return traces_in(tmp_path_factory.mktemp("traces") / "traces")


@pytest.fixture(scope="session")
def student(tiny, tmp_path_factory, traces, write_card) -> Student:
    def build(partial):
        shutil.copytree(tiny, partial, dirs_exist_ok=True)
        write_card(partial, "tools")
        return {}

    return open_student(stage("distill", tmp_path_factory.mktemp("student") / "student", {}, [traces], build))
