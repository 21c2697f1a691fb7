"""The baselines that only select: whose attempts, right or wrong, and how many of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from soloist.kernels.errors import DataError, UsageError  # noqa: E402
from soloist.toolchain.core.artifact import Artifact  # noqa: E402
from soloist.toolchain.distill.methods.baselines import (  # noqa: E402
    RandomOptions,
    SingleOptions,
    answers,
    fill,
    random_traces,
    single,
    strongest,
    votes,
)
from soloist.toolchain.distill.methods.catalog import load  # noqa: E402
from soloist.toolchain.distill.methods.sft import verified  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.student.artifact import StudentFacts, read_card  # noqa: E402

BASELINES = ["answer-only", "random-trace", "single-agent", "majority-vote"]
ADD, MUL, SUB = ("add(5+7) = 12",), ("mul(3*4) = 12",), ("add(5+1) = 6", "mul(6*2) = 12")
WRONG, OFF, FAILED = ("add(5+6) = 11",), ("add(4+6) = 10",), ("add(x) ! no",)


@pytest.fixture
def setup(tokenizer):
    return Setup(tokenizer, recheck)


def last(chosen):
    """The last words of each conversation."""
    return [example.messages[-1]["content"] for example in chosen.examples]


# --- answer-only


@pytest.mark.parametrize("mode", ["tools", "cot"])
def test_answers_alone_are_learned_in_both_modes(setup, debate_of, tokenizer, trained, mode):
    runs = [debate_of([[SUB, MUL]], number=1), debate_of([[WRONG, MUL]], number=2), debate_of([["I say 12"]], number=3)]
    chosen = answers(runs, replace(setup, mode=mode))
    assert [trained(e, tokenizer) for e in chosen.examples] == ["#### 12<|im_end|>"] * 2
    assert chosen.examples[0].messages[0] == {"role": "user", "content": "What is 1, asked?"}
    assert chosen.rejected == {"no correct answer": 1}
    with pytest.raises(DataError, match="1 x longer than 16 tokens"):
        answers(runs[:1], replace(setup, max_length=16))


# --- random-trace


def test_random_traces_are_of_any_peer_right_or_wrong(setup, debate_of):
    runs = [debate_of([[ADD, WRONG, MUL], [FAILED, OFF, None]], number=number) for number in range(200)]
    drawn = Counter(last(random_traces(runs, setup)))
    assert set(drawn) == {"add(5+7)", "add(5+6)", "mul(3*4)", "add(4+6)"}, "every attempt that gave an answer"
    assert min(drawn.values()) > 25
    right = random_traces(runs, replace(setup, options=RandomOptions(right=True)))
    assert set(last(right)) == {"add(5+7)", "mul(3*4)"}


def test_a_draw_depends_on_seed_and_question_alone(setup, debate_of):
    runs = [debate_of([[ADD, WRONG, MUL, OFF]], number=number) for number in range(40)]
    chosen = random_traces(runs, setup)
    assert random_traces(runs[7:8], setup).groups == chosen.groups[7:8]
    assert last(random_traces(runs, replace(setup, seed=1))) != last(chosen)


def test_no_gold_is_read_by_random_traces_and_votes(setup, debate_of):
    rounds = [[ADD, WRONG, WRONG]]
    graded, blind = debate_of(rounds), debate_of(rounds, graded=False)
    blind = blind.model_copy(update={"question": blind.question.model_copy(update={"gold": None})})
    for select in (random_traces, votes):
        assert select([graded], setup).groups == select([blind], setup).groups


# --- majority-vote


def test_the_majority_of_first_attempts_is_taught_right_or_wrong(setup, debate_of):
    runs = [
        debate_of([[ADD, WRONG, WRONG], [ADD, ADD, ADD]], number=1),
        debate_of([[WRONG, MUL, ADD]], number=2),
        debate_of([[OFF, WRONG, MUL]], number=3),
        debate_of([[FAILED, FAILED, FAILED], [ADD, None, None]], number=4),
    ]
    chosen = votes(runs, setup)
    assert last(chosen) == ["add(5+6)", "mul(3*4)", "add(4+6)"], "the first in the majority; the first spoken of a tie"
    assert chosen.rejected == {"no first attempt gives the majority's answer": 1}


# --- single-agent


def test_the_strongest_agent_is_right_first_most_often(setup, debate_of):
    runs = [
        debate_of([[WRONG, ADD, MUL], [ADD, ADD, ADD]], number=1),
        debate_of([[WRONG, ADD, WRONG], [ADD, ADD, ADD]], number=2),
    ]
    assert strongest(runs) == "b"
    assert strongest([debate_of([[WRONG, ADD, MUL]])]) == "b", "of two equals the first by name"
    chosen = single(runs, replace(setup, max_target_tokens=10_000))
    assert set(last(chosen)) == {"add(5+7)"}
    assert chosen.notes["agent"] == "b"


def test_only_own_first_attempts_that_are_right_are_learned(setup, debate_of):
    runs = [debate_of([[WRONG, ADD], [ADD, ADD]], number=1), debate_of([[MUL, ADD], [ADD, ADD]], number=2)]
    chosen = single(runs, replace(setup, options=SingleOptions(agent="a")))
    assert set(last(chosen)) == {"mul(3*4)"}, "what a said after it had read b is not its own"
    assert chosen.rejected == {"a's first attempt is not right": 1}
    with pytest.raises(UsageError, match="agent 'z' answered nothing here; those who did: a, b"):
        single(runs, replace(setup, options=SingleOptions(agent="z")))


def test_as_many_tokens_as_sft_takes(setup, debate_of):
    runs = [debate_of([[ADD, WRONG if number % 2 else ADD]], number=number) for number in range(8)]
    setup = replace(setup, options=SingleOptions(agent="b"))
    budget = sum(example.targets for example in verified(runs, setup).examples)
    chosen = single(runs, setup)
    assert sum(example.targets for example in chosen.examples) == budget
    assert chosen.notes == {"agent": "b", "budget": budget, "distinct": 4, "repeated": 4}
    assert set(Counter(e.question_id for e in chosen.examples).values()) == {2}, "whole rounds repeat"
    size = chosen.examples[0].targets
    smaller = single(runs, replace(setup, max_target_tokens=3 * size + 1))
    assert len({e.question_id for e in smaller.examples}) == len(smaller.examples) == 3


def test_without_a_right_run_every_own_trace_is_taken_once(setup, debate_of):
    runs = [debate_of([[WRONG, ADD]], number=number, answer="11") for number in range(3)]
    chosen = single(runs, setup)
    assert (len(chosen.groups), chosen.notes["budget"]) == (3, None)


def test_filling_stops_at_the_budget_and_refuses_one_that_is_too_small(setup, debate_of):
    pool = verified([debate_of([[ADD]], number=1), debate_of([[SUB]], number=2)], setup).groups
    sizes = sorted(group.examples[0].targets for group in pool)
    for budget in range(sizes[0], 3 * sum(sizes)):
        groups = fill(pool, budget, seed=budget)
        assert budget - sizes[1] < sum(group.examples[0].targets for group in groups) <= budget
        taken = [groups.count(group) for group in pool]
        assert max(taken) - min(taken) <= 1, "none again before all were taken"
    with pytest.raises(DataError, match="too small for any of the agent's traces"):
        fill(pool, sizes[0] - 1, seed=0)


# --- all


@pytest.mark.parametrize("name", BASELINES)
def test_bad_input_is_refused(name, setup, debate_of):
    select = load(name).select
    with pytest.raises(DataError, match="q4: split 'held-out' may not be trained on"):
        select([debate_of([[ADD, ADD]], number=4, split="held-out")], setup)
    silent = debate_of([[None, None]], number=5)
    with pytest.raises(DataError) as caught:
        select([silent], setup)
    assert {
        "answer-only": "no correct answer",
        "single-agent": "no agent's own attempt is in these traces",
    }.get(name, "no attempt of an answering agent") in str(caught.value)


@pytest.mark.parametrize("mode", ["tools", "cot"])
@pytest.mark.parametrize("name", BASELINES)
def test_the_recorded_runs(name, mode, tokenizer, recorded_runs):
    method = load(name)
    setup = Setup(tokenizer, recheck, mode, 4096, options=method.options())
    chosen = method.select(recorded_runs, setup)
    assert len(chosen.groups) + sum(chosen.rejected.values()) - chosen.notes.get("repeated", 0) <= 60
    assert len(chosen.groups) > 40
    questions = {run.question.question.strip() for run in recorded_runs}
    assert all(example.messages[0]["content"] in questions and example.targets for example in chosen.examples)
    if name == "single-agent":
        wanted = sum(example.targets for example in verified(recorded_runs, setup).examples)
        assert 0.98 * wanted < sum(example.targets for example in chosen.examples) <= wanted


@pytest.mark.parametrize("name", BASELINES)
def test_a_student_comes_out(name, debate_of, traces_of, tiny_base, tmp_path):
    traces = traces_of([debate_of([[ADD, MUL, SUB]], number=number) for number in range(6)])
    train = TrainConfig(batch_size=3, learning_rate=3e-3, precision="fp32", device="cpu")
    config = DistillConfig(method=name, train=train)
    student = distill(config, traces, tiny_base, tmp_path / "student")
    assert Artifact.open(tmp_path / "student", stage="distill").digest == student.digest
    facts = student.read(StudentFacts)
    assert (facts.method, facts.data.kept) == (name, 6)
    assert facts.training.steps == 2
    assert read_card(student.path).called_tools == (() if name == "answer-only" else ("add",)), (
        "prompted as it was trained"
    )
    stamp = (student.path / "model.safetensors").stat().st_mtime_ns
    assert distill(config, traces, tiny_base, tmp_path / "student").digest == student.digest
    assert (student.path / "model.safetensors").stat().st_mtime_ns == stamp
