"""Options of `soloist run` to a Job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from soloist.kernels.errors import UsageError
from soloist.toolchain.commands._options import local_price, method_options, token_price
from soloist.toolchain.desk.job import DESK_TRAIN, desk_task
from soloist.toolchain.pipeline.job import FORMATS, Job, Task, own_task, team_of_traces
from soloist.toolchain.quantize.stage import QuantizeConfig

DESK = "desk"
COUNT, UNSEEN, SELECTION, SAMPLES = 100, 90, 40, 16
_QUICK_COUNT, _QUICK_UNSEEN, _QUICK_SELECTION, _QUICK_SAMPLES, _QUICK_LIMIT = 25, 10, 20, 8, 300
_QUICK_FORMATS = ("gguf-f16", "gguf-q4_0", "gguf")


def make_job(team: str | None, out: Path | None, options: Mapping[str, Any], *, command: str) -> Job:
    """The job the options describe. Raises UsageError."""
    quick = options["quick"]
    traces = options["traces"]
    name = team or (team_of_traces(traces) if traces is not None else DESK)
    given = tuple(filter(None, options["formats"].split(",")))
    return Job(
        task=_task(name, options),
        base=options["base"],
        out=out or Path("runs") / (Path(name).stem if name else traces.resolve().name),
        mode=options["mode"],
        method=options["method"],
        options=method_options(options["chosen"]),
        formats=given or (_QUICK_FORMATS if quick else FORMATS),
        quantize=QuantizeConfig(samples=_QUICK_SAMPLES if quick else SAMPLES),
        epochs=options["epochs"],
        limit=_QUICK_LIMIT if quick else None,
        seed=options["seed"],
        price=local_price(options["usd_per_hour"], options["watts"], options["usd_per_kwh"]),
        usd_per_million=token_price(options["api_price"]),
        command=command,
        assess=options["assess"],
    )


def _task(team: str | None, options: Mapping[str, Any]) -> Task:
    traces = options["traces"]
    if traces is not None and (options["train"] is not None or options["fresh"] or options["record"]):
        raise UsageError("--traces are there already: leave out --train, --fresh and --record, which record new ones")
    if options["test"] is not None:
        if options["fresh"] or options["record"]:
            raise UsageError("--fresh and --record are for the desk's own questions, not for --train and --test")
        return own_task(team, options["test"], train=options["train"], traces=traces)
    if team != DESK or options["train"] is not None:
        raise UsageError(
            "a team of your own needs held-out questions: --test FILE.jsonl (and --train FILE.jsonl or --traces FOLDER)"
        )
    if options["record"] and not options["fresh"]:
        raise UsageError("--record is how many questions to record anew: give --fresh with it")
    quick = options["quick"]
    unseen = options["unseen"] if options["unseen"] is not None else _QUICK_UNSEEN if quick else UNSEEN
    task = desk_task(
        count=options["count"] or (_QUICK_COUNT if quick else COUNT),
        unseen=unseen,
        selection=_QUICK_SELECTION if quick else SELECTION,
        fresh=options["fresh"],
        train=options["record"] or DESK_TRAIN,
    )
    return task if traces is None else replace(task, traces=traces, train=())
