"""One quantization in every format: the same bits in GGUF, ONNX and block tensors, and the logits they stand for."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

for package in ("torch", "transformers", "gguf", "safetensors"):
    pytest.importorskip(package)

import torch  # noqa: E402

from soloist.kernels.errors import ArtifactError  # noqa: E402
from soloist.targets import quantized_onnx, to_onnx  # noqa: E402
from soloist.targets.base import Message  # noqa: E402
from soloist.targets.open import open_runtime  # noqa: E402
from soloist.targets.quantized import read_quantized, write_dequantized  # noqa: E402
from soloist.targets.quantized_onnx import put_integers  # noqa: E402
from soloist.targets.repack import (  # noqa: E402
    Matrix,
    NBits,
    from_block_dq,
    from_matmul_nbits,
    to_block_dq,
)
from soloist.targets.to_gguf import compile_gguf, head_order  # noqa: E402
from soloist.targets.to_onnx import compile_onnx  # noqa: E402
from soloist.toolchain.core.artifact import Artifact, stage  # noqa: E402
from soloist.toolchain.export.stage import export  # noqa: E402
from soloist.toolchain.quantize.stage import QuantizeConfig, quantize  # noqa: E402
from soloist.toolchain.student.student import open_student  # noqa: E402
from soloist.toolchain.verify.differences import divergence  # noqa: E402
from soloist.toolchain.verify.process import Prompts  # noqa: E402
from soloist.toolchain.verify.verdict import ExportFacts, Verdict  # noqa: E402

gguf_blocks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("gguf_blocks.py"))))
CHAT: list[Message] = [{"role": "user", "content": "What is 12 + 30?"}]
PROMPTS = Prompts([CHAT], ["The sum of 12 and 30 is 42."])
DOWN = "model.layers.1.mlp.down_proj.weight"


pytestmark = pytest.mark.usefixtures("warm_workers")  # one thread, here and in the subprocesses


@pytest.fixture(scope="module")
def quantized(student, tmp_path_factory) -> Artifact:
    return quantize(QuantizeConfig(rounding="mse"), student, tmp_path_factory.mktemp("q") / "quantized")


def _same(a: Matrix, b: Matrix) -> bool:
    return np.array_equal(a.codes, b.codes) and np.array_equal(a.scales.view(np.int16), b.scales.view(np.int16))


def from_gguf_file(file: Path, config: dict) -> dict[str, Matrix]:
    """Quantized matrices of a GGUF file by GGUF name, rows of query and key in transformers' order."""
    import gguf

    matrices = {}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in gguf.GGUFReader(file).tensors:
        read = {"Q4_0": gguf_blocks.from_q4_0, "Q8_0": gguf_blocks.from_q8_0}.get(tensor.tensor_type.name)
        if read is not None:
            matrix = read(np.array(tensor.data))
            count = heads.get(tensor.name.split(".")[-2])
            if count:
                matrix = matrix.rows(np.argsort(head_order(matrix.shape[0], count)))
            matrices[tensor.name] = matrix
    return matrices


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    if ".layers." not in name:
        return {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def from_onnx_folder(folder: Path) -> dict[str, Matrix]:
    """Quantized matrices of a package by the student's names; query, key and value taken apart again."""
    import onnx

    model = onnx.load(str(folder / "model.onnx"))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    read = onnx.numpy_helper.to_array
    matrices = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        zeros = read(constants[node.input[3]]) if len(node.input) > 3 else None
        inputs = NBits(read(constants[node.input[1]]), read(constants[node.input[2]]), zeros)
        matrices[node.input[1].removesuffix(".codes")] = from_matmul_nbits(inputs, attributes["bits"], attributes["K"])
    return matrices


def check_same_integers(folder: Path, gguf_file: Path, onnx_folder: Path) -> int:
    """Bit for bit: folder, GGUF file, MatMulNBits package, block-wise DequantizeLinear. Returns matrices compared."""
    config = json.loads((folder / "config.json").read_text())
    from_gguf, from_onnx = from_gguf_file(gguf_file, config), from_onnx_folder(onnx_folder)
    rows = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"], "v": config["num_key_value_heads"]}
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    matrices = read_quantized(folder).matrices
    for name, matrix in matrices.items():
        assert _same(from_gguf[gguf_name(name)], matrix), name
        stem, part = name.removesuffix(".weight"), name.split(".")[-2]
        if stem not in from_onnx:
            packed = from_onnx[stem.replace(part, "qkv_proj")]
            first = {"q": 0, "k": rows["q"], "v": rows["q"] + rows["k"]}[part[0]] * size
            assert _same(packed.rows(np.arange(first, first + matrix.shape[0])), matrix), name
        else:
            assert _same(from_onnx[stem], matrix), name
        for axis in (0, 1):
            assert _same(from_block_dq(to_block_dq(matrix, axis)), matrix), name
    return len(matrices)


@pytest.fixture(scope="module")
def files(quantized, tmp_path_factory):
    """The quantized tiny student as GGUF and as an ONNX package, and the fp32 package that one was made from."""
    for package in ("onnxruntime_genai", "onnx_ir", "onnx"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("files")
    file = out / compile_gguf(quantized.path, out, "Q4_0", "Tiny")["file"]

    def kept(folder, content, accuracy_level):
        shutil.copytree(folder, floats)
        return put_integers(folder, content, accuracy_level)

    floats = tmp_path_factory.mktemp("floats") / "package"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized_onnx, "put_integers", kept)
        facts = compile_onnx(quantized.path, out / "onnx", "int4")
    # four products a layer with query, key and value as one, two more without; the head; the embedding
    assert facts["nodes"] == {"MatMulNBits": 2 * 5 + 1, "GatherBlockQuantized": 1}
    return SimpleNamespace(gguf=file, onnx=out / "onnx", floats=floats)


def test_gguf_onnx_and_block_tensors_hold_the_same_bits(quantized, files):
    assert check_same_integers(quantized.path, files.gguf, files.onnx) == 15
    beside = {path.name for path in files.onnx.parent.iterdir() if path.suffix != ".Modelfile"}
    assert beside == {files.gguf.name, "onnx"}, "nothing is left of the way"


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Activations as llama.cpp multiplies them: blocks of 32 in 8 bits, scale in fp16 (its Q8_0)."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    d = blocks.abs().amax(-1, keepdim=True) / 127
    codes = torch.round(blocks * torch.where(d == 0, 0.0, 1 / d))
    return (codes * d.half().float()).reshape(x.shape)


def differences_to_llama_cpp(folder: Path, file: Path, tokens: list[int], scratch: Path) -> list[float]:
    """Largest difference of logits after each token alone: torch rounds where llama.cpp rounds, the rest is fp32 sums.

    One token, because attention over several accumulates in fp16 there.
    """
    write_dequantized(folder, scratch)
    like, ours = open_runtime(scratch), open_runtime(file)
    for name, linear in like._model.named_modules():
        if isinstance(linear, torch.nn.Linear):
            linear.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))
            if name.endswith("v_proj"):  # the cache is fp16
                linear.register_forward_hook(lambda _, given, out: out.half().float())
    return [float(np.abs(like.logits([token]) - ours.logits([token])).max()) for token in tokens]


