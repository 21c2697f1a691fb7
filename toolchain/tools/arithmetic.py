"""Exact arithmetic on text: one recursive-descent parser, and the re-checking of worked solutions.

    expression = term (("+" | "-") term)*          term   = factor (("*" | "/") factor | factor)*
    factor     = "-" factor | number | letter | "(" expression ")"

Numbers are `Fraction`s, so 0.1 + 0.2 is 0.3 and 1/3 stays 1/3. A factor may follow a factor without a
sign (`3x`, `2(x + 1)`) if a letter or a parenthesis stands there. Powers, functions and scientific
notation are left out on purpose: a student pays for every item of a call. Nothing is ever evaluated
as code.

`check_steps` reads texts written by a model or by a tool: every equality between two pure expressions
that it can find must hold exactly; what it cannot read (words, units, clock times) it does not judge.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 200
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|[a-z]|[-+*/()])")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/"})


@dataclass(frozen=True)
class Operation:
    """`left operator right`, operator one of + - * /."""

    operator: str
    left: Expression
    right: Expression


Expression = Fraction | str | Operation  # a str is a variable


def tokens(text: str) -> list[str]:
    """Split an expression. Raises ValueError at the first character that does not belong to one."""
    if len(text) > LONGEST:
        raise ValueError(f"expression longer than {LONGEST} characters")
    text = text.translate(_SIGNS).rstrip()
    items: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"unexpected '{text[at:].strip()[:1]}' in '{text}'")
        items.append(match.group(1))
        at = match.end()
    return items


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.rest = tokens(text)
        self.at = 0

    def peek(self) -> str:
        return self.rest[self.at] if self.at < len(self.rest) else ""

    def take(self) -> str:
        item = self.peek()
        self.at += 1
        return item

    def expression(self) -> Expression:
        left = self.term()
        while self.peek() in ("+", "-"):
            left = Operation(self.take(), left, self.term())
        return left

    def term(self) -> Expression:
        left = self.factor()
        while True:
            item = self.peek()
            if item in ("*", "/"):
                left = Operation(self.take(), left, self.factor())
            elif item == "(" or item.isalpha():
                left = Operation("*", left, self.factor())
            else:
                return left

    def factor(self) -> Expression:
        item = self.take()
        if item == "-":
            inner = self.factor()
            return -inner if isinstance(inner, Fraction) else Operation("*", Fraction(-1), inner)
        if item == "(":
            inner = self.expression()
            if self.take() != ")":
                raise ValueError(f"unclosed parenthesis in '{self.text}'")
            return inner
        if item.isalpha():
            return item
        if item == "" or item in "+*/)":
            raise ValueError(f"expected a number {f'before {item!r}' if item else 'at the end'} in '{self.text}'")
        return Fraction(item)


def parse(text: str) -> Expression:
    """Read an expression. Raises ValueError."""
    parser = _Reader(text)
    expression = parser.expression()
    if parser.peek():
        raise ValueError(f"unexpected '{parser.peek()}' in '{text}'")
    return expression


def apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """One exact operation. Raises ZeroDivisionError."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0:
        raise ZeroDivisionError("division by zero")
    return left / right


def show(value: Fraction | int) -> str:
    """An exact number as text: 5, 3.5, or 10/3 where no finite decimal exists."""
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def operand(value: Fraction | int) -> str:
    """A number as it stands inside an expression: fractions in parentheses."""
    text = show(value)
    return f"({text})" if "/" in text else text


def evaluate(expression: Expression, steps: list[str] | None = None) -> Fraction:
    """The value of an expression without variables; appends one line per operation to `steps`."""
    if isinstance(expression, Fraction):
        return expression
    if isinstance(expression, str):
        raise ValueError(f"'{expression}' is not a number")
    left, right = evaluate(expression.left, steps), evaluate(expression.right, steps)
    value = apply(expression.operator, left, right)
    if steps is not None:
        steps.append(f"{operand(left)} {expression.operator} {operand(right)} = {show(value)}")
    return value


def evaluate_text(text: str) -> Fraction:
    """Parse and evaluate. Raises ValueError or ZeroDivisionError."""
    return evaluate(parse(text))


