"""`soloist kernels`: list the Triton kernels, check their numbers, compile them for other machines' GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import click

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
    from soloist.toolchain.commands._kernels import chosen, overview
    from soloist.toolchain.commands._table import echo_json, echo_table

    rows = [overview(impl) for impl in chosen(names)]
    if as_json:
        echo_json({"kernels": rows})
        return
    echo_table(
        ("kernel", "variants", "configurations", "builds", "cases", "architectures"),
        [
            (
                r["kernel"],
                str(len(r["variants"])),
                str(len(r["configurations"])),
                str(r["builds"]),
                str(r["cases"]),
                " ".join(r["architectures"]),
            )
            for r in rows
        ],
    )
    for row in rows:
        click.echo(f"\n{row['kernel']}: {row['summary']}\n  here: {row['here']}")
        for name in row["configurations"]:
            click.echo(f"  {name}")


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
    from soloist.toolchain.commands._kernels import chosen
    from soloist.toolchain.commands._table import echo_json

    results = []
    for result in run_cases(chosen(names), "cuda" if torch_device == "cuda" else "cpu", seed=seed, slow=slow):
        results.append(result)
        if not as_json:
            said = result.said or f"worst {result.worst:4.2f} of the tolerance, {result.absolute:.1e} absolute"
            click.echo(f"{'ok  ' if result.passed else 'FAIL'}  {result.kernel:16} {result.case}  {said}")
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
    from soloist.toolchain.commands._kernels import build_artifact, chosen
    from soloist.toolchain.commands._table import echo_json, echo_table
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.core.progress import Bars

    targets = architectures(arch)
    with Bars() as bars, EventLog(None, (bars,)) as events:
        made = build_artifact(
            chosen(names), targets, output, ptx=None if ptx is None else round(10 * ptx), jobs=jobs, events=events
        )
    records = made.facts["builds"]
    if as_json:
        echo_json(dict(made.manifest))
        return
    rows = []
    for kernel in dict.fromkeys(record["kernel"] for record in records):
        for sm in targets:
            of = [r for r in records if r["kernel"] == kernel and r["arch"] == f"sm_{sm}"]
            if of:
                most = [str(max(r[key] for r in of)) for key in ("registers", "spill_stores", "shared")]
                size = sum(r["files"]["cubin"]["bytes"] for r in of)
                rows.append((kernel, f"sm_{sm}", str(len(of)), *most, f"{size / 1e3:.0f}"))
    echo_table(("kernel", "arch", "builds", "registers", "spilled", "shared", "cubin KB"), rows, left=2)
    click.echo(f"\n{made.path}: {len(records)} builds")
