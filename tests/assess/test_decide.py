"""Both published rules: where they agree, where they contradict each other, and what stays open."""

from __future__ import annotations

import pytest

from soloist.toolchain.assess.decide import BORDER, ITEMS, decide, outlook
from soloist.toolchain.assess.result import Assessment, Freedom, OfQuestion, kept, sentence


def freedom(value, low=None, high=None, p=0.01, why=""):
    question = OfQuestion(
        question="q", runs=6, mean_score=0.5, r=None if value is None else 1 - value, p=p, permutations=720, why=why
    )
    return Freedom(
        of="output", score="verdict", value=value, low=low, high=high, p=p, exact=True, tied=0.5, questions=(question,)
    )


@pytest.mark.parametrize("value", [0.0, 0.2, 0.5, BORDER, 0.61, 0.9, 1.0, 1.7])
def test_the_rules_contradict_each_other_on_refinement_everywhere(value):
    v1, v3 = decide("v1", freedom(value)), decide("v3", freedom(value))
    assert v1.refine is (value <= BORDER)
    assert v3.refine is (value > BORDER)
    assert (v1.rule, v3.rule) == ("v1", "v3")
    assert any("Rule v1" in line and "v3 says the opposite" in line for line in v1.reasons)


@pytest.mark.parametrize("value", [0.1, 0.6, 0.64, 1.2])
def test_the_rules_agree_on_stage_1(value):
    v1, v3 = decide("v1", freedom(value)), decide("v3", freedom(value))
    for advice in (v1, v3):
        fate = "keep" if value <= 0.6 else "drop"
        assert advice.keep["structure"] == advice.keep["instructions"] == fate
        assert advice.keep["tools"] == advice.keep["knowledge"] == "keep"
        assert tuple(advice.keep) == ITEMS
    assert (v1.side, v1.outlook) == (v3.side, v3.outlook)


def test_only_v1_drops_the_skills_of_a_very_free_metric():
    assert decide("v1", freedom(0.66)).keep["skills"] == "drop"
    assert decide("v3", freedom(0.66)).keep["skills"] == "keep"
    assert decide("v1", freedom(0.64)).keep["skills"] == "keep"


def test_outlook_falls_with_freedom():
    assert [outlook(f) for f in (0, 0.249, 0.25, 0.65, 0.651, 1.9)] == [
        "likely to help",
        "likely to help",
        "test both",
        "test both",
        "unlikely to help",
        "unlikely to help",
    ]


@pytest.mark.parametrize("rule", ["v1", "v3"])
def test_undefined_leaves_all_but_tools_and_knowledge_open(rule):
    advice = decide(rule, freedom(None, p=None, why="every run has the score 1"))
    assert (advice.side, advice.outlook, advice.refine, advice.certain) == ("undefined", "cannot say", None, False)
    assert kept(advice) == "keep: tools, knowledge; undecided: structure, instructions, skills"
    assert "every run has the score 1" in advice.reasons[0]


@pytest.mark.parametrize(
    ("value", "low", "high", "p", "certain"),
    [
        (0.1, 0.0, 0.3, 0.01, True),
        (0.1, 0.0, 0.8, 0.01, False),
        (0.1, 0.0, 0.3, 0.2, False),
        (0.1, None, None, 0.01, False),
        (0.9, 0.7, 1.2, 0.5, True),
        (0.9, 0.5, 1.2, 0.5, False),
    ],
)
def test_certain_needs_an_interval_on_one_side_and_a_rigid_metric_a_p(value, low, high, p, certain):
    assert decide("v3", freedom(value, low, high, p)).certain is certain


def test_without_an_interval_nothing_is_said_about_its_side():
    alike = decide("v3", freedom(0.1)).reasons
    assert any("There is no interval" in line for line in alike)
    assert not any("one side" in line for line in alike)
    assert any("one side" in line for line in decide("v3", freedom(0.1, 0.0, 0.8)).reasons)


def assessment(value, rule="v3", low=None, high=None):
    decisive = freedom(value, low, high, p=None if value is None else 0.01)
    return Assessment(
        team="desk",
        distance="edits of tokens",
        temperature=0.7,
        runs=6,
        questions=1,
        mean_score=0.5,
        seconds=3,
        freedom=(decisive,),
        decided_on="verdict",
        advice=decide(rule, decisive),
        warnings=(),
    )


def test_the_sentence_names_the_version_and_that_it_is_advice():
    assert sentence(assessment(0.1, low=0, high=0.31)) == (
        "Metric Freedom 0.10 (0.00 to 0.31), rigid: rule v3 says distilling is 'likely to help', do not refine. "
        "Advice only."
    )
    assert "rule v1" in sentence(assessment(0.1, "v1"))
    assert "cannot make certain" in sentence(assessment(0.1, "v1"))
    part = assessment(0.1)
    silent = part.freedom[0].questions[0].model_copy(update={"r": None, "why": "every run has the score 1"})
    both = part.freedom[0].model_copy(update={"questions": (*part.freedom[0].questions, silent)})
    assert "0.10 on 1 of 2 questions, rigid" in sentence(part.model_copy(update={"freedom": (both,)}))
    text = sentence(assessment(None))
    assert text.startswith("Metric Freedom is undefined (0 of 1 questions")
    assert "rule v3 cannot say" in text
