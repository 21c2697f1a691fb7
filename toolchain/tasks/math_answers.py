r"""The one normalizer of mathematical answers: `\boxed{\frac12}`, "the answer is 0.5." and "1/2" are the same.

`final_answer` finds the answer in a worked solution: the last `\boxed{}`, else the last "#### ...", else the
last "answer is ...", else the last mathematics between dollars, else the last number. `same_answer` compares
two answers by value, in this order: lists, sets, tuples and intervals part by part (a list without brackets
and a set in any order); anything that can be computed by its value, exactly where it is rational and to
1e-9 where a root or pi is in it, letters standing for fixed odd numbers (so `2x+3` is `3+2x`); what is left
as text with the LaTeX taken off. Units, currency, percent and degree signs carry no value.

This way and not by a computer algebra system: grading thousands of imported answers must be quick, must not
hang on what a model wrote, and must give the same verdict on every machine. Left out: equations with the
sides swapped, matrices and inequalities (compared as text), rounding (0.33 is not 1/3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

Number = Fraction | float

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_HASHES = re.compile(r"####\s*(.+)")
_SAID = re.compile(
    r"answers?\b(?:\s+(?:to|for|of)\s[^.\n]{0,80}?)?(?:\s+(?:is|are|equals)\b|\s*:|\s*=)\s*"
    r"(?:therefore|thus|then|indeed|simply|just|approximately|about)?[,:]?\s*"
    r"((?:\$[^$]*\$|\d\.\d|[^\n.]|\.(?=\d|[a-z]))+)",
    re.IGNORECASE,
)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PLAIN_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])[-−])?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?"
)


def final_answer(text: str) -> str | None:
    """The answer in a solution, as it is written there; None where there is none."""
    boxes = [inner for match in _BOXED.finditer(text) if (inner := _group_at(text, match.end()))]
    if boxes:
        return boxes[-1].strip() or None
    for pattern in (_HASHES, _SAID):
        said = [phrase for match in pattern.finditer(text) if (phrase := _phrase(match[1]))]
        if said:
            return said[-1]
    found = [next(filter(None, match.groups())) for match in _MATH.finditer(text)]
    numbers = _PLAIN_NUMBER.findall(text)
    if found and (not numbers or text.rfind(found[-1]) + len(found[-1]) > text.rfind(numbers[-1])):
        return str(found[-1]).strip()
    return str(numbers[-1]).strip() if numbers else None


def _group_at(text: str, start: int) -> str:
    """What stands between the brace at `start` and its partner; nothing where it has none."""
    if text[start : start + 1] != "{":
        return ""
    depth = 0
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0) if text[index - 1 : index] != "\\" else 0
        if depth == 0:
            return text[start + 1 : index]
    return ""


def _phrase(said: str) -> str | None:
    """The part of "answer is ..." that is the answer: the mathematics in it if there is any."""
    said = said.strip().strip("*`").strip()
    maths = [next(filter(None, match.groups())) for match in _MATH.finditer(said)]
    if maths:
        return maths[-1].strip() or None
    words = len(said.split())
    if words > 2 and not re.search(r"[\d\\]", said):
        return None  # "the answer is not as simple as it looks" names none
    if words > 4 and "\\" not in said:  # a sentence about the answer
        if number := _PLAIN_NUMBER.match(said):
            return str(number[0]).strip()
        _, verb, rest = said.rpartition(" is ")
        return _phrase(rest) if verb else None
    return said.lstrip("=: ").rstrip(" .,;:*$") or None


# ---------------------------------------------------------------- comparing


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are the same by value, or else by text."""
    return _same(_clean(one), _clean(other), depth=0)


def fold_math(answer: str) -> str:
    """A key under which most equal answers meet: exact values print alike, the rest is cleaned text."""
    text = _clean(answer)
    value = evaluate(text)
    return str(value) if isinstance(value, Fraction) else text


def _same(one: str, other: str, depth: int) -> bool:
    if one == other:
        return bool(one)
    if depth > 4:
        return False
    (left, those), (right, others) = _split(one), _split(other)
    if len(those) != len(others) or left != right:
        return False
    if len(those) > 1 or left:
        if left in ("", "{}"):
            return _same_unordered(those, others, depth + 1)
        return all(_same(a, b, depth + 1) for a, b in zip(those, others, strict=True))
    return _same_value(one, other)


