"""What the driver says of the GPUs, asked of a stand-in for NVML."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from soloist.kernels import gpu


class _NVMLError(Exception):
    pass


def _nvml(names, *, starts=True, capability=(8, 9)):
    """A stand-in for pynvml that counts how often it was started and stopped."""
    calls = []

    def start():
        if not starts:
            raise _NVMLError("no driver")
        calls.append("start")

    def handle(index):
        if index >= len(names):
            raise _NVMLError("no such GPU")
        return index

    return SimpleNamespace(
        NVMLError=_NVMLError,
        calls=calls,
        nvmlInit=start,
        nvmlShutdown=lambda: calls.append("stop"),
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetName=lambda index: names[index],
        nvmlDeviceGetCudaComputeCapability=lambda index: capability,
    )


def test_every_gpu_is_named_and_the_library_is_stopped(monkeypatch):
    nvml = _nvml(["NVIDIA H200", "NVIDIA L4"])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu.names() == ["NVIDIA H200", "NVIDIA L4"]
    assert nvml.calls == ["start", "stop"]


def test_capability_is_that_of_the_first_gpu(monkeypatch):
    nvml = _nvml(["NVIDIA L4"])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu.capability() == "8.9"
    assert nvml.calls == ["start", "stop"]


ABSENT = {"package": None, "gpu": _nvml([]), "driver": _nvml(["NVIDIA L4"], starts=False)}


@pytest.mark.parametrize("nvml", ABSENT.values(), ids=ABSENT)
def test_without_package_gpu_or_driver_there_is_none(monkeypatch, nvml):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu.names() == []
    assert gpu.capability() is None
