"""Devices: every file is sound, and what a file gets wrong is said in full."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from soloist.kernels.choose import ARCHITECTURES
from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.devices import spec
from soloist.targets.devices.spec import (
    ASSUMED,
    EVIDENCE,
    NUMBERS,
    RENTED,
    USD_PER_KWH,
    device,
    devices,
    read_device,
)
from soloist.targets.predict import STUDENTS

FOLDER = Path(spec.__file__).parent
GOOD = (FOLDER / "jetson_orin_nano_8gb.yaml").read_text(encoding="utf-8")


def test_every_file_is_a_device():
    files = {path.stem.replace("_", "-") for path in FOLDER.rglob("*.y*ml")}
    assert set(devices()) == files
    assert len(files) > 20


@pytest.mark.parametrize("name", devices())
def test_numbers_have_evidence_and_rates_have_students(name):
    one = device(name)
    assert set(one.evidence) == {number for number in NUMBERS if getattr(one, number) is not None}
    assert (one.peak_tflops is None) == (one.peak_share is None)
    assert one.usable_gb is None or one.usable_gb < one.memory_gb
    assert one.kind != "jetson" or (one.architecture in ARCHITECTURES and one.modes)
    assert one.worst_evidence in EVIDENCE
    assert all(rate.student in STUDENTS and rate.source for rate in one.published)
    fitted = {number for number, kind in one.evidence.items() if kind == "fitted"}
    assert bool(fitted) == bool(one.published), "fitted means to rates that are given"


@pytest.mark.parametrize("name", devices())
def test_price_and_power_are_assumed_with_a_reason(name):
    one = device(name)
    assert 0.005 < one.usd_per_hour < 10
    assert 5 <= one.watts < 1000
    assert all(len(one.assumed[number]) > 10 for number in ASSUMED)
    assert one.assumptions.startswith(f"assumed for {name}: $")
    assert "\n" not in one.assumptions


def test_energy_is_paid_where_the_machine_is_owned_and_not_where_it_is_rented():
    assert device("jetson-orin-nano-8gb").usd_per_kwh == USD_PER_KWH
    assert f"${USD_PER_KWH} per kWh" in device("jetson-orin-nano-8gb").assumptions
    for name in ("h100-sxm", "vm-x86-2core"):
        assert device(name).usd_per_kwh == 0
        assert "energy included" in device(name).assumptions
        assert "per kWh" not in device(name).assumptions


def test_a_purchase_is_spread_over_the_hours_its_reason_states():
    """The price of an hour and its reason must not drift apart."""
    for one in devices().values():
        bought = re.search(r"at \$([\d,]+) over ([\d,]+) hours", one.assumed["usd_per_hour"])
        assert bool(bought) == (one.kind not in RENTED), one.name
        if bought:
            usd, hours = (float(number.replace(",", "")) for number in bought.groups())
            assert one.usd_per_hour == pytest.approx(usd / hours, rel=0.01), one.name


def test_every_architecture_we_build_for_has_a_device():
    assert set(ARCHITECTURES) <= {one.architecture for one in devices().values()}


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="device 'toaster': there is none"):
        device("toaster")


def test_the_weakest_evidence_is_told():
    assert device("jetson-orin-nano-8gb").worst_evidence == "fitted"
    assert device("h100-sxm").worst_evidence == "guess"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"bandwidth_gbs": None}, "'bandwidth_gbs' is missing; evidence of bandwidth_gbs, which is not given"),
        ({"bandwidth_gbs": -1}, "bandwidth_gbs is -1: a number above 0"),
        ({"layer_ms": True}, "layer_ms is True: a number above 0"),
        ({"bandwidth_share": 1.2}, "bandwidth_share is 1.2: at most 1"),
        ({"kind": "toaster"}, "kind 'toaster' is none of jetson"),
        ({"name": "other"}, "name 'other' is not the file's"),
        ({"architecture": "sm_87"}, "architecture is 'sm_87': a whole number such as 87"),
        ({"evidence": "trust me"}, "evidence must say where each number comes from"),
        ({"evidence": {"memory_gb": "rumor"}}, "evidence of layer_ms is missing; evidence 'rumor' is none of measured"),
        ({"watts": 0}, "watts is 0: a number above 0"),
        ({"assumed": None}, "'assumed' is missing; assumed must give the reason of each price"),
        ({"assumed": {"watts": "a guess"}}, "assumed needs a reason for usd_per_hour and watts"),
        ({"published": [{"student": "x"}]}, "a published rate needs bits, source, student, tokens_per_second"),
    ],
)
def test_a_file_with_a_fault_is_refused_with_every_fault(change, message):
    data = {key: value for key, value in (yaml.safe_load(GOOD) | change).items() if value is not None}
    with pytest.raises(ArtifactError) as caught:
        read_device(yaml.safe_dump(data, sort_keys=False), "jetson_orin_nano_8gb.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["- 1", "a: [", "just text"])
def test_what_is_no_device_is_refused(text):
    with pytest.raises(ArtifactError, match=r"x\.yaml"):
        read_device(text, "x.yaml")
