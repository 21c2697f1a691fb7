"""A student handed from one phase of training to the next in fp32.

The finished student is rounded to bf16, once. Rounded between phases as well, every weight would begin the next
phase in the middle of a rounding interval, and the small rates of late phases (5e-6 for preferences, 1e-6 for a
reward model, 5e-7 for GRPO) would leave most of them there: what was learned would be gone when it is saved. From
exact weights a small change shows in as many rounded weights as it should.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soloist.toolchain.distill.data import Group
from soloist.toolchain.distill.model import Student, no_progress_bar
from soloist.toolchain.distill.objective import Objective
from soloist.toolchain.distill.train import Trainer
from soloist.toolchain.distill.work import Work
from soloist.toolchain.student.artifact import TrainingFacts


def write_exact(model: Any, tokenizer: Any, folder: Path) -> None:
    """A plain Hugging Face folder, in fp32."""
    with no_progress_bar():
        model.float().save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))


def save_exact(student: Student, folder: Path) -> None:
    """As `Student.save`, but in fp32; the exact weights must be back in their places."""
    model = student.model.merge_and_unload() if student.lora else student.model
    model.set_attn_implementation(student.native_attention)
    write_exact(model, student.tokenizer, folder)


def fit_exact(
    work: Work, trainer: Trainer, groups: Sequence[Group], objective: Objective, folder: Path
) -> TrainingFacts:
    """As `work.fit`, but saved in fp32."""
    trainer.optimize(objective)
    trained = trainer.fit(groups, folder, events=work.events)
    exact = trainer.optimizer.exact()
    if work.processes.main:
        trainer.student.restore(exact)
        save_exact(trainer.student, folder)
    work.processes.share(None)
    return trained.facts()
