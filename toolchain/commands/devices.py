"""`soloist devices`: what predictions know of machines."""

from __future__ import annotations

import click


@click.command(short_help="List the devices that predictions know, or show one.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(name: str | None, as_json: bool) -> None:
    """List devices with memory and bandwidth, or show what is known of NAME and where each number comes from."""
    from dataclasses import asdict

    from soloist.targets.devices import spec
    from soloist.toolchain.commands._table import echo_json, echo_table

    if name is None:
        found = spec.devices()
        if as_json:
            echo_json({key: asdict(value) for key, value in found.items()})
            return
        header = ("device", "kind", "GB", "GB/s", "TFLOPS", "GPU", "weakest evidence")
        echo_table(
            header,
            [
                (
                    d.name,
                    d.kind,
                    f"{d.memory_gb:g}",
                    f"{d.bandwidth_gbs:g}",
                    f"{d.peak_tflops:g}" if d.peak_tflops else "",
                    f"sm_{d.architecture}" if d.architecture else "",
                    d.worst_evidence,
                )
                for d in found.values()
            ],
        )
        return
    one = spec.device(name)
    if as_json:
        echo_json(asdict(one))
        return
    click.echo(f"{one.name}: {one.title}")
    for number, evidence in one.evidence.items():
        click.echo(f"  {number:16} {getattr(one, number):<8g} {spec.EVIDENCE[evidence]}")
    if one.architecture is not None:
        click.echo(f"  {'architecture':16} sm_{one.architecture}")
    if one.modes:
        click.echo(f"  {'power modes':16} {', '.join(one.modes)}")
    for rate in one.published:
        click.echo(f"  {rate.student} at {rate.bits:g} bits: {rate.tokens_per_second:g} tokens/s ({rate.source})")
    if one.note:
        click.echo(f"  {one.note}")
