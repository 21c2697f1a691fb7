"""PAD: steps and their labels, the reward model's loss and gradients, practice by GRPO, all phases end to end."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from soloist.kernels.errors import ArtifactError, DataError, MissingExtraError, UsageError  # noqa: E402
from soloist.toolchain.artifact import Artifact, stage  # noqa: E402
from soloist.toolchain.distill.data import encode  # noqa: E402
from soloist.toolchain.distill.grpo import GrpoConfig, Judge  # noqa: E402
from soloist.toolchain.distill.methods.base import Setup  # noqa: E402
from soloist.toolchain.distill.methods.pad import Options, attempts  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.prm import (  # noqa: E402
    Binary,
    Pairwise,
    RewardHead,
    RewardModel,
    compared,
    pairwise_loss,
    rated_group,
    train_last_block_only,
)
from soloist.toolchain.distill.rollouts import Rollout, Sampler, read_tokens  # noqa: E402
from soloist.toolchain.distill.sample import complete  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.steps import Labeller, Tried, step_ends  # noqa: E402
from soloist.toolchain.distill.student import Student, load_base  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.tools.desk import desk_tools  # noqa: E402
from soloist.toolchain.traces.schema import Run, ToolUse, Turn  # noqa: E402
from soloist.toolchain.traces.store import read_runs, write_runs  # noqa: E402


def calc(text, result):
    return ToolUse(
        name="calc", arguments={"expression": text}, call=f"calc({text})", result=result, steps=(f"{text} = {result}",)
    )


def try_of(at, agent, uses, gold):
    answer = uses[-1].result
    verdict = "correct" if answer == gold else "wrong"
    return Turn(
        id=at, agent=agent, role="debater", model="m", text=uses[-1].call, tools=uses, answer=answer, verdict=verdict
    )


def debate(number, *, gold=True, split="train", same=False):
    """Agent a is right in one call, b wrong in two, of which the first is a's and goes on."""
    want = str(number + 1)
    right = (calc(f"{number} + 1", want),)
    wrong = right if same else (calc(f"{number} + 1", want), calc(f"{want} + 5", str(number + 6)))
    turns = (try_of(0, "a", right, want), try_of(1, "b", wrong, want))
    question = Question(
        id=f"p{number}", question=f"Next of {number}?", gold=want if gold else None, split=split, scorer="number"
    )
    return Run(question=question, team="t", turns=turns, path=(0,), answer=want, verdict="correct")


def ungraded(number):
    run = debate(number)
    turns = tuple(turn.model_copy(update={"verdict": "unknown"}) for turn in run.turns)
    return run.model_copy(update={"turns": turns, "verdict": "unknown"})


@pytest.fixture
def setup(tokenizer):
    return Setup(tokenizer, recheck, options=Options())


def said(tokenizer, *turns, results=()):
    messages = [{"role": "user", "content": "Go"}]
    for index, turn in enumerate(turns):
        messages.append({"role": "assistant", "content": turn})
        if index < len(results):
            messages.append({"role": "tool", "content": results[index]})
    return encode(messages, tokenizer, "q")


def texts(example, ends, tokenizer):
    begins = [0, *(end + 1 for end in ends)]
    return [
        tokenizer.decode([example.ids[i] for i in range(b, e + 1) if example.trained[i]])
        for b, e in zip(begins, ends, strict=False)
    ]


# ------------------------------------------------------------------------------------------------- steps


def test_steps_are_lines_and_calls(tokenizer):
    lines = said(tokenizer, "3 + 4 = 7\n\n  \n7 * 2 = 14\n#### 14")
    ends = step_ends(lines.ids, lines.trained, tokenizer)
    assert texts(lines, ends, tokenizer) == ["3 + 4 = 7\n", "\n  \n7 * 2 = 14\n", "#### 14<|im_end|>"]
    calls = said(tokenizer, "add(3 | 4) then", "add(7 | 1)", results=["7\n7"])
    ends = step_ends(calls.ids, calls.trained, tokenizer)
    assert texts(calls, ends, tokenizer) == ["add(3 | 4) then<|im_end|>", "add(7 | 1)<|im_end|>"]
    assert all(calls.trained[end] for end in ends)
    closed = said(tokenizer, "7\n")
    assert len(step_ends(closed.ids, closed.trained, tokenizer)) == 1


