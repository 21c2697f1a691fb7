"""Rounded layers: gradient by hand, integers, a model that holds them; a tiny student trained through the rounding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from torch import nn  # noqa: E402

from soloist.kernels.errors import ArtifactError, DataError, UsageError  # noqa: E402
from soloist.kernels.layout import Quantized, dequantize, top_of, zero_of  # noqa: E402
from soloist.kernels.pack import pack_ref  # noqa: E402
from soloist.toolchain.core.events import EventLog  # noqa: E402
from soloist.toolchain.distill.data import encode  # noqa: E402
from soloist.toolchain.distill.model import Student, load_base  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.teacher import load_teacher  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig, Trainer  # noqa: E402
from soloist.toolchain.quantize.qat import QATConfig, divergence, qat, split, typical_gradient  # noqa: E402
from soloist.toolchain.quantize.qat_linear import QATLinear, _Rounded, swap_linears, values  # noqa: E402

TABLE = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
CONFIG = QATConfig(max_train_tokens=8000, batch_size=8, learning_rate=0.05, seed=1, checkpoint_seconds=1e-9)
FORMATS = [(4, 32, False), (4, 64, True), (4, 128, False), (5, 32, False), (6, 64, False), (8, 32, False)]


@pytest.fixture(autouse=True)
def _threads(one_thread):
    """One thread: two runs of the same work give the same numbers."""


def layer_of(bits: int, group: int, zeros: bool, seed: int = 0) -> tuple[QATLinear, Quantized, nn.Linear]:
    """Rows of 96: of groups of 64 and 128 the last is short. Codes of another matrix than the layer's own, nearby."""
    torch.manual_seed(seed)
    linear = nn.Linear(96, 24, bias=True)
    other = linear.weight.detach() + 0.06 * 2.0**-bits * torch.randn(24, 96)  # about a third of a step
    other[3] = 0.0  # a scale of zero
    codes = pack_ref(other, bits=bits, group=group, zeros=zeros, search=True)
    return QATLinear(linear, codes), codes, linear


def test_the_gradient_of_the_rounding_by_hand():
    # a scale of 0.25 that has grown to 0.5, values -8..7: 1.6 steps, in the last value's cell, clipped above, below
    t = torch.tensor([[[3.2, 14.8, 16.0, -20.0]]], requires_grad=True)
    s = torch.tensor([[[0.5]]], requires_grad=True)
    found = _Rounded.apply(t, s, torch.tensor([[[0.25]]]), -8.0, 7.0)
    assert found.tolist() == [[[1.0, 3.5, 3.5, -4.0]]]
    found.backward(torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]]))
    assert t.grad.tolist() == [[[0.25, 2.5, 0.0, 0.0]]]
    assert s.grad.item() == pytest.approx(1 * (2 - 1.6) + 10 * (7 - 7.4) + 100 * 7 + 1000 * -8, rel=1e-6)


