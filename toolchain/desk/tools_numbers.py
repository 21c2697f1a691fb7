"""The desk's exact tools on numbers: equations, expressions, lists, divisors, bases, primes, percentages.

Each returns its worked steps, and each carries a check that goes another way round than the tool:
substitution, another algorithm, or the property that defines the answer. Numbers are bounded so that
no call can keep a laptop busy.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from soloist.toolchain.tools.arithmetic import (
    evaluate,
    evaluate_by_stacks,
    evaluate_text,
    linear,
    operand,
    parse,
    show,
    variables,
)
from soloist.toolchain.tools.base import Arguments, Result, Tool
from soloist.toolchain.tools.calls import DECIMAL, DIGITS

Number = int | float
LARGEST = 10**12
MOST_PRIMES = 1_000_000
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

_ATOM = f'({DECIMAL} ("*"? [a-z])? | [a-z])'
_OPERATOR = '(" + " | " - " | " * " | " / " | "*" | "/")'


def _side(atom: str) -> str:
    item = f'"-"? ("(" "("?)? "-"? {atom} (")" ")"?)?'
    return f"{item} ({_OPERATOR} {item})*"


EXPRESSION_GRAMMAR = _side(DECIMAL)
EQUATION_GRAMMAR = f'{_side(_ATOM)} " = " {_side(_ATOM)}'


def schema(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema whose properties are all required, in this order."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def number_list(kind: str = "number", least: int = 2) -> dict[str, Any]:
    """A JSON schema of a list of numbers."""
    return {"type": "array", "items": {"type": kind}, "minItems": least}


def guarded(check: Callable[[Arguments, str], bool]) -> Callable[[Arguments, str], bool]:
    """A check that says no to what it cannot read, instead of raising."""

    def safe(arguments: Arguments, value: str) -> bool:
        try:
            return bool(check(arguments, value))
        except (ValueError, TypeError, ArithmeticError, LookupError):
            return False

    return safe


def exact(value: Number) -> Fraction:
    """A number of a call as its exact decimal value."""
    if isinstance(value, bool):
        raise ValueError(f"'{value}' is not a number")
    return Fraction(str(value))


def _join(values: Sequence[Fraction]) -> str:
    return ", ".join(map(show, values)) or "none"


def _split(value: str) -> list[Fraction]:
    return [] if value == "none" else list(map(Fraction, value.split(",")))


def _whole(values: Sequence[int], least: int = 1) -> list[int]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{value} is not a whole number")
        if not least <= value <= LARGEST:
            raise ValueError(f"{value} is outside {least} to {LARGEST}")
    if not values:
        raise ValueError("no numbers given")
    return list(values)


def _solve(equation: str) -> Result:
    left_text, equals, right_text = equation.partition("=")
    if not equals or "=" in right_text:
        raise ValueError(f"'{equation}' needs exactly one '='")
    left, right = parse(left_text), parse(right_text)
    names = variables(left) | variables(right)
    if len(names) != 1:
        raise ValueError(f"'{equation}' needs exactly one variable, has {len(names)}")
    (name,) = names
    one, two = linear(left), linear(right)
    slope, constant = one.slope - two.slope, two.constant - one.constant
    if slope == 0:
        raise ValueError("every number solves it" if constant == 0 else "no number solves it")
    steps = []
    term = name if slope == 1 else f"{operand(slope)}*{name}"
    if one.constant != 0:
        sign = "-" if one.constant > 0 else "+"
        moved = f"{operand(two.constant)} {sign} {operand(abs(one.constant))}"
        steps.append(f"{term} = {moved} = {show(constant)}")
    elif two.slope != 0 or slope != 1:
        steps.append(f"{term} = {show(constant)}")
    value = constant / slope
    if slope != 1:
        steps.append(f"{name} = {operand(constant)} / {operand(slope)} = {show(value)}")
    written = re.sub(r"(?<=\d)\s*[a-z]", f"*{operand(value)}", equation.strip())
    steps.append("check: " + re.sub(r"[a-z]", operand(value), written))
    return Result(show(value), tuple(steps))


def _check_solve(arguments: Arguments, value: str) -> bool:
    equation = str(arguments["equation"])
    put = re.sub(r"[a-z]", f"({show(Fraction(value))})", re.sub(r"(?<=[\d)])\s*(?=[a-z])", "*", equation))
    left, right = put.split("=")
    return evaluate_by_stacks(left) == evaluate_by_stacks(right)


def _calc(expression: str) -> Result:
    steps: list[str] = []
    value = evaluate(parse(expression), steps)
    return Result(show(value), tuple(steps))


def _check_calc(arguments: Arguments, value: str) -> bool:
    return evaluate_by_stacks(str(arguments["expression"])) == evaluate_text(value)


def _percent(percent: Number, of: Number) -> Result:
    rate, whole = exact(percent), exact(of)
    product = rate * whole
    steps = (
        f"{show(rate)} * {operand(whole)} = {show(product)}",
        f"{operand(product)} / 100 = {show(product / 100)}",
    )
    return Result(show(product / 100), steps)


def _check_percent(arguments: Arguments, value: str) -> bool:
    return exact(arguments["of"]) / 100 * exact(arguments["percent"]) == Fraction(value)


def _sort(order: str, numbers: Sequence[Number]) -> Result:
    ordered = sorted(map(exact, numbers), reverse=order == "desc")
    word = "largest first:" if order == "desc" else "smallest first:"
    steps: list[str] = []
    for value in ordered:
        steps.append(f"{'then' if steps else word} {show(value)}")
    return Result(_join(ordered), tuple(steps))


def _check_sort(arguments: Arguments, value: str) -> bool:
    got = _split(value)
    rising = got[::-1] if arguments["order"] == "desc" else got
    in_order = all(a <= b for a, b in itertools.pairwise(rising))
    return in_order and Counter(got) == Counter(map(exact, arguments["numbers"]))


def _filter(action: str, side: str, limit: Number, numbers: Sequence[Number]) -> Result:
    bound, steps, kept = exact(limit), [], []
    for value in map(exact, numbers):
        named = value > bound if side == "larger" else value < bound
        stays = named == (action == "keep")
        sign = ">" if value > bound else "<" if value < bound else "equals"
        steps.append(f"{show(value)} {sign} {show(bound)}: {'keep' if stays else 'remove'}")
        if stays:
            kept.append(value)
    return Result(_join(kept), tuple(steps))


def _check_filter(arguments: Arguments, value: str) -> bool:
    opposite = "remove" if arguments["action"] == "keep" else "keep"
    dropped = _split(_filter(opposite, arguments["side"], arguments["limit"], arguments["numbers"]).value)
    given, got = list(map(exact, arguments["numbers"])), _split(value)
    rest = iter(given)
    in_order = all(number in rest for number in got)
    return in_order and Counter(got) + Counter(dropped) == Counter(given)


def _simplify(fraction: str) -> Result:
    top_text, bar, bottom_text = fraction.partition("/")
    if not bar:
        raise ValueError(f"'{fraction}' is not a fraction a/b")
    top, bottom = int(top_text), int(bottom_text)
    if bottom == 0:
        raise ValueError("the denominator is zero")
    divisor = math.gcd(top, bottom) * (-1 if bottom < 0 else 1)
    steps = (f"{top} / {divisor} = {top // divisor}", f"{bottom} / {divisor} = {bottom // divisor}")
    return Result(f"{top // divisor}/{bottom // divisor}", steps if divisor != 1 else ())


def _check_simplify(arguments: Arguments, value: str) -> bool:
    top, bottom = map(int, str(arguments["fraction"]).split("/"))
    small_top, small_bottom = map(int, value.split("/"))
    coprime = binary_gcd(abs(small_top), small_bottom) == 1
    return top * small_bottom == bottom * small_top and small_bottom > 0 and coprime


def binary_gcd(a: int, b: int) -> int:
    """Greatest common divisor by halving and subtracting (Stein), the check of Euclid's algorithm."""
    shift = 0
    while a and b:
        if a % 2 == 0 and b % 2 == 0:
            a, b, shift = a // 2, b // 2, shift + 1
        elif a % 2 == 0:
            a //= 2
        elif b % 2 == 0:
            b //= 2
        else:
            a, b = abs(a - b) // 2, min(a, b)
    return (a or b) << shift


