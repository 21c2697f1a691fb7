"""The GPU's memory of an engine's runner: what CUDA's driver is asked for, on a driver that has none."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from soloist.targets.tensorrt import run_engine


class Driver:
    """CUDA's driver on this process's memory."""

    def __init__(self):
        self.calls, self.blocks, self.full = [], [], False

    def __getattr__(self, name):
        def call(*given):
            self.calls.append(name)
            if name == "cuMemAlloc_v2":
                self.blocks.append(ctypes.create_string_buffer(given[1].value))
                given[0]._obj.value = ctypes.addressof(self.blocks[-1])
            elif name.startswith("cuMemcpy"):
                ctypes.memmove(given[0].value, given[1].value, given[2].value)
            elif name == "cuStreamCreate":
                given[0]._obj.value = 77
            return 2 if self.full and name == "cuMemAlloc_v2" else 0

        return call


def test_memory_is_the_drivers(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(run_engine.ctypes, "CDLL", lambda name: driver)
    gpu = run_engine.Gpu()
    assert gpu.stream == 77
    assert driver.calls[:3] == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    one, other = gpu.allocate(64), gpu.allocate(64)
    given, back = np.arange(8, dtype=np.int64), np.zeros(4, np.int64)
    gpu.upload(one, given)
    gpu.move(other, one + 16, 32)
    gpu.download(back, other)
    gpu.wait()
    assert back.tolist() == [2, 3, 4, 5]
    assert driver.calls[-1] == "cuStreamSynchronize"
    assert driver.calls[-2] == "cuCtxSetCurrent"  # whichever thread calls
    gpu.close()
    assert driver.calls.count("cuMemFree_v2") == 2
    driver.full = True
    with pytest.raises(run_engine.EngineFault, match="cuMemAlloc_v2 failed with error 2; no GPU, or not enough"):
        gpu.allocate(1)
