"""Which listed device a machine is taken for."""

from __future__ import annotations

import re

import pytest

from soloist.kernels import gpu
from soloist.targets.devices import here
from soloist.targets.devices.here import UNKNOWN, VIRTUAL, this_machine
from soloist.targets.devices.spec import device, devices

CPU = "processor\t: 0\nmodel name\t: {name}\nflags\t\t: fpu sse {more}\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Make a machine of these names and return what it is taken for."""

    def make(*, board="", gpus=(), processor="", virtual=False, cores=2):
        (tmp_path / "proc/device-tree").mkdir(parents=True, exist_ok=True)
        more = "hypervisor" if virtual else "avx2"
        (tmp_path / "proc/cpuinfo").write_text(CPU.format(name=processor, more=more))
        if board:
            (tmp_path / "proc/device-tree/model").write_text(board + "\0")
        monkeypatch.setattr(gpu, "names", lambda: list(gpus))
        monkeypatch.setattr(here.os, "cpu_count", lambda: cores)
        return this_machine(tmp_path)

    return make


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"board": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"}, "jetson-orin-nano-8gb"),
        ({"board": "NVIDIA Jetson AGX Orin Developer Kit"}, "jetson-agx-orin-64gb"),
        ({"gpus": ["NVIDIA H100 80GB HBM3"], "virtual": True}, "h100-sxm"),
        (
            {"gpus": ["NVIDIA GeForce RTX 4060 Laptop GPU"], "processor": "13th Gen Intel(R) Core(TM)"},
            "rtx-4060-laptop",
        ),
        ({"processor": "Intel(R) Core(TM) Ultra 7 258V"}, "core-ultra-200v"),
        ({"processor": "AMD RYZEN AI MAX+ 395 w/ Radeon 8060S"}, "strix-halo"),
        ({"processor": "Apple M3"}, "apple-m3"),
        ({"processor": "Apple M3 Pro"}, "apple-m3-pro"),
        ({"processor": "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz"}, UNKNOWN),
        ({"gpus": ["NVIDIA GeForce GTX 960"], "processor": "AMD Ryzen 5"}, UNKNOWN),
    ],
)
def test_a_machine_is_known_by_its_names(machine, names, expected):
    assert machine(**names).name == expected


def test_no_two_devices_match_alike():
    patterns = [one.matches for one in devices().values() if one.matches]
    assert len(set(patterns)) == len(patterns) > 15
    assert all(re.compile(pattern) for pattern in patterns)


def test_rent_of_a_virtual_machine_grows_with_its_cores(machine):
    listed = device(VIRTUAL)
    assert machine(virtual=True, cores=2) == listed
    eight = machine(virtual=True, cores=8)
    assert eight.usd_per_hour == pytest.approx(4 * listed.usd_per_hour)
    assert eight.watts == pytest.approx(4 * listed.watts)
    assert "here for 8 cores" in eight.assumptions


def test_a_machine_without_names_has_a_price(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "names", list)
    monkeypatch.setattr(here.platform, "system", lambda: "Windows")
    monkeypatch.setattr(here.platform, "processor", lambda: "")
    assert this_machine(tmp_path) == device(UNKNOWN)


def test_an_apple_is_asked_for_its_processor(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "names", list)
    monkeypatch.setattr(here.platform, "system", lambda: "Darwin")
    answer = type("Done", (), {"stdout": "Apple M4 Max\n"})
    monkeypatch.setattr(here.subprocess, "run", lambda *_, **__: answer)
    assert this_machine(tmp_path).name == "apple-m4-max"