def _euclid(a: int, b: int, steps: list[str]) -> int:
    a, b = max(a, b), min(a, b)
    while b:
        steps.append(f"{a} = {a // b} * {b} + {a % b}")
        a, b = b, a % b
    return a


def _gcd(numbers: Sequence[int]) -> Result:
    first, *rest = _whole(numbers)
    steps: list[str] = []
    for value in rest:
        first = _euclid(first, value, steps)
    return Result(str(first), tuple(steps))


def _check_gcd(arguments: Arguments, value: str) -> bool:
    divisor = 0
    for number in arguments["numbers"]:
        divisor = binary_gcd(divisor, number)
    return divisor == int(value)


def _lcm(numbers: Sequence[int]) -> Result:
    first, *rest = _whole(numbers)
    steps = []
    for value in rest:
        multiple = math.lcm(first, value)
        steps.append(f"{first} * {value} / {math.gcd(first, value)} = {multiple}")
        first = multiple
    return Result(str(first), tuple(steps))


def _check_lcm(arguments: Arguments, value: str) -> bool:
    multiple, shared = int(value), 0
    for number in arguments["numbers"]:
        if multiple % number:
            return False
        shared = binary_gcd(shared, multiple // number)
    return shared == 1


def _base(number: str, source: int, target: int) -> Result:
    for base in (source, target):
        if not 2 <= base <= 36:
            raise ValueError(f"base {base} is outside 2 to 36")
    text = number.strip().lower()
    if not text or len(text) > 64 or set(text) - set(_DIGITS[:source]):
        raise ValueError(f"'{number}' is not a number in base {source}")
    steps, value = [], 0
    for digit in text:
        if source != 10:
            worth = _DIGITS.index(digit)
            steps.append(f"{value} * {source} + {worth} = {value * source + worth}")
        value = value * source + _DIGITS.index(digit)
    digits, rest = "", value
    while target != 10 and rest:
        steps.append(f"{rest} = {rest // target} * {target} + {rest % target}")
        digits, rest = _DIGITS[rest % target] + digits, rest // target
    return Result(str(value) if target == 10 else digits or "0", tuple(steps))


def _check_base(arguments: Arguments, value: str) -> bool:
    return int(str(arguments["number"]), int(arguments["from"])) == int(value, int(arguments["to"]))


def _base_call(**arguments: Any) -> Result:
    return _base(arguments["number"], arguments["from"], arguments["to"])


def _primes(low: int, high: int) -> Result:
    if not 0 <= low <= high <= MOST_PRIMES:
        raise ValueError(f"needs 0 <= low <= high <= {MOST_PRIMES}")
    sieve = bytearray([0, 0]) + bytearray([1]) * (high - 1 if high > 0 else 0)
    for n in range(2, math.isqrt(high) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, len(sieve), n)))
    primes = [n for n in range(low, high + 1) if sieve[n]]
    listed = ", ".join(map(str, primes[:40])) + (", ..." if len(primes) > 40 else "")
    return Result(str(len(primes)), (f"primes: {listed or 'none'}",))


