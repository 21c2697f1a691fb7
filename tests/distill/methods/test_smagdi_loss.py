"""SMAGDi's four losses against the formulas, what each gradient reaches; the pair trained, killed and asked as one."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from soloist.targets.open import parts  # noqa: E402
from soloist.toolchain.core.artifact import Artifact  # noqa: E402
from soloist.toolchain.distill.data import Group  # noqa: E402
from soloist.toolchain.distill.methods import smagdi  # noqa: E402
from soloist.toolchain.distill.methods.smagdi import SmagdiOptions, StepObjective  # noqa: E402
from soloist.toolchain.distill.model import load_base  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.student.artifact import CARD, StudentFacts, read_card  # noqa: E402
from soloist.toolchain.student.ask import student_team  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.teams.team import Team  # noqa: E402

TOOLS = ("soloist.toolchain.desk.tools:desk_tools",)


@pytest.fixture
def sums(debate_of):
    """A number plus 3, doubled: one agent right in two calls, one wrong in its second, one from the beginning."""

    def build(number):
        total = number + 3
        first = f"calc({number} + 3) = {total}"
        right, late = (first, f"calc({total} * 2) = {2 * total}"), (first, f"calc({total} * 3) = {3 * total}")
        spoken = [right, late, (f"calc({number} * 2) = {2 * number}",)]
        return debate_of([spoken], number=number, gold=str(2 * total))

    return build


@pytest.fixture
def groups(tokenizer, sums, debate_of):
    right, wrong = "First 5.\n5 + 3 = 8", "First 5.\nThat makes 9"
    changed = debate_of([(right, wrong), (right, right)], number=5, gold="8")  # the wrong one changes its mind
    setup = Setup(tokenizer, recheck, max_length=512, options=SmagdiOptions())
    return [smagdi.select([run], setup).groups[0] for run in (sums(4), changed, sums(9))]


# ---------------------------------------------------------------- losses


def reference(base, objective, groups, options):
    """The four losses from the formulas of the docstring, in float64 numpy, one sequence at a time."""
    model = load_base(base)[0].to(torch.float64)
    weights = {name: value.detach().double().numpy() for name, value in objective.parameters}
    sums, counts = dict.fromkeys(("lm", "nodes", "contrast", "align"), 0.0), dict.fromkeys(("t", "n", "p", "s"), 0)
    for group in groups:
        states = []
        for example in group.examples:
            with torch.no_grad():
                out = model(torch.tensor([example.ids]), output_hidden_states=True)
            states.append(out.hidden_states[-1][0].numpy())
            logits = out.logits[0].numpy()
            for place in np.flatnonzero(example.trained):
                row = logits[place - 1]
                sums["lm"] += np.log(np.exp(row).sum()) - row[example.ids[place]]
                counts["t"] += 1
        x = []
        for conversation, start, stop in group.facts["steps"]:
            t = np.arange(1, stop - start + 1)
            x.append((t[:, None] * states[conversation][start:stop]).sum(0) / t.sum())
        x, heard = np.stack(x), np.eye(len(x))
        for source, target in group.facts["edges"]:
            heard[target, source] = 1
        scale = np.diag(heard.sum(1) ** -0.5)
        heard = scale @ heard @ scale
        e = np.maximum(heard @ x @ weights["network.w1"].T + weights["network.b1"], 0)
        z = heard @ e @ weights["network.w2"].T + weights["network.b2"]
        s = np.tanh(np.maximum(x @ weights["score.w1"].T, 0) @ weights["score.w2"].T)[:, 0]
        made = x @ weights["projection"].T
        for i, label in enumerate(group.facts["labels"]):
            sums["nodes"] += np.log(np.exp(z[i]).sum()) - z[i, label]
            sums["align"] += 1 - made[i] @ e[i] / np.linalg.norm(made[i]) / np.linalg.norm(e[i])
        sums["contrast"] += sum(max(0, options.margin - (s[a] - s[b])) for a, b in group.facts["pairs"])
        counts["n"] += len(x)
        counts["s"] += len(x)
        counts["p"] += len(group.facts["pairs"])
    factors = (options.l1, options.l2, options.l3, options.l4)
    pairs = zip(sums, factors, ("t", "n", "p", "s"), strict=True)
    return {name: factor * sums[name] / counts[count] for name, factor, count in pairs}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_losses_are_the_formulas_on_separate_sequences(tiny_base, groups, dtype, tolerance, student_of):
    options = SmagdiOptions(l1=0.7, l2=1.3, l3=0.4, l4=0.6, margin=0.9, hidden=8, dropout=0.0)
    student = student_of(tiny_base, dtype)
    objective = StepObjective(student.width, options)
    with torch.no_grad():
        objective.network.b1.copy_(torch.linspace(0.1, 1, 8))
    found = objective.terms(student, pack(groups), objective.counts(groups))
    for name, value in reference(tiny_base, objective, groups, options).items():
        assert found[name].item() == pytest.approx(value, abs=tolerance), name


def gradients(student, groups, term, *, split=None, **options):
    objective = StepObjective(student.width, SmagdiOptions(hidden=8, **options))
    torch.manual_seed(3)
    counts = objective.counts(groups)
    for part in split or [groups]:
        terms = objective.terms(student, pack(part), counts)
        chosen = [terms[name] for name in objective.names if term in (None, name)]
        student.backward(torch.stack(chosen).sum())
    found = {f"student.{name}": value.grad for name, value in student.named_parameters()}
    found |= {name: value.grad for name, value in objective.parameters}
    return {name: gradient for name, gradient in found.items() if gradient is not None and gradient.abs().max() > 0}


def test_the_alignment_teaches_the_student_and_not_the_network(tiny_base, groups, student_of):
    reached = gradients(student_of(tiny_base, torch.float64), groups, "align")
    assert "projection" in reached
    assert any(name.startswith("student.") for name in reached)
    assert not any(name.startswith(("network", "score")) for name in reached)
    assert "network.w1" in gradients(student_of(tiny_base, torch.float64), groups, "nodes")


@pytest.mark.parametrize("term", ["lm", "nodes", "contrast"])
def test_every_loss_reaches_the_student(tiny_base, groups, term, student_of):
    assert any(name.startswith("student.") for name in gradients(student_of(tiny_base, torch.float64), groups, term))


@pytest.mark.parametrize(("weight", "term"), [("l1", "lm"), ("l2", "nodes"), ("l3", "contrast"), ("l4", "align")])
def test_a_weight_of_zero_removes_exactly_its_term(tiny_base, groups, weight, term, student_of):
    whole, without = (
        StepObjective(32, SmagdiOptions(hidden=8, dropout=0.0, **options)) for options in ({}, {weight: 0.0})
    )
    assert set(whole.names) - set(without.names) == {term}
    student, batch, counts = student_of(tiny_base), pack(groups), whole.counts(groups)
    one, two = whole.terms(student, batch, counts), without.terms(student, batch, counts)
    assert term not in two
    assert all(torch.equal(one[name], two[name]) for name in without.names)


def test_splitting_a_step_changes_no_gradient(tiny_base, groups, student_of):
    bare = Group(groups[0].examples[:1], {"question": "f", "steps": [], "labels": [], "edges": [], "pairs": []})
    every = [*groups, bare]  # one without a graph
    splits = (None, [[group] for group in every])
    want, got = (gradients(student_of(tiny_base, torch.float64), every, None, split=split) for split in splits)
    assert set(want) == set(got)
    for name, value in want.items():
        assert torch.allclose(value, got[name], atol=1e-7), name


# ---------------------------------------------------------------- the pair


@pytest.fixture
def pair(tiny_base, tmp_path, sums, debate_of, traces_of):
    wrong = debate_of([[("calc(9 + 1) = 10",)]], number=9, gold="24")
    traces = traces_of([*map(sums, range(5)), wrong])
    file = tmp_path / "strategy.json"
    file.write_text(json.dumps([{"question": "Is it?", "decomposition": ["What is it?", "Is #1 so?"], "answer": True}]))
    train = TrainConfig(batch_size=3, learning_rate=3e-3, precision="fp32", device="cpu")
    options = {"hidden": 8, "decompositions": str(file)}
    config = DistillConfig(method="smagdi", options=options, train=train)
    return lambda: distill(config, traces, tiny_base, tmp_path / "student")


def test_both_models_are_trained_and_asked_as_one(pair):
    made = pair()
    card = read_card(made.path)
    assert "seconds" not in (made.path / CARD).read_text(), "the same work gives the same files"
    assert (card.method, card.parts, card.data.kept) == ("smagdi", ("decomposer", "solver"), 5)
    assert card.notes["decomposer"]["kept"] == 6
    assert card.options["decompositions"] == "strategy.json"
    files = set(made.manifest["files"])
    for part in ("decomposer", "solver"):
        assert {f"{part}/config.json", f"{part}/model.safetensors", f"{part}/tokenizer.json"} <= files
    assert not any("checkpoints" in name or "phase" in name for name in files)
    log = [json.loads(line) for line in (made.path / "train.jsonl").read_text().splitlines()]
    assert len(log) == made.read(StudentFacts).training.steps == 2
    assert set(made.read(StudentFacts).training.phases) == {"decomposer"}
    assert {"loss_lm", "loss_nodes", "loss_contrast", "loss_align", "node_accuracy"} <= set(log[0])
    assert (made.path / "decomposer/model.safetensors").read_bytes() != (
        made.path / "solver/model.safetensors"
    ).read_bytes()
    assert set(parts(made.path)) == {"decomposer", "solver"}
    team = student_team(made.path, card.called_tools, TOOLS)
    assert (team.topology, [agent.tools for agent in team.agents]) == ("socratic", [(), ("calc",)])
    with Team(team) as opened:
        run = opened.answer(Question(id="x", question="What is 2 + 3, doubled?", gold="10", scorer="number"))
    assert [turn.model for turn in run.turns][:2] == ["decomposer", "solver"]
    assert run.turns[0].messages[-1].content == "What is 2 + 3, doubled?"


def test_a_killed_pair_goes_on_where_it_was(pair, tmp_path, monkeypatch):
    whole = smagdi.fit
    calls = []

    def killed(work, trainer, groups, objective, folder):
        calls.append(folder.name)
        if calls == ["decomposer", "solver"]:
            raise KeyboardInterrupt
        return whole(work, trainer, groups, objective, folder)

    monkeypatch.setattr(smagdi, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        pair()
    made = pair()
    assert calls == ["decomposer", "solver", "solver"]
    stamp = (made.path / "solver/model.safetensors").stat().st_mtime_ns
    assert pair().digest == made.digest == Artifact.open(tmp_path / "student", stage="distill").digest
    assert (made.path / "solver/model.safetensors").stat().st_mtime_ns == stamp
