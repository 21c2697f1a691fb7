"""The skill card: counts, worked examples, and one agent that can be run with it."""

from __future__ import annotations

import re

import pytest

from soloist.toolchain.assess.card import agent_of, make_card, render
from soloist.toolchain.assess.decide import ITEMS
from soloist.toolchain.assess.result import Advice
from soloist.toolchain.teams.team import Team


def advice(**keep):
    fates = dict.fromkeys(ITEMS, "keep") | keep
    return Advice(rule="v3", side="rigid", outlook="test both", refine=False, keep=fates, certain=False, reasons=("r",))


@pytest.fixture
def runs(run_of):
    return [
        run_of([("calc(2 + 3)", "5")], number=2, steps=["2 + 3 = 5", "1 ft is 12 in"]),
        run_of([("calc(4 + 3)", "7")], number=4, steps=["4 + 3 = 7", "1 ft is 12 in"]),
        run_of([("calc(2 + 4)", "6")], number=2, correct=False),
        run_of([("calc(2 +)", None)], number=2),
        run_of([("calc(5 + 3) then", "8"), ("gcd(8, 8)", "8")], number=5, task="chains"),
        run_of([("calc(9 + 3)", "12")], number=9, task="test", split="held-out"),
    ]


def test_tools_are_counted(runs, team):
    card = make_card(runs, advice(), team)
    calc = next(tool for tool in card.tools if tool.name == "calc")
    assert (calc.used, calc.failed, calc.made_answers, calc.right) == (6, 1, 6, 4)
    gcd = next(tool for tool in card.tools if tool.name == "gcd")
    assert (gcd.used, gcd.right) == (1, 1)
    assert gcd.definition["parameters"]["type"] == "object"
    unused = next(tool for tool in card.tools if tool.name == "weekday")
    assert unused.used == 0 and "weekday" not in card.system, "in the card, not in the prompt"
    assert (card.runs, card.correct) == (6, 4)


def test_examples_are_correct_runs_of_questions_that_may_be_shown(runs, team):
    card = make_card(runs, advice(), team, examples=2)
    assert [(s.family, s.example.question) for s in card.skills] == [
        ("sums", "What is 2 + 3?"),
        ("sums", "What is 4 + 3?"),
        ("chains", "What is 5 + 3?"),
    ]
    assert (card.skills[0].correct, card.skills[0].runs) == (2, 4)
    chain = card.skills[2].example
    assert chain.reply == "calc(5 + 3) then"
    assert [(more.result, more.reply) for more in chain.then] == [("8", "gcd(8, 8)")]
    assert make_card(runs, advice(skills="drop"), team).skills == ()


def test_knowledge_is_what_correct_runs_agree_on(runs, team):
    card = make_card(runs, advice(), team)
    assert "sums: calc (2 of 2 correct runs)" in card.knowledge
    assert "chains: calc, then gcd (1 of 1 correct runs)" in card.knowledge
    assert "1 ft is 12 in" in card.knowledge
    assert not any("=" in line for line in card.knowledge)


def test_what_is_dropped_is_not_in_the_prompt_but_in_the_card(runs, team):
    kept, dropped = (
        make_card(runs, advice(), team),
        make_card(runs, advice(structure="drop", instructions="drop"), team),
    )
    assert "As ann: Only add." in kept.system
    assert "Work as the team did: reader.\n" in kept.system
    assert "Only add." not in dropped.system
    assert "Work as the team did" not in dropped.system
    fates = {(item.kind, item.name): item.fate for item in dropped.items}
    assert fates["instructions", "ann"] == "drop"
    assert fates["structure", "sam"] == "drop"
    assert fates["tools", "all tools"] == "keep"


def test_the_prompt_has_no_counts_and_no_scribe(runs, team):
    told = team.model_copy(
        update={"agents": (team.agents[0], team.agents[1].model_copy(update={"prompt": "Write prose."}))}
    )
    card = make_card(runs, advice(), told)
    assert "- chains: calc, then gcd\n" in card.system
    assert "correct runs" not in card.system
    assert "Write prose." not in card.system, "it may write nothing but calls"
    assert ("instructions", "sam", "keep") in [(item.kind, item.name, item.fate) for item in card.items]


def test_examples_are_of_usual_length(run_of, team):
    runs = [run_of([(f"calc({n} + 3)", str(n + 3))], number=n) for n in (1, 10**8, 10**4, 10**4 + 1, 2)]
    (skill,) = make_card(runs, advice(), team).skills
    assert skill.example.reply == "calc(10000 + 3)"


def test_the_card_is_one_agent_that_answers(runs, team, script, question):
    agent = agent_of(make_card(runs, advice(), team), team)
    engine = script(lambda text, seed: "calc(6 + 3)")
    with Team(agent, engine=engine) as alone:
        run = alone.answer(question(6))
    assert (run.answer, run.verdict) == ("9", "correct")
    messages = engine.asks[0].messages
    assert [m["role"] for m in messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert "- calc(" in messages[0]["content"]
    assert '"calc("' in engine.asks[0].grammar
    assert '"gcd("' in engine.asks[0].grammar


def test_a_team_without_tools_gives_an_agent_that_answers_in_words(run_of, team):
    run = run_of([("It is 5. #### 5", "5")])
    run = run.model_copy(update={"turns": tuple(t.model_copy(update={"tools": ()}) for t in run.turns)})
    plain = team.model_copy(update={"tools": (), "agents": (team.agents[0].model_copy(update={"tools": ()}),)})
    card = make_card([run], advice(), plain)
    assert card.tools == ()
    assert card.system.startswith("Answer the question.")
    assert card.demonstrations[0].reply == "It is 5. #### 5"
    assert agent_of(card, plain).tools == ()


def test_without_a_team_file_the_card_knows_tools_by_name_only(runs):
    card = make_card(runs, advice(), name="imported")
    assert card.team == "imported"
    assert {tool.name for tool in card.tools} == {"calc", "gcd"}
    assert all(tool.definition is None for tool in card.tools)
    assert "- calc\n" in card.system


def test_markdown_shows_the_prompt_as_it_is_and_other_text_as_text(runs, team, run_of):
    hostile = run_of([("calc(1 + 3)", "4")], number=1, task="<b>|`x`")
    card = make_card([*runs, hostile], advice(), team)
    markdown = render(card, advice(), "The finding.")
    assert markdown.startswith("# Skill card: adder\n\nThe finding.\n")
    assert card.system in markdown
    assert "| calc | 7 | 1 | 7 | 5 |" in markdown
    fences = [line for line in markdown.splitlines() if set(line) == {"`"}]
    assert len(fences) % 2 == 0
    outside = "\n".join(re.split(r"(?m)^`{3,}$", markdown)[::2])
    assert "<b>" not in outside
    assert "&lt;b>" in outside