QUESTION = Question(id="q", question="Go", gold="14", scorer="number")


class Scripted:
    """Stands for a sampler: remembers the prompts, answers by a rule."""

    def __init__(self, tokenizer, rule):
        self.tokenizer, self.rule, self.prompts = tokenizer, rule, []

    def roll(self, prompts):
        self.prompts += [self.tokenizer.decode(list(prompt)) for prompt in prompts]
        return [Rollout(answer=self.rule(index)) for index in range(len(prompts))]


def test_labels_by_recheck_answer_and_rollouts(tokenizer):
    right = Tried(QUESTION, said(tokenizer, "3 + 4 = 7\n7 * 2 = 14\n#### 14"), True)
    wrong = Tried(QUESTION, said(tokenizer, "3 + 4 = 7\n7 * 2 = 15\n#### 15"), False)
    sampler = Scripted(tokenizer, lambda index: "14" if index % 4 else "13")
    labeller = Labeller(tokenizer, recheck, sampler=sampler, rollouts=4)
    assert labeller.label([right, wrong]) == [[0.75, 0.75, 1.0], [0.75, 0.0, 0.0]]
    assert labeller.counts == {"rollouts": 3, "answer": 2, "rechecked": 1}
    prompt = "<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n3 + 4 = 7\n"
    assert sampler.prompts == [prompt] * 4 + [prompt + "7 * 2 = 14\n"] * 4  # the shared first step only once
    assert labeller.label([right]) == [[0.75, 0.75, 1.0]]
    assert sampler.prompts[8:] == sampler.prompts[:8], "as after a kill: nothing is known from an earlier part"
    hard = Labeller(tokenizer, recheck, sampler=Scripted(tokenizer, lambda i: "14" if i == 0 else None), hard=True)
    assert hard.label([right]) == [[1.0, 0.0, 1.0]]


def test_without_rollouts_the_answer_is_propagated_and_counted(tokenizer):
    labeller = Labeller(tokenizer, recheck)
    wrong = Tried(QUESTION, said(tokenizer, "3 + 4 = 7\n7 + 7 = 15\n#### 15"), False)
    right = Tried(QUESTION, said(tokenizer, "a\n#### 14"), True)
    assert labeller.label([wrong, right]) == [[0.0, 0.0, 0.0], [1.0, 1.0]]
    assert labeller.counts == {"propagated": 2, "rechecked": 1, "answer": 2}


def test_calls_are_checked_by_their_tool_and_sampled_on_with_their_result(tokenizer):
    uses = (calc("3 + 4", "7"), calc("7 * 2", "14"))
    example = said(tokenizer, "calc(3 + 4) then", "calc(7 * 2)", results=["7"])
    sampler = Scripted(tokenizer, lambda index: "14")
    labeller = Labeller(tokenizer, recheck, desk_tools(), sampler, 2)
    assert labeller.label([Tried(QUESTION, example, True, uses)]) == [[1.0, 1.0]]
    assert sampler.prompts[0].endswith("<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n")
    lying = (calc("3 + 4", "8").model_copy(update={"steps": ()}), uses[1])  # only the tool's own check can tell
    assert labeller.label([Tried(QUESTION, example, True, lying)]) == [[0.0, 1.0]]
    failed = (uses[0], ToolUse(name="calc", arguments={}, call="calc(7 * )", error="no"))
    assert labeller.label([Tried(QUESTION, example, False, failed)]) == [[1.0, 0.0]]
    wrapped = said(tokenizer, "calc(3 +\n4) then", "calc(7 * 2)", results=["7"])  # two steps, one call
    assert labeller.label([Tried(QUESTION, wrapped, True, lying)]) == [[0.0, 0.0, 1.0]]


# --------------------------------------------------------------------------------------------- sampling


