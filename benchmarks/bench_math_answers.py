"""Which grader of mathematical answers errs how often: ours alone, math-verify alone, and the two as they are used.

    python -P benchmarks/bench_math_answers.py

Each line of `math_answers.jsonl` is a reply and a gold answer, labeled by hand as the same or not. Cases that a grader
once got wrong are among them, so the rates are of this table, not of a benchmark. What is ours alone says "not the
same" where it would ask the library; `hostile` replies are left out of the times. The last line on stdout is the row.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from soloist.toolchain.tasks.math_answers import final_answer, is_bare, plainly_same, same_answer
from soloist.toolchain.tasks.math_child import verified

CASES = Path(__file__).parent / "math_answers.jsonl"


def ours(reply, gold):
    """The steps before the library."""
    verdict = plainly_same(reply, gold)
    if not verdict and not is_bare(reply):
        verdict = plainly_same(final_answer(reply) or reply, gold)
    return bool(verdict)


def library(reply, gold):
    """math-verify, which sees LaTeX only between dollars."""
    return verified(reply, gold, is_bare(reply))


GRADERS = {"ours": ours, "math-verify": library, "together": same_answer}


def main():
    """Grade every case by every grader; print the errors, then the row."""
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    row = {"cases": len(cases), "same": sum(case["same"] for case in cases), "graders": {}}
    verified("1", "1", True)  # starts the child
    for name, grader in GRADERS.items():
        verified.cache_clear()
        errors = {"false right": [], "false wrong": []}
        seconds = []
        for case in cases:
            began = time.perf_counter()
            verdict = grader(case["answer"], case["gold"])
            if case["kind"] != "hostile":
                seconds.append(time.perf_counter() - began)
            if verdict != case["same"]:
                errors["false right" if verdict else "false wrong"].append(case)
        for kind, wrong in errors.items():
            for case in wrong:
                print(f"{name}, {kind}: {case['answer'][:60]!r} for {case['gold']!r}")
        milliseconds = sorted(1000 * value for value in seconds)
        row["graders"][name] = {
            "false_right": len(errors["false right"]),
            "false_wrong": len(errors["false wrong"]),
            "median_ms": round(milliseconds[len(milliseconds) // 2], 3),
            "most_ms": round(milliseconds[-1], 1),
        }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
