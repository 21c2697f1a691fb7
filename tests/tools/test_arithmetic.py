from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.toolchain.tools.arithmetic import (
    check_steps,
    equalities,
    evaluate_by_stacks,
    evaluate_text,
    linear,
    parse,
    show,
)

NUMBERS = st.one_of(
    st.integers(0, 9999).map(str),
    st.decimals(0, 999, places=2, allow_nan=False, allow_infinity=False).map(lambda d: f"{d:f}"),
)


@st.composite
def expressions(draw, depth=3):
    """An expression's text with its value, computed with Fractions while it is built."""
    if depth == 0 or draw(st.booleans()):
        text = draw(NUMBERS)
        return text, Fraction(text), 4
    operator = draw(st.sampled_from(["+", "-", "*", "/", "neg"]))
    left, a, left_rank = draw(expressions(depth=depth - 1))
    if operator == "neg":
        return (f"-{left}" if left_rank >= 3 else f"-({left})"), -a, 3
    right, b, right_rank = draw(expressions(depth=depth - 1))
    rank = 1 if operator in "+-" else 2
    if operator == "/" and b == 0:
        operator, rank = "*", 2
    value = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[operator]()
    left = f"({left})" if left_rank < rank else left
    right = f"({right})" if right_rank <= rank else right
    return f"{left}{draw(st.sampled_from([' ', '']))}{operator} {right}", value, rank


@settings(deadline=None)
@given(expressions())
def test_parser_agrees_with_fractions_and_with_the_other_algorithm(case):
    text, value, _ = case
    if len(text) <= 200:
        assert evaluate_text(text) == value
        assert evaluate_by_stacks(text) == value


@settings(deadline=None)
@given(st.text("0123456789.+-*/() x", max_size=20))
def test_parser_raises_only_value_and_arithmetic_errors(text):
    try:
        value = evaluate_text(text)
    except (ValueError, ArithmeticError):
        return
    assert evaluate_by_stacks(text) == value


@settings(deadline=None)
@given(st.fractions(max_denominator=1000))
def test_shown_numbers_read_back_exactly(value):
    assert evaluate_text(f"({show(value)})") == value
    assert Fraction(show(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(Fraction(7, 2), "3.5"), (Fraction(-1, 8), "-0.125"), (Fraction(10, 3), "10/3"), (Fraction(-7), "-7"), (0, "0")],
)
def test_show(value, text):
    assert show(value) == text


@pytest.mark.parametrize("text", ["", "2 +", "(2", "2)", "2 ** 3", "__import__('os')", "1e5", "a b c)", "1" * 201])
def test_parse_refuses(text):
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize("text", ["x*x", "1/x", "(x + 1)*(x - 1)"])
def test_linear_refuses_what_is_not(text):
    with pytest.raises(ValueError, match="not linear"):
        linear(parse(text))


def test_linear_collects():
    line = linear(parse("3(x - 2) + x/2 - (4 - x)"))
    assert (line.slope, line.constant) == (Fraction(9, 2), Fraction(-10))


@pytest.mark.parametrize(
    ("text", "checked"),
    [
        ("3*x = 19 - 4 = 15", 1),
        ("x = 15 / 3 = 5", 1),
        ("total: 19 - 4 = 15 legs", 1),
        ("so -3 + 5 = 2.", 1),
        ("$3 * 4 = $12", 1),
        ("1,200 + 1 = 1,201", 1),
        ("7 × 8 = 56 and 56 ÷ 7 = 8", 2),
        ("18:54 = 18 * 60 + 54 = 1134 minutes", 1),
        ("110 = 1 * 74 + 36", 1),
        # nothing here that can be judged
        ("15% of 240 = 36", 0),
        ("gcd of 12 and 18 = 6", 0),
        ("x + 4 = 19", 0),
        ("x - 4 = 15", 0),
        ("7 - 2 = 3x", 0),
        ("Saturday + 6 = Friday", 0),
        ("12 eggs * 5 = 60 eggs", 0),
        ("8 >= 3 and 2 == 2", 0),
        ("no equation at all", 0),
    ],
)
def test_true_steps_pass(text, checked):
    assert check_steps(text)
    assert len(list(equalities(text))) == checked


@pytest.mark.parametrize(
    "text",
    [
        "2 + 2 = 5",
        "x = 15 / 3 = 6",
        "3*x = 19 - 4 = 16",
        "ok: 1 + 1 = 2\nbad: 7 * 8 = 54",
        "10 / 3 = 3.33",
        "9 = 3 * 2 + 4",
    ],
)
def test_false_steps_fail(text):
    assert not check_steps(text)
