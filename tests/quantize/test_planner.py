"""A plan from measurements: KL increases against a model that is changed by hand, budgets, a kill, the command."""

from __future__ import annotations

import copy
import json
import re

import pytest
from click.testing import CliRunner

for package in ("torch", "transformers", "gguf", "safetensors"):
    pytest.importorskip(package)

import torch  # noqa: E402

from soloist.kernels.errors import ArtifactError, UsageError  # noqa: E402
from soloist.kernels.layout import dequantize  # noqa: E402
from soloist.kernels.pack import pack_ref  # noqa: E402
from soloist.targets.quantized import read_quantized  # noqa: E402
from soloist.targets.to_gguf import compile_gguf  # noqa: E402
from soloist.toolchain.cli import main  # noqa: E402
from soloist.toolchain.quantize.budgets import PlanConfig  # noqa: E402
from soloist.toolchain.quantize.calibration import Walk, conversations  # noqa: E402
from soloist.toolchain.quantize.plan import read_plan  # noqa: E402
from soloist.toolchain.quantize.planner import PlanFacts, make_plan, read_sensitivity  # noqa: E402
from soloist.toolchain.quantize.sensitivity import Evaluator, units_of  # noqa: E402
from soloist.toolchain.quantize.stage import QuantizeConfig, quantize  # noqa: E402

DOWN = "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def _threads(one_thread):
    """One thread, here and in the subprocesses."""


def _config(**settings) -> PlanConfig:
    return PlanConfig.model_validate({"samples": 6, "eval_samples": 4, **settings})


def _least_mb(student) -> float:
    """What the tiny student takes with 4 bits everywhere, by the refusal that names it."""
    with pytest.raises(UsageError, match="cannot be met") as refused:
        make_plan(_config(max_mb=1e-6), student, student.path.parent / "none")
    return float(str(refused.value).split("the file takes ")[1].split(" MB")[0])


