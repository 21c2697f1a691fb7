"""Options of `soloist run` to a Job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soloist.kernels.errors import UsageError
from soloist.toolchain.bench.cost import LocalPrice
from soloist.toolchain.commands._options import method_options
from soloist.toolchain.desk.job import DESK_TRAIN, desk_job
from soloist.toolchain.pipeline.job import own_job
from soloist.toolchain.pipeline.run import FORMATS, Job


def make_job(team: str, out: Path, options: Mapping[str, Any], *, command: str) -> Job:
    """The job the options describe. Raises UsageError."""
    formats = tuple(filter(None, options["formats"].split(","))) or FORMATS
    try:
        price = LocalPrice(
            usd_per_hour=options["usd_per_hour"], watts=options["watts"], usd_per_kwh=options["usd_per_kwh"]
        )
    except ValueError as error:
        raise UsageError(f"price of this machine: {error}") from error
    more = {
        "mode": options["mode"],
        "method": options["method"],
        "options": method_options(options["chosen"]),
        "formats": formats,
        "epochs": options["epochs"],
        "seed": options["seed"],
        "command": command,
        "usd_per_million": _api_price(options["api_price"]),
        "price": price,
        "assess": options["assess"],
    }
    if options["test"] is not None:
        if options["fresh"] or options["record"]:
            raise UsageError("--fresh and --record are for the desk's own questions, not for --train and --test")
        return own_job(team, options["base"], out, options["train"], options["test"], **more)
    if team != "desk" or options["train"] is not None:
        raise UsageError("a team of your own needs held-out questions: --test FILE.jsonl (and --train FILE.jsonl)")
    if options["record"] and not options["fresh"]:
        raise UsageError("--record is how many questions to record anew: give --fresh with it")
    return desk_job(
        options["base"],
        out,
        questions=options["count"],
        unseen=options["unseen"],
        fresh=options["fresh"],
        train=options["record"] or DESK_TRAIN,
        **more,
    )


def _api_price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        price_in, price_out = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--api-price: expected two numbers as IN,OUT, got '{text}'") from None
    return price_in, price_out