def _same_unordered(those: Sequence[str], others: Sequence[str], depth: int) -> bool:
    left = list(others)
    for one in those:
        partner = next((i for i, other in enumerate(left) if _same(one, other, depth)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def _same_value(one: str, other: str) -> bool:
    a, b = evaluate(one), evaluate(other)
    if a is None or b is None:
        return False
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def _split(text: str) -> tuple[str, list[str]]:
    """The outer brackets of a list and its parts; ("", [text]) for anything that is no list."""
    body, kind = text, ""
    if text[:1] in _BRACKETS and text[-1:] in ")]}" and _closes_last(text):
        body, kind = text[1:-1], text[0] + text[-1]
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(body):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(body[start:index])
            start = index + 1
    parts.append(body[start:])
    if len(parts) == 1 and kind != "{}":
        return "", [text]
    return kind, parts


def _closes_last(text: str) -> bool:
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return index == len(text) - 1
    return False


# ---------------------------------------------------------------- cleaning

_UNITS = (
    r"square|cubic|units?|inch(?:es)?|feet|foot|ft|yards?|miles?|mph|cm|mm|km|kg|meters?|metres?|centimeters?|"
    r"kilometers?|grams?|pounds?|ounces?|liters?|gallons?|hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|weeks?|"
    r"months?|years?|dollars?|cents?|degrees?|percent|points?|ways?|people|students?|times|sq|per"
)
_REPLACED: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\{,\}|,\\!\s*"), ","),
    (re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|quad|qquad|!|,|;|:| |$)"), ""),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\(?:text|mbox|textbf|mathrm|textrm|mathbf|rm)\s*\{\s*(?:th|st|nd|rd)\s*\}"), ""),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ|\{\s*\})|°|\\degree"), ""),
    (re.compile(r"\\?%|\\?\$|€|£|\\(?:text|mathrm|mbox)\s*\{\s*(?:%|\\%)\s*\}"), ""),
    (re.compile(r"\\(?:text|mbox|textbf|mathrm|textrm|mathbf|operatorname|rm)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(rf"(?<=[\d}})\s])\s*\b(?:{_UNITS})\b\.?(?:\s*\^\s*\{{?\d\}}?)?", re.IGNORECASE), ""),
    (re.compile(r"\\(?:cdot|times)|×|·"), "*"),
    (re.compile(r"\\div|÷"), "/"),
    (re.compile(r"\\pm"), "±"),
    (re.compile(r"\\cup"), "∪"),
    (re.compile(r"\\\{"), "{"),
    (re.compile(r"\\\}"), "}"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"(?<![\d,])(\d{1,3}(?:,\d{3})+)(?![\d,])"), lambda m: m[1].replace(",", "")),
    (re.compile(r"\s+(?:and|or)\s+"), ","),
)
_ASSIGNED = re.compile(r"^[^=≈<>\d+*/^-]{0,40}?(?:=|≈|\\approx|\\in(?![a-z]))(?!.*[=≈<>])(.+)$", re.DOTALL)

_MIXED = re.compile(r"(-?)(\d+)\s*(\\frac\s*\{?\d+\}?\s*\{?\d+\}?|(?<=\s)\d+/\d+)")


def _clean(answer: str) -> str:
    """One answer without what carries no value: LaTeX spacing, units, signs, a leading `x =`."""
    text = answer.strip()
    maths = _MATH.fullmatch(text)
    if maths:
        text = next(filter(None, maths.groups()))
    whole = _BOXED.match(text)
    if whole and (inner := _group_at(text, whole.end())):
        text = inner
    bracketed = text.startswith(("(", "[", "{", "\\{", "\\left"))
    for pattern, replacement in _REPLACED:
        if bracketed and pattern.pattern.startswith(r"(?<![\d,])"):
            continue  # in (1,200) the comma parts two numbers
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".,;:").lstrip(",;:").strip()
    if assigned := _ASSIGNED.match(text):
        text = assigned[1].strip()
    if mixed := _MIXED.fullmatch(text):
        text = f"{mixed[1]}({mixed[2]}+{mixed[3]})"
    text = re.sub(r"\s+", "", text).casefold()
    return text[1] if re.fullmatch(r"\([a-z]\)", text) else text


# ---------------------------------------------------------------- computing

