"""How each family of the desk makes one question with its gold answer and the calls that answer it.

Where reasoning-gym has the task, its generator draws the numbers and its answer is the gold; half of
the questions keep its wording (long format instructions removed), half use ours. The other families
draw their own numbers and compute their gold with Fractions. Traps of reasoning-gym that are avoided
here: zero written as no digit at all, times that end at midnight, fractions over 1, filters that keep
nothing, whole-number division of what does not divide.
"""

from __future__ import annotations

import datetime
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from types import ModuleType
from typing import Any

from soloist.kernels.errors import MissingExtraError
from soloist.toolchain.desk.tools_world import PLURALS, UNIT_WORDS
from soloist.toolchain.desk.wordings import STORIES, WORDINGS
from soloist.toolchain.tools.arithmetic import show


@dataclass(frozen=True)
class Draft:
    """One made question: text, gold answer, calls as written."""

    text: str
    gold: str
    calls: tuple[str, ...]


Make = Callable[[Random, int], Draft | None]


def _gym(name: str, seed: int, **settings: Any) -> dict[str, Any]:
    # reasoning-gym imports pycosat, which comes as C source, for a generator that is not called here
    if sys.modules.get("pycosat") is None and importlib.util.find_spec("pycosat") is None:
        sys.modules["pycosat"] = ModuleType("pycosat", "empty: no solver is called here")
    try:
        import reasoning_gym
    except ImportError:
        raise MissingExtraError("reasoning-gym", "desk", alone="reasoning-gym==0.1.25") from None
    item: dict[str, Any] = reasoning_gym.create_dataset(name, seed=seed, size=1, **settings)[0]
    return item


def _say(rng: Random, group: str, original: str = "", **slots: object) -> str:
    if original and rng.random() < 0.5:
        return original
    return rng.choice(WORDINGS[group]).format(**slots)


def _listed(rng: Random, parts: Sequence[object]) -> str:
    """a, b, c or a, b and c."""
    texts = list(map(str, parts))
    if len(texts) > 1 and rng.random() < 0.7:
        return ", ".join(texts[:-1]) + " and " + texts[-1]
    return ", ".join(texts)


def equations(rng: Random, seed: int) -> Draft | None:
    item = _gym("simple_equations", seed, min_terms=2, max_terms=2, max_value=20)
    equation, variable = item["metadata"]["equation"], item["metadata"]["variable"]
    if variable not in equation:
        return None
    riddle = re.fullmatch(r"(\d+)\*[a-z] ([+-]) (\d+) = (-?\d+)", equation)
    if riddle and rng.random() < 0.25:
        a, sign, b, c = riddle.groups()
        text = _say(rng, f"equations-riddle{sign}", a=a, b=b, c=c)
        return Draft(text, item["answer"], (f"solve({a}*x {sign} {b} = {c})",))
    text = _say(rng, "equations", item["question"], e=equation, v=variable)
    return Draft(text, item["answer"], (f"solve({equation})",))


def _story(rng: Random, expression: str) -> str | None:
    parts = re.findall(r"([+-]?) ?(\d+)", expression)
    level, (start, gain, loss, ask) = 0, rng.choice(STORIES)
    told: list[str] = []
    for sign, number in parts:
        level += -int(number) if sign == "-" else int(number)
        phrase = loss if sign == "-" else gain if told else start
        told.append(phrase.format(n=number))
        if level < 0 or number in ("0", "1"):
            return None
    return ", then ".join(told) + ". " + ask


def sums(rng: Random, seed: int) -> Draft | None:
    item = _gym("chain_sum", seed, min_terms=2, max_terms=4, max_digits=3)
    expression = item["metadata"]["expression"]
    text = _story(rng, expression) if rng.random() < 0.3 else None
    text = text or _say(rng, "sums", item["question"], e=expression)
    return Draft(text, item["answer"], (f"calc({expression})",))


def products(rng: Random, seed: int) -> Draft | None:
    item = _gym("products", seed, min_digits=1, max_digits=3)
    expression = item["metadata"]["expression"]
    a, b = expression.split(" * ")
    original = item["question"].removesuffix(" Give only the result as your final answer.")
    return Draft(_say(rng, "products", original, a=a, b=b), item["answer"], (f"calc({expression})",))


def _without_outer(expression: str) -> str:
    """Without parentheses around the whole."""
    level = 0
    for at, sign in enumerate(expression):
        level += (sign == "(") - (sign == ")")
        if level == 0:
            return _without_outer(expression[1:-1]) if sign == ")" and at == len(expression) - 1 else expression
    return expression


