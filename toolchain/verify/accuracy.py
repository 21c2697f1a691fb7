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

from soloist.kernels.errors import ArtifactError, GateError, UsageError
from soloist.targets.compile import compile_format
from soloist.targets.requantize import cache_folder
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.core.environment import versions
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.core.statistics import paired_difference
from soloist.toolchain.student.ask import student_team
from soloist.toolchain.student.student import Student
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.verify.process import DEFAULT, Allowed, memory_for, run_worker, stamp
from soloist.toolchain.verify.verdict import Accuracy, Verdict

_QUESTION_S = 30  # on top of the limit of a start
_SHOWN = 5


@dataclass(frozen=True)
class AccuracyCheck:
    """Held-out questions, the tools they are answered with, and which of them the 16-bit student has right."""

    questions: tuple[Question, ...]
    tools: tuple[str, ...]
    entries: tuple[str, ...]
    right: tuple[int, ...]

    def run(
        self,
        model: Path,
        out: Path,
        tolerance: Tolerance,
        allowed: Allowed = DEFAULT,
    ) -> Verdict:
        """Ask a file in a process of its own; `accuracy`, and whether it kept within its points."""
        try:
            right = _answers(model, self.questions, self.tools, self.entries, out, allowed)
        except GateError as error:
            return Verdict(verdict="fail", reason=f"asked the task's questions, it {error}")
        paired = paired_difference([bool(one) for one in right], [bool(one) for one in self.right])
        points, low, high = paired.difference.points()
        lost = [q.id for q, new, old in zip(self.questions, right, self.right, strict=True) if old and not new]
        accuracy = Accuracy(
            questions=len(right),
            student=sum(self.right),
            file=sum(right),
            points=points,
            low=low,
            high=high,
            p_value=paired.p_value,
            lost=tuple(lost[:_SHOWN]),
        )
        if -points <= tolerance.points:
            return Verdict(verdict="pass", accuracy=accuracy)
        reason = (
            f"loses {-points:.1f} points of accuracy (at most {tolerance.points:g}): {sum(right)} of {len(right)} "
            f"right, the 16-bit student {sum(self.right)} (difference {low:+.1f} to {high:+.1f} points at 95 %); "
            f"lost first: {', '.join(lost[:_SHOWN])}"
        )
        return Verdict(verdict="fail", reason=reason, accuracy=accuracy)


def accuracy_check(
    student: Student, questions: Sequence[Question], scratch: Path, entries: Sequence[str] = ()
) -> AccuracyCheck:
    """The accuracy check of a float student: its own answers, from the cache if it was asked them before.

    Args:
        scratch: a folder for its 16-bit file, which is removed.
        entries: tool entries of its team, where its tools do not ship with Soloist.

    Raises:
        UsageError: no questions, or tools that nobody named.
        ArtifactError: the 16-bit student cannot answer them, so nothing can be compared.
    """
    if not questions:
        raise UsageError("accuracy needs at least one question")
    tools = student.called_tools
    trusted = student.entries(entries)
    asked = [question.model_dump(mode="json") for question in questions]
    runtime = versions().get("xllamacpp") or versions().get("llama-cpp-python")
    text = json.dumps([student.digest, asked, tools, trusted, runtime], sort_keys=True)
    kept = cache_folder() / "answers" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    if kept.is_file():
        right = json.loads(kept.read_text(encoding="utf-8"))
    else:
        try:
            model = _sixteen_bits(student, scratch / "f16")
            right = _answers(model, questions, tools, trusted, scratch / "student", DEFAULT)
        except GateError as error:
            raise ArtifactError(f"{student.path}: the 16-bit student cannot be asked ({error})") from error
        finally:
            shutil.rmtree(scratch / "f16", ignore_errors=True)
        write_atomic(kept, json.dumps(right))
    return AccuracyCheck(tuple(questions), tools, trusted, tuple(right))


def _sixteen_bits(student: Student, out: Path) -> Path:
    """The student in 16 bits: a GGUF file, or torch for a family that has none."""
    try:
        made = compile_format(student.models, out, "gguf-f16", "student", graphs=out / "graphs")
    except ArtifactError:
        return student.path
    student.write_sidecars(out / "gguf-f16")
    return out / made.path


def _answers(
    model: Path,
    questions: Sequence[Question],
    tools: Sequence[str],
    entries: Sequence[str],
    out: Path,
    allowed: Allowed,
) -> list[int]:
    job = {
        "what": "ask",
        "files": stamp(model),
        "team": student_team(model.resolve(), tools, entries).model_dump(mode="json"),
        "questions": [question.model_dump(mode="json") for question in questions],
    }
    limit = allowed.seconds + _QUESTION_S * len(questions)
    return [int(one) for one in run_worker(job, out, limit, allowed.memory_mb or memory_for(model))["right"]]