def test_a_student_that_acts_calls_its_tools_and_reads_their_results(tokenizer, monkeypatch):
    lines = iter([["calc(3 + 4) then", "calc(1 + 1)", "nonsense"], ["calc(7 * 2)"]])
    seen = []

    def generate(self, prompts):
        seen.append([tokenizer.decode(prompt) for prompt in prompts])
        return [tokenizer(text + "<|im_end|>")["input_ids"] for text in next(lines)]

    monkeypatch.setattr(Sampler, "_generate_batch", generate)
    example = said(tokenizer, "calc(3 + 4) then", "calc(7 * 2)", results=["7"])
    start = example.trained.index(True)
    made = Sampler(None, tokenizer, desk_tools()).roll([example.ids[:start]] * 3)
    assert [one.answer for one in made] == ["14", "2", None]
    assert made[0].right(QUESTION)
    assert not made[1].right(QUESTION)
    assert tuple(made[0].ids) == example.ids[start:]  # token for token what training renders
    assert tuple(made[0].own) == example.trained[start:]
    assert seen[1] == [tokenizer.decode(example.ids[: start + len(made[0].ids) - len("calc(7 * 2)") - 1])]
    assert tokenizer.decode(read_tokens(tokenizer, "7")) == (
        "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n"
    )  # fmt: skip


def test_an_endless_chain_has_no_answer(tokenizer, monkeypatch):
    again = tokenizer("calc(1 + 1) then<|im_end|>")["input_ids"]
    monkeypatch.setattr(Sampler, "_generate_batch", lambda self, prompts: [again for _ in prompts])
    (made,) = Sampler(None, tokenizer, desk_tools(), max_calls=3).roll([[1, 2]])
    assert made.answer is None
    assert made.ids.count(tokenizer.eos_token_id) >= 3


def test_an_announced_call_that_has_no_room_leaves_no_answer(tokenizer, monkeypatch):
    again = tokenizer("calc(7 * 2) then<|im_end|>")["input_ids"]
    monkeypatch.setattr(Sampler, "_generate_batch", lambda self, prompts: [again for _ in prompts])
    (made,) = Sampler(None, tokenizer, desk_tools(), limit=len(again) + 3).roll([[1, 2]])
    assert made.ids.count(tokenizer.eos_token_id) == 2, "the call and its result"
    assert made.answer is None
    assert not made.right(QUESTION)


def test_of_words_only_the_final_answer_is_scored(tokenizer, monkeypatch):
    said = tokenizer("(B) looks right at first.\nThe answer is (C)<|im_end|>")["input_ids"]
    monkeypatch.setattr(Sampler, "_generate_batch", lambda self, prompts: [said])
    (made,) = Sampler(None, tokenizer).roll([[1, 2]])
    letters = [Question(id="q", question="Which?", gold=gold, scorer="choice") for gold in "ABC"]
    assert [made.right(question) for question in letters] == [False, False, True]


def test_a_base_models_own_settings_of_generation_are_switched_off(tiny_base, tokenizer):
    model = load_base(tiny_base)[0].eval()
    prompts, rooms = [list(range(3, 20))] * 4, [12] * 4

    def draw(temperature):
        torch.manual_seed(3)
        return complete(model, tokenizer, prompts, rooms, temperature)

    before = draw(0.0), draw(1.0)
    assert any(len(set(row)) < len(row) for row in before[0]), "something repeats"
    for name, value in {"repetition_penalty": 50.0, "min_p": 0.9, "top_k": 1, "no_repeat_ngram_size": 1}.items():
        setattr(model.generation_config, name, value)
    assert (draw(0.0), draw(1.0)) == before


def test_sampling_is_repeatable_and_stops_at_its_limits(tiny_base, tokenizer):
    model = load_base(tiny_base)[0].eval()
    sampler = Sampler(model, tokenizer, None, 1.0, new_tokens=5, limit=40)
    prompts = [list(range(3, 20)), list(range(5)), list(range(60))]
    torch.manual_seed(3)
    one = sampler.roll(prompts)
    torch.manual_seed(3)
    assert [r.ids for r in sampler.roll(prompts)] == [r.ids for r in one]
    assert [len(r.ids) <= most for r, most in zip(one, (5, 5, 1), strict=True)] == [True] * 3
    assert all(r.ids for r in one), "TRL knows no empty completion, so the prompt over the limit gets one token"
    assert max(len(r.ids) for r in one[:2]) > 1, "and leaves the others their room"
    alone = Sampler(model, tokenizer, None, 1e-4, new_tokens=5, limit=40)  # left padding changes nothing
    assert alone.roll([prompts[1]])[0].ids == alone.roll(prompts[:2])[1].ids