_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\[a-z]+|[a-zπ]|[-+*/^(){}\[\]!√]")
_LETTERS = {letter: Fraction(2 * i + 101, 37 + i) for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
_MOST = 10**60  # beyond this a tower of powers is not worth computing


class _NoValueError(Exception):
    """The text cannot be computed."""


def evaluate(text: str) -> Number | None:
    """The value of an expression: a Fraction where it is exact, a float with roots or pi, None if it has none."""
    if not text or len(text) > 300 or re.search(r"[a-z]{4,}", re.sub(r"\\[a-z]+", "", text)):
        return None
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        return None
    try:
        reader = _Reader(tokens)
        value, rest = reader.sum(0)
        return value if rest == len(reader.tokens) else None
    except (_NoValueError, ArithmeticError, ValueError, IndexError, RecursionError):
        return None


class _Reader:
    """Recursive descent over tokens; every method takes a position and returns a value and the next position."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tokens

    def at(self, place: int) -> str:
        return self.tokens[place] if place < len(self.tokens) else ""

    def sum(self, place: int) -> tuple[Number, int]:
        sign = -1 if self.at(place) == "-" else 1
        value, place = self.product(place + (self.at(place) in ("-", "+")))
        value = sign * value
        while self.at(place) in ("+", "-"):
            sign = -1 if self.at(place) == "-" else 1
            more, place = self.product(place + 1)
            value = value + sign * more
        return value, place

    def product(self, place: int) -> tuple[Number, int]:
        value, place = self.power(place)
        while (head := self.at(place)) and head not in ("+", "-", ")", "}", "]"):
            if head in ("*", "/"):
                sign = -1 if self.at(place + 1) == "-" else 1
                factor, place = self.power(place + 1 + (sign < 0))
                factor = sign * factor
            else:
                factor, place = self.power(place)
            value = value / factor if head == "/" else value * factor
        return value, place

    def power(self, place: int) -> tuple[Number, int]:
        value, place = self.atom(place)
        while self.at(place) in ("^", "!"):
            if self.at(place) == "!":
                if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 40:
                    raise _NoValueError
                value, place = Fraction(math.factorial(int(value))), place + 1
                continue
            sign = -1 if self.at(place + 1) == "-" else 1
            exponent, place = self.atom(place + 1 + (sign < 0))
            value = _raised(value, sign * exponent)
        return value, place

    def atom(self, place: int) -> tuple[Number, int]:
        head = self.at(place)
        if head in ("(", "{", "["):
            value, place = self.sum(place + 1)
            if self.at(place) not in (")", "}", "]"):
                raise _NoValueError
            return value, place + 1
        if head == r"\frac":
            above, place = self.argument(place + 1)
            below, place = self.argument(place)
            return above / below, place
        if head == "√":
            value, place = self.atom(place + 1)
            return _raised(value, Fraction(1, 2)), place
        if head == r"\sqrt":
            root = Fraction(2)
            if self.at(place + 1) == "[":
                index, place = self.atom(place + 1)
                root, place = Fraction(index), place - 1
            value, place = self.argument(place + 1)
            return _raised(value, 1 / root), place
        if head in (r"\pi", "π"):
            return math.pi, place + 1
        if head in _LETTERS:
            return _LETTERS[head], place + 1
        if head[:1].isdigit() or head[:1] == ".":
            return Fraction(head), place + 1
        raise _NoValueError

    def argument(self, place: int) -> tuple[Number, int]:
        """An argument of LaTeX: a group, or a single digit (`\\frac12` is a half)."""
        head = self.at(place)
        if head.isdigit() and len(head) > 1:
            self.tokens = [*self.tokens[:place], head[0], head[1:], *self.tokens[place + 1 :]]
        return self.atom(place)


def _raised(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            if abs(exponent) > 200 or max(abs(base.numerator), base.denominator) ** abs(int(exponent)) > _MOST:
                raise _NoValueError
            return base ** int(exponent)
        if base >= 0 and exponent.numerator == 1:
            above, below = (round(part ** float(exponent)) for part in (base.numerator, base.denominator))
            if Fraction(above, below) ** exponent.denominator == base:
                return Fraction(above, below)
    value: float | complex = float(base) ** float(exponent)
    if isinstance(value, complex) or not math.isfinite(value):
        raise _NoValueError
    return value