def evaluate_by_stacks(text: str) -> Fraction:
    """The same value by another algorithm (two stacks, operators by precedence): the check of `calc`."""
    rank = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3}
    values: list[Fraction] = []
    operators: list[str] = []

    def reduce() -> None:
        operator, right = operators.pop(), values.pop()
        values.append(-right if operator == "neg" else apply(operator, values.pop(), right))

    previous = "("
    for item in tokens(text):
        if item == "(" or (item == "-" and previous in "(+-*/"):
            if item == "(" and (previous == ")" or previous[0].isdigit()):
                operators.append("*")
            operators.append("(" if item == "(" else "neg")
        elif item == ")":
            while operators[-1] != "(":
                reduce()
            operators.pop()
        elif item in "+-*/":
            while operators and operators[-1] != "(" and rank[operators[-1]] >= rank[item]:
                reduce()
            operators.append(item)
        else:
            values.append(Fraction(item))
        previous = item
    while operators:
        reduce()
    (value,) = values
    return value


@dataclass(frozen=True)
class Line:
    """slope * variable + constant."""

    slope: Fraction
    constant: Fraction


def linear(expression: Expression) -> Line:
    """Collect an expression in one variable. Raises ValueError if it is not linear."""
    if isinstance(expression, Fraction):
        return Line(Fraction(0), expression)
    if isinstance(expression, str):
        return Line(Fraction(1), Fraction(0))
    left, right = linear(expression.left), linear(expression.right)
    if expression.operator in "+-":
        sign = 1 if expression.operator == "+" else -1
        return Line(left.slope + sign * right.slope, left.constant + sign * right.constant)
    if expression.operator == "/" or right.slope == 0:
        if right.slope != 0:
            raise ValueError("not linear: the variable stands below a fraction bar")
        factor = apply("/", Fraction(1), right.constant) if expression.operator == "/" else right.constant
        return Line(left.slope * factor, left.constant * factor)
    if left.slope != 0:
        raise ValueError("not linear: the variable is multiplied by itself")
    return Line(right.slope * left.constant, right.constant * left.constant)


def variables(expression: Expression) -> set[str]:
    """The letters in an expression."""
    if isinstance(expression, Operation):
        return variables(expression.left) | variables(expression.right)
    return {expression} if isinstance(expression, str) else set()


_EQUALS = re.compile(r"(?<![<>=!≤≥≠])=(?!=)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OPERATOR = re.compile(r"[\d)]\s*[-+*/]")
_ARITHMETIC = r"[\d.+\-*/() ]"
_TAIL = re.compile(rf"{_ARITHMETIC}*\Z")
_HEAD = re.compile(rf"\A{_ARITHMETIC}*")


def _value(text: str) -> Fraction | None:
    try:
        return evaluate_text(text)
    except (ValueError, ArithmeticError):
        return None


def _left_side(segment: str) -> str | None:
    """The expression that ends a segment, None if words or variables belong to it."""
    match = _TAIL.search(segment)
    assert match is not None
    before, text = segment[: match.start()], match.group()
    stripped = text.lstrip()
    if not before.strip():
        return stripped
    whole = text[:1] == " " or before[-1] in "$€"
    signed = re.match(r"-\d", stripped) if before.rstrip()[-1].isalpha() else re.match(r"-", stripped)
    if not whole or (stripped[:1] in ("+", "-", "*", "/") and not signed) or not _OPERATOR.search(stripped):
        return None
    return stripped


def _right_side(segment: str) -> str | None:
    """The expression that begins a segment, None if words or variables belong to it."""
    match = _HEAD.match(segment)
    assert match is not None
    text, after = match.group().strip(), segment[match.end() :]
    if re.match(r"[a-z]\b", after) or (after[:1].isalpha() and match.group()[-1:] != " ") or after[:1] in (":", "%"):
        return None
    text = re.sub(r"[.(]+\Z", "", text).rstrip()
    return None if text.endswith(("+", "-", "*", "/")) else text


def equalities(text: str) -> Iterator[tuple[str, str, bool]]:
    """Every equality in a text that can be checked: left, right, whether it holds exactly."""
    for line in text.translate(_SIGNS).splitlines():
        segments = _EQUALS.split(_THOUSANDS.sub("", line))
        for before, after in itertools.pairwise(segments):
            left, right = _left_side(before.rstrip()), _right_side(after.lstrip().replace("$", "").replace("€", ""))
            if not left or not right:
                continue
            values = _value(left), _value(right)
            if None not in values:
                yield left, right, values[0] == values[1]


def check_steps(text: str) -> bool:
    """Whether every equality that can be checked in a text holds. A text without any passes."""
    return all(holds for _, _, holds in equalities(text))
