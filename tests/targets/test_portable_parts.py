"""The parts of a portable export: what is refused, templates without transformers, groups, the walk of a graph."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

for package in ("torch", "transformers", "onnxruntime", "onnxscript", "onnx_ir", "onnx"):
    pytest.importorskip(package)

from onnx import TensorProto, helper, numpy_helper, save  # noqa: E402

from soloist.kernels.errors import ArtifactError, EngineError  # noqa: E402
from soloist.targets.base import Sampling  # noqa: E402
from soloist.targets.portable import run  # noqa: E402
from soloist.targets.portable.export import compile_portable, read_shapes  # noqa: E402
from soloist.targets.portable.facts import DATA, FACTS, GRAPH, TEMPLATE, TOKENIZER, read_facts  # noqa: E402
from soloist.targets.portable.graph import check_portable  # noqa: E402
from soloist.targets.portable.run import PortableRuntime  # noqa: E402
from soloist.targets.portable.template import chat_template  # noqa: E402
from soloist.targets.portable.weights import whole_groups  # noqa: E402
from soloist.targets.repack import Matrix, pack  # noqa: E402
from soloist.targets.tokenizer_cases import TOKENIZER_CASES  # noqa: E402

CHAT = [
    {"role": "system", "content": "Be <brief> & 'exact'."},
    {"role": "user", "content": "naïve 🙂\n{{ 1 }}"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "Why?"},
]


@pytest.fixture(autouse=True)
def _threads(one_thread):
    """One thread, here and in the runtime."""


def changed(student, folder, **settings):
    """A copy of a student with another configuration."""
    shutil.copytree(student, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


# --- what is refused, before anything is written ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "gpt2"}, "architecture 'gpt2' has no portable ONNX graph; there are llama, smollm3"),
        ({"model_type": "nobody_knows"}, "transformers does not know this architecture"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
            "'dynamic' changes with the length",
        ),
    ],
)
def test_architectures_without_a_portable_graph_are_refused(tiny, tmp_path, settings, message):
    student = changed(tiny, tmp_path / "student", **settings)
    with pytest.raises(ArtifactError, match=message):
        compile_portable(student, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]


def test_students_without_their_parts_are_refused_and_leave_nothing(tiny, tmp_path):
    with pytest.raises(ArtifactError, match="'bfloat16' is not one of float32, float16"):
        compile_portable(tiny, tmp_path / "out", "bfloat16")
    with pytest.raises(ArtifactError, match="not a student"):
        compile_portable(tmp_path, tmp_path / "out")
    student = shutil.copytree(tiny, tmp_path / "student")
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="the model does not load"):
        compile_portable(student, tmp_path / "out")
    (student / TOKENIZER).write_text("{}")
    with pytest.raises(ArtifactError, match="its tokenizer does not load"):
        compile_portable(student, tmp_path / "out")
    (student / TOKENIZER).unlink()
    with pytest.raises(ArtifactError, match=r"no tokenizer\.json"):
        compile_portable(student, tmp_path / "out")
    other = shutil.copytree(tiny, tmp_path / "other")
    (other / TEMPLATE).unlink()
    with pytest.raises(ArtifactError, match="no chat template"):
        compile_portable(other, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "student"]


def test_shapes_are_read_under_each_familys_names():
    import transformers

    gemma = read_shapes(transformers.Gemma3TextConfig())
    assert (gemma.layers, gemma.kv_heads, gemma.head_dim, gemma.vocabulary) == (26, 4, 256, 262_208)
    qwen = read_shapes(transformers.Qwen2Config(hidden_size=896, num_attention_heads=14, num_key_value_heads=2))
    assert (qwen.heads, qwen.kv_heads, qwen.head_dim) == (14, 2, 64)
    with pytest.raises(ArtifactError, match="'attn_logit_softcapping' has no portable"):
        read_shapes(transformers.Gemma3TextConfig(attn_logit_softcapping=50.0))
    with pytest.raises(ArtifactError, match="'mamba' has no portable"):
        read_shapes(SimpleNamespace(model_type="mamba"))


# --- the folder ---


def test_damaged_folders_are_refused(tiny_portable, tmp_path):
    with pytest.raises(ArtifactError, match=r"no portable\.json"):
        PortableRuntime(tmp_path)
    broken = shutil.copytree(tiny_portable, tmp_path / "broken")
    data = (broken / DATA).read_bytes()
    (broken / DATA).write_bytes(data[:-100])
    with pytest.raises(ArtifactError, match=rf"{DATA} has {len(data) - 100} bytes of {len(data)}; export"):
        PortableRuntime(broken)
    (broken / DATA).unlink()
    with pytest.raises(ArtifactError, match=f"{DATA} is missing; export"):
        PortableRuntime(broken)
    (broken / DATA).write_bytes(data)
    graph = (broken / GRAPH).read_bytes()
    (broken / GRAPH).write_bytes(b"\xff" * len(graph))  # as long, and no graph
    with pytest.raises(ArtifactError, match="onnxruntime cannot load this graph"):
        PortableRuntime(broken)
    (broken / TOKENIZER).write_bytes(b" " * (broken / TOKENIZER).stat().st_size)
    with pytest.raises(ArtifactError, match="not a tokenizer"):
        PortableRuntime(broken)
    for content in ("{", "[]", json.dumps({"schema": 9}), json.dumps({"schema": 1, "family": "llama"})):
        (broken / FACTS).write_text(content)
        with pytest.raises(ArtifactError, match="not facts of ours"):
            read_facts(broken)


def test_unknown_levels_are_refused(tiny_portable):
    with pytest.raises(ArtifactError, match="accuracy level 3 is not one of 0, 1, 4"):
        PortableRuntime(tiny_portable, accuracy_level=3)


def test_long_texts_go_through_in_pieces_or_are_refused(tiny_portable, monkeypatch):
    whole = PortableRuntime(tiny_portable)
    tokens = whole.tokenize(whole.render(CHAT))
    wanted = whole.logits(tokens)
    monkeypatch.setattr(run, "PIECE", 7)
    pieces = PortableRuntime(tiny_portable, context=len(tokens))
    np.testing.assert_allclose(pieces.logits(tokens), wanted, atol=1e-4)
    np.testing.assert_allclose(pieces._feed(tokens[5:], 5), wanted[-1], atol=1e-4)  # after a cut
    with pytest.raises(EngineError, match="does not fit the context"):
        pieces.chat(CHAT, Sampling(max_tokens=2))
    with pytest.raises(EngineError, match="tokens do not fit"):
        pieces.logits([*tokens, 5])


def test_the_runner_needs_neither_torch_nor_transformers(tiny_portable):
    program = (
        "import sys; from pathlib import Path; from soloist.targets.base import Sampling;"
        "from soloist.targets.portable.run import PortableRuntime; runtime = PortableRuntime(Path(sys.argv[1]));"
        "print(runtime.chat([{'role': 'user', 'content': 'Say hello.'}], Sampling(max_tokens=4)).tokens_out);"
        "print({'torch', 'transformers', 'onnx', 'onnxruntime_genai'} & set(sys.modules))"
    )
    command = [sys.executable, "-P", "-c", program, str(tiny_portable)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["4", "set()"], done.stderr


def test_tokens_are_the_students(tiny, tiny_portable):
    from transformers import AutoTokenizer

    reference, runtime = AutoTokenizer.from_pretrained(str(tiny)), PortableRuntime(tiny_portable)
    for text in TOKENIZER_CASES:
        tokens = reference.encode(text, add_special_tokens=False)
        assert runtime.tokenize(text) == tokens, text
        assert runtime.text(tokens) == reference.decode(tokens, skip_special_tokens=True)


# --- templates ---

TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}\n"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "{%- for m in messages %}\n  {%- if m.role == 'system' %}{% continue %}{% endif %}\n{{ m | tojson }}\n"
    "{%- endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}{{ messages[:1] | tojson(indent=2) }}",
    "{% if tools %}{{ tools }}{% endif %}{{ strftime_now('%Y') | length }}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if ns.n > 2 %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_templates_render_as_in_transformers(tiny, source):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    wanted = tokenizer.apply_chat_template(CHAT, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert chat_template(source, tokenizer.special_tokens_map)(CHAT) == wanted


def test_templates_that_fail_say_so():
    with pytest.raises(ArtifactError, match="not jinja2"):
        chat_template("{% for %}", {})
    with pytest.raises(EngineError, match=r"refuses these messages \(roles must alternate\)"):
        chat_template("{{ raise_exception('roles must alternate') }}", {})(CHAT)
    with pytest.raises(EngineError, match="refuses these messages"):
        chat_template("{{ messages.__class__.__mro__ }}", {})(CHAT)


# --- integers and the walk ---


@pytest.mark.parametrize(("columns", "group", "wanted"), [(96, 128, 32), (64, 128, 64), (576, 128, 64), (256, 64, 64)])
def test_groups_are_split_until_they_divide(columns, group, wanted):
    random = np.random.default_rng(0)
    codes = pack(random.integers(0, 16, (3, columns), dtype=np.uint8))
    scales = random.random((3, -(-columns // group))).astype(np.float16)
    matrix = Matrix(codes, scales, group)
    whole = whole_groups(matrix)
    assert whole.group == wanted
    assert whole.scales.shape == (3, columns // wanted)
    np.testing.assert_array_equal(whole.dequantized(), matrix.dequantized())


def graph_file(path, nodes, kind=TensorProto.FLOAT, domains=(("", 21),), constants=()):
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    inputs = [helper.make_tensor_value_info("x", kind, ["n", 4])]
    shape = helper.make_tensor_value_info("y", kind, ["a", "b"])
    graph = helper.make_graph(nodes, "g", inputs, [shape], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in domains], ir_version=10), path)
    return path


def test_graphs_that_are_not_portable_are_named(tmp_path):
    make, file = helper.make_node, tmp_path / "g.onnx"
    assert check_portable(graph_file(file, [make("Relu", ["x"], ["y"], name="r")])) == {"Relu": 1}
    with pytest.raises(
        ArtifactError, match=r"node q is com\.microsoft:Gelu \(and 1 more\)|operator set 'com.microsoft'"
    ):
        node = make("Gelu", ["x"], ["y"], name="q", domain="com.microsoft")
        check_portable(graph_file(file, [node], domains=(("", 21), ("com.microsoft", 1))))
    with pytest.raises(ArtifactError, match="operator set '' 20"):
        check_portable(graph_file(file, [make("Relu", ["x"], ["y"], name="r")], domains=(("", 20),)))
    with pytest.raises(ArtifactError, match="is float64"):
        nodes = [make("Cast", ["x"], ["d"], to=TensorProto.DOUBLE), make("Cast", ["d"], ["y"], to=TensorProto.FLOAT)]
        check_portable(graph_file(file, nodes))
    with pytest.raises(ArtifactError, match="node z is NonZero"):
        check_portable(graph_file(file, [make("NonZero", ["x"], ["y"], name="z")], TensorProto.INT64))
    with pytest.raises(ArtifactError, match="the shape of Expand e depends on values of 'k1'"):
        nodes = [make("ReduceMax", ["x"], ["k"], keepdims=0), make("Unsqueeze", ["k", "zero"], ["k1"])]
        nodes = [*nodes, make("Expand", ["x", "k1"], ["y"], name="e")]
        check_portable(graph_file(file, nodes, TensorProto.INT64, constants=[("zero", np.array([0]))]))
    shaped = [make("Shape", ["x"], ["s"]), make("Expand", ["x", "s"], ["y"], name="e")]
    assert check_portable(graph_file(file, shaped)) == {"Expand": 1, "Shape": 1}
    file.write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match="not a valid ONNX graph"):
        check_portable(file)