def expressions(rng: Random, seed: int) -> Draft | None:
    item = _gym("basic_arithmetic", seed, min_terms=3, max_terms=4, max_digits=2, allow_negation=False)
    expression = item["metadata"]["expression"].replace("( ", "(").replace(" )", ")")
    expression = _without_outer(expression)
    if re.search(r"\(\(\(|\)\)\)|\(-\(", expression) or not re.search(r"[*/(]", expression):
        return None
    text = _say(rng, "expressions", f"Calculate {expression}.", e=expression)
    return Draft(text, item["answer"], (f"calc({expression})",))


def _twelve_hours(clock: str) -> str:
    hour, minute = clock.split(":")
    return f"{(int(hour) + 11) % 12 + 1}:{minute} {'pm' if int(hour) >= 12 else 'am'}"


def durations(rng: Random, seed: int) -> Draft | None:
    item = _gym("time_intervals", seed, task_types=["time"])
    times = re.findall(r"\d\d:\d\d", item["question"])
    if len(times) != 2 or times[0] >= times[1]:
        return None
    if rng.random() < 0.2:
        start, end = map(_twelve_hours, times)
        return Draft(_say(rng, "durations", start=start, end=end), item["answer"], (f"between({start} | {end})",))
    start, end = times
    text = _say(rng, "durations", item["question"], start=start, end=end)
    return Draft(text, item["answer"], (f"between({start} | {end})",))


def _hhmm(minutes: int) -> str:
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def clock(rng: Random, seed: int) -> Draft | None:
    start, span = rng.randrange(24 * 60), rng.randint(5, 400)
    sign = rng.choice("+-")
    spoken, written = f"{span} minutes", str(span)
    if span > 60 and span % 60 and rng.random() < 0.5:
        spoken = f"{span // 60} hour{'s' if span >= 120 else ''} and {span % 60} minutes"
        written = _hhmm(span)
    end = start + span if sign == "+" else start - span
    call = f"later({_hhmm(start)} | {'' if sign == '+' else '-'}{written})"
    return Draft(_say(rng, f"clock{sign}", start=_hhmm(start), span=spoken), _hhmm(end % 1440), (call,))


def weekdays(rng: Random, seed: int) -> Draft | None:
    year = rng.randint(1950, 2049)
    item = _gym("calendar_arithmetic", seed, tasks=["weekday_of_date"], year=year)
    day = datetime.date.fromisoformat(item["metadata"]["target_date"])
    month = day.strftime("%B")
    forms = (
        f"{day:%m/%d/%Y}",
        f"{month} {day:%d}, {year}",
        f"{month} {day.day}, {year}",
        f"{day.day} {month} {year}",
        day.isoformat(),
        f"{month[:3]} {day.day}, {year}",
    )
    asked = re.match(r".*?(?:\?|\d{4}\.)", item["question"])  # without its long format instruction
    text = _say(rng, "weekdays", asked[0] if asked else "", d=rng.choice(forms[2:]))
    written = max((form for form in forms if form in text), key=len)
    return Draft(text, item["answer"], (f"weekday({written})",))


_PLURALS = {**PLURALS, "human": "humans"}


def _herd(rng: Random, animals: Mapping[str, int]) -> tuple[str, str]:
    """The animals as people say them, and as the call writes them."""
    spoken, written = [], []
    for animal, count in animals.items():
        spoken.append(f"{count} {animal if count == 1 else _PLURALS.get(animal, animal + 's')}")
        written.append(f"{count} {animal}")
    return _listed(rng, spoken), f"legs({', '.join(written)})"


def legs(rng: Random, seed: int) -> Draft | None:
    item = _gym("leg_counting", seed, min_animals=2, max_animals=3, max_instances=12)
    animals, call = _herd(rng, item["metadata"]["animals"])
    original = item["question"].split("Now, ")[-1].strip()
    text = _say(rng, "legs", original[0].upper() + original[1:], animals=animals)
    return Draft(text, item["answer"], (call,))


def _plain(number: str) -> str:
    return show(Fraction(number))


def sorting(rng: Random, seed: int) -> Draft | None:
    item = _gym("number_sorting", seed, min_numbers=3, max_numbers=5, max_decimals=0, min_value=0, max_value=99)
    metadata = item["metadata"]
    order = "asc" if metadata["direction"] == "ascending" else "desc"
    numbers = ", ".join(map(_plain, metadata["original_numbers"]))
    original = f"Sort these numbers in {metadata['direction']} order: {numbers}"
    text = _say(rng, f"sorting-{order}", original, numbers=numbers)
    return Draft(text, ", ".join(map(_plain, metadata["sorted_numbers"])), (f"sort({order} | {numbers})",))


