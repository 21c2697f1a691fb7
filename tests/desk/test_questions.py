import re
import subprocess
import sys

import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.desk import questions as desk
from soloist.toolchain.desk.tools import desk_tools
from soloist.toolchain.desk.wordings import WORDINGS
from soloist.toolchain.tasks.base import question_key, score
from soloist.toolchain.tools.arithmetic import check_steps
from soloist.toolchain.tools.calls import grammar, parse_call, run_call

TOOLS = desk_tools()
needs_gym = pytest.mark.usefixtures("gym")


@pytest.fixture
def gym():
    pytest.importorskip("reasoning_gym", reason="needs the extra 'desk'")


def test_reasoning_gym_is_imported_without_the_package_in_c(gym):
    code = (
        "import sys\nsys.modules['pycosat'] = None\nfrom soloist.toolchain.desk.families import _gym\n"
        "print([_gym('leg_counting', seed)['answer'].isdigit() for seed in (1, 2)])"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "[True, True]\n", ran.stderr


def audit(case):
    """The calls, run one after the other, give the gold; the second uses the result of the first."""
    assert tuple(call.name for call in case.calls) == desk.FAMILIES[case.question.task].tools
    assert [call.more for call in case.calls] == [True] * (len(case.calls) - 1) + [False]
    results = [run_call(call, TOOLS) for call in case.calls]
    for call, result in zip(case.calls, results, strict=True):
        assert TOOLS[call.name].check(call.arguments, result.value)
        assert check_steps("\n".join(result.steps))
    for before, written in zip(results, case.written()[1:], strict=False):
        assert re.search(rf"(?<![\d.:]){re.escape(before.value)}(?![\d:])", written)
    assert results[-1].value == case.question.gold
    assert score(results[-1].value, case.question)
    assert not score("17.0625", case.question)
    for written, call in zip(case.written(), case.calls, strict=True):
        assert parse_call(written, TOOLS) == call
        assert written.isascii()
        assert len(written) <= 64


def gbnf_to_regex(text):
    """Enough of GBNF for call grammars: literals, classes, groups, rule names, spaces between."""
    rules = dict(line.split(" ::= ", 1) for line in text.strip().splitlines())

    def expand(body):
        parts = re.findall(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[a-z]+-?\d*|[()|?*+]', body)
        out = []
        for part in parts:
            if part[0] == '"':
                out.append("(?:" + re.escape(part[1:-1].replace('\\"', '"').replace("\\\\", "\\")) + ")")
            elif part[0] == "[" or part in ")|?*+":
                out.append(part)
            else:
                out.append("(?:" if part == "(" else "(?:" + expand(rules[part]) + ")")
        return "".join(out)

    return re.compile(expand(rules["root"]))


GRAMMAR = gbnf_to_regex(grammar(TOOLS))


def test_the_grammar_reader_of_this_test_can_say_no():
    assert GRAMMAR.fullmatch("solve(3*x + 4 = 19)")
    for text in ("solve(3*x + 4)", "solve(three = 3)", "gcd(5)", "nope(3)", "legs(3 cats)", "between(9 | 10:00)"):
        assert not GRAMMAR.fullmatch(text)


def test_families_are_what_the_desk_promises():
    assert len(desk.FAMILIES) >= 13
    assert sum(len(family.tools) == 2 for family in desk.FAMILIES.values()) >= 2
    assert {tool for family in desk.FAMILIES.values() for tool in family.tools} == set(TOOLS.tools)
    assert all(len(texts) >= 3 for texts in WORDINGS.values())


@needs_gym
@pytest.mark.parametrize("family", desk.FAMILIES)
@pytest.mark.parametrize("pool", ["train", "held-out", "demonstration"])
def test_reference_calls_give_the_gold_and_fit_the_grammar(family, pool):
    made = desk.cases(family, pool, 30)
    for case in made:
        audit(case)
        for written in case.written():
            assert GRAMMAR.fullmatch(written), written
    assert len({case.question.id for case in made}) == 30


@needs_gym
@pytest.mark.parametrize("family", desk.FAMILIES)
def test_a_family_has_hundreds_of_distinct_questions(family):
    texts = {question_key(q.question) for q in desk.questions("train", 400, families=(family,))}
    assert len(texts) == 400
    assert len(desk.questions("held-out", 60, families=(family,))) == 60


@needs_gym
def test_splits_share_neither_text_nor_numbers():
    pools = {
        pool: desk.mixed_cases(pool, 660, seed) for pool, seed in [("train", 0), ("held-out", 0), ("demonstration", 0)]
    }
    pools["train again"] = desk.mixed_cases("train", 660, 3)
    unseen = [case.question for case in desk.unseen_cases()]
    asked = {pool: {case.written() for case in made} for pool, made in pools.items()}
    for one in ("train", "train again"):
        for other in ("held-out", "demonstration"):
            desk.assert_disjoint([c.question for c in pools[one]], [c.question for c in pools[other]])
            assert not asked[one] & asked[other]
    assert not asked["held-out"] & asked["demonstration"]
    for made in pools.values():
        desk.assert_disjoint([case.question for case in made], unseen)


@needs_gym
def test_questions_are_balanced_interleaved_repeatable_and_distinct():
    some = desk.questions("train", 100, 1)
    assert some == desk.questions("train", 100, 1)
    assert some != desk.questions("train", 100, 2)
    counts = [sum(q.task == family for q in some) for family in desk.FAMILIES]
    assert max(counts) - min(counts) <= 1
    assert len({q.task for q in some[: len(desk.FAMILIES)]}) == len(desk.FAMILIES)
    assert len({question_key(q.question) for q in some}) == 100
    assert {q.split for q in some} == {"train"}
    assert {q.split for q in desk.questions("held-out", 30)} == {"held-out"}
    assert {q.task for q in desk.questions("train", 9, families=("legs", "sums"))} == {"legs", "sums"}


@needs_gym
def test_both_our_wordings_and_those_of_reasoning_gym_occur():
    texts = [q.question for q in desk.questions("train", 100, families=("products",))]
    theirs = sum(text.startswith("Solve the following multiplication") for text in texts)
    assert 25 <= theirs <= 75


@needs_gym
def test_too_many_or_unknown_are_refused(monkeypatch):
    with pytest.raises(DataError, match="no question family 'poems'"):
        desk.questions("train", 3, families=("poems",))
    with pytest.raises(DataError, match="no question family chosen"):
        desk.questions("train", 3, families=())
    few = desk.Family(
        "few", ("calc",), "number", "", lambda rng, seed: desk.make.Draft("1 + 1?", "2", ("calc(1 + 1)",))
    )
    monkeypatch.setattr(desk, "FAMILIES", {"few": few})
    pool = desk._pool(("calc(1 + 1)",))
    with pytest.raises(DataError, match="has only 1 distinct"):
        desk.cases("few", pool, 2)


def test_assert_disjoint_finds_a_shared_text():
    one = desk.unseen_questions()[0]
    twin = one.model_copy(update={"id": "twin", "question": one.question.upper() + "  "})
    desk.assert_disjoint([one], desk.unseen_questions()[1:])
    with pytest.raises(DataError, match="twin"):
        desk.assert_disjoint([one], [twin])


def skeleton(text):
    return re.sub(r"\d+", "#", re.sub(r"\s+", " ", text.casefold()))


def test_unseen_set_is_large_even_and_right():
    unseen = desk.unseen_cases()
    assert len(unseen) >= 120
    counts = [sum(case.question.task == family for case in unseen) for family in desk.FAMILIES]
    assert min(counts) == max(counts)
    assert len({question_key(case.question.question) for case in unseen}) == len(unseen)
    for case in unseen:
        audit(case)
        assert case.question.split == "unseen-wording"
        assert all(GRAMMAR.fullmatch(written) for written in case.written())


def test_unseen_wordings_are_none_of_ours():
    forms = [
        re.compile(re.sub(r"\\\{[a-z]+\\\}", ".+", re.escape(form)), re.IGNORECASE)
        for texts in WORDINGS.values()
        for form in texts
        if re.sub(r"\{\w+\}|\W", "", form)
    ]
    assert any(form.fullmatch("What is 5 times 6?") for form in forms)
    for question in desk.unseen_questions():
        assert not any(form.fullmatch(question.question) for form in forms), question.question


@needs_gym
def test_unseen_wordings_are_none_that_training_generates():
    trained = {skeleton(q.question) for q in desk.questions("train", 2200)}
    assert not trained & {skeleton(q.question) for q in desk.unseen_questions()}
