"""What NVIDIA's driver says about the GPUs of this machine: names and compute capability.

Asked through NVML (the package `nvidia-ml-py`), which needs neither CUDA nor torch and starts no GPU context.
Without the package, without a driver, or where the driver does not answer, there is no GPU: no name, no capability.
Not for the choice of a kernel: torch numbers the GPUs its own way, see `choose`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The started library, or None where it is absent or does not start."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def names() -> list[str]:
    """Names of the GPUs in the driver's order, such as "NVIDIA H200"; empty where there is none."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        gpus = []
        with contextlib.suppress(nvml.NVMLError):
            for index in range(nvml.nvmlDeviceGetCount()):
                gpus.append(str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(index))))
        return gpus


def capability() -> str | None:
    """Compute capability of the first GPU, such as "8.9"; None where there is none."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        with contextlib.suppress(nvml.NVMLError):
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(nvml.nvmlDeviceGetHandleByIndex(0))
            return f"{major}.{minor}"
        return None