def filtering(rng: Random, seed: int) -> Draft | None:
    item = _gym("number_filtering", seed, min_numbers=3, max_numbers=5, max_decimals=0, min_value=0, max_value=99)
    metadata = item["metadata"]
    if not metadata["result"]:
        return None
    action, side = metadata["operation"].split("_")
    numbers, limit = ", ".join(map(_plain, metadata["original_numbers"])), _plain(metadata["filter_value"])
    original = f"{action.capitalize()} all numbers {side} than {limit} in this list: [{numbers}]"
    text = _say(rng, f"filtering-{action}-{side}", original, numbers=numbers, limit=limit)
    call = f"filter({action} | {side} | {limit} | {numbers})"
    return Draft(text, ", ".join(map(_plain, metadata["result"])), (call,))


def fractions(rng: Random, seed: int) -> Draft | None:
    item = _gym(
        "fraction_simplification", seed, min_value=1, max_value=40, min_factor=2, max_factor=15, styles=("plain",)
    )
    metadata = item["metadata"]
    fraction = f"{metadata['numerator']}/{metadata['denominator']}"
    if item["answer"].endswith("/1"):
        return None
    original = item["question"].removesuffix(" Give only the simplified fraction as your final answer.")
    return Draft(_say(rng, "fractions", original, f=fraction), item["answer"], (f"simplify({fraction})",))


def gcd(rng: Random, seed: int) -> Draft | None:
    item = _gym("gcd", seed, min_numbers=2, max_numbers=3, min_value=4, max_value=240)
    numbers = item["metadata"]["numbers"]
    original = item["question"].removesuffix(" Give only the GCD as your final answer.")
    text = _say(rng, "gcd", original, list=_listed(rng, numbers))
    return Draft(text, item["answer"], (f"gcd({', '.join(map(str, numbers))})",))


def lcm(rng: Random, seed: int) -> Draft | None:
    item = _gym("lcm", seed, min_numbers=2, max_numbers=3, min_value=2, max_value=60)
    numbers = item["metadata"]["numbers"]
    text = _say(rng, "lcm", item["question"], list=_listed(rng, numbers))
    return Draft(text, item["answer"], (f"lcm({', '.join(map(str, numbers))})",))


_BASES = {2: "binary", 8: "octal", 10: "decimal", 16: "hexadecimal"}


def bases(rng: Random, seed: int) -> Draft | None:
    item = _gym("base_conversion", seed, min_value=2, max_value=400)
    metadata = item["metadata"]
    source, target, number = metadata["source_base"], metadata["target_base"], metadata["source_repr"]
    if source == target:
        return None
    names = []
    for base in (source, target):
        named = base in _BASES and rng.random() < 0.6
        names.append(_BASES[base] if named else f"base {base}")
    original = item["question"].split("Now, ")[-1].strip() + "."
    text = _say(rng, "bases", original[0].upper() + original[1:], n=number, source=names[0], target=names[1])
    return Draft(text, item["answer"], (f"base({number} | {source} | {target})",))


def primes(rng: Random, seed: int) -> Draft | None:
    item = _gym("count_primes", seed, min_n=1, max_n=300)
    low, high = item["metadata"]["start"], item["metadata"]["end"]
    text = _say(rng, "primes", item["question"].replace(" ?", "?"), low=low, high=high)
    return Draft(text, item["answer"], (f"primes({low} | {high})",))


_SPOKEN = {unit: word for word, unit in UNIT_WORDS.items()}
_SPELLED_OUT = frozenset(("day", "week", "in", "t"))  # short forms that nobody writes, or that are words
# larger unit, smaller unit, how many of the smaller make one of the larger
_PAIRS = (
    ("km", "m", 1000),
    ("m", "cm", 100),
    ("m", "mm", 1000),
    ("cm", "mm", 10),
    ("kg", "g", 1000),
    ("g", "mg", 1000),
    ("t", "kg", 1000),
    ("l", "ml", 1000),
    ("l", "cl", 100),
    ("l", "dl", 10),
    ("h", "min", 60),
    ("min", "s", 60),
    ("day", "h", 24),
    ("week", "day", 7),
    ("ft", "in", 12),
    ("yd", "ft", 3),
    ("lb", "oz", 16),
)


def _named(rng: Random, *units: str) -> list[str]:
    spoken = rng.random() < 0.6 or not _SPELLED_OUT.isdisjoint(units)
    return [_SPOKEN[unit] for unit in units] if spoken else list(units)


