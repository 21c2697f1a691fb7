"""Supervised fine-tuning: cross-entropy of the student's own tokens, on one verified trajectory a question.

The cross-entropy that most other methods are made of is here too.
"""

from __future__ import annotations

from collections.abc import Sequence

from soloist.toolchain.distill.data import Selection, select
from soloist.toolchain.distill.objective import CrossEntropy
from soloist.toolchain.distill.work import Method, Setup
from soloist.toolchain.traces.schema import Run


def verified(runs: Sequence[Run], setup: Setup) -> Selection:
    """The trajectory of every run that passes rejection sampling, see `data.select`."""
    return select(runs, setup.tokenizer, check_steps=setup.check_steps, mode=setup.mode, max_length=setup.max_length)


METHOD = Method(select=verified, objective=lambda _student, _setup: CrossEntropy())