def test_the_files_compute_what_the_integers_say(quantized, files, tmp_path):
    pytest.importorskip("xllamacpp")
    torch_runtime, gguf_runtime = open_runtime(quantized.path), open_runtime(files.gguf)
    ids = torch_runtime.tokenize(torch_runtime.render(CHAT) + "The sum of 12 and 30 is 42.")
    want = torch_runtime.logits(ids)
    exact = tmp_path / "exact"
    shutil.copytree(files.onnx, exact)
    _level(exact, 1)
    onnx_runtime = open_runtime(exact)
    # products in fp32, summed in another order
    assert np.abs(onnx_runtime.logits(ids) - want).max() < 1e-3
    fast = open_runtime(files.onnx).logits(ids)  # activations in int8
    assert divergence(want, fast).mean() < 5e-3
    assert divergence(want, gguf_runtime.logits(ids)).mean() < 1e-3  # activations in 8 bits, attention in fp16
    off = differences_to_llama_cpp(quantized.path, files.gguf, ids[:12], tmp_path / "float")
    # sums in another order; where an activation lies between two codes they decide, and it moves by one
    assert max(off) < 0.1, off
    assert np.median(off) < 1e-4, off


def _level(folder: Path, level: int) -> None:
    """Another accuracy_level in every product of a package."""
    import onnx

    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level
    onnx.save(model, str(folder / "model.onnx"))


