"""What a device is, for predictions: memory, bandwidth, peak, and how much of them a decoder gets. One YAML file each.

    name: jetson-orin-nano-8gb
    title: Jetson Orin Nano 8 GB (Super)
    kind: jetson
    architecture: 87
    memory_gb: 8
    bandwidth_gbs: 102
    evidence: {memory_gb: vendor, bandwidth_gbs: vendor, …}

Every number says where it comes from (`EVIDENCE`), because a prediction is as good as the worst of them; a number that
nobody knows is left out, and what depends on it is not predicted. `published` holds decode rates that others measured:
the tests hold `bandwidth_share` and `layer_ms` to them. Left out: clocks and power modes beyond their names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any

from soloist.kernels.errors import ArtifactError, UsageError

KINDS = ("jetson", "laptop", "desktop", "datacenter", "vm")
EVIDENCE = {
    "measured": "measured by us",
    "vendor": "the vendor's documentation",
    "computed": "computed from other numbers",
    "fitted": "fitted to published rates",
    "third-party": "published by others",
    "guess": "a guess",
}
NUMBERS = (
    "memory_gb",
    "usable_gb",
    "bandwidth_gbs",
    "peak_tflops",
    "bandwidth_share",
    "peak_share",
    "layer_ms",
)
NEEDED = ("memory_gb", "bandwidth_gbs", "bandwidth_share", "layer_ms")


@dataclass(frozen=True)
class Published:
    """A decode rate that somebody measured.

    Args:
        student: a shape of `soloist.targets.predict`.
        bits: stored bits per weight, scales included.
    """

    student: str
    bits: float
    tokens_per_second: float
    source: str


@dataclass(frozen=True)
class Device:
    """One device.

    Args:
        architecture: CUDA architecture, 87 for sm_87; None where there is no NVIDIA GPU.
        usable_gb: memory left for a model beside the system.
        bandwidth_gbs: of memory, 10^9 bytes a second.
        peak_tflops: dense fp16 with fp32 sums, or what the processor has for it.
        bandwidth_share: part of the bandwidth that decoding reaches.
        peak_share: part of the peak that a prefill reaches.
        layer_ms: time per layer and token beside streaming: launches, small operations.
        evidence: of each number, a key of EVIDENCE.
    """

    name: str
    title: str
    kind: str
    memory_gb: float
    bandwidth_gbs: float
    bandwidth_share: float
    layer_ms: float
    evidence: Mapping[str, str]
    architecture: int | None = None
    usable_gb: float | None = None
    peak_tflops: float | None = None
    peak_share: float | None = None
    modes: tuple[str, ...] = ()
    note: str = ""
    published: tuple[Published, ...] = field(default=())

    @property
    def worst_evidence(self) -> str:
        """The weakest evidence behind a prediction of decode speed."""
        order = list(EVIDENCE)
        return max((self.evidence[name] for name in ("bandwidth_gbs", "bandwidth_share", "layer_ms")), key=order.index)


def device(name: str) -> Device:
    """The device of this name. Raises UsageError."""
    found = devices().get(name)
    if found is None:
        raise UsageError(f"device '{name}': there is none; `soloist devices` lists {len(devices())}")
    return found


@functools.cache
def devices() -> Mapping[str, Device]:
    """All devices by name, in order of their kind and bandwidth."""
    folder = resources.files("soloist.targets.devices")
    read = [read_device(file.read_text("utf-8"), file.name) for file in folder.iterdir() if file.name.endswith(".yaml")]
    read.sort(key=lambda found: (KINDS.index(found.kind), found.bandwidth_gbs, found.name))
    return {found.name: found for found in read}


def read_device(text: str, file: str) -> Device:
    """A device from its YAML text. Raises ArtifactError naming every fault."""
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ArtifactError(f"{file}: not YAML ({error})") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{file}: expected keys and values")
    if faults := _faults(data, file):
        raise ArtifactError(f"{file}: {'; '.join(faults)}")
    whole: dict[str, Any] = {**data, "modes": tuple(data.get("modes", ()))}
    whole |= {name: float(data[name]) for name in NUMBERS if name in data}
    whole["published"] = tuple(Published(**rate) for rate in data.get("published", []))
    return Device(**whole)


def _faults(data: Mapping[str, Any], file: str) -> list[str]:
    """Everything that is wrong with what was read."""
    known = {entry.name for entry in fields(Device)}
    faults = [f"unknown key '{key}'" for key in data if key not in known]
    faults += [f"'{key}' is missing" for key in ("name", "title", "kind", "evidence", *NEEDED) if key not in data]
    if str(data.get("name", "")).replace("-", "_") != file.removesuffix(".yaml"):
        faults.append(f"name '{data.get('name')}' is not the file's")
    if data.get("kind") not in KINDS:
        faults.append(f"kind '{data.get('kind')}' is none of {', '.join(KINDS)}")
    numbers = {name: data[name] for name in NUMBERS if name in data}
    faults += [
        f"{name} is {value}: a number above 0 is needed"
        for name, value in numbers.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0
    ]
    faults += [
        f"{name} is {data[name]}: at most 1"
        for name in ("bandwidth_share", "peak_share")
        if isinstance(data.get(name), int | float) and data[name] > 1
    ]
    if not isinstance(data.get("architecture", 0), int):
        faults.append(f"architecture is {data['architecture']!r}: a whole number such as 87")
    evidence = data.get("evidence")
    if not isinstance(evidence, dict):
        return [*faults, "evidence must say where each number comes from"]
    faults += [f"evidence of {name} is missing" for name in numbers if name not in evidence]
    faults += [f"evidence of {name}, which is not given" for name in evidence if name not in numbers]
    faults += [
        f"evidence '{said}' is none of {', '.join(EVIDENCE)}" for said in evidence.values() if said not in EVIDENCE
    ]
    wanted = {entry.name for entry in fields(Published)}
    faults += [
        f"a published rate needs {', '.join(sorted(wanted))}"
        for rate in data.get("published", [])
        if not isinstance(rate, dict) or set(rate) != wanted
    ]
    return faults
