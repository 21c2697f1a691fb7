from fractions import Fraction

import pytest

from soloist.kernels.errors import UsageError
from soloist.toolchain.tasks.base import (
    Question,
    extract,
    interleave,
    question_key,
    questions_digest,
    resolve_scorer,
    score,
    spread,
    to_number,
)


def question(gold, scorer="exact", **fields):
    return Question(id="q", question="?", gold=gold, scorer=scorer, **fields)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#### 3.5", "3.5"),
        ("So we get\n#### 1,200\n", "1,200"),
        ("\\boxed{-7}", "-7"),
        ("thus \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("The answer is 5. I checked it twice.", "5"),
        ("The answer is 3.5.", "3.5"),
        ("Answer: **04:30**.", "04:30"),
        ("first answer: 3\nfinal answer: 4", "4"),
        ("The answer is 3 but no:\n#### 4", "4"),
        ("some words\n\n  -3, 5, 9  \n", "-3, 5, 9"),
        ("42", "42"),
        ("", None),
        ("  \n ", None),
    ],
)
def test_extract_finds_the_answer(text, found):
    assert extract(text) == found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3.5", Fraction(7, 2)),
        (".5", Fraction(1, 2)),
        ("1,200", Fraction(1200)),
        ("12,345,678.25", Fraction(1234567825, 100)),
        ("-7", Fraction(-7)),
        ("−7", Fraction(-7)),
        ("x = -7", Fraction(-7)),
        ("1/2", Fraction(1, 2)),
        ("-3 / 4", Fraction(-3, 4)),
        ("\\frac{1}{2}", Fraction(1, 2)),
        ("$1,200.50", Fraction(2401, 2)),
        ("50%", Fraction(50)),
        ("I have 5 apples.", Fraction(5)),
        ("2, 3", Fraction(3)),
        ("10-5", Fraction(5)),
        ("from 3 to 9", Fraction(9)),
        ("none", None),
        ("", None),
        ("1/0", None),
    ],
)
def test_to_number(text, number):
    assert to_number(text) == number


@pytest.mark.parametrize(
    ("scorer", "gold", "right", "wrong"),
    [
        ("number", "3.5", ["3.5", "3.50", "7/2", "it is 3.5", "$3.5"], ["3", "35", "-3.5", ""]),
        ("number", "1200", ["1,200", "1200", "1200.0", "1200 g"], ["1", "200", "12,00"]),
        ("number", "-7", ["-7", "−7", "x = -7"], ["7", "10-7"]),
        ("number", "10/3", ["10/3", "20/6"], ["3.33", "10"]),
        ("exact", "5/19", ["5/19", " 5/19. "], ["10/38", "5 / 19"]),
        ("exact", "Friday", ["friday", "Friday.", '"Friday"'], ["Fri", "Friday 13", ""]),
        ("exact", "-3, 5, 9", ["-3, 5, 9", "-3,  5, 9"], ["-3, 9, 5", "3, 5, 9"]),
        ("exact", "04:30", ["04:30"], ["4:30", "04:31"]),
        ("regex", r"0?4:30", ["04:30", "4:30"], ["14:30", "4:300"]),
    ],
)
def test_scorers(scorer, gold, right, wrong):
    assert all(score(answer, question(gold, scorer)) for answer in right)
    assert not any(score(answer, question(gold, scorer)) for answer in wrong)


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("B", "B", True),
        ("B", "(B)", True),
        ("B", "b) no", False),
        ("B", "I think B.", True),
        ("B", "A cat says (B)", True),
        ("B", "green", True),
        ("B", "A", False),
        ("green", "B", True),
        ("green", "dark green", True),
        ("C", "dark blue", True),
        ("A", "dark blue", False),
        ("A", "Blue, not green", True),
        ("A", "nothing", False),
    ],
)
def test_score_choice(gold, answer, right):
    asked = question(gold, "choice", choices=("blue", "green", "dark blue"))
    assert score(answer, asked) is right


def test_no_answer_and_no_gold_are_wrong():
    for scorer in ("exact", "number", "choice", "regex"):
        assert not score(None, question("5", scorer))
    for scorer in ("exact", "number", "choice"):
        assert not score("5", question(None, scorer))


def test_scorer_by_entry_point_and_unknown_scorers():
    assert resolve_scorer("soloist.toolchain.tasks.base:score_exact")("a", question("A"))
    for name, reason in [
        ("nope", "unknown scorer"),
        ("no_such_module_here:f", "cannot be imported"),
        ("soloist.toolchain.tasks.base:gone", "cannot be imported"),
    ]:
        with pytest.raises(UsageError, match=reason):
            resolve_scorer(name)


def test_question_key_folds_case_spacing_and_width():
    assert question_key("What  is\n2 + 2?") == question_key("what is 2 + 2?")
    assert question_key("What is ２ + 2?") == question_key("what is 2 + 2?")
    assert question_key("What is 2 + 3?") != question_key("what is 2 + 2?")


def test_interleave_takes_one_of_each_column_in_turn():
    assert interleave(["abc", "", "de"]) == ["a", "d", "b", "e", "c"]
    assert interleave([]) == []


def test_questions_are_spread_over_the_families():
    many = [Question(id=f"q{n}", question=f"What is {n}?", gold=str(n), task=f"f{n % 4}") for n in range(12)]
    assert [one.task for one in spread(many, 2)] == ["f0", "f2"]
    assert [one.id for one in spread([*many, many[0]], 6)] == ["q0", "q1", "q2", "q3", "q4", "q5"]
    assert len(spread(many, 99)) == 12


def test_a_digest_of_questions_tells_their_content_and_order():
    first, second = question("1"), question("2")
    assert questions_digest([first, second]) == questions_digest([first, second])
    assert questions_digest([first, second]) != questions_digest([second, first])
    assert questions_digest([first]) != questions_digest([first, second])
