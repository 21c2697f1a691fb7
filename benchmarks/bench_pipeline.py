"""The main job as a benchmark: one row per system and split, taken from a job's report.json.

    python benchmarks/bench_pipeline.py runs/desk          append the rows of a finished job
    make run ARGS="--count 400"                        the full comparison those rows are for

Rows carry device, versions and commit of the job. The last line printed is the last row.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from soloist.toolchain.report.schema import read_report

RESULTS = Path(__file__).parent / "results" / "pipeline.jsonl"


def rows(folder: Path) -> list[dict]:
    report = read_report(folder / "report.json")
    shared = {
        "bench": "pipeline",
        "device": report.device,
        "versions": dict(report.versions),
        "commit": report.commit,
        "task": report.task,
        "created": report.details.created if report.details else "",
        "break_even_questions": report.break_even_questions,
        "recommended": report.details.headline if report.details else None,
        "price": report.details.prices[0] if report.details else "",
        "stages": [one.model_dump(mode="json") for one in report.details.stages] if report.details else [],
    }
    return [{**shared, **system.model_dump(mode="json")} for system in report.systems]


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    found = rows(Path(sys.argv[1]))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        for row in found:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(json.dumps(found[-1], ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
