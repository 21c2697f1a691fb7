"""MAGDi's three losses against the paper's formulas, what each gradient reaches, training, the whole stage."""

from __future__ import annotations

import json
from itertools import zip_longest

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors import safe_open  # noqa: E402

from soloist.toolchain.distill import graph_network  # noqa: E402
from soloist.toolchain.distill.data import examples_of  # noqa: E402
from soloist.toolchain.distill.methods import magdi  # noqa: E402
from soloist.toolchain.distill.methods.magdi import MagdiOptions  # noqa: E402
from soloist.toolchain.distill.model import load_base  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.train import CHECKPOINTS, TrainConfig, Trainer  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.student.artifact import StudentFacts, read_card  # noqa: E402

GRIDS = (["wc", "cw", "w-"], ["cc", "cu"], ["c", "w", "w"])


@pytest.fixture
def grid_of(debate_of):
    """Builder of a debate from a string per agent, one letter a round: c(orrect) w(rong) u(ngraded) - (silent)."""

    def build(number, rows, team="t"):
        text = f"{number} and 3 make "  # the last word is the answer, and without one nothing is graded
        said = {"c": f"{text}{number + 3}", "w": f"{text}{number + 4}", "u": text, "-": None}
        rounds = [[said[letter] for letter in column] for column in zip_longest(*rows, fillvalue="-")]
        return debate_of(rounds, number=number, gold=str(number + 3)).model_copy(update={"team": team})

    return build


@pytest.fixture
def groups(tokenizer, grid_of):
    runs = [grid_of(3 + i, grid, f"team {i}") for i, grid in enumerate(GRIDS)]
    return magdi.select(runs, Setup(tokenizer, recheck, max_length=512, options=MagdiOptions())).groups


# ---------------------------------------------------------------- losses


