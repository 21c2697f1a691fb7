"""The node that names the plugin: what the parser reads, and that its meaning is that of the matrix."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra 'compile' is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx.reference.op_run import OpRun  # noqa: E402

from soloist.kernels.errors import ArtifactError, UsageError  # noqa: E402
from soloist.targets.repack import Matrix, dequantize_linear, pack, to_matmul_nbits, unpack  # noqa: E402
from soloist.targets.tensorrt.builds import INPUTS, plugin_name  # noqa: E402
from soloist.targets.tensorrt.nodes import gemv_node, groups_of, replace, replace_all, restore_all  # noqa: E402

N, K = 43, 96


def _matrix(group=32, zeros=False, seed=0, rows=N, columns=K):
    draw = np.random.default_rng(seed)
    scales = (0.1 * draw.normal(size=(rows, -(-columns // group)))).astype(np.float16)
    points = draw.integers(0, 16, scales.shape).astype(np.uint8) if zeros else None
    return Matrix(pack(draw.integers(0, 16, (rows, columns)).astype(np.uint8)), scales, group, points)


def _x(*shape, dtype=np.float16):
    return np.random.default_rng(9).normal(size=shape).astype(dtype)


def _plugin(extra):
    """The plugin as onnx's evaluator takes an operator: from its inputs, in float64."""

    class Gemv(OpRun):
        op_domain = "soloist"

        def _run(self, x, words, scales, *more, group=None, plugin_namespace=None, plugin_version=None):
            assert (plugin_namespace, plugin_version) == ("soloist", "1")
            rest = dict(zip(INPUTS[extra][3:], more, strict=True))
            assert words.dtype == np.int32
            assert scales.dtype == np.float16

            def product(words, scales, zeros=None):
                codes = unpack(words).astype(np.float64) - (
                    8 if zeros is None else np.repeat(zeros, group[0], axis=1)[:, : 8 * words.shape[1]]
                )
                weight = codes * np.repeat(scales.astype(np.float64), group[0], axis=1)[:, : codes.shape[1]]
                return x.astype(np.float64) @ weight.T

            if "zeros" in rest:
                assert rest["zeros"].dtype == np.int8
            y = product(words, scales, rest.get("zeros")) + rest.get("bias", np.float64(0)).astype(np.float64)
            if extra == "gated":
                y = y / (1 + np.exp(-y)) * product(rest["up_words"], rest["up_scales"])
            return (y.astype(x.dtype),)

    Gemv.__name__ = plugin_name(extra)
    return Gemv


def _run(model, x):
    onnx.checker.check_model(model)
    return ReferenceEvaluator(model, new_ops=[_plugin(extra) for extra in INPUTS]).run(None, {"x": x})[0]


def _model(nodes, constants, kind=TensorProto.FLOAT16, rank=2, domains=("",)):
    shape = [None] * rank
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(one, 21 if one == "" else 1) for one in domains])


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("extra", INPUTS)
def test_a_node_means_its_matrix(extra, group):
    matrix, up = _matrix(group, zeros=extra == "zeros"), _matrix(group, seed=1) if extra == "gated" else None
    bias = np.linspace(-1, 1, N).astype(np.float16) if extra == "bias" else None
    constants, node = gemv_node(matrix, "x", "y", "layer", up=up, bias=bias)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes == {"group": [group], "plugin_namespace": b"soloist", "plugin_version": b"1"}
    assert (node.op_type, node.domain) == (plugin_name(extra), "soloist")
    assert list(node.input) == ["x", *(f"layer.{name}" for name in INPUTS[extra][1:])]
    x = _x(2, 3, K)
    y = _run(_model([node], constants, rank=3, domains=("", "soloist")), x)
    wanted = x.astype(np.float64) @ matrix.dequantized().astype(np.float64).T
    if bias is not None:
        wanted = wanted + bias
    if up is not None:
        wanted = wanted / (1 + np.exp(-wanted)) * (x.astype(np.float64) @ up.dequantized().astype(np.float64).T)
    assert y.dtype == np.float16
    assert np.abs(wanted).max() > 1
    assert np.allclose(y, wanted, atol=1e-3, rtol=1e-3)


