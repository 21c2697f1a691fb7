r"""Mathematical answers: where they stand in a solution, and whether two are the same.

`final_answer` finds the answer in a worked solution: the last `\boxed{}`, else the last "#### ...", else the
last "answer is ...", else the last mathematics between dollars, else the last number.

`same_answer` compares in this order:

    text      equal once LaTeX spacing, units, currency, percent and degree signs are off, which carry no value; words
              (four letters in a row) are compared in no other way
    number    rational numbers, or lists of them in any order: exactly (0.33 is not 1/3, 50 % is 50 and not 0.5)
    the rest  by math-verify, a computer algebra system, in a process of its own and within `LIMIT_S` (`math_child`)

`benchmarks/bench_math_answers.py` has the rates of the library, of what is ours, and of the two together on labeled
cases. The first two steps stand because the library is wrong there (plain units, mixed numbers, words, percents), and
because most answers end there, in a tenth of a millisecond. Left out: rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from soloist.toolchain.tasks.math_child import verified

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_HASHES = re.compile(r"####\s*(.+)")
_STATED = re.compile(
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
    for pattern in (_HASHES, _STATED):
        phrases = [phrase for match in pattern.finditer(text) if (phrase := _phrase(match[1]))]
        if phrases:
            return phrases[-1]
    maths = [next(filter(None, match.groups())) for match in _MATH.finditer(text)]
    numbers = _PLAIN_NUMBER.findall(text)
    if maths and (not numbers or text.rfind(maths[-1]) + len(maths[-1]) > text.rfind(numbers[-1])):
        return str(maths[-1]).strip()
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


def _phrase(sentence: str) -> str | None:
    """The part of "answer is ..." that is the answer: the mathematics in it if there is any."""
    sentence = sentence.strip().strip("*`").strip()
    maths = [next(filter(None, match.groups())) for match in _MATH.finditer(sentence)]
    if maths:
        return maths[-1].strip() or None
    words = len(sentence.split())
    if words > 2 and not re.search(r"[\d\\]", sentence):
        return None  # "the answer is not as simple as it looks" names none
    if words > 4 and "\\" not in sentence:  # a sentence about the answer
        if number := _PLAIN_NUMBER.match(sentence):
            return str(number[0]).strip()
        _, verb, rest = sentence.rpartition(" is ")
        return _phrase(rest) if verb else None
    return sentence.lstrip("=: ").rstrip(" .,;:*$") or None


# ---------------------------------------------------------------- comparing

_MARK = re.compile(r"\\(?:boxed|fbox)|####|(?<!\\)\$|\n")
_PROSE = re.compile(
    r"(?<![\\\w])(?!(?:arc)?(?:sin|cos|tan|log|exp|sqrt|max|min)\b)(?:[a-z]{3,}|is|it|so|to|we|of|in|at|be)(?!\w)",
    re.IGNORECASE,
)


def same_answer(reply: str, gold: str) -> bool:
    """Whether a reply, a bare answer or a worked solution, gives the gold answer."""
    if not _clean(gold) or not reply.strip():
        return False
    bare = is_bare(reply)
    verdict = plainly_same(reply, gold)
    if not verdict and not bare:
        verdict = plainly_same(final_answer(reply) or reply, gold)
    return verified(reply, gold, bare) if verdict is None else verdict


def is_bare(reply: str) -> bool:
    """Whether a reply is nothing but an answer: no word, and no mark of where the answer stands."""
    return not _MARK.search(reply) and not _PROSE.search(_stripped(reply))


def fold_math(answer: str) -> str:
    """A key under which most equal answers meet: exact values print alike, the rest is cleaned text."""
    text = _value(_clean(answer))
    value = evaluate(text)
    return text if value is None else str(value)


def plainly_same(answer: str, gold: str) -> bool | None:
    """The verdict on two answers where it is plain; None where it takes algebra."""
    one, other = _clean(answer), _clean(gold)
    if _ASSIGNED.match(one) is None or _ASSIGNED.match(other) is None:  # 5 is x = 5, and x = 5 is not y = 5
        one, other = _value(one), _value(other)
    if one == other:
        return True
    if _WORD.search(_COMMAND.sub("", other)):
        return False
    if _is_set(one) != _is_set(other) and "(" in (one[:1], other[:1]):
        return False  # a tuple is no set
    numbers, wanted = _numbers(one), _numbers(other)
    return None if numbers is None or wanted is None else numbers == wanted


def _numbers(text: str) -> list[Fraction] | None:
    """The values of a list without brackets, sorted, "1/2 or 0.5" as one; None where one takes algebra."""
    values = []
    for part in text.split(","):
        value = evaluate(part)
        if value is None:
            return None
        values.append(value)
    return sorted(values) if len(set(values)) > 1 else values[:1]


def _is_set(text: str) -> bool:
    return text.startswith("{") and text.endswith("}")


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

_MIXED = re.compile(r"(-?)(?<![\d.^{/])(\d+)\s*(\\frac\s*\{?\d+\}?\s*\{?\d+\}?|(?<=\s)\d+/\d+)$")


def _clean(answer: str) -> str:
    """`_stripped`, in small letters and without spaces."""
    text = re.sub(r"\s+", "", _stripped(answer)).casefold()
    return text[1] if re.fullmatch(r"\([a-z]\)", text) else text


def _stripped(answer: str) -> str:
    """One answer without what carries no value: LaTeX spacing, units, signs."""
    text = answer.strip()
    maths = _MATH.fullmatch(text)
    if maths:
        text = next(filter(None, maths.groups()))
    boxed = _BOXED.match(text)
    if boxed and (inner := _group_at(text, boxed.end())) and text.endswith(inner + "}"):
        text = inner
    bracketed = text.startswith(("(", "[", "{", "\\{", "\\left"))
    for pattern, replacement in _REPLACED:
        if bracketed and pattern.pattern.startswith(r"(?<![\d,])"):
            continue  # in (1,200) the comma parts two numbers
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".,;:").lstrip(",;:").strip()
    return _MIXED.sub(r"\1(\2+\3)", text)


def _value(text: str) -> str:
    """A cleaned answer without a leading `x =`."""
    assigned = _ASSIGNED.match(text)
    return assigned[1] if assigned else text


# ---------------------------------------------------------------- computing

_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]*\}|\\[a-z]+")
_WORD = re.compile(r"[a-z]{4,}")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\frac|[-+*/^(){}\[\]!]")
_LONGEST = 300  # letters of an expression
_MOST = 10**60  # beyond this a tower of powers is not worth computing


class _NoValueError(Exception):
    """The text cannot be computed."""


def evaluate(text: str) -> Fraction | None:
    """The value of a cleaned expression of whole numbers and decimals; None if it has none, or takes algebra."""
    tokens = _TOKEN.findall(text) if len(text) <= _LONGEST else []
    if not tokens or "".join(tokens) != text:
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

    def sum(self, place: int) -> tuple[Fraction, int]:
        sign = -1 if self.at(place) == "-" else 1
        value, place = self.product(place + (self.at(place) in ("-", "+")))
        value = sign * value
        while self.at(place) in ("+", "-"):
            sign = -1 if self.at(place) == "-" else 1
            more, place = self.product(place + 1)
            value = value + sign * more
        return value, place

    def product(self, place: int) -> tuple[Fraction, int]:
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

    def power(self, place: int) -> tuple[Fraction, int]:
        value, place = self.atom(place)
        while self.at(place) in ("^", "!"):
            if self.at(place) == "!":
                if value.denominator != 1 or not 0 <= value <= 40:
                    raise _NoValueError
                value, place = Fraction(math.factorial(int(value))), place + 1
                continue
            sign = -1 if self.at(place + 1) == "-" else 1
            exponent, place = self.atom(place + 1 + (sign < 0))
            value = _raised(value, sign * exponent)
        return value, place

    def atom(self, place: int) -> tuple[Fraction, int]:
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
        if head[:1].isdigit() or head[:1] == ".":
            return Fraction(head), place + 1
        raise _NoValueError

    def argument(self, place: int) -> tuple[Fraction, int]:
        """An argument of LaTeX: a group, or a single digit (`\\frac12` is a half)."""
        head = self.at(place)
        if head.isdigit() and len(head) > 1:
            self.tokens = [*self.tokens[:place], head[0], head[1:], *self.tokens[place + 1 :]]
        return self.atom(place)


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > 200:
        raise _NoValueError
    if max(abs(base.numerator), base.denominator) ** abs(int(exponent)) > _MOST:
        raise _NoValueError
    return Fraction(base ** int(exponent))
