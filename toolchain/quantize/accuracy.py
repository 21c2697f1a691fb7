"""What a student answers with other weights: the questions of an accuracy budget, asked of a file as it will run.

The integers become a GGUF file, which llama.cpp answers from greedily, with the tools of the student's card, as
`soloist bench` asks. The float student is asked as F16. Each file is made in a scratch folder and removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from soloist.kernels.errors import UsageError
from soloist.targets.to_gguf import compile_gguf
from soloist.toolchain.quantize.matrices import write_quantized
from soloist.toolchain.quantize.planner import Ask
from soloist.toolchain.student.ask import ask as ask_team
from soloist.toolchain.student.ask import student_team
from soloist.toolchain.student.student import Student
from soloist.toolchain.tasks.base import Question

if TYPE_CHECKING:
    from soloist.kernels.layout import Quantized


def asker(student: Student, questions: Sequence[Question], out: Path, entries: Sequence[str] = ()) -> Ask:
    """A function from integers to verdicts on the questions, 1 for right; of None, the float student's.

    Args:
        entries: tool entries of the team, where its tools are not built in.

    Raises:
        UsageError: no questions.
        DataError: some question could not be asked at all.
    """
    if not questions:
        raise UsageError("an accuracy budget needs at least one question")
    folder = student.models[""]
    trusted = student.entries(entries)
    scratch = out.with_name(out.name + ".asking")

    def ask(matrices: Mapping[str, Quantized] | None) -> list[int]:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            source = folder
            if matrices is not None:
                source = scratch / "quantized"
                write_quantized(folder, source, matrices, dict.fromkeys(matrices, "tried"))
            made = compile_gguf(source, scratch / "gguf")
            team = student_team(scratch / "gguf" / made["file"], student.called_tools, trusted)
            return ask_team(team, questions)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    return ask
