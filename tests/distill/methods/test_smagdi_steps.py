"""SMAGDi: sub-questions and what the solver may see; steps, their labels and edges; what is refused."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from soloist.kernels.errors import DataError, UsageError  # noqa: E402
from soloist.toolchain.distill.methods import smagdi  # noqa: E402
from soloist.toolchain.distill.methods.smagdi import SmagdiOptions  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, recheck  # noqa: E402
from soloist.toolchain.distill.step_graph import CORRECT, WRONG  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.record.importing import import_traces  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.traces.schema import Edge, Run, ToolUse, Turn  # noqa: E402
from soloist.toolchain.traces.store import read_runs  # noqa: E402

TOOLS = ("soloist.toolchain.desk.tools:desk_tools",)


def calc(expression, result, *, more=False):
    return ToolUse(
        name="calc",
        arguments={"expression": expression},
        call=f"calc({expression}){' then' if more else ''}",
        result=result,
        steps=(f"{expression} = {result}",),
    )


def acting(number, attempts):
    """Agents that call in turn: `attempts` maps an agent to its calls (expression, result) and its verdict."""
    turns, path = [], ()
    for agent, (calls, verdict) in attempts.items():
        uses = tuple(calc(*call, more=i + 1 < len(calls)) for i, call in enumerate(calls))
        turns.append(
            Turn(
                id=len(turns),
                agent=agent,
                role="reader",
                text=uses[-1].call,
                tools=uses,
                model="m",
                answer=uses[-1].result,
                verdict=verdict,
            )
        )
        if verdict == "correct" and not path:
            path = (turns[-1].id,)
    question = Question(
        id=f"q{number}", question=f"What is {number} + 3, doubled?", gold=str(2 * (number + 3)), scorer="number"
    )
    answer = turns[path[0]].answer if path else turns[-1].answer
    return Run(
        question=question, team="desk", turns=turns, path=path, answer=answer, verdict="correct" if path else "wrong"
    )


def sums(number):
    """One agent right in two calls, one wrong in its second, one wrong from the beginning."""
    total = number + 3
    first = (f"{number} + 3", str(total))
    return acting(
        number,
        {
            "a": ([first, (f"{total} * 2", str(2 * total))], "correct"),
            "b": ([first, (f"{total} * 3", str(3 * total))], "wrong"),
            "c": ([(f"{number} * 2", str(2 * number))], "wrong"),
        },
    )


def words(number, *, rounds=1):
    """Two agents in plain words; the wrong one changes its mind if there is a second round."""
    right, turns, edges = number + 3, [], []
    for column in range(rounds):
        for agent, good in (("a", True), ("b", column > 0)):
            answer = str(right if good else right + 1)
            text = f"First {number}.\n{number} + 3 = {answer}" if good else f"First {number}.\nThat makes {answer}."
            turns.append(
                Turn(
                    id=len(turns),
                    agent=agent,
                    role="solver",
                    round=column,
                    text=text,
                    model="m",
                    answer=answer,
                    verdict="correct" if good else "wrong",
                )
            )
            for other in turns[:-1]:
                if other.round == column - 1:
                    kind = "continuity" if other.agent == agent else "influence"
                    edges.append(Edge(source=other.id, target=turns[-1].id, kind=kind))
    question = Question(id=f"w{number}", question=f"What is {number} plus 3?", gold=str(right), scorer="number")
    return Run(
        question=question, team="debate", turns=turns, edges=edges, path=(0,), answer=str(right), verdict="correct"
    )


def setup_of(tokenizer, *, mode="tools", max_length=512, variant="paper", check=recheck, **options):
    return Setup(tokenizer, check, mode, max_length, 0, variant, SmagdiOptions(**options))


def said(example):
    return [(message["role"], message["content"]) for message in example.messages]


def step_texts(group, tokenizer):
    return [tokenizer.decode(group.examples[c].ids[start:stop]) for c, start, stop in group.facts["steps"]]


# ---------------------------------------------------------------- decomposer and solver


def test_calls_become_sub_questions_and_their_answers(tokenizer):
    run = sums(4)
    (group,) = smagdi.select([run], setup_of(tokenizer)).groups
    question = "What is 4 + 3, doubled?"
    second = "With that result: which expression goes to calc?"
    assert said(group.examples[0]) == [
        ("user", f"{question}\nWhich expression goes to calc?"),
        ("assistant", "calc(4 + 3)"),
        ("tool", "7"),
        ("user", second),
        ("assistant", "calc(7 * 2)"),
    ]
    (asked,) = smagdi.select_decompositions([run], setup_of(tokenizer)).examples
    assert said(asked) == [("user", question), ("assistant", f"Which expression goes to calc?\n{second}")]


def test_worked_steps_answer_the_sub_questions_of_a_student_without_tools(tokenizer):
    (group,) = smagdi.select([sums(4)], setup_of(tokenizer, mode="cot")).groups
    assert [text for role, text in said(group.examples[0]) if role == "assistant"] == [
        "4 + 3 = 7",
        "7 * 2 = 14\n#### 14",
    ]
    assert said(group.examples[0])[0][1].endswith("\nWhat does calc of the expression give?")


@pytest.mark.parametrize("mode", ["tools", "cot"])
def test_the_solver_never_sees_a_later_sub_question_or_answer(tokenizer, mode):
    (group,) = smagdi.select([sums(4)], setup_of(tokenizer, mode=mode)).groups
    example = group.examples[0]
    later = {"tools": ("With that result", "7 * 2"), "cot": ("With that result", "14")}[mode]
    first = example.trained.index(True)
    before = tokenizer.decode(example.ids[:first])
    assert not any(text in before for text in later)
    assert "4 + 3 = 7" not in before
    assert "calc(4" not in before
    for place in range(first, len(example.ids)):  # what is read before the first answer ends holds nothing later
        if not example.trained[place]:
            break
        assert not any(text in tokenizer.decode(example.ids[:place]) for text in later)


def test_one_step_is_the_question_itself(tokenizer):
    run = words(4)
    (group,) = smagdi.select([run], setup_of(tokenizer)).groups
    assert [role for role, _ in said(group.examples[0])] == ["user", "assistant"]
    assert said(group.examples[0])[0][1] == "What is 4 plus 3?"
    (asked,) = smagdi.select_decompositions([run], setup_of(tokenizer)).examples
    assert said(asked)[1] == ("assistant", "What is 4 plus 3?")
    lone = acting(1, {"a": ([("4 + 4", "8")], "correct")})
    (asked,) = smagdi.select_decompositions([lone], setup_of(tokenizer)).examples
    assert len(said(asked)[1][1].splitlines()) == 1


def test_only_runs_that_may_be_learned_from_are_taken_apart(tokenizer):
    wrong = acting(6, {"a": ([("6 + 1", "7")], "wrong")})
    chosen = smagdi.select_decompositions([sums(4), wrong], setup_of(tokenizer))
    assert (len(chosen.groups), chosen.rejected) == (1, {"no correct answer": 1})
    held = sums(4).question.model_copy(update={"split": "test"})
    with pytest.raises(DataError, match="may not be trained on"):
        smagdi.select_decompositions([sums(4).model_copy(update={"question": held})], setup_of(tokenizer))


def test_decompositions_that_people_wrote_are_added(tokenizer, tmp_path):
    file = tmp_path / "socratic.jsonl"
    file.write_text(json.dumps({"question": "Q?", "answer": "A? ** 1 + 1 = <<1+1=2>>2\nB? ** so 2\n#### 2"}) + "\n")
    runs = [words(4)]
    asked = smagdi.select_decompositions(runs, setup_of(tokenizer, decompositions=file))
    assert said(asked.examples[0]) == [("user", "Q?"), ("assistant", "A?\nB?")]
    assert asked.counts.notes == {"decompositions written by people": 1}
    worked = smagdi.select(runs, setup_of(tokenizer, decompositions=file)).groups[-1]
    assert said(worked.examples[0]) == [
        ("user", "Q?\nA?"),
        ("assistant", "1 + 1 = 2"),
        ("user", "B?"),
        ("assistant", "so 2\n#### 2"),
    ]
    assert worked.facts["steps"] == []
    assert worked.examples[0].targets
    assert len(smagdi.select([sums(4)], setup_of(tokenizer, decompositions=file)).groups) == 1  # it calls tools
    row = json.loads(file.read_text())
    long = {"question": "R?", "answer": row["answer"].replace("so 2", "so 2" + " again" * 99)}
    file.write_text(json.dumps(row) + "\n" + json.dumps(long) + "\n")
    both = smagdi.select(runs, setup_of(tokenizer, decompositions=file))
    assert (len(both.groups), both.rejected) == (2, {"of the file: longer than 512 tokens": 1})


# ---------------------------------------------------------------- steps, labels, edges


def test_steps_are_calls_labeled_by_propagation(tokenizer):
    (group,) = smagdi.select([sums(4)], setup_of(tokenizer)).groups
    texts = [text.removesuffix("<|im_end|>") for text in step_texts(group, tokenizer)]
    assert texts == ["calc(4 + 3)", "calc(7 * 2)", "calc(4 + 3)", "calc(7 * 3)", "calc(4 * 2)"]
    assert group.facts["labels"] == [CORRECT, CORRECT, CORRECT, WRONG, WRONG]
    assert group.facts["edges"] == [[0, 1], [2, 3]]
    assert group.facts["pairs"] == [[0, 3], [1, 4], [2, 3]]
    assert [example.targets > 0 for example in group.examples] == [True, False, False]


def test_steps_are_lines_and_attempts_are_joined_in_time(tokenizer):
    (group,) = smagdi.select([words(4, rounds=2)], setup_of(tokenizer)).groups
    texts = [text.strip().removesuffix("<|im_end|>") for text in step_texts(group, tokenizer)]
    assert texts[:3] == ["First 4.", "4 + 3 = 7", "#### 7"]
    assert len(texts) == 12
    chains = [[step, step + 1] for step in (0, 1, 3, 4, 6, 7, 9, 10)]
    crossing = [[2, 6], [2, 9], [5, 6], [5, 9]]
    assert group.facts["edges"] == sorted(chains + crossing)
    assert all(source < target for source, target in group.facts["edges"])
    # the wrong attempt begins as the right ones do: its first line is right
    assert group.facts["labels"][3:6] == [CORRECT, WRONG, WRONG]


def test_a_step_that_does_not_recheck_is_wrong_even_in_a_correct_attempt(tokenizer):
    run = words(4)
    turn = run.turns[0].model_copy(update={"text": "4 + 3 = 8\nno, 4 + 3 = 7"})
    (group,) = smagdi.select(
        [run.model_copy(update={"turns": (turn, run.turns[1].model_copy(update={"verdict": "correct"}))})],
        setup_of(tokenizer),
    ).groups
    assert group.facts["labels"][:3] == [WRONG, CORRECT, CORRECT]
    assert not group.examples[0].targets


def test_a_cut_attempt_keeps_the_steps_before_the_cut(tokenizer):
    whole = smagdi.select([words(4)], setup_of(tokenizer)).groups[0]
    length = min(len(example.ids) for example in whole.examples)
    longer = max(range(2), key=lambda i: len(whole.examples[i].ids))
    run = words(4)
    turn = run.turns[longer].model_copy(update={"text": run.turns[longer].text + "\nand so on" * 9})
    turns = tuple(turn if i == longer else t for i, t in enumerate(run.turns))
    (group,) = smagdi.select([run.model_copy(update={"turns": turns})], setup_of(tokenizer, max_length=length)).groups
    assert len(group.examples[longer].ids) == length
    kept = [span for span in group.facts["steps"] if span[0] == longer]
    assert 1 <= len(kept) < 12
    assert all(stop <= length - 1 for _, _, stop in kept)


def test_recorded_desk_runs_make_groups_in_both_modes(tokenizer, recorded_runs):
    for mode in ("tools", "cot"):
        chosen = smagdi.select(recorded_runs, setup_of(tokenizer, mode=mode, max_length=4096))
        assert len(chosen.groups) > 30
        for group in chosen.groups:
            assert len(group.facts["labels"]) == len(group.facts["steps"]) > 0
            assert all(0 < start < stop < len(group.examples[c].ids) for c, start, stop in group.facts["steps"])
            assert all(source < target for source, target in group.facts["edges"])
            json.dumps(group.facts)
        asked = smagdi.select_decompositions(recorded_runs, setup_of(tokenizer, mode=mode, max_length=4096))
        assert {len(e.messages[1]["content"].splitlines()) for e in asked.examples} <= {1, 2}


def test_bad_input_is_refused(tokenizer):
    ungraded = acting(4, {"a": ([("4 + 3", "7")], "unknown")})
    wrong = acting(6, {"a": ([("6 + 1", "7")], "wrong")})
    with pytest.raises(DataError, match="1 x no graded attempt, 1 x no correct attempt"):
        smagdi.select([ungraded, wrong], setup_of(tokenizer))
    with pytest.raises(UsageError, match="there is no released code to follow"):
        DistillConfig(method="smagdi", variant="released").settled()


def test_what_cannot_work_is_refused_before_anything_is_recorded(tmp_path):
    with pytest.raises(UsageError, match="set l1"):
        DistillConfig(method="smagdi", options={"l1": 0, "l2": 0, "l3": 0, "l4": 0}).settled()
    file = tmp_path / "questions.json"
    file.write_text('[{"question": "Is it?"}]')
    with pytest.raises(DataError, match="no decomposition in it"):
        DistillConfig(method="smagdi", options={"decompositions": str(file)}).settled()


def test_an_imported_episode_is_one_attempt_of_several_calls(tokenizer, tmp_path):
    output = "Thought: t\nAction: search[x]\nObservation: y\nThought: u\nAction: finish[y]\nObservation: "
    file = tmp_path / "fireact.json"
    file.write_text(json.dumps([{"instruction": "What?", "output": f"{output}Episode finished, reward = True"}]))
    runs = list(read_runs(import_traces([file], tmp_path / "traces").path / "traces.jsonl.gz"))
    (group,) = smagdi.select(runs, setup_of(tokenizer)).groups
    (example,) = group.examples
    assert said(example) == [
        ("user", "What?\nWhich input goes to search?"),
        ("assistant", "search[x]"),
        ("tool", "y"),
        ("user", "With that result: which input goes to finish?"),
        ("assistant", "finish[y]"),
    ]
    assert example.targets
    assert group.facts["labels"] == [CORRECT, CORRECT]
