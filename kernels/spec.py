"""What every kernel module says about itself, so that checks, builds and tables can walk all of them.

A module exposes its `KERNEL`. Its cases are what `soloist kernels check` and the tests run; its builds are what
`soloist kernels build` compiles ahead of time. Importing a kernel module touches no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Configuration:
    """How a kernel is divided into programs and compiled.

    Args:
        constants: the kernel's `tl.constexpr` arguments that it sets, by name.
        warps: warps per program.
        stages: depth of the software pipeline.
        registers: the most that a thread may use; the compiler's own judgment where none is given.
    """

    constants: Mapping[str, int]
    warps: int = 4
    stages: int = 2
    registers: int | None = None

    @property
    def name(self) -> str:
        """Short and unique within a kernel: `block_n16-splits4-w4-s2`, `elements1024-w4-s1-r168`."""
        constants = [f"{key.lower()}{value}" for key, value in self.constants.items()]
        ceiling = [] if self.registers is None else [f"r{self.registers}"]
        return "-".join([*constants, f"w{self.warps}", f"s{self.stages}", *ceiling])

    def launch_options(self, *, fused: bool = True) -> dict[str, Any]:
        """What Triton is told beside the constants, at a launch and ahead of time. `fused`: see `Build`."""
        ceiling = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": fused, **ceiling}


@dataclass(frozen=True)
class Build:
    """One kernel function to compile ahead of time.

    Args:
        variant: what distinguishes it among the kernel's builds besides the configuration: `fp16-g32-bias`.
        function: the `@triton.jit` function.
        signature: Triton's type of each argument that is not a constant, in order: `*fp16`, `i32`.
        constants: every `tl.constexpr` argument, those of the configuration included.
        aligned: arguments known to be divisible by 16 (pointers: bytes), which widens loads.
        grid: programs along x, y, z, as expressions of the argument names and constants: `cdiv(N, BLOCK_N)`.
        shipped: part of what users get; such a build may not spill registers.
        architectures: for these alone (87, 90), where a configuration fits only some; none means all.
        fused: multiply-adds may be fused, rounding once; not where bits must equal those of a reference in torch.
    """

    kernel: str
    variant: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    configuration: Configuration
    aligned: tuple[str, ...] = ()
    grid: tuple[str, str, str] = ("1", "1", "1")
    shipped: bool = True
    architectures: tuple[int, ...] = ()
    fused: bool = True

    @property
    def name(self) -> str:
        """Unique over all builds."""
        return f"{self.kernel}.{self.variant}.{self.configuration.name}"


@dataclass(frozen=True)
class Case:
    """One row of a kernel's table: what it is run on, and how near it must come to the float64 reference.

    Args:
        sizes: by name, as the kernel's docstring has them: {"M": 1, "N": 576, "K": 1536}.
        dtype: of activations: `float16`, `bfloat16`, `float32`.
        options: group size, bias, zero points ... by name.
        slow: too long for the default tests under the interpreter.
    """

    sizes: Mapping[str, int]
    dtype: str
    atol: float
    rtol: float
    options: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False

    @property
    def name(self) -> str:
        """Readable test id: `M1-N576-K1536-float16-group32-bias`."""
        sizes = [f"{key}{value}" for key, value in self.sizes.items()]
        extra = [key if value is True else f"{key}{value}" for key, value in self.options.items() if value is not False]
        return "-".join([*sizes, self.dtype, *extra])


@dataclass(frozen=True)
class Outcome:
    """What a case came to: the largest error in units of what is allowed (1.0 is the limit), and in absolute terms."""

    worst: float
    absolute: float

    @classmethod
    def of(cls, result: Tensor, exact: Tensor, atol: float, rtol: float) -> Outcome:
        """The worst element of a result by its float64 reference; infinite where it is not a number."""
        error = (result.double() - exact.to(result.device)).abs().nan_to_num(nan=math.inf)
        allowed = atol + rtol * exact.to(result.device).abs()
        return cls(float((error / allowed).max()), float(error.max()))

    @property
    def passed(self) -> bool:
        """Whether every element was within its tolerance."""
        return self.worst <= 1.0


@dataclass(frozen=True)
class Kernel:
    """One kernel: its entry point, its plain-torch reference of the same signature, and what to check and build.

    Args:
        run: the entry point on Triton (a GPU, or the interpreter).
        reference: the same in plain torch, on any device.
        configurations: all that may be chosen, tuned tables included.
        cases: rows of `check`.
        check: runs one case on a device (`cpu` means the interpreter) with a seed, against float64, outputs poisoned.
        builds: what is compiled ahead of time.
    """

    name: str
    summary: str
    run: Callable[..., Any]
    reference: Callable[..., Any]
    configurations: tuple[Configuration, ...]
    cases: tuple[Case, ...]
    check: Callable[[Case, str, int], Outcome]
    builds: Callable[[], Iterator[Build]]
