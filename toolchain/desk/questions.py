"""The desk's work: twenty-two families of questions, five of which need two calls.

No text is shared between splits, by construction: what a question asks (its calls, not its wording)
is hashed, and the hash says to which split it belongs. So the numbers of a held-out question never
occur in training, whatever the seeds and the wording. `assert_disjoint` checks the texts once more.

A `Case` carries the exact calls beside the question. They are for demonstrations and audits; a
question shown to a team is the bare `Question`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from random import Random
from typing import Literal

from soloist.kernels.errors import DataError
from soloist.toolchain.desk import families as make
from soloist.toolchain.desk.tools import desk_tools
from soloist.toolchain.tasks.base import Question, interleave, question_key
from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.tools.calls import Call, parse_call, render_call

Pool = Literal["train", "held-out", "demonstration"]
_SHARES: Mapping[str, range] = {"demonstration": range(1), "held-out": range(1, 3), "train": range(3, 10)}
_SEEDS: Mapping[str, int] = {"train": 0, "held-out": 1_000_000_000, "demonstration": 2_000_000_000}


@dataclass(frozen=True)
class Family:
    """A kind of question. `description` is one line for a router.

    `kinds` tells apart what a small reader confuses within a family: the kind's name and what its last
    call contains, as written. Specialists have demonstrations of one kind only.
    """

    name: str
    tools: tuple[str, ...]
    scorer: str
    description: str
    make: make.Make
    kinds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A question and the exact calls that answer it, each written with the results of those before."""

    question: Question
    calls: tuple[Call, ...]

    def written(self, tools: Toolbox | None = None) -> tuple[str, ...]:
        """The calls as a model writes them."""
        tools = tools or toolbox()
        return tuple(render_call(call.name, call.arguments, tools, more=call.more) for call in self.calls)


@lru_cache(maxsize=1)
def toolbox() -> Toolbox:
    """The tools the families are answered with."""
    return desk_tools()


_FAMILIES = (
    Family("equations", ("solve",), "number", "find the unknown in an equation", make.equations),
    Family("sums", ("calc",), "number", "add and subtract numbers", make.sums),
    Family("products", ("calc",), "number", "multiply two numbers", make.products),
    Family("expressions", ("calc",), "number", "compute an expression with * / or parentheses", make.expressions),
    Family("durations", ("between",), "exact", "time from one clock time to another", make.durations),
    Family("clock", ("later",), "exact", "clock time some minutes after or before another", make.clock),
    Family("weekdays", ("weekday",), "exact", "day of the week of a date", make.weekdays),
    Family("legs", ("legs",), "number", "count the legs of animals", make.legs),
    Family(
        "sorting",
        ("sort",),
        "exact",
        "put numbers in order",
        make.sorting,
        {"ascending": "sort(asc ", "descending": "sort(desc "},
    ),
    Family("filtering", ("filter",), "exact", "keep or remove numbers above or below a limit", make.filtering),
    Family("fractions", ("simplify",), "exact", "reduce a fraction to lowest terms", make.fractions),
    Family("gcd", ("gcd",), "number", "greatest common divisor", make.gcd),
    Family("lcm", ("lcm",), "number", "least common multiple", make.lcm),
    Family("bases", ("base",), "exact", "write a number in another base", make.bases),
    Family("primes", ("primes",), "number", "count primes in a range", make.primes),
    Family("units", ("convert",), "number", "convert units", make.units),
    Family("percentages", ("percent",), "number", "so many percent of a number", make.percentages),
    Family(
        "equation-then",
        ("solve", "calc"),
        "number",
        "solve an equation, then calculate with its solution",
        make.equation_then,
        {"times": " * ", "plus": " + ", "minus": " - "},
    ),
    Family("unit-then", ("convert", "calc"), "number", "convert units, then add or subtract", make.unit_then),
    Family(
        "legs-then",
        ("legs", "calc"),
        "number",
        "count legs, then calculate with the count",
        make.legs_then,
        {"times": " * ", "plus": " + ", "over": " / "},
    ),
    Family("discounts", ("percent", "calc"), "number", "a number raised or lowered by percent", make.discounts),
    Family(
        "shifts", ("between", "later"), "exact", "time between two clock times, minus or plus some minutes", make.shifts
    ),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _FAMILIES}


def _pool(calls: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(calls).encode()).digest()
    share = int.from_bytes(digest[:4], "big") % 10
    return next(pool for pool, shares in _SHARES.items() if share in shares)


