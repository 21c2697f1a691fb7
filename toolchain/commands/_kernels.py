"""What `soloist kernels` does behind its options: choosing kernels, an overview, and the compiled folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soloist.kernels.aot import Record, build_kernels, gate
from soloist.kernels.choose import ARCHITECTURES, REGISTRY, Impl, choose, find
from soloist.targets.requantize import cache_folder
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.core.environment import versions
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.core.files import sha256_file


def chosen(names: Sequence[str]) -> list[Impl]:
    """The kernels named, or all. Raises UsageError."""
    return [find(name) for name in dict.fromkeys(names)] or list(REGISTRY.values())


def overview(impl: Impl) -> dict[str, Any]:
    """What a kernel offers, and what would run on this machine and why."""
    kernel = impl.load()
    builds = list(kernel.builds())
    architectures = {sm for build in builds for sm in build.architectures or ARCHITECTURES}
    choice = choose(impl.name, _device())
    return {
        "kernel": kernel.name,
        "summary": kernel.summary,
        "here": choice.reason,
        "implementation": choice.impl,
        "variants": sorted({build.variant for build in builds}),
        "configurations": [configuration.name for configuration in kernel.configurations],
        "builds": len(builds),
        "cases": len(kernel.cases),
        "architectures": [f"sm_{sm}" for sm in sorted(architectures)],
    }


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def build_artifact(
    impls: Sequence[Impl], targets: Sequence[int], out: Path, *, ptx: int | None, jobs: int, events: EventLog
) -> Artifact:
    """The folder of compiled kernels, with its manifest written last. Raises GateError."""
    config = {
        "kernels": [impl.name for impl in impls],
        "architectures": list(targets),
        "ptx": ptx,
        "sources": _sources(),
        "triton": versions().get("triton"),
    }

    def build(folder: Path) -> dict[str, list[Record]]:
        records = build_kernels(
            impls,
            targets,
            folder,
            cache_folder() / "kernels",
            workers=jobs,
            ptx=ptx,
            progress=lambda done, total, name: events.progress("kernels", done, total, build=name),
        )
        gate(records)
        return {"builds": records}

    return stage("kernels", out, config, [], build, events=events)


def _sources() -> dict[str, str]:
    """Hash of every file of the kernels, so that a folder made from others is made again."""
    import soloist.kernels.spec

    folder = Path(soloist.kernels.spec.__file__).parent
    return {file.name: sha256_file(file)[:16] for file in sorted(folder.glob("*.py"))}
