"""T-DPO: pairs of one round, the loss by hand, its gradient, and both phases end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from soloist.kernels.errors import DataError  # noqa: E402
from soloist.toolchain.distill.data import Group  # noqa: E402
from soloist.toolchain.distill.methods import tdpo  # noqa: E402
from soloist.toolchain.distill.methods.tdpo import (  # noqa: E402
    Options,
    Preference,
    correct_attempts,
    log_probs,
    preference_pairs,
    reference_log_probs,
)
from soloist.toolchain.distill.model import frozen  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.student.artifact import CARD, StudentFacts, read_card  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.traces.schema import Edge, Run, ToolUse, Turn  # noqa: E402
from soloist.toolchain.traces.store import read_runs  # noqa: E402


def attempt(at, agent, round_, said, gold, *, tools, error=None):
    """One turn that answers `said`; with tools by a call that computes just that."""
    step = f"{said} + 0 = {said}"
    call = f"add({said} | 0)"
    outcome = {"error": error} if error else {"result": said, "steps": (step,)}
    uses = (ToolUse(name="add", arguments={"a": int(said), "b": 0}, call=call, **outcome),) if tools else ()
    verdict = "unknown" if gold is None else "correct" if said == gold else "wrong"
    return Turn(
        id=at,
        agent=agent,
        role="debater",
        round=round_,
        model="m",
        text=call if tools else step,
        tools=uses,
        answer=None if error else said,
        verdict="unknown" if error else verdict,
    )


def debate(number, rounds, *, tools=True, graded=True, split="train", failed=()):
    """`rounds`: the answers of agents a, b, … in each round; all see all answers of the round before."""
    gold, turns, edges = str(number), [], []
    for index, answers in enumerate(rounds):
        for agent, said in zip("abc", answers, strict=False):
            at = len(turns)
            error = "add: no" if (index, agent) in failed else None
            turns.append(attempt(at, agent, index, said, gold if graded else None, tools=tools, error=error))
            for before in turns:
                if before.round == index - 1:
                    kind = "continuity" if before.agent == agent else "influence"
                    edges.append(Edge(source=before.id, target=at, kind=kind))
    question = Question(id=f"d{number}", question=f"Which {number}?", gold=gold, split=split, scorer="number")
    return Run(
        question=question,
        team="t",
        turns=tuple(turns),
        edges=tuple(edges),
        path=(len(turns) - 1,),
        answer=turns[-1].answer,
        verdict="correct" if graded else "unknown",
    )


@pytest.fixture
def setup(tokenizer):
    return Setup(tokenizer, recheck, options=Options())


def words(example):
    return [message["content"] for message in example.messages]


def test_a_pair_is_of_one_round_and_one_question(setup):
    runs = [debate(1, [["1", "2", "3"], ["1", "1", "2"]]), debate(2, [["2", "2", "2"], ["2", "3", "2"]])]
    chosen = preference_pairs(runs, setup)
    told = [(words(w), words(other)) for w, other in (group.examples for group in chosen.groups)]
    seen = "\n(Earlier answers: 1; 2; 3)"
    assert told == [
        (["Which 1?", "add(1 | 0)"], ["Which 1?", "add(2 | 0)"]),
        (["Which 1?", "add(1 | 0)"], ["Which 1?", "add(3 | 0)"]),
        ([f"Which 1?{seen}", "add(1 | 0)"], [f"Which 1?{seen}", "add(2 | 0)"]),
        (["Which 2?\n(Earlier answers: 2)", "add(2 | 0)"], ["Which 2?\n(Earlier answers: 2)", "add(3 | 0)"]),
    ]
    assert [group.facts["shown"] for group in chosen.groups] == [False, False, True, True]


def test_without_context_and_with_a_limit(setup):
    runs = [debate(1, [["1", "2", "3"], ["1", "1", "2"]])]
    chosen = preference_pairs(runs, replace(setup, options=Options(context=False, pairs=1)))
    assert [words(group.examples[1]) for group in chosen.groups] == [["Which 1?", "add(2 | 0)"]] * 2


def test_answers_nobody_was_shown_are_not_in_the_prompt(setup):
    run = debate(1, [["1", "2", "3"], ["1", "1", "2"]])
    blind = run.model_copy(update={"edges": ()})
    assert not any(group.facts["shown"] for group in preference_pairs([blind], setup).groups)


@pytest.mark.parametrize("tools", [True, False])
def test_both_modes_and_plain_text(setup, tools):
    run = debate(7, [["7", "8"]], tools=tools)
    (group,) = preference_pairs([run], replace(setup, mode="cot")).groups
    assert [words(e)[1] for e in group.examples] == ["7 + 0 = 7\n#### 7", "8 + 0 = 8\n#### 8"]


def test_a_failed_call_is_a_wrong_attempt_and_never_a_right_one(setup):
    run = debate(7, [["7", "7"]], failed={(0, "b")})
    with pytest.raises(DataError, match="both attempts say the same"):
        preference_pairs([run], setup)
    run = debate(7, [["7", "9"]], failed={(0, "b")})
    (group,) = preference_pairs([run], setup).groups
    assert words(group.examples[1])[1] == "add(9 | 0)"
    assert [words(e)[1] for e in correct_attempts([run], setup).examples] == ["add(7 | 0)"]


def test_correct_attempts_of_all_rounds_each_once(setup):
    chosen = correct_attempts([debate(1, [["1", "2", "1"], ["1", "1", "1"]]), debate(2, [["2", "2"]])], setup)
    assert [words(e) for e in chosen.examples] == [["Which 1?", "add(1 | 0)"], ["Which 2?", "add(2 | 0)"]]
    assert chosen.rejected == {"no correct attempt": 1}


def test_a_right_answer_by_a_wrong_step_is_not_preferred(setup):
    run = debate(7, [["7", "8"]], tools=False)
    first = run.turns[0].model_copy(update={"text": "3 + 3 = 7"})
    run = run.model_copy(update={"turns": (first, run.turns[1])})
    with pytest.raises(DataError, match="1 x the right attempt: a worked step does not re-check"):
        preference_pairs([run], setup)


def test_a_student_that_acts_learns_nothing_from_words_beside_calls(setup):
    run = debate(7, [["7", "8"], ["7", "8"]])
    spoken = run.turns[1].model_copy(update={"tools": (), "text": "8 + 0 = 8"})
    run = run.model_copy(update={"turns": (run.turns[0], spoken, *run.turns[2:])})
    chosen = preference_pairs([run], setup)
    assert chosen.rejected == {"in words, where others called tools": 1}
    assert len(chosen.groups) == 1
    assert len(preference_pairs([run], replace(setup, mode="cot")).groups) == 2


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (debate(1, [["1"], ["1", "2"]]), "no round with both"),  # b's first attempt is not a's second
        (debate(1, [["1", "1"]]), "1 x no round with both a right and a wrong attempt"),
        (debate(1, [["2", "2"], ["1", "1"]]), "no pair to prefer within .* agents that disagree"),  # not across rounds
        (debate(1, [["1", "2"]], graded=False), "1 x attempts are not graded"),
        (debate(1, [["1"]]), "no round with both"),
        (debate(1, [["1", "2"]], split="held-out"), "may not be trained on"),
    ],
)
def test_traces_without_pairs_are_refused(setup, run, message):
    with pytest.raises(DataError, match=message):
        preference_pairs([run], setup)


def test_no_traces_and_too_long_ones_are_refused(setup):
    with pytest.raises(DataError, match="there are no traces"):
        preference_pairs([], setup)
    with pytest.raises(DataError, match="longer than 16 tokens"):
        preference_pairs([debate(1, [["1", "2"]])], replace(setup, max_length=16))


def test_pairs_of_the_recorded_desk(setup):
    path = Path(__file__).parents[3] / "toolchain" / "desk" / "recorded" / "traces.jsonl.gz"
    runs = [run for run, _ in zip(read_runs(path), range(60), strict=False)]
    chosen = preference_pairs(runs, replace(setup, max_length=4096))
    assert len(chosen.groups) >= 5
    for group in chosen.groups:
        right, wrong = group.examples
        assert right.messages[0] == wrong.messages[0]
        assert right.ids != wrong.ids
    assert any(group.facts["shown"] for group in chosen.groups)
    assert not any("Others wrote" in words(e)[0] for e in chosen.examples)


# ---------------------------------------------------------------------------------------------- the loss


@pytest.fixture
def pairs(conversations):
    """Three pairs, with made-up log-probabilities of the reference."""
    return [
        Group((conversations[2 * i], conversations[2 * i + 1]), {"reference": [-60.0 - i, -62.5 + 2 * i]})
        for i in range(3)
    ]


def numpy_log_prob(student, example):
    """From the unchanged model's full logits, in float64 numpy."""
    student.model.set_attn_implementation(student.native_attention)
    with torch.no_grad():
        z = student.model(torch.tensor([example.ids])).logits[0].double().numpy()
    from soloist.toolchain.distill.packing import use_packed_attention

    use_packed_attention(student.model)
    z = z - z.max(-1, keepdims=True)
    z = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return sum(z[at - 1, example.ids[at]] for at in range(1, len(example.ids)) if example.trained[at])