def _check_primes(arguments: Arguments, value: str) -> bool:
    count = 0
    for number in range(max(2, arguments["low"]), arguments["high"] + 1):
        count += all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
    return count == int(value)


def number_tools() -> list[Tool]:
    """The tools of this module."""
    integer, number, word = {"type": "integer"}, {"type": "number"}, {"type": "string"}
    fraction = {"type": "string", "x-grammar": f'"-"? {DIGITS} "/" {DIGITS}'}

    def tool(name: str, what: str, parameters: dict[str, Any], run: Callable[..., Result], check: Any) -> Tool:
        return Tool(name, what, parameters, run, guarded(check))

    order, action = {**word, "enum": ["asc", "desc"]}, {**word, "enum": ["keep", "remove"]}
    return [
        tool(
            "solve",
            "Solve a linear equation in one variable.",
            schema(equation={**word, "x-grammar": EQUATION_GRAMMAR}),
            _solve,
            _check_solve,
        ),
        tool(
            "calc",
            "Compute an expression of numbers, + - * / and parentheses.",
            schema(expression={**word, "x-grammar": EXPRESSION_GRAMMAR}),
            _calc,
            _check_calc,
        ),
        tool("percent", "So many percent of a number.", schema(percent=number, of=number), _percent, _check_percent),
        tool(
            "sort",
            "Put numbers in ascending or descending order.",
            schema(order=order, numbers=number_list()),
            _sort,
            _check_sort,
        ),
        tool(
            "filter",
            "Keep or remove the numbers larger or smaller than a limit.",
            schema(action=action, side={**word, "enum": ["larger", "smaller"]}, limit=number, numbers=number_list()),
            _filter,
            _check_filter,
        ),
        tool("simplify", "Reduce a fraction to lowest terms.", schema(fraction=fraction), _simplify, _check_simplify),
        tool("gcd", "Greatest common divisor.", schema(numbers=number_list("integer")), _gcd, _check_gcd),
        tool("lcm", "Least common multiple.", schema(numbers=number_list("integer")), _lcm, _check_lcm),
        tool(
            "base",
            "Write a number of one base in another base.",
            schema(**{"number": {**word, "x-grammar": "[0-9a-z]+"}, "from": integer, "to": integer}),
            _base_call,
            _check_base,
        ),
        tool(
            "primes",
            "Count the primes from low to high, both included.",
            schema(low=integer, high=integer),
            _primes,
            _check_primes,
        ),
    ]
