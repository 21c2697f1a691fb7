from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.toolchain.tasks.base import Question, score
from soloist.toolchain.tasks.math_answers import evaluate, final_answer, fold_math, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"Therefore, the answer is $\boxed{\frac{1}{840}}$.", r"\frac{1}{840}"),
        (r"First $\boxed{3}$, but no: $x=\boxed{5}$ holds.", "5"),
        (r"so \boxed{\{1, 2\}} it is", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        ("4*6 = <<4*6=24>>24 jars.\n#### 24", "24"),
        ("We get 840 outcomes. The answer is 1/840.", "1/840"),
        (r"The answer is $x \approx 3.091$.", r"x \approx 3.091"),
        ("The answer is 3.5. I checked it 2 times.", "3.5"),
        ("The final answer: **12** dollars", "12** dollars"),
        ("Therefore, $x$ has a value of 1.", "1"),
        (r"Hence the slope must be $-\frac{3}{4}$.", r"-\frac{3}{4}"),
        ("There are 1,200 of them.", "1,200"),
        ("The answer is hard to see. We find 9.", "9"),
        ("The answer is not as simple as it looks. I get -7", "-7"),
        (r"an open \boxed{12 and then 5", "5"),
        ("The answer is that the chance of no prime on either of the 2 dice is 3/4.", "3/4"),
        ("The answer is 13/120 or about 0.1083, given the 120 outcomes", "13/120"),
        ("I cannot say.", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


SAME = [
    ["1/2", r"\frac{1}{2}", r"\dfrac12", r"\frac12", "0.5", ".5", "$0.50$", r"\boxed{1/2}", r"x = \frac{1}{2}"],
    ["-1/2", r"-\frac{1}{2}", r"\frac{-1}{2}", "−0.5"],
    ["1200", "1,200", r"1{,}200", r"\$1,200", "1200 dollars", r"1200\text{ cm}", "1200 cm^2", r"1,\!200"],
    ["50", r"50\%", "50%", r"50^\circ", r"50^{\circ}", "50 degrees", "50 percent"],
    ["3/2", r"1\frac{1}{2}", "1 1/2", "1.5"],
    ["-3/2", r"-1\frac{1}{2}", "-1 1/2"],
    [r"2\sqrt{3}", r"\sqrt{12}", r"2 \cdot \sqrt 3", r"2*3^{1/2}"],
    [r"\sqrt{13}", "√13", "√{13}", "√(26/2)"],
    [r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"],
    ["2", r"\sqrt[3]{8}", r"\sqrt{4}", "2!", "8^{1/3}"],
    [r"63\pi", r"\pi \cdot 63", "63π"],
    ["2x+3", "3 + 2x", "y = 2x+3", "2(x+1)+1"],
    ["3+4i", "4i + 3"],
    ["(1,2)", r"\left( 1, 2 \right)", r"(1, \frac{4}{2})"],
    ["1,-2", "-2, 1", "1 and -2", r"-2 \text{ or } 1", "x = 1, -2"],
    [r"\{1,2\}", r"\{2, 1\}"],
    [r"[-2,1)", r"x \in [-2, 1)"],
    [r"\text{Friday}", "friday", "Friday."],
    [r"\text{(C)}", "C", "(C)"],
    [r"6^{\text{th}}", "6", "6th"][:2],
]


@pytest.mark.parametrize("group", SAME, ids=lambda group: group[0])
def test_equal_answers_are_the_same(group):
    for one in group:
        for other in group:
            assert same_answer(one, other), (one, other)


def test_answers_of_different_groups_are_not_the_same():
    for i, group in enumerate(SAME):
        for others in SAME[:i] + SAME[i + 1 :]:
            assert not same_answer(group[0], others[0]), (group[0], others[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1/3", "0.33"),
        ("(1,2)", "(2,1)"),
        ("[1,2]", "(1,2)"),
        ("(1,200)", "1200"),
        ("7", "-7"),
        ("12", "1,2"),
        ("3.5", "5"),
        ("2x+3", "3x+2"),
        ("x+y=0", "x-y=0"),
        ("1,1,2", "1,2,2"),
        ("even", "nave"),
        ("", ""),
        ("5", ""),
        ("2√13", "6"),
        ("0.5", "50%"),
        ("100", "10^3"),
    ],
)
def test_unequal_answers_are_not(one, other):
    assert not same_answer(one, other)
    assert not same_answer(other, one)


@pytest.mark.parametrize(
    "text", ["9^9^9^9", "1/0", "(" * 290, r"\frac{1", "99!", "2^{-}", r"\sqrt{-1}", "(-8)^{1/3}", "0^{-1}", "x" * 200]
)
def test_hostile_expressions_have_no_value_and_do_not_hang(text):
    assert evaluate(text) is None


def test_values_are_exact():
    assert evaluate("0.1+0.2") == Fraction(3, 10)
    assert evaluate("2^10/4") == 256
    assert evaluate("-2^2") == -4
    assert evaluate("2^{-1}") == Fraction(1, 2)


@given(st.fractions(max_denominator=10**6))
def test_every_fraction_equals_its_latex(value):
    sign = "-" if value < 0 else ""
    latex = rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    assert same_answer(latex, f"{value.numerator}/{value.denominator}")
    assert not same_answer(latex, f"{value.numerator + 1}/{value.denominator}")
    assert fold_math(latex) == fold_math(str(value))


@given(st.text(alphabet="0123456789x+-*/^(){}[]\\frac sqrt,.$%=! boxed", max_size=60))
def test_any_text_can_be_compared(text):
    assert same_answer(text, text) in (True, False)
    final_answer(text)


def test_the_scorer_grades_by_value():
    question = Question(id="q", question="?", gold=r"\frac{1}{840}", scorer="math")
    assert score(r"\boxed{\frac{1}{840}}", question)
    assert score("1/840.", question)
    assert score("a probability of 1/840", question)
    assert not score("1/35", question)
    assert not score(None, question)
    assert not score("7", Question(id="q", question="?", gold=None, scorer="math"))


def test_a_benchmark_is_written_only_where_there_is_one():
    plain = Question(id="q", question="?", gold="1")
    assert "benchmark" not in plain.model_dump()
    assert "benchmark" not in plain.model_dump_json()
    marked = plain.model_copy(update={"benchmark": "MATH"})
    assert Question.model_validate_json(marked.model_dump_json()) == marked
    assert marked.benchmark == "MATH"
