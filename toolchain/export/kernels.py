"""Stage `kernels`: our Triton kernels compiled for other machines' GPUs, as a folder that `soloist export` links.

The kernels' own sources are part of the config, so a folder made from others is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from soloist.kernels import spec
from soloist.kernels.aot import Record, build_kernels, check_limits
from soloist.kernels.choose import Impl
from soloist.targets.requantize import cache_folder
from soloist.toolchain.core.artifact import Artifact, Facts, stage
from soloist.toolchain.core.environment import versions
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import sha256_file

STAGE = "kernels"


class KernelFacts(Facts):
    """One record a build: what a launch by hand needs, and what the build spends of registers and memory."""

    builds: list[Record]


def compile_kernels(
    impls: Sequence[Impl],
    architectures: Sequence[int],
    out: Path,
    *,
    ptx: int | None = None,
    jobs: int = 1,
    events: EventLog = QUIET,
) -> Artifact:
    """Compile every build of `impls` for every architecture (87 is sm_87), `jobs` at a time; `ptx` 84 is PTX 8.4.

    Raises GateError where a build spills registers or wants too much shared memory.
    """
    sources = sorted(Path(spec.__file__).parent.glob("*.py"))
    config = {
        "kernels": [impl.name for impl in impls],
        "architectures": list(architectures),
        "ptx": ptx,
        "sources": {file.name: sha256_file(file)[:16] for file in sources},
        "triton": versions().get("triton"),
    }

    def build(folder: Path) -> KernelFacts:
        records = build_kernels(
            impls,
            architectures,
            folder,
            cache_folder() / "kernels",
            workers=jobs,
            ptx=ptx,
            progress=lambda done, total, name: events.progress(STAGE, done, total, build=name),
        )
        check_limits(records)
        return KernelFacts(builds=records)

    return stage(STAGE, out, config, [], build, events=events)
