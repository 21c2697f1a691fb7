"""How far each compiled format may stand from the student: the one table the fidelity gate reads.

Numbers are over the reference answers' tokens, teacher-forced, against the student in float32: mean KL
divergence in nats, and the share of tokens whose likeliest successor is the same. They leave the untrained
base model (SmolLM2-135M on its own answers, 443 tokens) about twice the KL it measured; a trained student
is surer of its short calls and stays far inside. A file past them is not "a bit worse", it is broken.

    F16 0.000004 / 1.000   Q8_0 0.0036 / 0.973   Q5_0 0.082 / 0.856   Q4_0 0.29 / 0.783
    int8 0.0041 / 0.975    int4 0.18 / 0.831
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from soloist.kernels.errors import UsageError


@dataclass(frozen=True)
class Tolerance:
    """Largest mean KL divergence and smallest share of same top-1 tokens."""

    kl: float
    top1: float


TOLERANCES: Mapping[str, Tolerance] = {
    "gguf-f16": Tolerance(kl=0.002, top1=0.99),
    "gguf-q8_0": Tolerance(kl=0.02, top1=0.95),
    "gguf-q5_0": Tolerance(kl=0.20, top1=0.80),
    "gguf-q4_0": Tolerance(kl=0.50, top1=0.70),
    "onnx-int8": Tolerance(kl=0.02, top1=0.95),
    "onnx-int4": Tolerance(kl=0.50, top1=0.70),
}


def tolerance_of(format: str) -> Tolerance:
    """The tolerance of a format such as "gguf-q5_0"."""
    if format not in TOLERANCES:
        raise UsageError(f"unknown format '{format}': use one of {', '.join(TOLERANCES)}")
    return TOLERANCES[format]
