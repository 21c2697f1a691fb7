"""`soloist kernels`: list the Triton kernels, check their numbers, compile them for other machines' GPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from soloist.kernels.aot import Record
    from soloist.kernels.choose import Impl

_KERNELS = click.option("--kernel", "names", multiple=True, help="Only this one; may be given again  [default: all]")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.group(short_help="List, check and compile the Triton kernels.")
def command() -> None:
    """The Triton kernels: what there is, whether its numbers are right, and compiled files without a GPU."""


@command.command("list")
@_KERNELS
@_JSON
def list_(names: tuple[str, ...], as_json: bool) -> None:
    """List kernels with their builds, configurations and architectures, and what would run on this machine."""
    from soloist.toolchain.commands._output import echo_json, number, print_table

    rows = [_overview(impl) for impl in _chosen(names)]
    if as_json:
        echo_json({"kernels": rows})
        return
    numbers = ("variants", "configurations", "builds", "cases")
    lines = []
    for row in rows:
        counts = (len(row["variants"]), len(row["configurations"]), row["builds"], row["cases"])
        lines.append((row["kernel"], *map(str, counts), " ".join(row["architectures"])))
    print_table(("kernel", *map(number, numbers), "architectures"), lines)
    for row in rows:
        click.echo(f"\n{row['kernel']}: {row['summary']}\n  here: {row['here']}")
        for name in row["configurations"]:
            click.echo(f"  {name}")


def _chosen(names: Sequence[str]) -> list[Impl]:
    """The kernels named, or all. Raises UsageError."""
    from soloist.kernels.choose import REGISTRY, find

    return [find(name) for name in dict.fromkeys(names)] or list(REGISTRY.values())


def _overview(impl: Impl) -> dict[str, Any]:
    """What a kernel offers, and what would run on this machine and why."""
    import torch

    from soloist.kernels.choose import ARCHITECTURES, choose

    kernel = impl.load()
    builds = list(kernel.builds())
    architectures: set[int] = set()
    for build in builds:
        architectures.update(build.architectures or ARCHITECTURES)
    choice = choose(impl.name, "cuda" if torch.cuda.is_available() else "cpu")
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


@command.command()
@_KERNELS
@click.option(
    "--torch-device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="cpu is Triton's interpreter.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--slow", is_flag=True, help="The long cases too.")
@_JSON
def check(names: tuple[str, ...], torch_device: str, seed: int, slow: bool, as_json: bool) -> None:
    """Run every case against float64 and show its worst error, 1.00 being the most that is allowed."""
    from dataclasses import asdict

    from soloist.kernels.check import run_cases
    from soloist.kernels.errors import GateError
    from soloist.toolchain.commands._output import echo_json

    results = []
    for result in run_cases(_chosen(names), "cuda" if torch_device == "cuda" else "cpu", seed=seed, slow=slow):
        results.append(result)
        if not as_json:
            outcome = result.error or f"worst {result.worst:4.2f} of the tolerance, {result.absolute:.1e} absolute"
            click.echo(f"{'ok  ' if result.passed else 'FAIL'}  {result.kernel:16} {result.case}  {outcome}")
    failed = [f"{result.kernel} {result.case}" for result in results if not result.passed]
    if as_json:
        echo_json({"device": torch_device, "seed": seed, "results": [asdict(result) for result in results]})
    if failed:
        raise GateError(f"{len(failed)} of {len(results)} cases fail on {torch_device}: {'; '.join(failed[:4])}")
    if not as_json:
        click.echo(f"{len(results)} cases pass on {torch_device}")


@command.command()
@_KERNELS
@click.option("--arch", default="sm_87,sm_89,sm_90,sm_110,sm_120", show_default=True, help="Separated by commas.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--ptx", type=click.FloatRange(min=8), help="Version of the PTX  [default: the architecture's oldest]")
@click.option("-j", "--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default="all cores")
@_JSON
def build(names: tuple[str, ...], arch: str, output: Path, ptx: float | None, jobs: int, as_json: bool) -> None:
    """Compile kernels to PTX and cubin, no GPU needed; fails on spilled registers or too much shared memory."""
    from soloist.kernels.aot import architectures
    from soloist.toolchain.commands._output import echo_json
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars
    from soloist.toolchain.export.kernels import KernelFacts, compile_kernels

    targets = architectures(arch)
    version = None if ptx is None else round(10 * ptx)
    with Bars() as bars, EventLog(None, (bars,)) as events:
        made = compile_kernels(_chosen(names), targets, output, ptx=version, jobs=jobs, events=events)
    if as_json:
        echo_json(dict(made.manifest))
        return
    builds = made.read(KernelFacts).builds
    _show(builds)
    click.echo(f"\n{made.path}: {len(builds)} builds")


def _show(builds: Sequence[Record]) -> None:
    """A row a kernel and architecture: the most that any of its builds spends."""
    from soloist.toolchain.commands._output import number, print_table

    groups: dict[tuple[str, str], list[Record]] = {}
    for build in builds:
        groups.setdefault((build["kernel"], build["arch"]), []).append(build)
    lines = []
    for (kernel, architecture), group in groups.items():
        most = [str(max(build[key] for build in group)) for key in ("registers", "spill_stores", "shared")]
        size = sum(build["files"]["cubin"]["bytes"] for build in group)
        lines.append((kernel, architecture, str(len(group)), *most, f"{size / 1e3:.0f}"))
    numbers = ("builds", "registers", "spilled", "shared", "cubin KB")
    print_table(("kernel", "arch", *map(number, numbers)), lines)