def test_a_graph_that_is_not_understood_is_refused(quantized, files, tmp_path, monkeypatch):
    content = read_quantized(quantized.path)
    other = dict(content.matrices)
    other[DOWN] = replace(other[DOWN], scales=other[DOWN].scales * np.float16(1.01))
    more = {**content.matrices, DOWN.replace("layers.1", "layers.9"): other[DOWN]}
    for matrices, message in (
        (other, "layers.1/mlp/down_proj/MatMul: its weight is not the student's"),
        (more, "no node for model.layers.9"),
    ):
        package = shutil.copytree(files.floats, tmp_path / "package")
        with pytest.raises(ArtifactError, match=message):
            put_integers(package, replace(content, matrices=matrices), 4)
        shutil.rmtree(package)

    def failing(student, *_):
        assert (student / "model.safetensors").is_file()
        raise ArtifactError("the ONNX builder failed")

    monkeypatch.setattr(to_onnx, "_build", failing)
    with pytest.raises(ArtifactError, match="builder failed"):
        compile_onnx(quantized.path, tmp_path / "onnx", "int4")
    assert not list(tmp_path.iterdir())


def test_export_of_a_quantized_student_is_compared_with_the_one_it_came_from(student, quantized, tmp_path, monkeypatch):
    judged = []

    def judge(folder, *_):
        judged.append(folder)
        return Verdict(verdict="pass")

    monkeypatch.setattr("soloist.toolchain.verify.fidelity.judge", judge)
    opened = open_student(quantized)
    made = export(opened, tmp_path / "out", ["gguf-q4_0"], PROMPTS, name="Tiny")
    file = made.path / made.read(ExportFacts).formats["gguf-q4_0"].path
    assert judged == [student.path]
    matrices = from_gguf_file(file, json.loads((quantized.path / "config.json").read_text()))
    assert _same(matrices[gguf_name(DOWN)], read_quantized(quantized.path).matrices[DOWN])
    with pytest.raises(ArtifactError, match="holds 4-bit layers; export it as gguf-q4_0"):
        export(opened, tmp_path / "other", ["gguf-q8_0"], PROMPTS)
    lost = shutil.copytree(quantized.path, tmp_path / "elsewhere" / "q")
    with pytest.raises(ArtifactError, match="the student it was made from is not at"):
        open_student(lost)


def test_formats_that_cannot_hold_it_are_refused(student, tmp_path):
    made = quantize(QuantizeConfig(rounding="rtn", asymmetric=True), student, tmp_path / "q")
    with pytest.raises(ArtifactError, match="zero points have no place in Q4_0"):
        compile_gguf(made.path, tmp_path / "gguf", "Q4_0")
    assert not list((tmp_path / "gguf").iterdir())
    with pytest.raises(ArtifactError, match="holds 4-bit layers; export it as onnx"):
        compile_onnx(made.path, tmp_path / "onnx", "int8")


@pytest.mark.slow
def test_the_real_base_holds_the_same_bits_everywhere_and_computes_alike(base_gguf, tmp_path):
    """Issue 4: one quantization of SmolLM2-135M, three formats, the same bits, logits within the stated tolerances."""
    for package in ("onnxruntime_genai", "onnx_ir", "onnx"):
        pytest.importorskip(package)
    from soloist.targets.from_gguf import from_gguf

    def build(made):
        from_gguf(base_gguf, made)
        return {}

    base = stage("distill", tmp_path / "base", {}, [], build)
    made = quantize(QuantizeConfig(rounding="rtn"), base, tmp_path / "q")
    file = tmp_path / "gguf" / compile_gguf(made.path, tmp_path / "gguf", "Q4_0", "SmolLM2")["file"]
    compile_onnx(made.path, tmp_path / "onnx", "int4")
    assert check_same_integers(made.path, file, tmp_path / "onnx") == 30 * 7 + 1
    want_of = open_runtime(made.path)
    ids = want_of.tokenize(want_of.render([{"role": "user", "content": "What is the capital of France?"}]))
    want = want_of.logits(ids)
    want_of.close()
    fast = open_runtime(tmp_path / "onnx").logits(ids)
    assert divergence(want, fast).mean() < 0.05
    _level(tmp_path / "onnx", 1)
    exact = open_runtime(tmp_path / "onnx").logits(ids)
    assert np.abs(exact - want).max() < 2e-3
    assert divergence(want, open_runtime(file).logits(ids)).mean() < 0.05
    off = differences_to_llama_cpp(made.path, file, [1, 2, 504, 260, 3575, 30000, 11, 6330], tmp_path / "float")
    # in 30 layers some activation mostly lies between two codes; where none does, the logits are the same
    assert max(off) < 1, off
    assert min(off) < 1e-3, off
