"""Runs the cases of kernels against float64, in a process of its own: Triton's interpreter is a choice made at import.

    parent:  run_cases(impls, "cpu", seed=0, slow=False)     one Result a case, as they come
    worker:  python -m soloist.kernels.check                 kernel.check(case, device, seed)

On the CPU the process has TRITON_INTERPRET=1, on a GPU it has not, whatever the caller's says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from soloist.kernels.child import Child, ChildDied, Parent
from soloist.kernels.choose import Impl, require_triton
from soloist.kernels.errors import MissingExtraError, ResourceError
from soloist.kernels.spec import Case, Kernel


@dataclass(frozen=True)
class Result:
    """What one case came to.

    Args:
        worst: largest error in units of what is allowed; 1.0 is the limit. Infinite where the case broke off.
        absolute: largest absolute error.
        error: why it broke off, or nothing.
    """

    kernel: str
    case: str
    worst: float
    absolute: float
    total: int
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether every element was within its tolerance."""
        return self.worst <= 1.0


def run_cases(impls: Sequence[Impl], device: Literal["cpu", "cuda"], *, seed: int, slow: bool) -> Iterator[Result]:
    """Results of all cases of the kernels, as they come.

    Raises:
        MissingExtraError: no Triton here.
        ResourceError: no Triton for this system, no GPU, or a process that died.
    """
    require_triton()
    if device == "cuda":
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError("torch", "train") from error
        if not torch.cuda.is_available():
            raise ResourceError("torch sees no CUDA device here: check with --torch-device cpu (Triton's interpreter)")
    order = {"impls": [dataclasses.astuple(impl) for impl in impls], "device": device, "seed": seed, "slow": slow}
    interpreter = {"TRITON_INTERPRET": "1" if device == "cpu" else None}
    with Child("soloist.kernels.check", interpreter) as child:
        child.send(order)
        try:
            for answer in child.answers():
                yield Result(**answer)
        except ChildDied as error:
            raise ResourceError(f"the checking process {error}") from error


def work() -> None:
    """Do the parent's order; an answer a case."""
    parent = Parent()
    order = parent.receive()
    assert order is not None
    chosen: list[tuple[Kernel, Case]] = []
    for fields in order["impls"]:
        kernel = Impl(*fields).load()
        chosen.extend((kernel, case) for case in kernel.cases if order["slow"] or not case.slow)
    for kernel, case in chosen:
        answer = {"kernel": kernel.name, "case": case.name, "total": len(chosen)}
        try:
            outcome = kernel.check(case, order["device"], order["seed"])
            answer |= {"worst": float(outcome.worst), "absolute": float(outcome.absolute)}
        except Exception as error:  # one broken case must not hide the others
            text = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
            answer |= {"worst": float("inf"), "absolute": float("inf"), "error": text}
        parent.send(answer)


if __name__ == "__main__":
    work()
