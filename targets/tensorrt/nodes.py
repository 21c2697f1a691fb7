"""ONNX nodes that TensorRT's parser turns into the plugins of `plugin`, with our integers as they are.

    y = w4a16_gemv(x, words, scales)     domain soloist; group=[G], plugin_namespace="soloist", plugin_version="1"

The parser looks a plugin up by the node's type, `plugin_namespace` and `plugin_version`; the domain is for everyone
else. Weights are initializers: int32 words, float16 scales, int8 zero points (UINT8 would become INT32 there, and the
codes 0 .. 15 are the same bytes). `group` is a list of one, see `plugin`. `replace` puts such a node where a
MatMul or a MatMulNBits stood, between casts where the graph computes in float32; `replace_all` where a float16 MatMul
stood behind the DequantizeLinear of 4-bit blocks, as in a portable graph. Left out: Gemm, and quantized embeddings,
which are gathers and not products. ONNX Runtime has no such operator: a graph with it is for TensorRT. `restore_all`
puts standard operators back, made of what the nodes hold, so that such a graph can be run without TensorRT.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.base import named, require
from soloist.targets.repack import BLOCK, BlockDQ, Matrix, NBits, dequantize_linear, from_block_dq, from_matmul_nbits
from soloist.targets.tensorrt.builds import NAMESPACE, plugin_name

VERSION = "1"  # what tensorrt.plugin registers


def gemv_node(
    matrix: Matrix,
    x: str,
    y: str,
    name: str,
    *,
    up: Matrix | None = None,
    bias: npt.NDArray[Any] | None = None,
    activations: str = "float16",
) -> tuple[list[Any], Any]:
    """Initializers (`name`.words, `name`.scales …) and the node y = x W^T.

    Args:
        matrix: W (N, K), 4 bit.
        up: the second matrix of a gated layer; y = silu(x W^T) * (x Up^T).
        bias: (N,), added.
        activations: `float16` or `bfloat16`, the type of x, y and bias.

    Raises:
        UsageError, ArtifactError: what there is no kernel for.
    """
    onnx = require("onnx", "compile")
    extra = _extra(matrix, up, bias)
    constants = [_constant(onnx, f"{name}.words", matrix.codes), _constant(onnx, f"{name}.scales", matrix.scales)]
    if matrix.zeros is not None:
        constants.append(_constant(onnx, f"{name}.zeros", matrix.zeros.view(np.int8)))
    if up is not None:
        constants += [_constant(onnx, f"{name}.up_words", up.codes), _constant(onnx, f"{name}.up_scales", up.scales)]
    if bias is not None:
        kind = _kind(onnx, activations)
        constants.append(onnx.helper.make_tensor(f"{name}.bias", kind, bias.shape, bias.astype(np.float32).tolist()))
    node = onnx.helper.make_node(
        plugin_name(extra),
        [x, *named(constants)],
        [y],
        name=name,
        domain=NAMESPACE,
        group=[matrix.group],
        plugin_namespace=NAMESPACE,
        plugin_version=VERSION,
    )
    return constants, node


def _extra(matrix: Matrix, up: Matrix | None, bias: npt.NDArray[Any] | None) -> str:
    """Which plugin it takes."""
    if matrix.bits != 4:
        raise ArtifactError(f"the plugin multiplies by 4-bit codes, and these have {matrix.bits} bits")
    if matrix.group % BLOCK:
        raise ArtifactError(f"groups of {matrix.group} columns: the kernels take blocks of {BLOCK}")
    if up is not None and (up.shape, up.group, up.bits) != (matrix.shape, matrix.group, matrix.bits):
        raise UsageError("gate and up must agree in shape, group size and bits")
    if bias is not None and bias.shape != matrix.shape[:1]:
        raise UsageError(f"the bias is {bias.shape}, and there are {matrix.shape[0]} outputs")
    extras = []
    if matrix.zeros is not None or (up is not None and up.zeros is not None):
        extras.append("zeros")
    if bias is not None:
        extras.append("bias")
    if up is not None:
        extras.append("gated")
    if len(extras) > 1:
        raise UsageError(f"{' and '.join(extras)}: the kernels are built with one of zeros, bias and gated at a time")
    return "".join(extras)


def _constant(onnx: Any, name: str, values: npt.NDArray[Any]) -> Any:
    return onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)


def _kind(onnx: Any, activations: str) -> int:
    if activations not in ("float16", "bfloat16"):
        raise UsageError(f"activations in {activations}: the kernels compute in float16 or bfloat16")
    return int(getattr(onnx.TensorProto, activations.upper()))


def replace(model: Any, node_name: str, matrix: Matrix | None = None, *, activations: str = "float16") -> None:
    """Put the plugin in the place of a node of `model`, which is changed.

    Args:
        node_name: a MatMul by a constant, or a MatMulNBits of 4 bits.
        matrix: W (N, K) of the MatMul, compared with the constant (K, N); a MatMulNBits carries its own.
        activations: `float16` or `bfloat16`; cast to and from where the graph has another type.

    Raises:
        UsageError, ArtifactError: no such node, or one that the plugin cannot stand for.
    """
    onnx = require("onnx", "compile")
    kind = _kind(onnx, activations)
    graph = model.graph
    names = [node.name for node in graph.node]
    if node_name not in names:
        raise UsageError(f"no node '{node_name}' in this graph")
    place = names.index(node_name)
    node, constants = graph.node[place], named(graph.initializer)
    if node.op_type == "MatMulNBits":
        weight, bias, inside = _of_nbits(onnx, node, constants)
    elif node.op_type == "MatMul":
        weight, bias, inside = _of_matmul(onnx, node, constants, matrix)
    else:
        raise UsageError(f"{node_name} is a {node.op_type}; the plugin stands for MatMul and MatMulNBits")
    x, y = node.input[0], node.output[0]
    inner_x, inner_y = (x, y) if inside == kind else (f"{node_name}.x", f"{node_name}.y")
    added, new = gemv_node(weight, inner_x, inner_y, node_name, bias=bias, activations=activations)
    nodes = [new]
    if inside != kind:
        cast = onnx.helper.make_node
        nodes = [cast("Cast", [x], [inner_x], to=kind), new, cast("Cast", [inner_y], [y], to=inside)]
    _set_nodes(graph, [*graph.node[:place], *nodes, *graph.node[place + 1 :]], added, drop=set(node.input))
    if all(opset.domain != NAMESPACE for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(NAMESPACE, 1))


def _used(graph: Any, nodes: list[Any]) -> set[str]:
    """Names that nodes or the graph's outputs read."""
    names = set(named(graph.output))
    for node in nodes:
        names.update(node.input)
    return names


