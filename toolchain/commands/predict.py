"""`soloist predict`: what a device allows a student, before there is one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from soloist.targets.predict import Prediction


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
    from soloist.toolchain.commands._output import echo_json

    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"precision '{precision}': there are {', '.join(PRECISIONS)}")
    shape = find_student(student)
    targets = [device(name) for name in names] or list(devices().values())
    precisions = [PRECISIONS[precision]] if precision else list(PRECISIONS.values())
    cases = list(itertools.product(targets, precisions))
    if matrices:
        rows = []
        for target, weights in cases:
            for row in matrix_rows(shape, target, weights):
                rows.append({"device": target.name, "precision": weights.name, **row})
        if as_json:
            echo_json({"student": asdict(shape), "matrices": rows})
        else:
            _show_matrices(rows)
        return
    predictions = [
        predict(shape, target, weights, context=context_tokens, prompt=prompt_tokens) for target, weights in cases
    ]
    if as_json:
        records = [{**asdict(one), "tokens_per_second": one.tokens_per_second} for one in predictions]
        echo_json({"student": asdict(shape), "predictions": records})
        return
    _show(predictions)
    click.echo(f"\npredicted, not measured: {context_tokens} tokens of context, a prompt of {prompt_tokens}")


def _show_matrices(rows: Sequence[Mapping[str, Any]]) -> None:
    from soloist.toolchain.commands._output import number, print_table

    numbers = [number(name) for name in ("N", "K", "times", "KB", "floor µs", "predicted µs")]
    lines = []
    for row in rows:
        sizes = (f"{row['rows']}", f"{row['columns']}", f"{row['count']}", f"{row['bytes'] / 1e3:.0f}")
        times = (f"{row['floor_us']:.2f}", f"{row['streaming_us']:.2f}")
        lines.append((row["device"], row["precision"], row["matrix"], *sizes, *times))
    print_table(("device", "precision", "matrix", *numbers), lines)


def _show(predictions: Sequence[Prediction]) -> None:
    from soloist.toolchain.commands._output import number, print_table

    names = ("MB/token", "floor ms", "predicted ms", "predicted tokens/s", "predicted TTFT ms")
    lines = []
    for one in predictions:
        size = f"{(one.weight_bytes + one.kv_bytes) / 1e6:.1f}"
        times = (f"{one.floor_ms:.2f}", f"{one.itl_ms:.2f}", f"{one.tokens_per_second:.0f}")
        first = "" if one.ttft_ms is None else f"{one.ttft_ms:.0f}"
        evidence = one.evidence if one.fits else f"{one.evidence}; does not fit the memory"
        lines.append((one.device, one.precision, size, *times, first, evidence))
    print_table(("device", "precision", *map(number, names), "evidence"), lines)