def test_a_bias_is_of_the_activations_type():
    (*_, bias), _ = gemv_node(_matrix(), "x", "y", "layer", bias=np.ones(N, np.float32), activations="bfloat16")
    assert bias.data_type == TensorProto.BFLOAT16
    (*_, bias), _ = gemv_node(_matrix(), "x", "y", "layer", bias=np.full(N, 0.5), activations="float16")
    assert numpy_helper.to_array(bias).tolist() == [0.5] * N


def _two_layers(weight, kind):
    """y = (x + 1) W^T as a MatMul."""
    one = numpy_helper.from_array(np.ones((), weight.dtype), "one")
    nodes = [
        helper.make_node("Add", ["x", "one"], ["h"], name="add"),
        helper.make_node("MatMul", ["h", "W"], ["y"], name="product"),
    ]
    return _model(nodes, [one, numpy_helper.from_array(np.ascontiguousarray(weight.T), "W")], kind)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_matmul_is_replaced(dtype):
    matrix = _matrix(64, zeros=True)
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    model = _two_layers(matrix.dequantized().astype(dtype), kind)
    x = _x(5, K, dtype=dtype)
    before = ReferenceEvaluator(model).run(None, {"x": x})[0]
    replace(model, "product", matrix)
    casts = ["Cast"] if dtype == np.float32 else []
    assert [node.op_type for node in model.graph.node] == ["Add", *casts, "w4a16_gemv_zeros", *casts]
    assert {tensor.name for tensor in model.graph.initializer} == {
        "one",
        "product.words",
        "product.scales",
        "product.zeros",
    }
    after = _run(model, x)
    assert after.dtype == dtype
    assert np.abs(before).max() > 1
    assert np.allclose(after, before, atol=1e-2, rtol=5e-3)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group", [32, 64])
def test_a_matmulnbits_is_replaced_and_gives_what_onnx_runtime_gave(zeros, group):
    runtime = pytest.importorskip("onnxruntime")
    matrix, bias = _matrix(group, zeros), None if zeros else np.linspace(-1, 1, N).astype(np.float32)
    packed = to_matmul_nbits(matrix)
    parts = {"B": packed.weight, "s": packed.scales, "z": packed.zeros, "order": None, "bias": bias}
    constants = [numpy_helper.from_array(array, name) for name, array in parts.items() if array is not None]
    names = [name if array is not None else "" for name, array in parts.items()]
    node = helper.make_node(
        "MatMulNBits",
        ["x", *names],
        ["y"],
        name="product",
        domain="com.microsoft",
        K=K,
        N=N,
        bits=4,
        block_size=group,
        accuracy_level=1,
    )
    model = _model([node], constants, TensorProto.FLOAT, domains=("", "com.microsoft"))
    model.ir_version = 10
    x = _x(5, K, dtype=np.float32)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    before = session.run(None, {"x": x})[0]
    replace(model, "product")
    assert [one.op_type for one in model.graph.node] == [
        "Cast",
        "w4a16_gemv_zeros" if zeros else "w4a16_gemv_bias",
        "Cast",
    ]
    words = next(tensor for tensor in model.graph.initializer if tensor.name == "product.words")
    assert np.array_equal(numpy_helper.to_array(words), matrix.codes)  # the very integers
    assert len(model.graph.initializer) == 3
    after = _run(model, x)
    assert np.abs(before).max() > 1
    assert np.allclose(after, before, atol=1e-2, rtol=5e-3)


def test_a_constant_that_others_read_stays():
    matrix = _matrix(rows=K)
    model = _two_layers(matrix.dequantized(), TensorProto.FLOAT)
    model.graph.node.insert(1, helper.make_node("MatMul", ["h", "W"], ["other"], name="other"))
    model.graph.node[2].input[0] = "other"
    x = _x(3, K, dtype=np.float32)
    before = ReferenceEvaluator(model).run(None, {"x": x})[0]
    replace(model, "product", matrix)
    assert "W" in {tensor.name for tensor in model.graph.initializer}
    assert np.allclose(_run(model, x), before, atol=0.1, rtol=1e-2)
    replace(model, "other", matrix)
    assert "W" not in {tensor.name for tensor in model.graph.initializer}
    assert np.allclose(_run(model, x), before, atol=0.1, rtol=1e-2)
    assert [opset.domain for opset in model.opset_import].count("soloist") == 1