@pytest.fixture(scope="module")
def planned(student, tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "plan"
    return make_plan(_config(max_mb=_least_mb(student) + 0.015), student, out)


def _mean_kl(walk, examples, weights):
    """The same by another way: the whole model, one conversation at a time."""
    model, total, count = walk.model, 0.0, 0
    for example in examples:
        ids = torch.tensor([example.ids])
        at = [i for i in range(len(example.ids) - 1) if example.trained[i + 1]]
        kept = {name: model.get_parameter(name).data.clone() for name in weights}
        with torch.no_grad():
            p = torch.log_softmax(model(ids).logits[0, at].double(), -1)
            for name, weight in weights.items():
                model.get_parameter(name).data.copy_(weight)
            q = torch.log_softmax(model(ids).logits[0, at].double(), -1)
            for name, weight in kept.items():
                model.get_parameter(name).data.copy_(weight)
        total, count = total + float((p.exp() * (p - q)).sum()), count + len(at)
    return total / count


@pytest.mark.parametrize(("name", "layer"), [(DOWN, 1), (EMBEDDING, -1)])
def test_the_kl_increase_of_a_unit_is_that_of_the_whole_model_with_it(student, traces, name, layer):
    walk = Walk(student.path)
    examples = conversations(student, walk.tokenizer, traces, 10, 1)
    evaluator = Evaluator(walk, examples)
    rounded = {name: dequantize(pack_ref(walk.model.get_parameter(name).data.float()))}
    wanted = _mean_kl(walk, examples, rounded)
    assert wanted > 1e-7
    assert evaluator.kl_increase(layer, rounded) == pytest.approx(wanted, rel=0.02, abs=2e-8)
    same = {name: walk.model.get_parameter(name).data.clone()}
    assert evaluator.kl_increase(layer, same) < 1e-9  # nothing is left of the weights that were tried
    assert evaluator.tokens == sum(sum(example.trained[1:]) for example in examples)


def test_units_are_parts_of_layers_embedding_first():
    names = [
        f"model.layers.0.{part}.weight"
        for part in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    ]
    units = units_of({"tables": [EMBEDDING, "lm_head.weight"], "0": names})
    assert [(unit.name, len(unit.tensors), unit.layer) for unit in units] == [
        ("embedding", 1, -1),
        ("head", 1, -1),
        ("layer-00.query-key-value", 3, 0),
        ("layer-00.attention-out", 1, 0),
        ("layer-00.gate-up", 2, 0),
        ("layer-00.down", 1, 0),
    ]


def test_a_plan_fits_its_budget_and_is_what_the_file_takes(student, planned, tmp_path):
    facts, sensitivity = planned.read(PlanFacts), read_sensitivity(planned)
    assert facts.size_mb <= planned.manifest["config"]["max_mb"]
    assert len(sensitivity.units) == 9
    assert {len(options) for options in sensitivity.units.values()} == {3}
    assert sensitivity.bought
    assert {4} < set(sensitivity.chosen.values())
    summed = 0.0
    for unit, bits in sensitivity.chosen.items():
        summed += next(option.kl_increase for option in sensitivity.units[unit] if option.bits == bits)
    assert facts.kl_predicted == pytest.approx(summed)
    made = quantize(QuantizeConfig(plan=read_plan(planned.path), samples=6), student, tmp_path / "q")
    bits_of = {name: matrix.bits for name, matrix in read_quantized(made.path).matrices.items()}
    assert bits_of[EMBEDDING] == sensitivity.chosen["embedding"]
    assert bits_of[DOWN] == sensitivity.chosen["layer-01.down"]
    file = tmp_path / "gguf" / compile_gguf(made.path, tmp_path / "gguf")["file"]
    assert 0 <= facts.size_mb * 1e6 - file.stat().st_size < 20_000  # names and settings are bounded, not counted


def test_more_room_never_adds_kl(student, planned, tmp_path):
    roomy = make_plan(_config(max_mb=100), student, tmp_path / "roomy")
    more, less = roomy.read(PlanFacts), planned.read(PlanFacts)
    assert more.kl_predicted <= less.kl_predicted
    assert more.size_mb > less.size_mb


def test_a_kill_costs_one_measurement(student, planned, tmp_path, monkeypatch):
    measured: list[int] = []
    measure = Evaluator.kl_increase

    def killed(self, layer, weights):
        if len(measured) == 5:
            measured.append(-9)
            raise KeyboardInterrupt
        measured.append(layer)
        return measure(self, layer, weights)

    monkeypatch.setattr(Evaluator, "kl_increase", killed)
    config = _config(**{key: planned.manifest["config"][key] for key in ("max_mb",)})
    with pytest.raises(KeyboardInterrupt):
        make_plan(config, student, tmp_path / "plan")
    assert not (tmp_path / "plan").exists()
    made = make_plan(config, student, tmp_path / "plan")
    assert len(measured) == 9 * 3 + 1 + 1  # every unit and width once, the kill, the whole plan
    assert made.digest == planned.digest
    assert {file.name for file in made.path.iterdir()} == {"manifest.json", "plan.yaml", "sensitivity.json"}


def test_another_budget_takes_what_was_measured(student, planned, tmp_path, monkeypatch):
    anew = make_plan(_config(max_mb=100), student, tmp_path / "anew")
    layers: list[int] = []
    measure = Evaluator.kl_increase

    def seen(self, layer, weights):
        layers.append(layer)
        return measure(self, layer, weights)

    monkeypatch.setattr(Evaluator, "kl_increase", seen)
    made = make_plan(_config(max_mb=100), student, tmp_path / "plan", measured=planned)
    assert layers == [-1]  # the whole plan alone
    assert made.digest == anew.digest
    with pytest.raises(UsageError, match=r"measured with eval_samples 4, not 3$"):
        make_plan(_config(max_mb=100, eval_samples=3), student, tmp_path / "no", measured=planned)
    with pytest.raises(UsageError, match=r"has not measured bits \[6\], only \[4, 5, 8\]$"):
        make_plan(_config(max_mb=100, bits=(4, 6)), student, tmp_path / "no", measured=planned)
    other = copy.deepcopy(planned)
    other.manifest["parents"][0]["digest"] = "0" * 16
    with pytest.raises(ArtifactError, match="measured on another student or other traces"):
        make_plan(_config(max_mb=100), student, tmp_path / "no", measured=other)


def test_the_smallest_size_that_keeps_the_accuracy_is_taken(student, tmp_path):
    asked: list[tuple[int, dict[str, int]]] = []  # size in bits, and bits of each matrix

    def ask(matrices):
        """Right on all questions with a wide embedding, on 8 of 10 else."""
        if matrices is None:
            return [1] * 10
        size = sum(matrix.bits * matrix.shape[0] * matrix.shape[1] for matrix in matrices.values())
        asked.append((size, {name: matrix.bits for name, matrix in matrices.items()}))
        return [1] * 10 if matrices[EMBEDDING].bits > 4 else [1] * 8 + [0] * 2

    made = make_plan(_config(max_accuracy_drop=1.0, max_mb=100), student, tmp_path / "plan", ask=ask)
    accuracy = made.read(PlanFacts).accuracy
    assert accuracy.drop_points == 0
    assert accuracy.questions == 10
    assert len(asked) <= 4
    _, smallest = min((one for one in asked if one[1][EMBEDDING] > 4), key=lambda one: one[0])
    assert {rule.tensors: rule.bits for rule in read_plan(made.path).rules} == smallest
    assert max(asked)[1] != smallest
    with pytest.raises(UsageError, match=r"max_accuracy_drop 1 cannot be met .* loses 20 points on 10 questions"):
        make_plan(
            _config(max_accuracy_drop=1.0, max_mb=100, seed=3),
            student,
            tmp_path / "no",
            ask=lambda matrices: [1] * 10 if matrices is None else [1] * 8 + [0] * 2,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no budget"),
        ({"max_ms_per_token": 5}, "max_ms_per_token needs a device"),
        ({"max_mb": 5, "bits": [4, 4]}, "bits: name each once"),
    ],
)
def test_budgets_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _config(**settings)