def test_log_probs_and_the_loss_are_the_papers(tiny_base, pairs, student_of):
    student = student_of(tiny_base, torch.float64)
    objective = Preference(0.1)
    want, margins = [], []
    for group in pairs:
        said = [numpy_log_prob(student, example) for example in group.examples]
        assert log_probs(student, pack([group])).tolist() == pytest.approx(said, rel=1e-6)
        reference = group.facts["reference"]
        margins.append((said[0] - reference[0]) - (said[1] - reference[1]))
        want.append(np.log1p(np.exp(-0.1 * margins[-1])))
    loss = objective.terms(student, pack(pairs), objective.counts(pairs))["dpo"]
    assert loss.item() == pytest.approx(np.mean(want), rel=1e-6)
    # the formula of TRL's DPOTrainer, loss_type "sigmoid", label_smoothing 0
    delta = torch.tensor(margins)
    assert loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(0.1 * delta).mean().item(), rel=1e-6)


def test_a_student_that_is_the_reference_loses_log_two(tiny_base, pairs, student_of):
    student = student_of(tiny_base, torch.float64)
    known = reference_log_probs(student, pairs, part_tokens=64)
    assert known == [pytest.approx(log_probs(student, pack([group])).tolist(), rel=1e-9) for group in pairs]
    groups = [Group(g.examples, {"reference": values}) for g, values in zip(pairs, known, strict=True)]
    loss = Preference(5.0).terms(student, pack(groups), {"pairs": 3.0})["dpo"]
    assert loss.item() == pytest.approx(np.log(2), rel=1e-9)


