"""What a device is: memory, bandwidth, peak, how much of them a decoder gets, and what an hour of it costs.

One YAML file each:

    name: jetson-orin-nano-8gb
    title: Jetson Orin Nano 8 GB (Super)
    kind: jetson
    architecture: 87
    memory_gb: 8
    bandwidth_gbs: 102
    evidence: {memory_gb: vendor, bandwidth_gbs: vendor, …}
    usd_per_hour: 0.0095
    watts: 18
    assumed: {usd_per_hour: the developer kit at $249 over …, watts: …}

Every number says where it comes from (`EVIDENCE`), because a prediction is as good as the worst of them; a number that
nobody knows is left out, and what depends on it is not predicted. `published` holds decode rates that others measured:
the tests hold `bandwidth_share` and `layer_ms` to them. Price and power are assumed, each with its reason: defaults for
a cost that would otherwise be unknown, to be replaced by whoever knows his own. Left out: clocks, power modes beyond
their names, and prices outside the United States.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.base import named

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
ASSUMED = ("usd_per_hour", "watts")
NEEDED = ("memory_gb", "bandwidth_gbs", "bandwidth_share", "layer_ms", *ASSUMED)
RENTED = ("datacenter", "vm")
USD_PER_KWH = 0.17
ENERGY = "mean of households in the United States in 2025 (Energy Information Administration), rounded"


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
        usd_per_hour: price of a busy hour; of a rented machine its rent, energy included.
        watts: drawn while busy, above idle.
        assumed: the reasons of these two.
        matches: regular expression for the name of the board, GPU or processor of such a machine.
        cores: that the rent is for, where it grows with them.
    """

    name: str
    title: str
    kind: str
    memory_gb: float
    bandwidth_gbs: float
    bandwidth_share: float
    layer_ms: float
    evidence: Mapping[str, str]
    usd_per_hour: float
    watts: float
    assumed: Mapping[str, str]
    matches: str = ""
    cores: int | None = None
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
        behind = (self.evidence["bandwidth_gbs"], self.evidence["bandwidth_share"], self.evidence["layer_ms"])
        return max(behind, key=order.index)

    @property
    def usd_per_kwh(self) -> float:
        """Assumed price of energy; 0 where the rent includes it."""
        return 0.0 if self.kind in RENTED else USD_PER_KWH

    @property
    def assumptions(self) -> str:
        """Price and power with their reasons, in one line."""
        hour = f"${self.usd_per_hour:g} per hour ({self.assumed['usd_per_hour']})"
        energy = "" if self.kind in RENTED else f", ${USD_PER_KWH:g} per kWh ({ENERGY})"
        return f"assumed for {self.name}: {hour}, {self.watts:g} W ({self.assumed['watts']}){energy}"


def device(name: str) -> Device:
    """The device of this name. Raises UsageError."""
    if name not in devices():
        raise UsageError(f"device '{name}': there is none; `soloist devices` lists {len(devices())}")
    return devices()[name]


@functools.cache
def devices() -> Mapping[str, Device]:
    """All devices by name, in order of their kind and bandwidth."""
    listed = []
    for file in resources.files("soloist.targets.devices").iterdir():
        if file.name.endswith(".yaml"):
            listed.append(read_device(file.read_text("utf-8"), file.name))
    listed.sort(key=lambda one: (KINDS.index(one.kind), one.bandwidth_gbs, one.name))
    return named(listed)


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
    for name in (*NUMBERS, *ASSUMED):
        if name in data:
            data[name] = float(data[name])
    data["modes"] = tuple(data.get("modes", ()))
    data["published"] = tuple(Published(**rate) for rate in data.get("published", []))
    return Device(**data)


def _faults(data: Mapping[str, Any], file: str) -> list[str]:
    """Everything that is wrong with what was read."""
    known = named(fields(Device))
    faults = [f"unknown key '{key}'" for key in data if key not in known]
    for key in ("name", "title", "kind", "evidence", *NEEDED, "assumed"):
        if key not in data:
            faults.append(f"'{key}' is missing")
    if str(data.get("name", "")).replace("-", "_") != file.removesuffix(".yaml"):
        faults.append(f"name '{data.get('name')}' is not the file's")
    if data.get("kind") not in KINDS:
        faults.append(f"kind '{data.get('kind')}' is none of {', '.join(KINDS)}")
    for name in (*NUMBERS, *ASSUMED):
        value = data.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            faults.append(f"{name} is {value}: a number above 0 is needed")
        elif name.endswith("_share") and value > 1:
            faults.append(f"{name} is {value}: at most 1")
    if not isinstance(data.get("architecture", 0), int):
        faults.append(f"architecture is {data['architecture']!r}: a whole number such as 87")
    return [*faults, *_reason_faults(data), *_rate_faults(data.get("published", []))]


def _reason_faults(data: Mapping[str, Any]) -> list[str]:
    """Numbers without evidence or reason, and the other way round."""
    evidence, assumed = data.get("evidence"), data.get("assumed")
    if not isinstance(evidence, dict):
        return ["evidence must say where each number comes from"]
    if not isinstance(assumed, dict):
        return ["assumed must give the reason of each price"]
    faults = []
    for name in NUMBERS:
        if name in data and name not in evidence:
            faults.append(f"evidence of {name} is missing")
    for name, kind in evidence.items():
        if name not in NUMBERS or name not in data:
            faults.append(f"evidence of {name}, which is not given")
        if kind not in EVIDENCE:
            faults.append(f"evidence '{kind}' is none of {', '.join(EVIDENCE)}")
    if set(assumed) != set(ASSUMED):
        faults.append(f"assumed needs a reason for {' and '.join(ASSUMED)}, and for nothing else")
    return faults


def _rate_faults(published: Sequence[Any]) -> list[str]:
    wanted = named(fields(Published))
    for rate in published:
        if not isinstance(rate, dict) or set(rate) != set(wanted):
            return [f"a published rate needs {', '.join(sorted(wanted))}"]
    return []