def test_what_the_plugin_cannot_stand_for_is_said():
    matrix, model = _matrix(), _two_layers(_matrix().dequantized(), TensorProto.FLOAT)
    for name, given, error, says in (
        ("nothing", matrix, UsageError, "no node 'nothing'"),
        ("add", matrix, UsageError, "add is a Add"),
        ("product", None, UsageError, "say which matrix"),
        ("product", _matrix(seed=5), ArtifactError, "its constant is not the matrix"),
    ):
        with pytest.raises(error, match=says):
            replace(model, name, given)
    with pytest.raises(UsageError, match="activations in float32"):
        replace(model, "product", matrix, activations="float32")
    model.graph.node[1].input[1] = "x"
    with pytest.raises(ArtifactError, match="right operand is no constant"):
        replace(model, "product", matrix)
    bits = {"K": K, "N": N, "bits": 8, "block_size": 32}
    eight = helper.make_node("MatMulNBits", ["x", "B", "s"], ["y"], name="eight", domain="com.microsoft", **bits)
    model.graph.node.append(eight)
    with pytest.raises(ArtifactError, match="eight: the plugin takes 4 bits"):
        replace(model, "eight")
    model.graph.node[-1].attribute[2].i = 4
    with pytest.raises(ArtifactError, match="eight: B, s are no constants"):
        replace(model, "eight")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"up": _matrix(seed=1), "bias": np.zeros(N)}, "bias and gated: the kernels are built with one of"),
        ({"up": _matrix(zeros=True)}, "zeros and gated"),
        ({"up": _matrix(64)}, "gate and up must agree"),
        ({"bias": np.zeros(N + 1)}, "there are 43 outputs"),
        ({"matrix": Matrix(np.zeros((N, K), np.int8), np.ones((N, 3), np.float16), 32)}, "have 8 bits"),
        ({"matrix": _matrix(16)}, "groups of 16 columns"),
    ],
)
def test_matrices_without_a_kernel_are_refused(change, says):
    given = {"matrix": _matrix(), **change}
    with pytest.raises((UsageError, ArtifactError), match=says):
        gemv_node(given.pop("matrix"), "x", "y", "layer", **given)


def test_every_product_of_4_bit_blocks_is_replaced_and_no_other():
    tame = np.float16(0.2)  # five products one after the other stay within float16
    made = {name: _matrix(rows=96, seed=at) for at, name in enumerate(("first", "shared", "odd"))}
    matrices = {name: Matrix(matrix.codes, matrix.scales * tame, 32) for name, matrix in made.items()}
    codes = np.random.default_rng(4).integers(-9, 10, (96, 96)).astype(np.int8)
    eight = Matrix(codes, matrices["odd"].scales, 32)
    constants, nodes, x = [], [], "x"
    for name, matrix in (*matrices.items(), ("eight", eight), ("shared", None)):
        if matrix is not None:
            tensors, node = dequantize_linear(matrix, name, dtype="float16")
            constants += tensors
            nodes.append(node)
            if name == "first":  # its scales behind a Cast, as in a portable graph
                nodes.insert(0, helper.make_node("Cast", [node.input[1]], ["scales"], to=TensorProto.FLOAT16))
                node.input[1] = "scales"
        y = "y" if len(nodes) == 4 and matrix is None else f"{name}.{len(nodes)}"
        nodes.append(helper.make_node("MatMul", [x, name], [y], name=y))
        x = y
    nodes[-1].output[0] = "y"
    nodes.append(helper.make_node("Transpose", ["odd"], ["seen"]))  # these blocks are read by something else, too
    model = _model(nodes, constants)
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT16, [None, None]))
    wanted = ReferenceEvaluator(model).run(None, {"x": _x(5, 96)})[0]
    assert replace_all(model) == 4
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("w4a16_gemv") == 4
    assert kinds.count("DequantizeLinear") == 2
    assert kinds.count("MatMul") == 1
    assert "Cast" not in kinds
    names = {tensor.name for tensor in model.graph.initializer}
    assert {name for name in names if name.endswith(".codes")} == {"odd.codes", "eight.codes"}
    np.testing.assert_allclose(_run(model, _x(5, 96)), wanted, rtol=2e-2, atol=np.abs(wanted).max() * 5e-3)
    assert replace_all(model) == 0
    assert groups_of(model) == {32}
    restore_all(model)
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("MatMul"), kinds.count("DequantizeLinear"), "w4a16_gemv" in kinds) == (5, 6, False)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert not groups_of(model)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": _x(5, 96)})[0], wanted)
