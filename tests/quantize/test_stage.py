"""The quantize stage: widths and groups, calibration, a kill, what is refused; and its command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

for package in ("torch", "transformers", "gguf", "safetensors"):
    pytest.importorskip(package)

import torch  # noqa: E402

from soloist.kernels.errors import ArtifactError, DataError, UsageError  # noqa: E402
from soloist.kernels.layout import dequantize  # noqa: E402
from soloist.kernels.pack import pack_ref  # noqa: E402
from soloist.targets.base import Message  # noqa: E402
from soloist.targets.open import format_of, open_runtime  # noqa: E402
from soloist.targets.quantized import PLAN, WEIGHTS, read_quantized, write_dequantized  # noqa: E402
from soloist.toolchain.cli import main  # noqa: E402
from soloist.toolchain.core.artifact import Artifact, stage  # noqa: E402
from soloist.toolchain.quantize.matrices import Rounder  # noqa: E402
from soloist.toolchain.quantize.qat import QATConfig  # noqa: E402
from soloist.toolchain.quantize.stage import ModelFacts, QuantizeConfig, QuantizeFacts, load_quantized, quantize  # noqa: E402
from soloist.toolchain.student.student import Student, open_student  # noqa: E402
from soloist.toolchain.verify.differences import divergence  # noqa: E402

CHAT: list[Message] = [{"role": "user", "content": "What is 12 + 30?"}]
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def _threads(one_thread):
    """One thread, here and in the subprocesses."""


@pytest.fixture(scope="module")
def quantized(student, tmp_path_factory) -> Artifact:
    return quantize(QuantizeConfig(rounding="mse"), student, tmp_path_factory.mktemp("q") / "quantized")


def _facts(made: Artifact) -> ModelFacts:
    return made.read(QuantizeFacts).models[""]


def _weights(student: Student) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(str(student.path / "model.safetensors"))


def test_linear_layers_get_four_bits_the_embedding_eight_and_norms_stay(student, quantized):
    weights, plan = _weights(student), json.loads((quantized.path / PLAN).read_text())
    found = load_quantized(quantized.path)
    projections = {name for name in weights if name.endswith("_proj.weight")}
    assert len(projections) == 14 and set(found) == projections | {"model.embed_tokens.weight"}
    for name, matrix in found.items():
        table = name == "model.embed_tokens.weight"
        want = pack_ref(weights[name], bits=8 if table else 4, search=True)
        assert torch.equal(matrix.codes, want.codes) and torch.equal(matrix.scales, want.scales)
        facts = plan["tensors"][name]
        assert facts["bits"] == (8 if table else 4) and facts["rounding"] == "mse" and facts["group"] == 32
        exact = weights[name].double()
        assert facts["error"] == pytest.approx(
            float((dequantize(want).double() - exact).norm() / exact.norm()), abs=1e-5
        )
    others = read_quantized(quantized.path).others
    assert set(others) == set(plan["kept"]) == set(weights) - set(found) - {"lm_head.weight"}
    assert all(np.array_equal(array, weights[name].float().numpy()) for name, array in others.items())
    assert quantized.manifest["stage"] == "quantize" and _facts(quantized).matrices == 15
    assert "plain torch" in _facts(quantized).kernels
    names = {path.name for path in quantized.path.iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "student.json", WEIGHTS} <= names
    assert "layers" not in names and "model.safetensors" not in names


@pytest.mark.parametrize(
    ("options", "group", "bits"),
    [
        ({"rounding": "rtn", "bits": 8}, 32, 8),
        ({"rounding": "rtn", "group": 128, "embedding_bits": 4, "asymmetric": True}, 128, 4),
    ],
)
def test_other_widths_and_groups(student, tmp_path, options, group, bits):
    made = quantize(QuantizeConfig(**options), student, tmp_path / "q")
    found, weights = load_quantized(made.path), _weights(student)
    assert found[DOWN].group == group and found[DOWN].bits == bits and (found[DOWN].zeros is not None) == (bits == 4)
    want = pack_ref(weights[DOWN], bits=bits, group=group, zeros=bits == 4)
    assert torch.equal(found[DOWN].codes, want.codes)
    table = found["model.embed_tokens.weight"]  # rows of 64 are no whole groups of 128
    assert table.group == 32 and table.bits == options.get("embedding_bits", 8) and table.zeros is None


@pytest.mark.parametrize(("rounding", "act_order"), [("awq", False), ("gptq", False), ("gptq", True)])
def test_calibration_on_the_students_own_trajectories(
    student, traces, quantized, tmp_path, rounding, act_order, traces_in
):
    config = QuantizeConfig(rounding=rounding, act_order=act_order, samples=8)
    made = quantize(config, student, tmp_path / "q")
    assert _facts(made).calibration.conversations == 8
    assert _facts(made).calibration.tokens > 100
    assert [parent["digest"] for parent in made.manifest["parents"]] == [student.digest, traces.digest]
    again = quantize(config, student, tmp_path / "again", traces=traces_in(tmp_path / "copy"))
    assert again.digest == made.digest
    # what was calibrated on is kept better than by looking at the weights alone, in spite of a larger error of these
    plan = json.loads((made.path / PLAN).read_text())["tensors"]
    plain = json.loads((quantized.path / PLAN).read_text())["tensors"]
    assert plan[DOWN]["rounding"] == rounding and plan[DOWN]["error"] > plain[DOWN]["error"]
    assert _drift(student, made, 3) < _drift(student, quantized, 3) * (1.0 if rounding == "gptq" else 1.1)


def _drift(student: Student, made: Artifact, number: int) -> float:
    """Mean KL on one of the conversations that were calibrated on."""
    a, b = open_runtime(student.path), open_runtime(made.path)
    talk = [{"role": "user", "content": f"What is {number} + 5?"}]
    ids = a.tokenize(a.render(talk) + f"add({number} | 5)")
    return float(divergence(a.logits(ids), b.logits(ids)).mean())


def test_a_killed_run_goes_on_with_the_next_layer(student, tmp_path, monkeypatch):
    whole = quantize(QuantizeConfig(rounding="gptq", samples=4), student, tmp_path / "whole")
    done: list[str] = []
    matrix = Rounder.round

    def killed(self, weight, rule, gram=None):
        if len(done) == 8:  # embedding, seven of layer 0
            done.append("killed")
            raise KeyboardInterrupt
        done.append("matrix")
        return matrix(self, weight, rule, gram)

    monkeypatch.setattr(Rounder, "round", killed)
    with pytest.raises(KeyboardInterrupt):
        quantize(QuantizeConfig(rounding="gptq", samples=4), student, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "killed" in done
    done.clear()
    monkeypatch.setattr(Rounder, "round", lambda *given, **named: (done.append("matrix"), matrix(*given, **named))[1])
    made = quantize(QuantizeConfig(rounding="gptq", samples=4), student, tmp_path / "out")
    assert made.digest == whole.digest
    assert len(done) == 7, "those of layer 1; the embedding and layer 0 were done before"


def test_traces_that_are_gone_or_teach_nothing_are_named(student, tmp_path, traces_in):
    lonely = open_student(
        stage("distill", tmp_path / "s", {}, [], lambda made: (shutil.copytree(student.path, made / "model"), {})[1])
    )
    with pytest.raises(ArtifactError, match="name them with --traces, or use a rounding"):
        quantize(QuantizeConfig(rounding="awq"), lonely, tmp_path / "q")
    wrong = traces_in(tmp_path / "wrong", 3, "wrong")
    with pytest.raises(DataError, match="no trace to learn from"):
        quantize(QuantizeConfig(rounding="awq"), lonely, tmp_path / "q", traces=wrong)
    assert not (tmp_path / "q").exists()
    made = quantize(QuantizeConfig(rounding="mse"), lonely, tmp_path / "q")  # needs no traces
    assert _facts(made).matrices == 15


def test_a_student_of_two_models(student, tmp_path):
    def build(made):
        for part in ("decomposer", "solver"):
            shutil.copytree(student.path, made / part, ignore=shutil.ignore_patterns("manifest.json"))
        return {}

    pair = open_student(stage("distill", tmp_path / "pair", {}, [], build))
    with pytest.raises(UsageError, match="use rounding rtn or mse"):
        quantize(QuantizeConfig(rounding="gptq"), pair, tmp_path / "q")
    made = quantize(QuantizeConfig(rounding="rtn"), pair, tmp_path / "q")
    assert set(made.read(QuantizeFacts).models) == {"decomposer", "solver"}
    assert set(load_quantized(made.path / "solver")) == set(load_quantized(made.path / "decomposer"))


def test_weights_that_are_no_numbers_and_files_cut_off_are_refused(student, tmp_path):
    from safetensors.torch import save_file

    def broken(made, change):
        shutil.copytree(student.path, made / "model", ignore=shutil.ignore_patterns("manifest.json"))
        change(made / "model" / "model.safetensors")
        return {}

    def infinite(file):
        save_file({**_weights(student), DOWN: torch.full((64, 128), float("inf"))}, str(file))

    bad = open_student(stage("distill", tmp_path / "bad", {}, [], lambda made: broken(made, infinite)))
    with pytest.raises(DataError, match="largest weight is inf"):
        quantize(QuantizeConfig(rounding="mse"), bad, tmp_path / "q")
    cut = open_student(
        stage(
            "distill", tmp_path / "cut", {}, [], lambda made: broken(made, lambda file: file.write_bytes(b"\1" * 100))
        )
    )
    with pytest.raises(ArtifactError, match="cut off or damaged"):
        quantize(QuantizeConfig(rounding="mse"), cut, tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_a_quantized_folder_that_is_damaged_says_so(quantized, tmp_path):
    for change, message in (
        (lambda folder: (folder / PLAN).unlink(), "not a quantized student"),
        (lambda folder: (folder / PLAN).write_text("{}"), "not a plan of ours"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no"), "missing or damaged"),
        (lambda folder: (folder / WEIGHTS).unlink(), "missing or damaged"),
        (lambda folder: _edit(folder, DOWN, bits=8), "is not what"),
        (lambda folder: _edit(folder, "model.layers.7.mlp.up_proj.weight", bits=4), "not in the file"),
    ):
        folder = shutil.copytree(quantized.path, tmp_path / "q")
        change(folder)
        with pytest.raises(ArtifactError, match=message):
            load_quantized(folder)
        shutil.rmtree(folder)


def _edit(folder: Path, name: str, **facts) -> None:
    plan = json.loads((folder / PLAN).read_text())
    plan["tensors"][name] = plan["tensors"].get(name, plan["tensors"][DOWN]) | facts
    (folder / PLAN).write_text(json.dumps(plan))


def test_torch_runs_it_by_the_values_its_integers_stand_for(quantized, tmp_path):
    assert format_of(quantized.path) == "quantized"
    runtime = open_runtime(quantized.path)
    assert runtime.name == "quantized"
    write_dequantized(quantized.path, tmp_path / "float")
    plain = open_runtime(tmp_path / "float")
    ids = runtime.tokenize(runtime.render(CHAT))
    assert np.array_equal(runtime.logits(ids), plain.logits(ids))
    weights = plain._model.state_dict()
    for name, matrix in load_quantized(quantized.path).items():
        assert torch.equal(weights[name], dequantize(matrix))


def test_the_command_quantizes_and_refuses(student, traces, tmp_path):
    run = CliRunner().invoke
    done = run(main, ["quantize", str(student.path), "-o", str(tmp_path / "q"), "--rounding", "awq", "--samples", "4"])
    assert done.exit_code == 0 and "15 matrices" in done.output, done.output
    assert Artifact.open(tmp_path / "q", stage="quantize").manifest["config"]["rounding"] == "awq"
    (tmp_path / "plan.yaml").write_text(
        "schema: 1\nrules:\n  - {tensors: '*.embed_tokens.weight', bits: 6, rounding: mse}\n"
        "  - {tensors: '*.down_proj.weight', bits: 5, rounding: rtn}\n  - {tensors: '*', bits: 4, rounding: mse}\n"
    )
    done = run(main, ["quantize", str(student.path), "-o", str(tmp_path / "p"), "--plan", str(tmp_path / "plan.yaml")])
    assert done.exit_code == 0, done.output
    made = read_quantized(tmp_path / "p").matrices
    assert {matrix.bits for name, matrix in made.items() if "down_proj" in name} == {5}
    assert {matrix.bits for name, matrix in made.items() if "q_proj" in name} == {4}
    assert made["model.embed_tokens.weight"].bits == 6
    for more, code, message in (
        (["--bits", "8", "--asymmetric"], 2, "zero points are for 4 bits"),
        (["--plan", str(tmp_path / "plan.yaml"), "--bits", "8"], 2, "a plan says bits; leave out the one or the other"),
        (["--rounding", "rtn", "--traces", str(traces.path)], 2, "nothing here calibrates"),
        (["--kernels", "triton", "--torch-device", "cuda"], 7, "no CUDA device")
        if not torch.cuda.is_available()
        else ([], 0, ""),
    ):
        done = run(main, ["quantize", str(student.path), "-o", str(tmp_path / "no"), *more])
        assert done.exit_code == code, done.output
        assert message in done.output
    done = run(main, ["quantize", str(traces.path), "-o", str(tmp_path / "no")])
    assert done.exit_code == 4 and "'distill' is needed" in done.output


def test_inputs_that_were_looked_at_serve_llama_cpps_quantizer(student, traces, tmp_path):
    pytest.importorskip("llama_cpp", reason="needs the extra 'llama-quantize'")
    from soloist.targets.llama_quantize import IMPORTANCE, mean_squares, quantize_gguf, read_importance
    from soloist.targets.to_gguf import compile_gguf
    from soloist.toolchain.quantize.calibration import Walk, batched, conversations

    made = quantize(QuantizeConfig(rounding="gptq", samples=6), student, tmp_path / "q")
    found = read_importance(made.path / IMPORTANCE)
    assert len(found) == 14 and {name.split(".")[0] for name in found} == {"blk"}
    walk = Walk(student.path)
    walk.replace("model.embed_tokens.weight", dequantize(load_quantized(made.path)["model.embed_tokens.weight"]))
    calibration_set = conversations(student, walk.tokenizer, traces, 6, 42)
    walk.start(batched(calibration_set, "cpu"))
    seen = walk.observe(0)["model.layers.0.self_attn.k_proj.weight"]
    total, count = found["blk.0.attn_k.weight"]
    assert count == sum(len(one.ids) for one in calibration_set) == _facts(made).calibration.tokens
    np.testing.assert_allclose(total / count, seen.mean_square.numpy(), rtol=1e-5)
    whole = tmp_path / "gguf" / compile_gguf(student.path, tmp_path / "gguf", "F16")["file"]
    facts = quantize_gguf(whole, tmp_path / "iq4.gguf", "IQ4_NL", importance=mean_squares(found))
    assert facts["tensors"]["IQ4_NL"] > 0


def test_qat_changes_linear_layers_and_nothing_else(student, tmp_path):
    plain = quantize(QuantizeConfig(rounding="mse"), student, tmp_path / "plain")
    config = QuantizeConfig(rounding="mse", qat=QATConfig(max_train_tokens=4000, batch_size=4, learning_rate=0.1))
    made = quantize(config, student, tmp_path / "trained")
    facts = _facts(made).qat
    assert facts.kept
    assert facts.kl_after < facts.kl_before
    before, after = load_quantized(plain.path), load_quantized(made.path)
    assert torch.equal(before["model.embed_tokens.weight"].codes, after["model.embed_tokens.weight"].codes)
    moved = [name for name in before if not torch.equal(before[name].codes, after[name].codes)]
    assert moved
    assert facts.codes_changed > 0
    assert after[DOWN].bits == 4
    assert not (made.path / "layers").exists()

    def build(folder):
        for part in ("decomposer", "solver"):
            shutil.copytree(student.path, folder / part, ignore=shutil.ignore_patterns("manifest.json"))
        return {}

    both = open_student(stage("distill", tmp_path / "both", {}, [], build))
    with pytest.raises(UsageError, match="awq, gptq and qat are for one model"):
        quantize(config, both, tmp_path / "no")