# ----------------------------------------------------------------------------------------- reward model


def papers_loss(rewards, positives, negatives, tau):
    score = {index: np.exp(1 / (1 + np.exp(-rewards[index])) / tau) for index in (*positives, *negatives)}
    return -sum(np.log(score[t] / (score[t] + sum(score[j] for j in negatives))) for t in positives)


def against(labels, places):
    from soloist.toolchain.distill.prm import _against

    return _against(torch.tensor(labels, dtype=torch.float64), torch.tensor(places))


def test_the_pairwise_loss_is_the_papers():
    rewards = [0.3, -1.2, 2.0, 0.7]
    labels, places = [1.0, 0.0, 1.0, 0.0], [0, 0, 0, 0]
    got = pairwise_loss(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64),
        against(labels, places), 0.1,
    )  # fmt: skip
    assert got.item() == pytest.approx(papers_loss(rewards, [0, 2], [1, 3], 0.1), rel=1e-9)


def test_a_good_step_meets_the_bad_ones_at_its_place_or_else_all_of_them():
    labels, places = [1.0, 1.0, 0.0, 0.0], [0, 1, 0, 2]
    assert against(labels, places)[:2].tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    assert against([1.0, 0.25], [0, 0])[0].tolist() == [0, 0.75]


def test_the_pairwise_loss_falls_as_good_steps_rise_and_ignores_a_constant_score():
    labels = torch.tensor([1.0, 0.0, 0.0])
    pairs = against(labels.tolist(), [0, 0, 0])
    rising = [pairwise_loss(torch.tensor([r, 0.0, 0.0]), labels, pairs, 0.1).item() for r in (-2, -1, 0, 1, 2)]
    assert rising == sorted(rising, reverse=True)
    assert rising[2] == pytest.approx(np.log(3))
    flat = [pairwise_loss(torch.full((3,), r), labels, pairs, 0.1).item() for r in (-3.0, 0.5)]
    assert flat == pytest.approx([np.log(3)] * 2)
    assert pairwise_loss(torch.randn(2), torch.ones(2), against([1, 1], [0, 1]), 0.1).item() == 0.0  # nothing bad


@pytest.fixture
def rated(tokenizer):
    """Two questions: a right and a wrong attempt each, sharing the first line of the second."""
    groups = []
    for number in (1, 2):
        pair = [said(tokenizer, f"{number} + 1\n#### 2"), said(tokenizer, f"{number} + {number}\nso\n#### 9")]
        ends = [step_ends(e.ids, e.trained, tokenizer) for e in pair]
        groups.append(rated_group(pair, ends, [[1.0, 1.0], [0.25, 0.0, 0.0]], tokenizer.eos_token_id))
    return groups


def test_a_rated_group_reads_step_ends_only_and_shared_steps_once(tokenizer):
    pair = [said(tokenizer, "a\n#### 2"), said(tokenizer, "a\n#### 9")]
    ends = [step_ends(e.ids, e.trained, tokenizer) for e in pair]
    group = rated_group(pair, ends, [[1.0, 1.0], [0.5, 0.0]], tokenizer.eos_token_id)
    assert group.facts == {"labels": [0.75, 1.0, 0.0], "places": [0, 1, 1]}
    batch = pack([group])
    read = [tokenizer.decode([batch.ids[0, row].item()]) for row in batch.rows.tolist()]
    assert read == ["\n", "<|im_end|>", "<|im_end|>"]
    assert batch.owners.tolist() == [0, 0, 1]
    assert compared(group) == 1.75


def student_of(base):
    return Student(*load_base(base), torch.device("cpu"))


def objective_of(student, kind=Pairwise):
    torch.manual_seed(5)
    head = RewardHead(student.width)
    return kind(head)


def gradients(student, objective, batches, counts):
    for value in [*student.model.parameters(), *objective.head.parameters()]:
        value.grad = None
    for batch in batches:
        student.backward(objective.terms(student, pack(batch), counts)["prm"])
    named = [*student.model.named_parameters(), *objective.parameters]
    return {name: value.grad for name, value in named}