def test_the_summed_log_probability_has_torchs_gradient():
    from soloist.toolchain.distill.methods.tdpo import _LogProbs

    torch.manual_seed(0)
    logits = torch.randn(37, 11, dtype=torch.float64, requires_grad=True)
    labels, owners = torch.randint(0, 11, (37,)), torch.randint(0, 3, (37,))
    upstream = torch.tensor([0.7, -2.0, 0.0], dtype=torch.float64)
    (got,) = torch.autograd.grad(_LogProbs.apply(logits, labels, owners, 3) @ upstream, logits)
    each = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    want = torch.autograd.grad((each * upstream[owners]).sum(), logits)[0]
    assert torch.allclose(got, want, atol=1e-12)
    assert not got[owners == 2].any()


def gradients(student, objective, parts, counts):
    for value in student.model.parameters():
        value.grad = None
    for part in parts:
        student.backward(objective.terms(student, pack(part), counts)["dpo"])
    return {name: value.grad.clone() for name, value in student.named_parameters()}


def test_splitting_a_step_changes_no_gradient(tiny_base, pairs, student_of):
    student, objective = student_of(tiny_base, torch.float64), Preference(0.1)
    counts = objective.counts(pairs)
    whole = gradients(student, objective, [pairs], counts)
    split = gradients(student, objective, [pairs[:1], pairs[1:]], counts)
    for name, value in whole.items():
        assert value.abs().max() > 0, name
        # the model's own norms compute in fp32 whatever the dtype
        assert (value - split[name]).abs().max() < 1e-5 * value.abs().max(), name


