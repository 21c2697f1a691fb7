"""The grader of mathematics on labeled replies, and that it neither hangs, crashes nor needs the main thread."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soloist.kernels.errors import ResourceError
from soloist.toolchain.tasks import math_child
from soloist.toolchain.tasks.math_answers import is_bare, plainly_same, same_answer
from soloist.toolchain.tasks.math_child import verified

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "math_answers.jsonl"
CASES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
MISSED = {  # (gold, reply): right, and graded wrong
    (r"\sin 30^\circ", r"\boxed{\frac{1}{2}}"),
    (r"0.\overline{3}", r"\boxed{\frac{1}{3}}"),
    ("B", "The correct option is (B)."),
}


@pytest.fixture(autouse=True)
def _forget():
    """Every test asks the library itself."""
    verified.cache_clear()


def test_the_cases_are_many_and_of_both_kinds():
    assert len({(case["gold"], case["answer"]) for case in CASES}) == len(CASES) >= 60
    assert sum(case["same"] for case in CASES) >= 60
    assert sum(not case["same"] for case in CASES) >= 60


def test_no_wrong_reply_is_graded_right_and_few_right_ones_wrong():
    errors = set()
    for case in CASES:
        if case["kind"] != "hostile" and same_answer(case["answer"], case["gold"]) != case["same"]:
            errors.add((case["gold"], case["answer"]))
    assert errors == MISSED


@pytest.mark.parametrize("reply", [r"\frac{1}{2}", "1200 cm^2", "5 or 6", "2 sin x", "12 dollars", r"\{1, 2\}", "3/4"])
def test_a_bare_answer_is_taken_whole(reply):
    assert is_bare(reply)
    assert not same_answer(r"\frac{0}{1}", "1"), "no number is picked out of it"


@pytest.mark.parametrize("reply", ["It is 5 or 6.", r"\boxed{5}", "$5$", "6\n#### 5", "We find 9.", "a chance of 1/2"])
def test_a_solution_is_searched(reply):
    assert not is_bare(reply)


@pytest.mark.parametrize(
    ("reply", "gold", "same"),
    [
        (r"\boxed{50\%}", "0.5", False),
        (r"\boxed{(1,2)}", r"\{1,2\}", False),
        (r"\boxed{vile}", "evil", False),
        (r"\boxed{1,2,2}", "1,1,2", False),
        ("1 1/2", r"\frac{3}{2}", True),
        ("The answer is that the chance of no prime on either of the 2 dice is 3/4.", r"\frac{3}{4}", True),
    ],
)
def test_what_is_ours_is_right_where_the_library_is_wrong(reply, gold, same):
    assert verified(reply, gold, is_bare(reply)) != same, "the library has learned it: what is ours may go"
    assert same_answer(reply, gold) == same


def test_most_answers_need_no_library(monkeypatch):
    monkeypatch.setattr(math_child._LIBRARY, "ask", lambda order: pytest.fail("asked"))
    for reply in (r"so \boxed{\frac{2}{4}}", "0.5", "#### 1/3", "The answer is 12 dollars."):
        assert same_answer(reply, r"\frac12") == (plainly_same(reply, "0.5") or "2}{4" in reply)


@pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="this system does not limit processor time")
def test_a_reply_that_takes_forever_is_wrong_and_the_next_is_graded():
    began = time.process_time()
    assert not same_answer(r"\boxed{9^{9^{9^{9}}}}", "7")
    assert time.process_time() - began < 1, "none of it is this process's time"
    assert same_answer(r"\boxed{\sqrt{12}}", r"2\sqrt{3}")


def test_every_thread_may_ask():
    pairs = [(rf"\boxed{{{n} + x}}", f"x+{n}") for n in range(8)] + [
        (rf"\boxed{{{n} - x}}", f"x+{n}") for n in range(8)
    ]
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda pair: same_answer(*pair), pairs))
    assert verdicts == [True] * 8 + [False] * 8


def test_a_killed_child_costs_one_verdict():
    assert same_answer(r"\boxed{x+1}", "1+x")
    math_child._LIBRARY.child.process.kill()
    assert not same_answer(r"\boxed{x+2}", "2+x")
    assert same_answer(r"\boxed{x+3}", "3+x")


def test_a_library_that_does_not_start_is_told(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    math_child._LIBRARY.close()
    with pytest.raises(ResourceError, match=r"compares mathematical answers ended with code 1: .*no such library"):
        verified(r"\boxed{x+4}", "4+x", False)