def _set_nodes(graph: Any, nodes: list[Any], added: list[Any], drop: Set[str]) -> None:
    """Give a graph these nodes and constants. Of `drop`, the constants that nothing reads any more go."""
    gone = drop - _used(graph, nodes)
    kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *added])


def replace_all(model: Any) -> int:
    """Put the plugin in the place of every MatMul by 4-bit blocks in `model`; how many there were.

    Constants must be loaded. What has other bits, or another type than float16, stays as it is.
    """
    onnx = require("onnx", "compile")
    graph = model.graph
    constants = named(graph.initializer)
    blocks, casts = {}, {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            blocks[node.output[0]] = node
        elif node.op_type == "Cast":
            casts[node.output[0]] = node.input[0]
    nodes, added, count = [], [], 0
    for node in graph.node:
        dequantized = blocks.get(node.input[1]) if node.op_type == "MatMul" else None
        matrix = None if dequantized is None else _of_blocks(onnx, dequantized, constants, casts)
        if matrix is None:
            nodes.append(node)
            continue
        tensors, new = gemv_node(matrix, node.input[0], node.output[0], node.name)
        nodes.append(new)
        added += tensors
        count += 1
    for kind in ("DequantizeLinear", "Cast"):  # a Cast gives a DequantizeLinear its scales
        used = _used(graph, nodes)
        nodes = [node for node in nodes if node.op_type != kind or node.output[0] in used]
    _set_nodes(graph, nodes, added, drop=constants.keys())
    if count:
        model.opset_import.append(onnx.helper.make_opsetid(NAMESPACE, 1))
    return count


def groups_of(model: Any) -> set[int]:
    """Columns in a group, of every node of `replace_all`."""
    return {_group(node) for node in model.graph.node if _is_ours(node)}


def _is_ours(node: Any) -> bool:
    return (node.domain, node.op_type) == (NAMESPACE, plugin_name(""))


def _group(node: Any) -> int:
    (group,) = _attributes(node)["group"]
    return int(group)


def _attributes(node: Any) -> dict[str, Any]:
    read = require("onnx", "compile").helper.get_attribute_value
    return {attribute.name: read(attribute) for attribute in node.attribute}


def restore_all(model: Any) -> None:
    """Put DequantizeLinear and MatMul in the place of every node of `replace_all`."""
    onnx = require("onnx", "compile")
    graph = model.graph
    constants = named(graph.initializer)
    nodes: list[Any] = []
    added: list[Any] = []
    for node in graph.node:
        if not _is_ours(node):
            nodes.append(node)
            continue
        x, words, scales = node.input
        to_array, weight = onnx.numpy_helper.to_array, f"{node.name}.weight"
        matrix = Matrix(to_array(constants[words]), to_array(constants[scales]), _group(node))
        tensors, blocks = dequantize_linear(matrix, weight, dtype="float16")
        nodes += [blocks, onnx.helper.make_node("MatMul", [x, weight], [node.output[0]], name=node.name)]
        added += tensors
    _set_nodes(graph, nodes, added, drop=constants.keys())
    for opset in list(model.opset_import):
        if opset.domain == NAMESPACE:
            model.opset_import.remove(opset)


def _of_blocks(onnx: Any, node: Any, constants: dict[str, Any], casts: dict[str, str]) -> Matrix | None:
    """The matrix of a DequantizeLinear for the right operand of a MatMul; None where the plugin does not take it."""
    attributes = _attributes(node)
    codes, scales = constants.get(node.input[0]), constants.get(casts.get(node.input[1], node.input[1]))
    float16 = scales is not None and scales.data_type == onnx.TensorProto.FLOAT16
    if codes is None or codes.data_type != onnx.TensorProto.INT4 or not float16 or attributes.get("axis") != 0:
        return None
    (columns, rows), group = codes.dims, attributes.get("block_size", 0)
    if len(node.input) > 2 or not group or columns % BLOCK or group % BLOCK:
        return None
    data = np.frombuffer(codes.raw_data, np.uint8)
    shape = (int(columns), int(rows))
    return from_block_dq(BlockDQ(data, shape, onnx.numpy_helper.to_array(scales), 0, int(group), 4))


def _of_matmul(onnx: Any, node: Any, constants: dict[str, Any], matrix: Matrix | None) -> tuple[Matrix, None, int]:
    """The matrix of a MatMul whose constant it is, and the graph's type."""
    if matrix is None:
        raise UsageError(f"{node.name} is a MatMul: say which matrix it multiplies by")
    if node.input[1] not in constants:
        raise ArtifactError(f"{node.name}: its right operand is no constant")
    tensor = constants[node.input[1]]
    weight = onnx.numpy_helper.to_array(tensor)
    if not np.array_equal(weight, matrix.dequantized().T.astype(weight.dtype)):
        raise ArtifactError(f"{node.name}: its constant is not the matrix")
    return matrix, None, int(tensor.data_type)


def _of_nbits(onnx: Any, node: Any, constants: dict[str, Any]) -> tuple[Matrix, npt.NDArray[Any] | None, int]:
    """Matrix and bias of a MatMulNBits, and the graph's type."""
    attributes = _attributes(node)
    names = dict(zip(("x", "weight", "scales", "zeros", "order", "bias"), node.input, strict=False))
    if attributes.get("bits", 4) != 4 or names.get("order"):
        raise ArtifactError(f"{node.name}: the plugin takes 4 bits, and groups in the order of the columns")
    parts = [part for part in ("weight", "scales", "zeros", "bias") if names.get(part)]
    if missing := [names[part] for part in parts if names[part] not in constants]:
        raise ArtifactError(f"{node.name}: {', '.join(missing)} are no constants")
    arrays = {part: onnx.numpy_helper.to_array(constants[names[part]]) for part in parts}
    rows, columns, group = attributes["N"], attributes["K"], attributes["block_size"]
    if columns % BLOCK:
        raise ArtifactError(f"{node.name}: {columns} columns, and the layout has blocks of {BLOCK}")
    weight = arrays["weight"].reshape(rows, -1, group // 2)
    zeros = arrays.get("zeros")
    if zeros is not None and zeros.dtype != np.uint8:
        raise ArtifactError(f"{node.name}: zero points of type {zeros.dtype} are no codes")
    matrix = from_matmul_nbits(NBits(weight, arrays["scales"], zeros), 4, columns)
    return matrix, arrays.get("bias"), int(constants[names["scales"]].data_type)