@pytest.mark.parametrize("kind", [Pairwise, Binary])
def test_all_weights_get_a_gradient_in_stage_two_and_a_split_changes_none(tiny_base, rated, kind):
    student = student_of(tiny_base)
    objective = objective_of(student, kind)
    counts = objective.counts(rated)
    whole = {k: v.clone() for k, v in gradients(student, objective, [rated], counts).items()}
    split = gradients(student, objective, [rated[:1], rated[1:]], counts)
    for name, value in whole.items():
        if kind is Pairwise and name == "head.bias":
            continue  # a constant hardly matters to a comparison
        assert value.abs().max() > 0, name
        assert (value - split[name]).abs().max() < 1e-4 * value.abs().max() + 1e-9, name


def test_only_the_last_block_and_the_head_get_a_gradient_in_stage_one(tiny_base, rated):
    student = student_of(tiny_base)
    train_last_block_only(student)
    objective = objective_of(student)
    found = gradients(student, objective, [rated], objective.counts(rated))
    for name, value in found.items():
        wanted = ".layers.1." in name or name.startswith("head.")
        assert (value is not None and bool(value.abs().max() > 0)) == wanted, name


def test_binary_is_cross_entropy_of_the_labels(tiny_base, rated):
    student = student_of(tiny_base)
    objective = objective_of(student, Binary)
    loss = objective.terms(student, pack(rated), objective.counts(rated))["prm"].item()
    model = RewardModel(student, objective.head, 2048)
    probabilities = []
    for group in rated:
        stops = [[i - 1 for i, t in enumerate(e.trained) if t] for e in group.examples]
        probabilities += [value for row in model.scores(group.examples, stops) for value in row]
    labels = np.array([label for group in rated for label in group.facts["labels"]])
    p = np.array(probabilities)
    assert loss == pytest.approx(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean(), rel=1e-4)


def test_scores_come_back_in_order_and_a_solution_without_steps_has_none(tiny_base, tokenizer):
    student = student_of(tiny_base)
    model = RewardModel(student, objective_of(student).head, part_tokens=64)
    made = [said(tokenizer, "a\nb\n#### 2"), said(tokenizer, "longer than the others\n#### 3"), said(tokenizer, "c")]
    ends = [step_ends(e.ids, e.trained, tokenizer) for e in made]
    found = model.scores([*made, made[0]], [*ends, []])
    assert [len(row) for row in found] == [3, 2, 1, 0]
    for at, (example, stops) in enumerate(zip(made, ends, strict=True)):
        assert model.scores([example], [stops])[0] == pytest.approx(found[at], abs=1e-5)
    assert all(0 < value < 1 for row in found for value in row)


def test_a_head_survives_the_disk_and_a_damaged_one_is_refused(tmp_path):
    head = RewardHead(8)
    head.write(tmp_path)
    assert torch.equal(RewardHead.read(tmp_path).weight, head.weight)
    (tmp_path / "head.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match=r"head\.safetensors: not a reward head"):
        RewardHead.read(tmp_path)


# --------------------------------------------------------------------------------------------- practice


class Fixed:
    """Stands for a reward model: gives each step what it is told."""

    def __init__(self, tokenizer, scores):
        self.student = type("S", (), {"tokenizer": tokenizer})
        self.given = scores

    def scores(self, examples, ends):
        assert [len(stops) for stops in ends] == [len(row) for row in self.given]
        return self.given


def judged(tokenizer, variant):
    ids = [tokenizer(text)["input_ids"] for text in ("ab\ncd<|im_end|>", "x<|im_end|>")]
    made = [Rollout(row, [True] * len(row), answer) for row, answer in zip(ids, ("14", "13"), strict=True)]
    judge = Judge(Fixed(tokenizer, [[0.9, 0.3], [0.6]]), GrpoConfig(generations=2, tau=1e-4), variant)
    judge.judge([[1, 2, 3]] * 2, made, [QUESTION] * 2)
    return judge


def test_rewards_are_the_worst_step_and_the_answer(tokenizer):
    judge = judged(tokenizer, "paper")
    assert judge.step_reward() == pytest.approx([0.3, 0.6])
    assert judge.answer_reward() == [1.0, 0.0]
    assert judge.advantages(6).tolist() == [[pytest.approx(0.5**0.5)], [pytest.approx(-(0.5**0.5))]]


def test_released_advantages_lie_on_the_tokens_of_each_step(tokenizer):
    found = judged(tokenizer, "released").advantages(6)
    # rewards 2s - 1: (0.8, -0.4) and (0.2); 3 tokens each; answers +1 and -1
    last = -0.4 - 3 * 0.2 / 2 + 1
    assert found[0].tolist() == pytest.approx([-3 * 0.2 / 2 + last] * 3 + [last] * 3, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.2 + 2 * 0.4 / 6 - 1] * 2 + [0] * 4, abs=1e-6)