def test_a_small_step_prefers_the_chosen(tiny_base, pairs, student_of):
    student, objective = student_of(tiny_base, torch.float64), Preference(0.1)
    known = reference_log_probs(student, pairs, 2048)
    groups = [Group(g.examples, {"reference": values}) for g, values in zip(pairs, known, strict=True)]
    gradients(student, objective, [groups], objective.counts(groups))
    with torch.no_grad():
        for value in student.model.parameters():
            value.sub_(1e-3 * value.grad)
    moved = log_probs(student, pack(groups)) - torch.tensor(known, dtype=torch.float64).flatten()
    margin = moved.view(-1, 2)
    assert (margin[:, 0] - margin[:, 1]).mean() > 0


def test_only_the_students_own_words_count(setup):
    """Not the question, not the earlier answers, not what the tools returned."""
    run = debate(1, [["1", "2"], ["1", "2"]])
    group = preference_pairs([run], setup).groups[1]
    batch = pack([group])
    for owner, said in enumerate(("add(1 | 0)<|im_end|>", "add(2 | 0)<|im_end|>")):
        assert setup.tokenizer.decode(batch.labels[batch.owners == owner].tolist()) == said


# ------------------------------------------------------------------------------------------- end to end


def test_both_phases_make_a_student(tiny_base, tmp_path, monkeypatch, record_runs):
    first = {}

    def read(path, dtype, device):
        first.update(load_file(path / "model.safetensors"))
        return frozen(path, dtype, device)

    monkeypatch.setattr(tdpo, "frozen", read)
    runs = [debate(n, [[str(n), "99"], ["88", str(n)]]) for n in range(10, 16)]
    traces = record_runs(runs, tmp_path / "t")
    train = TrainConfig(batch_size=6, epochs=1, learning_rate=3e-3, precision="fp32", device="cpu")
    options = {"learning_rate": 1e-3, "epochs": 3, "beta": 0.5}
    config = DistillConfig(method="tdpo", options=options, train=train)
    made = distill(config, traces, tiny_base, tmp_path / "student")
    card = read_card(made.path)
    assert (card.method, card.options["context"], card.tools) == ("tdpo", True, ("add",))
    assert card.data.kept == 6  # the same correct attempt in both rounds, once a question
    assert (card.notes["pairs"]["kept"], card.notes["shown_earlier_answers"]) == (12, 6)
    facts = made.read(StudentFacts)
    assert facts.training.steps == 6
    assert facts.training.first_loss == pytest.approx(np.log(2), abs=1e-5)  # the reference is phase 1
    assert facts.training.last_loss < np.log(2)
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}, "rounded only at the end"
    assert {tensor.dtype for tensor in load_file(made.path / "model.safetensors").values()} == {torch.bfloat16}
    assert facts.training.phases["sft"].steps == 1
    assert "seconds" not in (made.path / CARD).read_text()  # the same work gives the same files
    assert not any(name.startswith("phases") for name in made.manifest["files"])
    stamp = (made.path / "model.safetensors").stat().st_mtime_ns
    assert distill(config, traces, tiny_base, tmp_path / "student").digest == made.digest
    assert (made.path / "model.safetensors").stat().st_mtime_ns == stamp