def reference(base, objective, groups, options):
    """The three losses from the paper's formulas, in float64 numpy, one sequence at a time by the unchanged model."""
    model = load_base(base)[0].to(torch.float64)
    lm = tokens = nodes = margin = 0.0
    labeled = pairs = hits = 0
    weights = {name: value.detach().double().numpy() for name, value in objective.parameters}
    for group in groups:
        embedded = []
        for example in group.examples:
            with torch.no_grad():
                out = model(torch.tensor([example.ids]), output_hidden_states=True)
            states = out.hidden_states[-1][0, :-1].numpy()
            steps = np.arange(1, len(example.ids))
            embedded.append((steps[:, None] * states).sum(0) / steps.sum())
            logits = out.logits[0].numpy()
            chance = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            for place in np.flatnonzero(example.trained):
                lm -= chance[place - 1, example.ids[place]]
                tokens += 1
        x = np.stack([embedded[i] for i in group.facts["nodes"]])
        heard = np.eye(len(x))
        for source, target in group.facts["edges"]:
            heard[target, source] = 1
        scale = np.diag(heard.sum(1) ** -0.5)
        heard = scale @ heard @ scale
        hidden = np.maximum(heard @ x @ weights["network.w1"].T + weights["network.b1"], 0)
        z = heard @ hidden @ weights["network.w2"].T + weights["network.b2"]
        z = z - np.log(np.exp(z).sum(1, keepdims=True))
        for row, label in enumerate(group.facts["labels"]):
            if label != magdi.UNGRADED:
                nodes -= z[row, label]
                hits += int(z[row].argmax() == label)
                labeled += 1
        s = [float(np.tanh(weights["score.w2"] @ np.maximum(weights["score.w1"] @ h, 0))[0]) for h in embedded]
        for better, worse in group.facts["pairs"]:
            margin += max(0.0, options.margin - (s[better] - s[worse]))
            pairs += 1
    return {
        "lm": options.alpha * lm / tokens,
        "nodes": options.beta * nodes / labeled,
        "margin": options.gamma * margin / pairs,
        "node_accuracy": hits / labeled,
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_losses_are_the_papers_on_separate_sequences(tiny_base, groups, dtype, tolerance, student_of):
    options = MagdiOptions(alpha=0.7, beta=1.3, gamma=0.4, margin=0.9, hidden=8, dropout=0.0)
    student = student_of(tiny_base, dtype)
    objective = magdi.GraphObjective(student.width, options)
    with torch.no_grad():
        objective.network.b1.copy_(torch.linspace(-1, 1, 8))
        objective.network.b2.copy_(torch.tensor([0.3, -0.2, 0.1]))
    found = objective.terms(student, pack(groups), objective.counts(groups))
    want = reference(tiny_base, objective, groups, options)
    for name, value in want.items():
        assert found[name].item() == pytest.approx(value, abs=tolerance), name
    assert float(found["majority_share"]) == pytest.approx(6 / 12)


def test_the_trie_changes_no_embedding(tiny_base, groups, student_of):
    student = student_of(tiny_base)
    shared = pack(groups)
    together = graph_network.embed(student.logits_and_states(shared)[1], shared)
    assert shared.ids.numel() < shared.tokens / 2
    for row, example in zip(together, examples_of(groups), strict=True):
        batch = pack([example])
        alone = graph_network.embed(student.logits_and_states(batch)[1], batch)[0]
        assert torch.allclose(row, alone, atol=1e-4)


def test_splitting_a_step_changes_no_gradient(tiny_base, groups, student_of):
    student = student_of(tiny_base, torch.float64)
    objective = magdi.GraphObjective(student.width, MagdiOptions(hidden=8))  # with dropout
    counts = objective.counts(groups)

    def gradients(parts):
        torch.manual_seed(11)
        beside = [value for _, value in objective.parameters]
        weights = [*[value for _, value in student.named_parameters()], *beside]
        for value in weights:
            value.grad = None
        totals = dict.fromkeys((*objective.names, *objective.observed), 0.0)
        for part in parts:
            terms = objective.terms(student, pack(part), counts)
            student.backward(torch.stack([terms[name] for name in objective.names]).sum())
            totals = {name: totals[name] + terms[name].item() for name in totals}
        return totals, [value.grad for value in weights]

    whole, want = gradients([groups])
    split, got = gradients([[group] for group in reversed(groups)])
    assert split == pytest.approx(whole, rel=1e-6)
    for one, two in zip(got, want, strict=True):
        assert torch.allclose(one, two, atol=1e-7)


def test_dropout_is_drawn_anew_each_step_and_never_outside_training(tiny_base, groups, student_of):
    student = student_of(tiny_base)
    objective = magdi.GraphObjective(student.width, MagdiOptions(hidden=16))
    batch = pack(groups)
    counts = objective.counts(groups)

    def nodes(seed):
        torch.manual_seed(seed)
        return objective.terms(student, batch, counts)["nodes"].item()

    assert nodes(1) == nodes(1) != nodes(2)
    embedded = graph_network.embed(student.logits_and_states(batch)[1], batch)
    torch.manual_seed(1)
    one = objective.node_logits(embedded, batch, training=False)
    torch.manual_seed(2)
    two = objective.node_logits(embedded, batch, training=False)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))


# ---------------------------------------------------------------- gradients


def lora_gradient(student, groups, term, variant="paper", **options):
    torch.manual_seed(0)
    student.add_lora(4, 8.0)
    objective = magdi.GraphObjective(student.width, MagdiOptions(hidden=8, **options), variant=variant)
    terms = objective.terms(student, pack(groups), objective.counts(groups))
    if term not in terms:
        return None
    student.backward(terms[term])
    found = [value.grad for _, value in student.named_parameters() if value.grad is not None]
    return sum(float(gradient.abs().sum()) for gradient in found)


@pytest.mark.parametrize("term", ["lm", "nodes", "margin"])
def test_every_loss_reaches_the_adapter(tiny_base, groups, term, student_of):
    assert lora_gradient(student_of(tiny_base), groups, term) > 1e-6


