"""Which implementation of a kernel runs: a registry, one frozen record each, and one function that says why.

    choice = choose("w4a16_gemv", x.device)
    y = choice.run(x, weight)          # choice.reason: "Triton, compiled for sm_90 (NVIDIA H100 80GB HBM3)"

`want="auto"` takes Triton on a GPU of an architecture we build for and check, and plain torch everywhere else.
`want="triton"` and `want="reference"` do what they say or raise. On the CPU Triton means its interpreter, hundreds of
times slower than torch: it counts only where it was asked for, by `want="triton"` with TRITON_INTERPRET=1 set before
the first kernel was imported. Modules are imported when they are chosen.

A launch's configuration is chosen by its entry point, with `choose_config`: as the caller asked, or as measured
best on this GPU, or by the kernel's own rule. Left out: timing, which belongs to `soloist.kernels.tuned`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from soloist.kernels.errors import ArtifactError, MissingExtraError, ResourceError, UsageError
from soloist.kernels.tuned import tuned

if TYPE_CHECKING:
    import torch

    from soloist.kernels.spec import Configuration, Kernel

Want = Literal["auto", "triton", "reference"]
ARCHITECTURES = (87, 89, 90, 110, 120)  # what `soloist kernels build` compiles and checks


@dataclass(frozen=True)
class Impl:
    """A kernel by name, and where its `Kernel` stands: a module and the name in it."""

    name: str
    module: str
    attribute: str = "KERNEL"

    def load(self) -> Kernel:
        """Import the module. Raises MissingExtraError naming what it lacks."""
        try:
            kernel: Kernel = getattr(importlib.import_module(self.module), self.attribute)
        except ImportError as error:
            if error.name and error.name.split(".")[0] == "torch":
                raise MissingExtraError("torch", "train") from error
            if error.name and error.name.split(".")[0] == "triton":
                raise MissingExtraError("triton", "kernels") from error
            raise
        return kernel


_KERNELS = (
    Impl("w4a16_gemv", "soloist.kernels.gemv", "W4A16"),
    Impl("w4a16_gemm", "soloist.kernels.gemm", "W4A16"),
    Impl("w8a16_gemv", "soloist.kernels.gemv", "W8A16"),
    Impl("w8a16_gemm", "soloist.kernels.gemm", "W8A16"),
    Impl("pack", "soloist.kernels.pack"),
    Impl("gptq", "soloist.kernels.gptq"),
    Impl("decode_attention", "soloist.kernels.decode_attention"),
    Impl("append_int8", "soloist.kernels.append_int8"),
    Impl("linear_kl", "soloist.kernels.linear_kl"),
)
REGISTRY = {impl.name: impl for impl in _KERNELS}


@dataclass(frozen=True)
class Choice:
    """What will run, and a sentence saying why."""

    run: Callable[..., Any]
    impl: Literal["triton", "reference"]
    reason: str


def find(name: str) -> Impl:
    """The registered kernel of this name. Raises UsageError."""
    if name not in REGISTRY:
        raise UsageError(f"kernel '{name}': there is none; there are {', '.join(REGISTRY)}")
    return REGISTRY[name]


def choose(name: str, device: torch.device | str, want: Want = "auto") -> Choice:
    """The implementation of kernel `name` for tensors on `device`.

    Raises:
        UsageError: no such kernel or implementation, or Triton wanted on a CPU without its interpreter.
        MissingExtraError: Triton wanted and not installed.
        ResourceError: a device that is not there, or that Triton does not run on.
    """
    impl = find(name)
    if want not in ("auto", "triton", "reference"):
        raise UsageError(f"implementation '{want}': choose auto, triton or reference")
    kind, _, _ = str(device).partition(":")
    if kind == "cuda" and not _cuda():
        raise ResourceError(f"device {device}: torch sees no CUDA device here; use cpu")
    if want == "reference":
        return _reference(impl, "plain torch, as asked for")
    if want == "auto":
        obstacle = _obstacle(kind, device)
        return _reference(impl, f"plain torch: {obstacle}") if obstacle else _triton(impl, _on_gpu(device))
    require_triton()
    if kind == "cpu" and not interpreting():
        raise UsageError("Triton runs on a CPU only in its interpreter: start the program with TRITON_INTERPRET=1")
    if kind not in ("cpu", "cuda"):
        raise ResourceError(f"Triton does not run on device '{device}': choose auto or reference")
    interpreter = "Triton's interpreter, as asked for: for checking, not for speed"
    return _triton(impl, interpreter if interpreting() else _on_gpu(device))


def choose_config(
    kernel: str,
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
    device: torch.device,
    fallback: Configuration,
    given: Configuration | None = None,
) -> Configuration:
    """The configuration of a launch: the given one, else the tuned one of the tensors' GPU, else the kernel's own.

    Args:
        sizes: by name, as the kernel's tuned entries have them: {"M": 1, "N": 576, "K": 1536}.
        options: likewise, all that the best configuration depends on: {"group": 32}.
        fallback: what the kernel's own rule says; taken on a CPU and in the interpreter.

    Raises:
        ArtifactError: a tuned configuration that is none of the kernel's.
    """
    if given is not None:
        return given
    gpu = _tuned_for(device)
    config = None if gpu is None else _tuned_config(kernel, gpu, tuple(sizes.items()), tuple(options.items()))
    return fallback if config is None else config


@functools.cache
def _tuned_for(device: torch.device) -> str | None:
    """The name a GPU's driver gives it; None where tables do not count."""
    if device.type != "cuda" or interpreting():
        return None
    import torch

    return str(torch.cuda.get_device_name(device))


