"""`soloist predict`: what a device allows a student, before there is one."""

from __future__ import annotations

import click


@click.command(short_help="Predict bytes, floor and time per token of a student on a device.")
@click.argument("student")
@click.option("--device", "names", multiple=True, help="Of `soloist devices`; may be given again  [default: all]")
@click.option("--precision", help="Only this one, such as w4-g128.")
@click.option("--context-tokens", type=click.IntRange(min=0), default=512, show_default=True, help="In the KV cache.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="To be read first.")
@click.option("--matrices", is_flag=True, help="Matrix by matrix instead of the whole token.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    student: str,
    names: tuple[str, ...],
    precision: str | None,
    context_tokens: int,
    prompt_tokens: int,
    matrices: bool,
    as_json: bool,
) -> None:
    """Predict how long STUDENT takes: a known shape (smollm2-135m, qwen2.5-0.5b …) or a folder with a config.json.

    The floor is bytes over bandwidth and cannot be beaten. All else is predicted, not measured.
    """
    from dataclasses import asdict

    from soloist.kernels.errors import UsageError
    from soloist.targets.devices.spec import device, devices
    from soloist.targets.predict import PRECISIONS, matrix_rows, predict
    from soloist.targets.predict import student as find_student
    from soloist.toolchain.commands._table import echo_json, echo_table

    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"precision '{precision}': there are {', '.join(PRECISIONS)}")
    shape = find_student(student)
    places = [device(name) for name in names] or list(devices().values())
    plans = [PRECISIONS[precision]] if precision else list(PRECISIONS.values())
    if matrices:
        rows = [
            {"device": place.name, "precision": plan.name, **row}
            for place in places
            for plan in plans
            for row in matrix_rows(shape, place, plan)
        ]
        if as_json:
            echo_json({"student": asdict(shape), "matrices": rows})
            return
        echo_table(
            ("device", "precision", "matrix", "N", "K", "times", "KB", "floor µs", "predicted µs"),
            [
                (
                    r["device"],
                    r["precision"],
                    r["matrix"],
                    f"{r['rows']}",
                    f"{r['columns']}",
                    f"{r['count']}",
                    f"{r['bytes'] / 1e3:.0f}",
                    f"{r['floor_us']:.2f}",
                    f"{r['streaming_us']:.2f}",
                )
                for r in rows
            ],
        )
        return
    found = []
    for place in places:
        for plan in plans:
            found.append(predict(shape, place, plan, context=context_tokens, prompt=prompt_tokens))
    if as_json:
        echo_json(
            {
                "student": asdict(shape),
                "predictions": [{**asdict(one), "tokens_per_second": one.tokens_per_second} for one in found],
            }
        )
        return
    header = (
        "device",
        "precision",
        "MB/token",
        "floor ms",
        "predicted ms",
        "predicted tokens/s",
        "predicted TTFT ms",
        "evidence",
    )
    echo_table(
        header,
        [
            (
                p.device,
                p.precision,
                f"{(p.weight_bytes + p.kv_bytes) / 1e6:.1f}",
                f"{p.floor_ms:.2f}",
                f"{p.itl_ms:.2f}",
                f"{p.tokens_per_second:.0f}",
                "" if p.ttft_ms is None else f"{p.ttft_ms:.0f}",
                p.evidence if p.fits else f"{p.evidence}; does not fit the memory",
            )
            for p in found
        ],
    )
    click.echo(f"\npredicted, not measured: {context_tokens} tokens of context, a prompt of {prompt_tokens}")