def test_released_node_classification_does_not_reach_the_student(tiny_base, groups, student_of):
    assert lora_gradient(student_of(tiny_base), groups, "nodes", "released") == 0
    assert lora_gradient(student_of(tiny_base), groups, "margin", "released") > 1e-6


@pytest.mark.parametrize(("weight", "term"), [("alpha", "lm"), ("beta", "nodes"), ("gamma", "margin")])
def test_a_weight_of_zero_removes_exactly_its_term(tiny_base, groups, weight, term, student_of):
    whole, without = (
        magdi.GraphObjective(32, MagdiOptions(hidden=8, dropout=0.0, **options)) for options in ({}, {weight: 0.0})
    )
    assert set(whole.names) - set(without.names) == {term}
    student = student_of(tiny_base)
    batch, counts = pack(groups), whole.counts(groups)
    one, two = whole.terms(student, batch, counts), without.terms(student, batch, counts)
    assert term not in two
    for name in without.names:
        assert torch.equal(one[name], two[name])
    beside = {"nodes": "network", "margin": "score"}.get(term, "nothing")
    assert not any(name.startswith(beside) for name, _ in without.parameters)


# ---------------------------------------------------------------- training


def trainer_of(base, **settings):
    config = TrainConfig(batch_size=2, learning_rate=1e-2, precision="fp32", device="cpu", **settings)
    trainer = Trainer(base, config)
    trainer.optimize(magdi.GraphObjective(trainer.student.width, MagdiOptions(hidden=16)))
    return trainer


def test_training_lowers_the_node_loss_and_logs_shares(tiny_base, groups, tmp_path):
    trainer = trainer_of(tiny_base, epochs=25)
    trained = trainer.fit(groups, tmp_path)
    first, last = (sum(step["loss_nodes"] for step in steps) / 6 for steps in (trained.steps[:6], trained.steps[-6:]))
    assert last < 0.7 * first
    logged = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert all(0 <= step["node_accuracy"] <= 1 and 0 < step["majority_share"] <= 1 for step in logged)
    assert logged[0]["loss"] == pytest.approx(sum(logged[0][f"loss_{n}"] for n in ("lm", "nodes", "margin")), abs=3e-6)


def test_a_killed_run_goes_on_with_the_same_numbers(tiny_base, groups, tmp_path):
    whole = trainer_of(tiny_base, epochs=3).fit(groups, tmp_path / "whole").steps

    class Killed(Exception):
        pass

    def stop(record):
        if record["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        trainer_of(tiny_base, epochs=3, checkpoint_seconds=1e-9).fit(groups, tmp_path / "cut", on_step=stop)
    assert (tmp_path / "cut" / CHECKPOINTS).is_dir()
    again = trainer_of(tiny_base, epochs=3).fit(groups, tmp_path / "cut")
    assert again.resumed_at == 3
    for one, two in zip(whole, again.steps, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_distill_makes_a_student_without_the_graph_network(tiny_base, tmp_path, grid_of, traces_of):
    traces = traces_of([grid_of(number, ["wc", "cw", "w"]) for number in range(5)] + [grid_of(9, ["ww", "ww"])])
    train = TrainConfig(batch_size=3, learning_rate=3e-3, precision="fp32", device="cpu")
    config = DistillConfig(method="magdi", options={"hidden": 8}, train=train)
    made = distill(config, traces, tiny_base, tmp_path / "student")
    card = read_card(made.path)
    assert (card.method, card.options["beta"], card.data.kept) == ("magdi", 1.0, 5)
    assert card.data.rejected == {"no correct attempt": 1}
    assert made.read(StudentFacts).training.steps == 2
    with safe_open(made.path / "model.safetensors", "pt") as file:
        assert not any("network" in name or "score" in name for name in file.keys())  # noqa: SIM118
    stamp = (made.path / "model.safetensors").stat().st_mtime_ns
    assert distill(config, traces, tiny_base, tmp_path / "student").digest == made.digest
    assert (made.path / "model.safetensors").stat().st_mtime_ns == stamp
