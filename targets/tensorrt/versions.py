"""Which TensorRT is where, and what it can do.

    release(jetpack="6.2")        TensorRT 10.3 on Orin, Python 3.10
    release(tensorrt="10.16")     the same without a JetPack, for a GPU machine of one's own

A JetPack fixes its TensorRT; one folder is exported for one of them and says so. Every graph of ours is strongly typed:
10.x must be told, 11 knows nothing else. 8.6 is refused: it reads neither INT4 nor int64, nor a strongly typed graph.
Left out: TensorRT of the desktop beyond its number, and engines that run on several versions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from soloist.kernels.errors import UsageError

ORIN, THOR = 87, 110
OLDEST = (10, 3)
PLUGINS = (10, 9)  # plugins compiled ahead of time
REMOVED = "8.6 reads neither INT4 nor int64, and builds no strongly typed network"


@dataclass(frozen=True)
class Release:
    """A TensorRT.

    Args:
        jetpacks: that hold it; empty for a machine that is none of them.
        tensorrt: as much of its version as must agree.
        architectures: CUDA architectures of its boards.
        python: of the system.
    """

    jetpacks: tuple[str, ...]
    tensorrt: str
    architectures: tuple[int, ...] = ()
    python: str = ""

    @property
    def number(self) -> tuple[int, ...]:
        """Its version."""
        return tuple(map(int, self.tensorrt.split(".")))

    @property
    def title(self) -> str:
        """For messages."""
        return f"JetPack {' or '.join(self.jetpacks)}" if self.jetpacks else "TensorRT of its own"

    @property
    def strongly_typed_flag(self) -> bool:
        """Whether a network must be told that it is strongly typed."""
        return self.number < (11,)

    @property
    def has_plugins(self) -> bool:
        """Whether our kernels can be plugins."""
        return self.number >= PLUGINS


RELEASES = (
    Release(("6.0",), "8.6", (ORIN,), "3.10"),
    Release(("6.1", "6.2", "6.2.1", "6.2.2"), "10.3", (ORIN,), "3.10"),
    Release(("7.0", "7.1"), "10.13", (THOR,), "3.12"),
    Release(("7.2", "7.2.1"), "10.16", (ORIN, THOR), "3.12"),
    Release(("7.2.2",), "11.4", (ORIN, THOR), "3.12"),
)
CAPABILITIES = {  # of TensorRT-RTX 1.7
    "8.6": "GeForce RTX 30",
    "8.9": "GeForce RTX 40",
    "12.0": "GeForce RTX 50",
    "12.1": "DGX Spark",
}


def release(*, jetpack: str | None = None, tensorrt: str | None = None, architecture: int | None = None) -> Release:
    """The TensorRT of a JetPack, or a TensorRT by its version.

    Args:
        architecture: of the board, 87 or 110; it must be one that the JetPack is for.

    Raises:
        UsageError: neither or unknown ones, one that does not go with the other, or one that is too old.
    """
    if jetpack is None and tensorrt is None:
        raise UsageError(f"say for which JetPack ({', '.join(_jetpacks())}) or TensorRT (10.3 and newer) to export")
    chosen = _of_jetpack(jetpack) if jetpack is not None else _of_version(str(tensorrt))
    if jetpack is not None and tensorrt is not None:
        theirs, asked = f"{chosen.tensorrt}.", f"{tensorrt}."
        if not asked.startswith(theirs) and not theirs.startswith(asked):
            raise UsageError(f"JetPack {jetpack} has TensorRT {chosen.tensorrt}, not {tensorrt}; say one of the two")
    if chosen.number < OLDEST:
        raise UsageError(f"TensorRT {chosen.tensorrt} ({chosen.title}): {REMOVED}; update to JetPack 6.2 or newer")
    if architecture is not None and chosen.architectures and architecture not in chosen.architectures:
        others = ", ".join(_jetpacks(architecture)) or "no JetPack"
        raise UsageError(f"JetPack {jetpack} is not for sm_{architecture}; {others} is")
    return chosen


def _jetpacks(architecture: int | None = None) -> list[str]:
    """Those whose TensorRT is new enough, of boards with this architecture."""
    names: list[str] = []
    for known in RELEASES:
        if known.number >= OLDEST and (architecture is None or architecture in known.architectures):
            names += known.jetpacks
    return names


def _of_jetpack(jetpack: str) -> Release:
    for known in RELEASES:
        if jetpack in known.jetpacks:
            return known
    raise UsageError(f"JetPack '{jetpack}' is not known; there are {', '.join(_jetpacks())}")


def _of_version(version: str) -> Release:
    if not re.fullmatch(r"\d+\.\d+(\.\d+)*", version):
        raise UsageError(f"TensorRT '{version}' is not a version such as 10.3 or 11.4")
    return Release((), ".".join(version.split(".")[:2]))


def check_capabilities(capabilities: tuple[str, ...]) -> None:
    """Refuse what TensorRT-RTX builds nothing for. Raises UsageError."""
    listed = ", ".join(f"{name} ({title})" for name, title in CAPABILITIES.items())
    if not capabilities:
        raise UsageError(f"TensorRT-RTX builds for named compute capabilities: {listed}")
    for name in capabilities:
        if name not in CAPABILITIES:
            raise UsageError(f"compute capability '{name}': TensorRT-RTX builds for {listed}")
    if len(set(capabilities)) < len(capabilities):
        raise UsageError(f"compute capabilities {', '.join(capabilities)}: one is named twice")
