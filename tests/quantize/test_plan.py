"""A plan: rules in order, refusals, sizes that the writers of files agree with."""

from __future__ import annotations

import numpy as np
import pytest

from soloist.kernels.errors import UsageError
from soloist.targets.repack import Matrix, pack, to_matmul_nbits, to_q4_0, to_q5_0, to_q8_0
from soloist.toolchain.quantize.plan import (
    BitPlan,
    Rule,
    model_of,
    read_plan,
    resolve,
    uniform,
    write_plan,
)
from soloist.toolchain.quantize.sizes import size_of

SHAPES = {
    "model.embed_tokens.weight": (100, 96),
    "model.layers.0.mlp.down_proj.weight": (96, 192),
    "model.layers.1.mlp.down_proj.weight": (96, 192),
}


def _plan(*rules, **more) -> BitPlan:
    return BitPlan(schema=1, rules=tuple(Rule(**rule) for rule in rules), **more)


def test_the_first_rule_that_fits_is_the_rule():
    plan = _plan(
        {"tensors": "*.embed_tokens.weight", "bits": 8, "rounding": "mse"},
        {"tensors": "model.layers.1.*", "bits": 5, "group": 64},
        {"tensors": "*", "bits": 4},
    )
    found = resolve(plan, "llama", SHAPES)
    assert [(rule.bits, rule.group) for rule in found.values()] == [(8, 32), (4, 32), (5, 64)]


def test_a_file_of_rules_comes_back_and_reads_well(tmp_path):
    plan = _plan(
        {"tensors": "*", "bits": 4, "asymmetric": True}, model=model_of("llama", SHAPES), expected={"size_mb": 1.5}
    )
    write_plan(tmp_path / "plan.yaml", plan)
    assert read_plan(tmp_path / "plan.yaml") == plan == read_plan(tmp_path)
    lines = (tmp_path / "plan.yaml").read_text().splitlines()
    assert lines[0] == "schema: 1" and lines[-1].startswith("  - {tensors: '*', bits: 4")


def test_tables_have_no_input_to_calibrate_on():
    found = resolve(uniform(4, 4, 128, "gptq", asymmetric=False), "llama", SHAPES)
    table = found["model.embed_tokens.weight"]
    assert (table.rounding, table.group) == ("mse", 32)  # 96 columns are no whole groups of 128
    assert found["model.layers.0.mlp.down_proj.weight"].rounding == "gptq"
    assert resolve(_plan({"tensors": "*", "bits": 4, "asymmetric": True}), "llama", SHAPES)[
        "model.embed_tokens.weight"
    ] == Rule(tensors="*", bits=4, rounding="mse")


@pytest.mark.parametrize(
    ("rules", "more", "message"),
    [
        ([{"tensors": "model.layers.0.*", "bits": 4}], {}, "no rule fits model.embed_tokens.weight"),
        (
            [{"tensors": "model.layers.7.*", "bits": 4}, {"tensors": "*", "bits": 4}],
            {},
            "rules.0: no matrix of this model is called 'model.layers.7",
        ),
        ([{"tensors": "*.embed_tokens.weight", "bits": 4}, {"tensors": "*", "bits": 4}], {}, "rules.0: rounding gptq"),
        (
            [{"tensors": "*", "bits": 4}],
            {"model": {"type": "llama", "digest": "0" * 16}},
            "made for another model .llama, 0000",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(rules, more, message):
    with pytest.raises(UsageError, match=message):
        resolve(_plan(*rules, **more), "llama", SHAPES, "my.yaml")


def test_a_plan_knows_its_own_model():
    plan = _plan({"tensors": "*", "bits": 4}, model=model_of("llama", SHAPES))
    assert len(resolve(plan, "llama", SHAPES)) == 3
    with pytest.raises(UsageError, match="this one is qwen2"):
        resolve(plan, "qwen2", SHAPES)


def test_faults_of_a_file_are_named_with_their_line(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("schema: 1\nrules:\n  - {tensors: '*', bits: 7}\n  - {tensors: '*', bits: 8, asymmetric: true}\n")
    with pytest.raises(UsageError) as caught:
        read_plan(file)
    first, second = str(caught.value).splitlines()
    assert f"{file}:3: rules.0.bits" in first and f"{file}:4: rules.1" in second and "zero points" in second


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_sizes_are_those_of_the_files(bits, group):
    rows, columns = 3, 192
    scales = np.ones((rows, -(-columns // group)), np.float16)
    if bits == 4:
        matrix = Matrix(pack(np.zeros((rows, columns), np.uint8)), scales, group)
    else:
        matrix = Matrix(np.zeros((rows, columns), np.int8), scales, group, narrow=None if bits == 8 else bits)
    rule = Rule(tensors="*", bits=bits, group=group)
    write = {4: to_q4_0, 5: to_q5_0, 6: to_q8_0, 8: to_q8_0}[bits]
    assert size_of((rows, columns), rule, "gguf") == write(matrix).nbytes
    inputs = to_matmul_nbits(matrix)
    assert size_of((rows, columns), rule, "onnx") == inputs.weight.nbytes + inputs.scales.nbytes