def read_calls(written: Sequence[str]) -> tuple[Call, ...]:
    """Calls from their texts; all but the last are marked as followed by another."""
    last = len(written) - 1
    calls = []
    for index, text in enumerate(written):
        call = parse_call(text, toolbox())
        calls.append(Call(call.name, call.arguments, more=index < last))
    return tuple(calls)


def _case(family: Family, draft: make.Draft, pool: str, name: str) -> Case:
    split: Literal["train", "held-out"] = "held-out" if pool == "held-out" else "train"
    question = Question(
        id=name,
        question=draft.text,
        gold=draft.gold,
        task=family.name,
        split=split,
        source=f"desk/{pool}",
        scorer=family.scorer,
    )
    return Case(question, read_calls(draft.calls))


def cases(family: str, pool: Pool, n: int, seed: int = 0, kind: str = "") -> list[Case]:
    """`n` distinct cases of one family, or of one kind within it. Raises DataError if there are not so many."""
    if family not in FAMILIES:
        raise DataError(f"no question family '{family}'; there are: {', '.join(FAMILIES)}")
    chosen = FAMILIES[family]
    made: dict[str, Case] = {}
    if kind and kind not in chosen.kinds:
        raise DataError(f"family '{family}' has no kind '{kind}'; it has: {', '.join(chosen.kinds) or 'none'}")
    sign = chosen.kinds[kind] if kind else ""
    first = _SEEDS[pool] + list(FAMILIES).index(family) * 37_000_000 + seed * 1_000_000
    for item_seed in range(first, first + 2000 + 100 * n):
        if len(made) == n:
            break
        draft = chosen.make(Random(f"{family} {item_seed}"), item_seed)  # noqa: S311 - data, no secrets
        if draft is None or _pool(draft.calls) != pool or sign not in draft.calls[-1]:
            continue
        key = question_key(draft.text)
        if key not in made:
            made[key] = _case(chosen, draft, pool, f"{family}-{pool}-{seed}-{len(made):05d}")
    if len(made) < n:
        raise DataError(f"family '{family}' has only {len(made)} distinct {pool} questions at seed {seed}, {n} asked")
    return list(made.values())


def mixed_cases(pool: Pool, n: int, seed: int = 0, families: Sequence[str] = tuple(FAMILIES)) -> list[Case]:
    """`n` cases, balanced over the families and interleaved, no text twice."""
    if not families:
        raise DataError("no question family chosen")
    columns = []
    for index, family in enumerate(families):
        share = n // len(families) + (index < n % len(families))
        columns.append(cases(family, pool, share, seed))
    mixed = interleave(columns)
    if len({question_key(case.question.question) for case in mixed}) < n:  # two families that word the same alike
        raise DataError("two families made the same question; their wordings must tell them apart")
    return mixed


def questions(
    split: Literal["train", "held-out"], n: int, seed: int = 0, families: Sequence[str] = tuple(FAMILIES)
) -> list[Question]:
    """`n` questions, balanced over the families and interleaved, no text twice."""
    return [case.question for case in mixed_cases(split, n, seed, families)]


def demonstrations(family: str, k: int, seed: int = 0, kind: str = "") -> list[Case]:
    """`k` worked examples that occur in no other split."""
    return cases(family, "demonstration", k, seed, kind)


def assert_disjoint(train: Sequence[Question], held_out: Sequence[Question]) -> None:
    """Raise DataError if a text of one occurs in the other, case and spacing folded."""
    keys = {question_key(question.question): question for question in train}
    for question in held_out:
        twin = keys.get(question_key(question.question))
        if twin is not None:
            raise DataError(f"question '{question.id}' of the held-out set has the text of '{twin.id}' in training")


def unseen_cases() -> list[Case]:
    """The unseen-wording set: written one by one for this project, see `unseen.jsonl`."""
    text = resources.files("soloist.toolchain.desk").joinpath("unseen.jsonl").read_text(encoding="utf-8")
    made = []
    for number, line in enumerate(text.splitlines(), 1):
        row = json.loads(line)
        family = FAMILIES[row["task"]]
        question = Question(
            id=f"unseen-{number:03d}",
            question=row["question"],
            gold=row["gold"],
            task=family.name,
            split="unseen-wording",
            source="desk/unseen.jsonl",
            scorer=family.scorer,
        )
        made.append(Case(question, read_calls(row["calls"])))
    return made


def unseen_questions() -> list[Question]:
    """The questions of `unseen_cases`."""
    return [case.question for case in unseen_cases()]