# ------------------------------------------------------------------------------------------- selection


def test_attempts_of_a_question_form_a_group(setup):
    chosen = attempts([debate(3), debate(4, same=True)], setup)
    assert [group.facts for group in chosen.groups] == [{"run": 0, "nodes": [0, 1], "right": [True, False]}]
    assert chosen.rejected == {"attempts all right or all wrong": 1}


def test_attempts_of_the_recorded_desk(setup):
    path = Path(__file__).parents[3] / "toolchain" / "traces" / "recorded" / "traces.jsonl.gz"
    runs = [run for run, _ in zip(read_runs(path), range(60), strict=False)]
    for mode in ("acts", "internalise"):
        chosen = attempts(runs, replace(setup, mode=mode, max_length=4096))
        assert len(chosen.groups) >= 5
        assert all(set(group.facts["right"]) == {True, False} for group in chosen.groups)
    for group in attempts(runs, replace(setup, max_length=4096)).groups[:20]:
        run = runs[group.facts["run"]]
        from soloist.toolchain.traces.graph import graph_of

        for example, node in zip(group.examples, group.facts["nodes"], strict=True):
            uses = graph_of(run).nodes[node].uses
            assert len(step_ends(example.ids, example.trained, setup.tokenizer)) == len(uses)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([debate(3, same=True)], "no question with both a right and a wrong attempt"),
        ([ungraded(3)], r"\(2 x not graded, 1 x no attempt\)"),
        ([], "no question with both"),
        ([debate(3, split="test")], "may not be trained on"),
    ],
)
def test_traces_that_compare_nothing_are_refused(setup, runs, message):
    with pytest.raises(DataError, match=message):
        attempts(runs, setup)


# ------------------------------------------------------------------------------------------- end to end

TRAIN = TrainConfig(batch_size=6, learning_rate=3e-3, precision="fp32", device="cpu", max_length=200)
SMALL = {
    "rollouts": 2, "head_epochs": 1, "generations": 2, "questions": 2, "steps": 2, "segment": 1, "new_tokens": 12,
    "temperature": 1.0, "learning_rate": 1e-4,
}  # fmt: skip


def traces_of(tmp_path, runs):
    return stage("teach", tmp_path / "t", {}, [], lambda f: {"runs": write_runs(runs, f / "traces.jsonl.gz")})


def config_of(**changes):
    options = {**SMALL, **changes.pop("options", {})}
    return DistillConfig(method="pad", options=options, train=TRAIN, **changes)


@pytest.fixture
def needs_trl():
    pytest.importorskip("trl", reason="the extra `rl` is not installed")
    logging.getLogger("trl").setLevel(logging.ERROR)