@functools.lru_cache(maxsize=4096)
def _tuned_config(
    kernel: str, gpu: str, sizes: tuple[tuple[str, int], ...], options: tuple[tuple[str, Any], ...]
) -> Configuration | None:
    best = tuned(kernel, gpu, dict(sizes), dict(options))
    if best is not None and best not in (known := find(kernel).load().configurations):
        names = ", ".join(config.name for config in known)
        raise ArtifactError(f"tuned table of {gpu}: {kernel} has no configuration {best.name}; it has {names}")
    return best


def interpreting() -> bool:
    """Whether Triton's interpreter was switched on, by the variable Triton itself reads."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _obstacle(kind: str, device: torch.device | str) -> str | None:
    """Why Triton is not chosen on its own, or None."""
    if kind != "cuda":
        return f"there is no Triton for device '{kind}'" if kind != "cpu" else "Triton needs an NVIDIA GPU"
    if not sys.platform.startswith("linux"):
        return f"Triton exists for Linux, and this is {sys.platform}"
    if not _installed():
        return "Triton is not installed (pip install 'soloist[kernels]')"
    if interpreting():
        return "TRITON_INTERPRET is set, and the interpreter is for checking"
    if _capability(device) not in ARCHITECTURES:
        built = ", ".join(f"sm_{sm}" for sm in ARCHITECTURES)
        return f"this GPU is sm_{_capability(device)}, and the kernels are built and checked for {built}"
    return None


def require_triton() -> None:
    """Raise ResourceError off Linux, where there is no Triton, and MissingExtraError where it is not installed."""
    if not sys.platform.startswith("linux"):
        raise ResourceError(f"Triton exists for Linux only, and this is {sys.platform}")
    if not _installed():
        raise MissingExtraError("triton", "kernels")


def _reference(impl: Impl, reason: str) -> Choice:
    return Choice(impl.load().reference, "reference", reason)


def _triton(impl: Impl, reason: str) -> Choice:
    return Choice(impl.load().run, "triton", reason)


def _on_gpu(device: torch.device | str) -> str:
    import torch

    return f"Triton, compiled for sm_{_capability(device)} ({torch.cuda.get_device_name(device)})"


def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def _capability(device: torch.device | str) -> int:
    """87 for compute capability 8.7."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return int(10 * major + minor)
