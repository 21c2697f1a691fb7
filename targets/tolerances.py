"""How far each compiled format may stand from the student: the one table the fidelity gate reads.

KL and top-1 are over the reference answers' tokens, teacher-forced, against the student in float32: KL divergence in
nats (its mean, its 99th percentile, and the mean over the first token of each answer), and the share of tokens whose
likeliest successor is the same. A row is chosen by the fewest bits that hold a weight. The numbers leave the untrained
base model (SmolLM2-135M on its own answers, 443 tokens) about twice the KL it measured; a trained student is surer of
its short calls and stays far inside. A file past them is not "a bit worse", it is broken. Fewer than 4 bits are held
to what 4 bits must keep.

    F16 0.000004 / 1.000   Q8_0 0.0036 / 0.973   Q5_0 0.082 / 0.856   Q4_0 0.29 / 0.783
    int8 0.0041 / 0.975    int4 0.18 / 0.831

99th percentile and first tokens of its 10 answers, 370 tokens, against F16:

    Q8_0 0.017, 0.006   Q6_K 0.070, 0.017   Q5_K_M 0.54, 0.080   Q5_0 0.68, 0.12   Q4_0 1.5, 0.38

`points` is of the task's accuracy, where questions are given: right answers in 100 that may be lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from soloist.targets.formats import parse


@dataclass(frozen=True)
class Tolerance:
    """Largest mean KL divergence and smallest share of same top-1 tokens; see the module for the others.

    What is not given is held to nothing, but for `points`.
    """

    kl: float
    top1: float
    p99: float = math.inf
    first: float = math.inf
    points: float = 1.0


# bits of the narrowest weight -> tolerance
TOLERANCES: Mapping[int, Tolerance] = {
    32: Tolerance(kl=0.0001, top1=0.995, p99=0.001, first=0.0005),
    16: Tolerance(kl=0.002, top1=0.99, p99=0.02, first=0.005),
    8: Tolerance(kl=0.02, top1=0.95, p99=0.1, first=0.05),
    6: Tolerance(kl=0.06, top1=0.88, p99=0.35, first=0.1),
    5: Tolerance(kl=0.20, top1=0.80, p99=1.5, first=0.35),
    4: Tolerance(kl=0.50, top1=0.70, p99=3.0, first=0.9),
}


def tolerance_of(format: str, bits: int | None = None) -> Tolerance:
    """The tolerance of a format such as "gguf-q5_0".

    Args:
        bits: the fewest bits a matrix of the student has, where it is a quantized one.

    Raises:
        UsageError: an unknown format.
    """
    fewest = parse(format).bits if bits is None else min(parse(format).bits, bits)
    return TOLERANCES[max(known for known in TOLERANCES if known <= max(fewest, min(TOLERANCES)))]
