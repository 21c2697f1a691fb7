"""What is written beside every result: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import pytest

from soloist.toolchain.core import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("names", "gpu"), [(["NVIDIA H200", "NVIDIA L4"], "NVIDIA H200"), ([], None)])
def test_the_machine_is_described_with_its_first_gpu(names, gpu, monkeypatch):
    monkeypatch.setattr(environment, "gpu_names", lambda: names)
    machine = environment.device()
    assert machine["gpu"] == gpu
    assert machine["cores"] == os.cpu_count()
    assert machine["system"] == platform.system()


def test_versions_are_those_of_what_is_installed():
    versions = environment.versions()
    assert versions["python"] == platform.python_version()
    assert "soloist" in versions
    assert "no-such-package" not in versions


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_a_checkout_knows_its_commit():
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", environment.commit())


@pytest.mark.skipif(platform.system() != "Linux", reason="other systems do not tell")
def test_peak_memory_grows_with_what_is_taken():
    before = environment.peak_mb()
    taken = bytearray(b"x" * 100_000_000)
    assert environment.peak_mb() >= before
    assert environment.peak_mb() > len(taken) / 1e6