@pytest.mark.parametrize(("mode", "variant"), [("acts", "paper"), ("internalise", "released")])
def test_all_phases_make_a_student(needs_trl, tiny_base, tmp_path, mode, variant):
    traces = traces_of(tmp_path, [debate(n) for n in range(10, 16)])
    config = config_of(mode=mode, variant=variant)
    made = distill(config, traces, tiny_base, tmp_path / "student")
    card = json.loads((made.path / "student.json").read_text())
    assert (card["method"], card["variant"], card["data"]["questions"], card["tools"]) == ("pad", variant, 6, ["calc"])
    kinds = {"answer", "rollouts"} if variant == "paper" else {"answer", "propagated"}
    assert set(card["data"]["labels"]) == kinds
    training = made.facts["training"]
    assert training["steps"] == 2
    assert set(training["phases"]) == {"sft", "prm_head", *({"prm_all"} if variant == "paper" else ())}
    lines = [json.loads(line) for line in (made.path / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all(0 < line["reward_steps"] < 1 and 0 < line["trained_tokens"] < line["tokens"] for line in lines)
    assert training["trained_tokens"] == sum(line["trained_tokens"] for line in lines)
    files = set(made.manifest["files"])
    assert "model.safetensors" in files
    assert not [name for name in files if name.startswith("phases") or name.endswith((".bin", ".pt"))]
    stamp = (made.path / "model.safetensors").stat().st_mtime_ns
    assert distill(config, traces, tiny_base, tmp_path / "student").digest == made.digest
    assert (made.path / "model.safetensors").stat().st_mtime_ns == stamp
    assert Artifact.open(tmp_path / "student", stage="distill").digest == made.digest


def test_a_kill_repeats_one_segment_and_changes_nothing(needs_trl, tiny_base, tmp_path, monkeypatch):
    from soloist.toolchain.distill import grpo

    traces = traces_of(tmp_path, [debate(n) for n in range(10, 16)])
    config = config_of()
    whole = distill(config, traces, tiny_base, tmp_path / "whole")
    run, ran = grpo.Segment.run, []

    def dies(self, judge, folder):
        if len(ran) == 1:
            (folder / "half").write_text("of a segment")
            raise KeyboardInterrupt
        ran.append(self.start.name)
        return run(self, judge, folder)

    monkeypatch.setattr(grpo.Segment, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        distill(config, traces, tiny_base, tmp_path / "cut")
    phases = {path.parent.name: load_file(path) for path in tmp_path.glob("cut*/phases/*/model.safetensors")}
    assert set(phases) == {"sft", "prm-head", "prm-all", "grpo-000000"}
    assert {tensor.dtype for weights in phases.values() for tensor in weights.values()} == {torch.float32}
    block = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(phases["sft"][block], phases["prm-head"][block])
    moved = (phases["prm-head"][block] - phases["prm-all"][block]).abs()
    assert (moved > 0).float().mean() > 0.9, "a rate of 1e-6 is not lost on the way to the disk"
    assert moved.max() < 1e-4
    ran.clear()
    monkeypatch.setattr(grpo.Segment, "run", lambda self, *a: ran.append(self.start.name) or run(self, *a))
    made = distill(config, traces, tiny_base, tmp_path / "cut")
    assert ran == ["grpo-000000"]
    assert made.manifest["files"] == whole.manifest["files"]
    lines = [json.loads(line) for line in (made.path / "train.jsonl").read_text().splitlines()]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-7)
    assert lines[1]["kl"] > 1e-6  # the second segment is still held to the first student


@pytest.mark.parametrize("silent", [True, False])
def test_the_advantages_that_train_are_ours(needs_trl, tiny_base, tmp_path, monkeypatch, silent):
    if silent:
        monkeypatch.setattr(Judge, "advantages", lambda self, width: torch.zeros(len(self.judged), 1))
    traces = traces_of(tmp_path, [debate(n) for n in range(10, 13)])
    config = config_of(mode="internalise", options={"kl": 0.0, "rollouts": 0, "start": "base", "all_epochs": 0})
    made = distill(config, traces, tiny_base, tmp_path / "student")
    norms = [json.loads(line)["gradient_norm"] for line in (made.path / "train.jsonl").read_text().splitlines()]
    assert all((norm == 0) == silent for norm in norms)
    assert set(made.facts["training"]["phases"]) == {"prm_head"}


def test_tools_of_the_traces_must_be_there(needs_trl, tiny_base, tmp_path, run_of):
    run = debate(3)
    other = run.turns[1].tools[0].model_copy(update={"name": "add", "call": "add(3 | 1)"})
    turns = (run.turns[0], run.turns[1].model_copy(update={"tools": (other,)}))
    traces = traces_of(tmp_path, [run.model_copy(update={"turns": turns})])
    with pytest.raises(UsageError, match="add of the traces are not among them; set the option tools"):
        distill(config_of(), traces, tiny_base, tmp_path / "student")


def test_questions_without_answers_are_refused(needs_trl, tiny_base, tmp_path):
    with pytest.raises(DataError, match="no question has a known answer"):
        distill(config_of(), traces_of(tmp_path, [debate(3, gold=False)]), tiny_base, tmp_path / "student")


def test_without_trl_the_extra_is_named_at_once(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtraError, match=r"soloist\[rl\]"):
        distill(config_of(), traces_of(tmp_path, [debate(3)]), tiny_base, tmp_path / "student")
