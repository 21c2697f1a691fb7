"""`soloist devices`: what is known and assumed of machines."""

from __future__ import annotations

import click


@click.command(short_help="List the devices that predictions know, or show one.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(name: str | None, as_json: bool) -> None:
    """List devices with memory, bandwidth and price, or show what is known of NAME and where each number comes from.

    NAME is one of the list, or `this` for the machine the command runs on.
    """
    from dataclasses import asdict

    from soloist.targets.devices import spec
    from soloist.targets.devices.here import this_machine
    from soloist.toolchain.commands._output import echo_json, number, print_table

    if name is None:
        listed = spec.devices()
        if as_json:
            echo_json({key: asdict(value) for key, value in listed.items()})
            return
        rows = []
        for one in listed.values():
            peak = f"{one.peak_tflops:g}" if one.peak_tflops else ""
            gpu = f"sm_{one.architecture}" if one.architecture else ""
            price = (f"{one.usd_per_hour:.2g}", f"{one.watts:g}")
            speed = (f"{one.memory_gb:g}", f"{one.bandwidth_gbs:g}", peak, gpu, one.worst_evidence)
            rows.append((one.name, one.kind, *speed, *price))
        memory = (number("GB"), number("GB/s"), number("TFLOPS"))
        print_table(("device", "kind", *memory, "GPU", "weakest evidence", number("$/h"), number("W")), rows)
        click.echo(
            f"\n$/h and W are assumed, with ${spec.USD_PER_KWH:g} per kWh; `soloist devices NAME` gives the reasons"
        )
        return
    one = this_machine() if name == "this" else spec.device(name)
    if as_json:
        echo_json(asdict(one))
        return
    click.echo(f"{one.name}: {one.title}")
    for field, evidence in one.evidence.items():
        click.echo(f"  {field:16} {getattr(one, field):<8g} {spec.EVIDENCE[evidence]}")
    for field, reason in one.assumed.items():
        click.echo(f"  {field:16} {getattr(one, field):<8g} assumed: {reason}")
    if one.architecture is not None:
        click.echo(f"  {'architecture':16} sm_{one.architecture}")
    if one.modes:
        click.echo(f"  {'power modes':16} {', '.join(one.modes)}")
    for rate in one.published:
        click.echo(f"  {rate.student} at {rate.bits:g} bits: {rate.tokens_per_second:g} tokens/s ({rate.source})")
    if one.note:
        click.echo(f"  {one.note}")