def test_milliseconds_that_no_width_meets_name_the_nearest(student, tmp_path):
    settings = {"device": "jetson-orin-nano-8gb", "max_ms_per_token": 1e-6}
    with pytest.raises(UsageError, match=r"cannot be met on .*predicted") as refused:
        make_plan(_config(**settings), student, tmp_path / "no")
    nearest = float(re.search(r"with 4 bits everywhere a token takes (\S+) ms", str(refused.value))[1])
    with pytest.raises(UsageError, match=f"a token takes {nearest:g} ms"):  # not by a hundredth
        make_plan(_config(**{**settings, "max_ms_per_token": 0.99 * nearest}), student, tmp_path / "no")
    made = make_plan(_config(**{**settings, "max_ms_per_token": nearest}), student, tmp_path / "yes")
    assert 0 < made.read(PlanFacts).ms_per_token_predicted <= nearest
    assert not list(tmp_path.glob("no*/*.yaml")) and not (tmp_path / "no").exists()
    with pytest.raises(UsageError, match="an accuracy budget needs questions"):
        make_plan(_config(max_accuracy_drop=1), student, tmp_path / "no")


def test_the_command_plans_and_explains(student, tmp_path):
    pytest.importorskip("xllamacpp")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "".join(
            json.dumps({"question": f"What is {n} + 5?", "answer": str(n + 5), "scorer": "number"}) + "\n"
            for n in (1, 2)
        )
    )
    budget = ["--max-mb", "1", "--max-accuracy-drop", "100", "--questions", str(questions)]
    counts = ["--samples", "6", "--eval-samples", "4"]
    done = CliRunner().invoke(main, ["plan", str(student.path), "-o", str(tmp_path / "plan"), *budget, *counts])
    assert done.exit_code == 0, done.output
    assert "the next bytes would go to" in done.output and "on 2 questions" in done.output
    assert read_plan(tmp_path / "plan").model is not None
    done = CliRunner().invoke(main, ["plan", str(student.path), "-o", str(tmp_path / "no"), *budget[:4]])
    assert done.exit_code == 2 and "go together" in done.output
    done = CliRunner().invoke(main, ["plan", str(student.path), "-o", str(tmp_path / "no"), "--max-mb", "0.0001"])
    assert done.exit_code == 2 and "cannot be met: with 4 bits everywhere the file takes" in done.output
    budget = ["--device", "jetson-orin-nano-8gb", "--max-ms-per-token", "0.00001"]
    done = CliRunner().invoke(main, ["plan", str(student.path), "-o", str(tmp_path / "no"), *budget])
    assert done.exit_code == 2 and "cannot be met on" in done.output and " ms (predicted)" in done.output
    assert not (tmp_path / "no").exists()
