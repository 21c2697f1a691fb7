"""What a file keeps of the task: the questions of the 16-bit student, asked of the file, answer by answer.

Both are asked greedily, with the tools of the student's card, by the code that measures systems (`bench`). The 16-bit
student is its F16 GGUF file (torch where its family has none), and its answers are kept in the user's cache: they cost
minutes and are the same for every file. A file fails where it loses more points than its tolerance; the paired
interval stands beside, since few questions show little. Left out: drawing with temperature.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError, DataError, GateError, UsageError
from soloist.targets.requantize import cache_folder
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.bench.systems import student_team, student_tools
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.environment import versions
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.core.statistics import paired_difference
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.verify.process import LIMIT_S, memory_for, run_worker, stamp

_QUESTION_S = 30  # on top of the limit of a start
_SHOWN = 5


def ask(team: TeamConfig, questions: Sequence[Question]) -> list[int]:
    """Verdicts of a team on questions, 1 for right. Raises DataError where some could not be asked at all."""
    from soloist.toolchain.teams.team import Team

    with Team(team) as asked:
        runs = [asked.try_answer(question) for question in questions]
    failed = [run.error for run in runs if run.error is not None]
    if failed:
        raise DataError(f"{len(failed)} of {len(runs)} questions failed; the first: {json.dumps(failed[0])}")
    return [int(run.verdict == "correct") for run in runs]


@dataclass(frozen=True)
class Exam:
    """Held-out questions, the tools they are answered with, and which of them the 16-bit student has right."""

    questions: tuple[Question, ...]
    tools: tuple[str, ...]
    entries: tuple[str, ...]
    right: tuple[int, ...]

    def sit(
        self, model: Path, out: Path, tolerance: Tolerance, *, limit_s: float = LIMIT_S, memory_mb: int | None = None
    ) -> dict[str, Any]:
        """Ask a file in a process of its own; `accuracy`, and a verdict with its reason where it is a refusal."""
        try:
            right = _answers(model, self.questions, self.tools, self.entries, out, limit_s, memory_mb)
        except GateError as error:
            return {"verdict": "fail", "reason": f"asked the task's questions, it {error}"}
        paired = paired_difference([bool(one) for one in right], [bool(one) for one in self.right])
        points = {key: round(100 * value, 2) for key, value in vars(paired.difference).items()}
        lost = [q.id for q, new, old in zip(self.questions, right, self.right, strict=True) if old and not new]
        accuracy = {
            "questions": len(right),
            "student": sum(self.right),
            "file": sum(right),
            "points": points["value"],
            "low": points["low"],
            "high": points["high"],
            "p_value": paired.p_value,
            "lost": lost[:_SHOWN],
        }
        if -points["value"] <= tolerance.points:
            return {"verdict": "pass", "accuracy": accuracy}
        reason = (
            f"loses {-points['value']:.1f} points of accuracy (at most {tolerance.points:g}): {sum(right)} of "
            f"{len(right)} right, the 16-bit student {sum(self.right)} (difference {points['low']:+.1f} to "
            f"{points['high']:+.1f} points at 95 %); lost first: {', '.join(lost[:_SHOWN])}"
        )
        return {"verdict": "fail", "reason": reason, "accuracy": accuracy}


def exam_of(student: Artifact, questions: Sequence[Question], scratch: Path, entries: Sequence[str] = ()) -> Exam:
    """The exam of a float student: its own answers, from the cache if it was asked them before.

    Args:
        scratch: a folder for its 16-bit file, which is removed.
        entries: tool entries of its team, where its tools are not built in.

    Raises:
        UsageError: no questions.
        ArtifactError: the 16-bit student cannot answer them, so nothing can be compared.
    """
    if not questions:
        raise UsageError("accuracy needs at least one question")
    tools = tuple(student_tools(student))
    asked = [question.model_dump(mode="json") for question in questions]
    runtime = versions().get("llama-cpp-python")
    text = json.dumps([student.digest, asked, tools, list(entries), runtime], sort_keys=True)
    kept = cache_folder() / "answers" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    if kept.is_file():
        right = json.loads(kept.read_text(encoding="utf-8"))
    else:
        try:
            model = _whole(student, scratch / "f16")
            right = _answers(model, questions, tools, entries, scratch / "student", LIMIT_S, None)
        except GateError as error:
            raise ArtifactError(f"{student.path}: the 16-bit student cannot be asked ({error})") from error
        finally:
            shutil.rmtree(scratch / "f16", ignore_errors=True)
        write_atomic(kept, json.dumps(right))
    return Exam(tuple(questions), tools, tuple(entries), tuple(right))


def _whole(student: Artifact, out: Path) -> Path:
    """The student in 16 bits: a GGUF file, or torch for a family that has none."""
    from soloist.toolchain.export.stage import compile_format, knowledge, model_folders

    try:
        made = compile_format(model_folders(student), out, "gguf-f16", "student", knowledge(student.path))
    except ArtifactError:
        return student.path
    return out / str(made["path"])


def _answers(
    model: Path,
    questions: Sequence[Question],
    tools: Sequence[str],
    entries: Sequence[str],
    out: Path,
    limit_s: float,
    memory_mb: int | None,
) -> list[int]:
    job = {
        "what": "ask",
        "files": stamp(model),
        "team": student_team(model.resolve(), tools, entries).model_dump(mode="json"),
        "questions": [question.model_dump(mode="json") for question in questions],
    }
    limit = limit_s + _QUESTION_S * len(questions)
    return [int(one) for one in run_worker(job, out, limit, memory_mb or memory_for(model))["right"]]
