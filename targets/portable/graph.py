"""The graph that torch's exporter made: its names and shapes set right, written, and walked.

The exporter leaves names of its own for dimensions ("s15 + s70") and the stack of the machine it ran on in every node;
both go. `check_portable` reads the written file: a graph is portable if it has nothing that ONNX Runtime or TensorRT
knows only in one version: standard operators, no branches or loops, no shape that depends on values, no float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import first_line, named, require
from soloist.targets.portable.facts import DATA, GRAPH, Shapes, cache_names

OPSET = 21  # the first with INT4 and with DequantizeLinear in blocks
IR_VERSION = 10  # of opset 21; TensorRT 10.3 reads no newer file
LEAD = 16  # int32 words by which a constant over another's bytes begins before it; TensorRT knows weights by address
_WORD = 4  # bytes
_INLINE = 1024  # smaller constants stay in model.onnx, where shapes must be known before the weights are read
_VALUE_DEPENDENT = frozenset(
    {
        "If",
        "Loop",
        "Scan",
        "NonZero",
        "Unique",
        "Compress",
        "NonMaxSuppression",
        "TopK",
        "RandomNormal",
        "RandomUniform",
        "Bernoulli",
        "Multinomial",
        "SequenceAt",
        "SequenceConstruct",
        "ConcatFromSequence",
        "Optional",
    }
)
_SHAPE_INPUTS = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
    "Unsqueeze": (1,),
    "Squeeze": (1,),
    "ReduceMean": (1,),
    "Split": (1,),
    "Pad": (1,),
    "Resize": (2, 3),
}


def tidy(model: Any, shapes: Shapes) -> None:
    """Weights named as in the Hugging Face folder, dimensions named, nothing of the exporting machine left."""
    graph = model.graph
    for name in list(graph.initializers):
        value = graph.initializers.pop(name)
        value.name = name.removeprefix("student.")
        graph.initializers.add(value)
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.shape = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    _name_dimensions(graph, shapes)
    graph.name, graph.doc_string = shapes.family, None
    graph.metadata_props.clear()
    model.metadata_props.clear()
    model.producer_name, model.producer_version, model.doc_string = "soloist", None, None
    model.ir_version = IR_VERSION


def _name_dimensions(graph: Any, shapes: Shapes) -> None:
    ir = require("onnx_ir", "compile")
    known: dict[str, list[str | int]] = {
        "input_ids": ["batch", "sequence"],
        "position_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "total"],
        "logits": ["batch", "sequence", shapes.vocabulary],
    }
    for prefix, length in (("past_key_values", "past"), ("present", "total")):
        for name in cache_names(shapes.layers, prefix):
            known[name] = ["batch", shapes.kv_heads, length, shapes.head_dim]
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(known[value.name])


def save(model: Any, folder: Path, same_bytes: Mapping[str, str]) -> None:
    """Write graph and weights into `folder`.

    Args:
        same_bytes: int32 constants the graph uses, by name, and the initializer whose bytes they are, after LEAD words
            of whatever lies before: the file holds those bytes once, and both tensors point at them.

    Raises:
        ArtifactError: nothing lies before.
    """
    ir, onnx = require("onnx_ir", "compile"), require("onnx", "compile")
    ir.save(model, str(folder / GRAPH), external_data=DATA, size_threshold_bytes=_INLINE)
    if not same_bytes:
        return
    proto = onnx.load(str(folder / GRAPH), load_external_data=False)
    tensors = named(proto.graph.initializer)
    for name, source in same_bytes.items():
        location = {entry.key: entry.value for entry in tensors[source].external_data}
        start, length = int(location.get("offset", 0)) - LEAD * _WORD, int(location.get("length", 0)) + LEAD * _WORD
        if start < 0 or length % _WORD:
            raise ArtifactError(f"'{source}' cannot be read as words (offset {start + LEAD * _WORD} of {DATA})")
        words = proto.graph.initializer.add()
        words.name, words.data_type = name, onnx.TensorProto.INT32
        words.data_location = onnx.TensorProto.EXTERNAL
        words.dims.append(length // _WORD)
        for key, value in (("location", DATA), ("offset", start), ("length", length)):
            words.external_data.add(key=key, value=str(value))
    (folder / GRAPH).write_bytes(proto.SerializeToString())


def check_portable(file: Path) -> dict[str, int]:
    """How often each operator stands in a graph file. Raises ArtifactError for a graph that is not portable."""
    onnx = require("onnx", "compile")
    try:
        onnx.checker.check_model(str(file), full_check=False)
        proto = onnx.load(str(file), load_external_data=False)
        typed = onnx.shape_inference.infer_shapes(proto)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, OSError) as error:
        raise ArtifactError(f"{file}: not a valid ONNX graph ({first_line(error)})") from error
    faults = [*_foreign_operators(proto), *_float64(typed.graph, onnx.TensorProto.DOUBLE), *_shapes(proto)]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ArtifactError(f"{file}: not portable: {faults[0]}{more}")
    return dict(sorted(Counter(node.op_type for node in proto.graph.node).items()))


def _foreign_operators(proto: Any) -> list[str]:
    faults = []
    for entry in proto.opset_import:
        if entry.domain not in ("", "ai.onnx") or entry.version < OPSET:
            faults.append(f"operator set '{entry.domain}' {entry.version}")
    for function in proto.functions:
        faults.append(f"function {function.name}")
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx"):
            faults.append(f"node {node.name} is {node.domain}:{node.op_type}")
        elif node.op_type in _VALUE_DEPENDENT:
            faults.append(f"node {node.name} is {node.op_type}")
    return faults


def _float64(graph: Any, double: int) -> list[str]:
    names = [tensor.name for tensor in graph.initializer if tensor.data_type == double]
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == double:
            names.append(value.name)
    return [f"'{name}' is float64" for name in names]


def _shapes(proto: Any) -> list[str]:
    """Nodes whose output's shape follows from values of an input and not from its shape."""
    from_values = set(named(proto.graph.input))
    faults = []
    for node in proto.graph.node:  # in topological order
        for at in _SHAPE_INPUTS.get(node.op_type, ()):
            if at < len(node.input) and node.input[at] in from_values:
                faults.append(f"the shape of {node.op_type} {node.name} depends on values of '{node.input[at]}'")
        if node.op_type not in ("Shape", "Size") and from_values.intersection(node.input):
            from_values.update(node.output)
    return faults