@pytest.mark.parametrize(("bits", "group", "zeros"), FORMATS)
def test_the_gradients_are_lsqs_in_float64(bits, group, zeros):
    layer, codes, _ = layer_of(bits, group, zeros)
    factor = 1 / np.sqrt(group * (top_of(bits) // 2))
    with torch.no_grad():
        layer.steps.mul_(1.1).add_(torch.randn_like(layer.steps))  # some are clipped now
        layer.gain.add_(0.05 / factor * torch.randn_like(layer.gain))
    upstream = torch.randn(24, 96)
    layer.rounded().backward(upstream)
    s0 = codes.scales.double().numpy()
    s = (codes.scales.float() * (1 + float(factor) * layer.gain.detach())).half().double().numpy()
    low = -zero_of(bits) if codes.zeros is None else -codes.zeros.double().numpy()
    high = low + top_of(bits)
    first, wide, bottom, top = (
        np.repeat(np.broadcast_to(x, s.shape), group, axis=1)[:, :96] for x in (s0, s, low, high)
    )
    w, g = layer.steps.detach().double().numpy() * first, upstream.double().numpy()
    steps = w / np.where(wide == 0, 1, wide)
    inside = (steps >= bottom - 0.5) & (steps <= top + 0.5)
    by_scale = g * np.where(inside, np.rint(steps) - steps, np.where(steps > top, top, bottom))
    assert np.allclose(layer.steps.grad.numpy(), np.where(inside, g, 0) * first, rtol=1e-6, atol=0)
    assert 0.3 < inside.mean() < 0.999
    summed = np.stack([by_scale[:, i : i + group].sum(-1) for i in range(0, 96, group)], axis=1)
    want = summed * s0 * factor
    assert np.allclose(layer.gain.grad.numpy(), want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("bits", "group", "zeros"), FORMATS)
def test_training_starts_where_the_quantizer_ended(bits, group, zeros):
    layer, codes, linear = layer_of(bits, group, zeros)
    assert torch.equal(layer.rounded(), dequantize(codes))
    x = torch.randn(5, 96)
    assert torch.equal(layer(x), nn.functional.linear(x, dequantize(codes), linear.bias))
    back = layer.codes(layer.steps, layer.gain)
    assert torch.equal(values(back), values(codes)) and torch.equal(back.scales, codes.scales)
    assert back.bits == bits and back.group == group and (back.zeros is not None) == zeros
    # every weight is on its own side of the code, the farther from the code the nearer to the border of its cell
    wide = codes.scales.float().repeat_interleave(group, 1)[:, :96]
    used = wide != 0
    away = ((linear.weight - dequantize(codes)) / wide)[used].detach()
    start = (layer.steps - values(codes))[used].detach()
    assert start.abs().max() < 0.5 and (away.abs() > 0.5).float().mean() > 0.05
    order = away.argsort()
    assert (start[order].diff() > -1e-3).all() and ((start * away) >= -1e-6).all()
    assert torch.allclose(start, away / (1 + 2 * away.abs()), atol=1e-3)


@pytest.mark.parametrize(("bits", "group", "zeros"), FORMATS)
def test_the_integers_are_the_very_weights_that_computed(bits, group, zeros):
    layer, codes, _ = layer_of(bits, group, zeros)
    for _ in range(4):
        with torch.no_grad():
            layer.steps.add_(torch.randn_like(layer.steps))
            layer.gain.add_(3 * torch.randn_like(layer.gain))
        made = layer.codes(layer.steps, layer.gain)
        assert torch.equal(dequantize(made), layer.rounded())
        low = -zero_of(bits) if codes.zeros is None else -codes.zeros.float().repeat_interleave(group, 1)[:, :96]
        assert (values(made) >= low).all() and (values(made) <= low + top_of(bits)).all()
        assert made.bits == bits and (zeros is False or torch.equal(made.zeros, codes.zeros))
    assert (values(made) != values(codes)).float().mean() > 0.3


def test_without_gradients_the_weight_is_made_once_and_again_after_a_change():
    layer, _, _ = layer_of(4, 32, False)
    x = torch.randn(2, 96)
    with torch.no_grad():
        first = layer(x)
        kept = layer._kept
        assert torch.equal(layer(x), first) and layer._kept is kept
        layer.gain.add_(5.0)
        assert torch.equal(layer(x), nn.functional.linear(x, layer.rounded(), layer.bias))
    assert not torch.equal(layer(x), first) and layer._kept is None


# --- a model that holds them ---


@pytest.fixture(scope="module")
def matrices(tiny) -> dict[str, Quantized]:
    """The tiny student's matrices: layers 4 bit, one of them 5 with groups of 64, the embedding 8."""
    weights = dict(load_base(tiny)[0].named_parameters())
    found = {name: pack_ref(value.detach(), bits=4) for name, value in weights.items() if name.endswith("_proj.weight")}
    found[DOWN] = pack_ref(weights[DOWN].detach(), bits=5, group=64)
    return found | {TABLE: pack_ref(weights[TABLE].detach(), bits=8)}


@pytest.fixture(scope="module")
def examples(tiny):
    tokenizer = load_base(tiny)[1]
    return [
        encode(
            [
                {"role": "user", "content": f"What is {i} + {7 * i}?"},
                {"role": "assistant", "content": f"The sum of {i} and {7 * i} is {8 * i}."},
            ],
            tokenizer,
            f"q{i}",
        )
        for i in range(24)
    ]


def swapped(base: Path, matrices: dict[str, Quantized]) -> tuple[Student, Student, dict[str, QATLinear]]:
    model, tokenizer = load_base(base)
    layers = swap_linears(model, matrices)
    student = Student(model, tokenizer, torch.device("cpu"))
    return student, load_teacher(base, student, 256), layers


def test_a_model_of_swapped_layers_computes_what_the_quantized_student_computes(tiny, matrices, examples):
    student, _, layers = swapped(tiny, matrices)
    assert set(layers) == set(matrices) - {TABLE}
    plain, tokenizer = load_base(tiny)
    with torch.no_grad():
        for name, matrix in matrices.items():
            plain.get_parameter(name).copy_(dequantize(matrix))
        want = Student(plain, tokenizer, torch.device("cpu")).logits(pack(examples))
        student.verify_packing(256)
        assert torch.equal(student.logits(pack(examples)), want)
    trained = {name for name, _ in student.named_parameters()}
    assert trained == {one.replace("weight", part) for one in layers for part in ("steps", "gain")}
    assert student.model.lm_head.weight is student.model.model.embed_tokens.weight


def test_an_untied_head_is_frozen_at_its_values():
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    head = pack_ref(model.lm_head.weight.detach(), bits=6)
    layers = swap_linears(model, {"lm_head.weight": head})
    assert not layers and torch.equal(model.lm_head.weight, dequantize(head))
    assert not any(value.requires_grad for value in model.parameters())
    for name in ("model.layers.7.mlp.up_proj.weight", "model.norm.weight", TABLE):
        with pytest.raises(ArtifactError, match="no such matrix"):
            swap_linears(model, {name: pack_ref(torch.randn(32, 64), bits=4)})


def test_the_typical_gradient_is_that_of_all_the_conversations(tiny, matrices, examples):
    config = TrainConfig(precision="fp32", device="cpu")
    trainer = Trainer(tiny, config, prepare=lambda model: swap_linears(model, matrices))
    found = typical_gradient(trainer, examples, part_tokens=64)
    assert all(value.grad is None for _, value in trainer.student.named_parameters())
    batch = pack(examples)
    nn.functional.cross_entropy(trainer.student.logits(batch), batch.labels).backward()
    gradient = torch.cat([value.grad.flatten() for _, value in trainer.student.named_parameters()])
    assert found == pytest.approx(float(gradient.square().mean().sqrt()), rel=1e-4)


def test_what_was_trained_is_what_the_integers_say(tiny, matrices, examples, tmp_path):
    layers: dict[str, QATLinear] = {}
    config = TrainConfig(epochs=1, batch_size=8, learning_rate=0.3, precision="fp32", device="cpu")
    trainer = Trainer(tiny, config, prepare=lambda model: layers.update(swap_linears(model, matrices)))
    frozen = {n: v.detach().clone() for n, v in trainer.student.model.named_parameters() if not v.requires_grad}
    trainer.fit(examples, tmp_path)
    exact = trainer.optimizer.exact()
    for name, layer in layers.items():
        made = layer.codes(exact[name.replace("weight", "steps")], exact[name.replace("weight", "gain")])
        assert torch.equal(dequantize(made), layer.rounded()), name
        assert (values(made) != values(matrices[name])).any() and made.bits == matrices[name].bits
    assert set(frozen) == {TABLE} | {n for n, _ in trainer.student.model.named_parameters() if "norm" in n}
    assert all(torch.equal(trainer.student.model.get_parameter(name), value) for name, value in frozen.items())


# --- training ---


@pytest.fixture(scope="module")
def trained(tiny, matrices, examples, tmp_path_factory):
    torch.set_num_threads(1)
    return qat(tiny, matrices, examples, CONFIG, tmp_path_factory.mktemp("whole"))


def test_a_few_steps_bring_the_student_closer_to_the_one_it_was_made_from(tiny, matrices, examples, trained):
    new, facts = trained
    learned, held = split(examples, CONFIG.held_back, CONFIG.seed)
    assert len(held) == facts.held_back == 6 and len(learned) == facts.conversations == 18
    assert set(new) == set(matrices) - {TABLE} and facts.kept is True
    was, teacher, _ = swapped(tiny, matrices)
    now, _, _ = swapped(tiny, matrices | new)
    assert divergence(now, teacher, learned) < 0.8 * divergence(was, teacher, learned)
    assert divergence(was, teacher, held) == pytest.approx(facts.kl_before, abs=1e-6)
    assert divergence(now, teacher, held) == pytest.approx(facts.kl_after, abs=1e-6)
    assert facts.kl_after < facts.kl_before
    changed = sum(int((values(new[name]) != values(matrices[name])).sum()) for name in new)
    total = sum(matrix.shape[0] * matrix.shape[1] for matrix in new.values())
    assert facts.codes_changed == round(changed / total, 6) > 0
    assert facts.scales_changed > 0 and facts.tokens >= CONFIG.max_train_tokens and facts.seconds > 0
    for name, matrix in new.items():
        old = matrices[name]
        assert (matrix.bits, matrix.group, matrix.shape) == (old.bits, old.group, old.shape)
        assert values(matrix).max() <= top_of(old.bits) - zero_of(old.bits)


def test_a_killed_training_goes_on_and_gives_the_same_codes(tiny, matrices, examples, trained, tmp_path):
    seen: list[int] = []

    def killed(event):
        assert event["stage"] == "qat"
        if event["event"] == "progress":
            seen.append(event["done"])
            if event["done"] == 5 and seen.count(5) == 1:
                raise KeyboardInterrupt

    log = EventLog(listeners=(killed,))
    with pytest.raises(KeyboardInterrupt):
        qat(tiny, matrices, examples, CONFIG, tmp_path, events=log)
    new, facts = qat(tiny, matrices, examples, CONFIG, tmp_path, events=log)
    assert seen[:7] == [1, 2, 3, 4, 5, 5, 6]  # the fifth step ran, but was killed before its checkpoint
    whole, wanted = trained
    assert all(torch.equal(new[name].codes, whole[name].codes) for name in whole)
    assert all(torch.equal(new[name].scales, whole[name].scales) for name in whole)
    assert facts.model_copy(update={"seconds": 0.0}) == wanted.model_copy(update={"seconds": 0.0})


def test_a_run_of_other_codes_or_settings_is_not_gone_on_with(tiny, matrices, examples, tmp_path):
    short = CONFIG.model_copy(update={"max_train_tokens": 500})
    others = matrices | {DOWN: pack_ref(dequantize(matrices[DOWN]), bits=8)}
    for codes, config in (
        (matrices, short),
        (others, short),
        (matrices, short.model_copy(update={"divergence": "jsd"})),
    ):
        _, facts = qat(tiny, codes, examples, config, tmp_path)
        assert facts.steps == 2
    assert len(list(tmp_path.iterdir())) == 3


def test_what_became_worse_is_given_back_as_it_was(tiny, matrices, examples, tmp_path):
    emitted = []
    config = CONFIG.model_copy(update={"max_train_tokens": 1000, "learning_rate": 0.5})
    new, facts = qat(tiny, matrices, examples, config, tmp_path, events=EventLog(listeners=(emitted.append,)))
    assert facts.kept is False and facts.kl_after > facts.kl_before
    assert all(new[name] is matrices[name] for name in new) and set(new) == set(matrices) - {TABLE}
    assert any(e["event"] == "warning" and "lower learning_rate" in e["text"] for e in emitted)


def test_on_the_students_own_words(tiny, matrices, examples, tmp_path):
    config = CONFIG.model_copy(update={"max_train_tokens": 500, "lmbda": 1.0, "learning_rate": 0.3})
    _, facts = qat(tiny, matrices, examples, config, tmp_path)
    assert facts.steps == 2 and facts.codes_changed > 0
    log = [json.loads(line) for line in next(tmp_path.rglob("train.jsonl")).read_text().splitlines()]
    own = [sum(len(e.ids) for e in examples[:8]), sum(len(e.ids) for e in examples[8:16])]
    assert [line["tokens"] for line in log] != own and all(line["trained_tokens"] > 0 for line in log)


def test_questions_stay_together_and_too_little_is_said(tiny, matrices, examples, tmp_path):
    twice = [*examples, *examples]
    learned, held = split(twice, 4, 0)
    assert len(held) == 8 and not {e.question_id for e in held} & {e.question_id for e in learned}
    assert split(twice, 4, 0) == (learned, held) != split(twice, 4, 1)
    with pytest.raises(DataError, match="two questions, there are 1"):
        qat(tiny, matrices, examples[:1], CONFIG, tmp_path)
    with pytest.raises(UsageError, match="no quantized linear layer"):
        qat(tiny, {TABLE: matrices[TABLE]}, examples, CONFIG, tmp_path)