def units(rng: Random, seed: int) -> Draft | None:
    large, small, ratio = rng.choice(_PAIRS)
    amount = Fraction(rng.randint(2, 160), rng.choice((1, 1, 2, 4)) if ratio not in (7, 3) else 1)
    if rng.random() < 0.5:
        source, target, given, gold = large, small, amount, amount * ratio
    else:
        source, target, given, gold = small, large, amount * ratio, amount
    if given == 1:
        return None
    u, w = _named(rng, source, target)
    text = _say(rng, "units", x=show(given), u=u, w=w)
    return Draft(text, show(gold), (f"convert({show(given)} | {u} | {w})",))


def percentages(rng: Random, seed: int) -> Draft | None:
    rate, whole = rng.choice((rng.randint(1, 99), 5 * rng.randint(1, 19))), 20 * rng.randint(2, 60)
    text = _say(rng, "percentages", p=rate, n=whole)
    return Draft(text, show(Fraction(rate * whole, 100)), (f"percent({rate} | {whole})",))


def equation_then(rng: Random, seed: int) -> Draft | None:
    item = _gym("simple_equations", seed, min_terms=2, max_terms=2, max_value=12)
    equation, variable, solution = item["metadata"]["equation"], item["metadata"]["variable"], item["answer"]
    if variable not in equation:
        return None
    sign, k = rng.choice("*+-"), rng.randint(2, 12)
    named = rng.choice((variable, "the solution", "it"))
    then = {"*": f"multiply {named} by {k}", "+": f"add {k} to {named}", "-": f"subtract {k} from {named}"}[sign]
    gold = {"*": int(solution) * k, "+": int(solution) + k, "-": int(solution) - k}[sign]
    text = _say(rng, "equation-then", e=equation, v=variable, then=then)
    return Draft(text, str(gold), (f"solve({equation})", f"calc({solution} {sign} {k})"))


def unit_then(rng: Random, seed: int) -> Draft | None:
    large, small, ratio = rng.choice([pair for pair in _PAIRS if pair[2] >= 10])
    amount = rng.randint(2, 40)
    other, sign = rng.randint(2, min(amount * ratio - 1, 999)), rng.choice("+-")
    whole = amount * ratio
    u, w = _named(rng, large, small)
    text = _say(rng, f"unit-then{sign}", x=amount, u=u, w=w, y=other)
    gold = whole + other if sign == "+" else whole - other
    return Draft(text, str(gold), (f"convert({amount} | {u} | {w})", f"calc({whole} {sign} {other})"))


def legs_then(rng: Random, seed: int) -> Draft | None:
    item = _gym("leg_counting", seed, min_animals=2, max_animals=2, max_instances=9)
    total, sign = int(item["answer"]), rng.choice("*+/")
    dividers = [k for k in range(2, 13) if total % k == 0]
    if total == 0 or (sign == "/" and not dividers):
        return None
    k = rng.choice(dividers) if sign == "/" else rng.randint(2, 9)
    animals, call = _herd(rng, item["metadata"]["animals"])
    gold = {"*": total * k, "+": total + k, "/": total // k}[sign]
    return Draft(_say(rng, f"legs-then{sign}", animals=animals, k=k), str(gold), (call, f"calc({total} {sign} {k})"))


def discounts(rng: Random, seed: int) -> Draft | None:
    rate, whole, sign = (
        rng.choice((rng.randint(2, 60), 5 * rng.randint(1, 15))),
        20 * rng.randint(2, 60),
        rng.choice("+-"),
    )
    part = Fraction(rate * whole, 100)
    text = _say(rng, f"discounts{sign}", p=rate, n=whole)
    gold = whole + part if sign == "+" else whole - part
    return Draft(text, show(gold), (f"percent({rate} | {whole})", f"calc({whole} {sign} {show(part)})"))


def shifts(rng: Random, seed: int) -> Draft | None:
    start, span = rng.randint(5 * 60, 12 * 60), rng.randint(150, 660)
    pause, sign = rng.randint(2, 24) * 5, rng.choice("+-")
    begin, end = _hhmm(start), _hhmm(start + span)
    gold = span + pause if sign == "+" else span - pause
    text = _say(rng, f"shifts{sign}", start=begin, end=end, k=pause)
    minutes = f"{'' if sign == '+' else '-'}{pause}"
    return Draft(text, _hhmm(gold), (f"between({begin} | {end})", f"later({_hhmm(span)} | {minutes})"))
