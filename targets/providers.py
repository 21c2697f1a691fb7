"""What computes an ONNX model, the CPU or a GPU through CUDA: one rule for both ONNX runtimes.

    onnxruntime, onnxruntime-genai             extra `onnx`       the CPU
    onnxruntime-gpu, onnxruntime-genai-cuda    extra `onnx-gpu`   the CPU, and CUDA

`auto` takes CUDA where it is installed and starts, else the CPU; `cpu` and `cuda` do what they say or raise. ONNX
Runtime by itself does neither: it lists CUDA wherever its package was built with it and, where the driver or a library
is missing, goes on on the CPU without a word. So a model that was opened is asked where it runs. Left out: other
providers, and any GPU but the first.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from soloist.kernels.errors import ResourceError, UsageError
from soloist.targets.base import first_line, require

Provider = Literal["auto", "cpu", "cuda"]
NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Opened:
    """A model, "cpu" or "cuda", and what a user should know of the choice."""

    model: Any
    device: str
    note: str = ""


def open_on(provider: Provider, installed: bool, start: Callable[[str], Any], runs: Callable[[Any], bool]) -> Opened:
    """Open a model where `provider` says.

    Args:
        installed: whether CUDA may be tried at all.
        start: opens the model on "cpu" or "cuda".
        runs: whether what was opened for CUDA is computed by it.

    Raises:
        UsageError: no such provider.
        ResourceError: CUDA was asked for and is not installed, or does not start. What `start` raises for the CPU.
    """
    if provider not in get_args(Provider):
        raise UsageError(f"provider '{provider}': choose auto, cpu or cuda")
    if provider == "cuda" and not installed:
        raise ResourceError(
            "onnxruntime has no provider 'cuda' here: pip uninstall onnxruntime onnxruntime-genai, then pip install "
            "'soloist[onnx-gpu]'; or take the provider cpu"
        )
    if provider == "cpu" or not installed:
        return Opened(start("cpu"), "cpu")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            require("onnxruntime", "onnx").preload_dlls()  # of CUDA, where they came as wheels
        model = start("cuda")
        if runs(model):
            return Opened(model, "cuda", "computed on the GPU, by ONNX Runtime's CUDA provider")
        reason = "onnxruntime went on on the CPU"
    except Exception as error:  # the libraries raise RuntimeError and kinds of their own
        reason = first_line(error)
    if provider == "cuda":
        raise ResourceError(
            f"onnxruntime has CUDA and does not open this model with it ({reason}): it needs NVIDIA's driver and "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'; or take the provider cpu"
        )
    note = f"computed on the CPU: onnxruntime has CUDA and does not open this model with it ({reason})"
    return Opened(start("cpu"), "cpu", note)
