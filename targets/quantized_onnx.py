"""Quantized student -> an onnxruntime-genai folder that carries our integers.

The builder writes the graph in fp32 (fp16 for CUDA) from the dequantized weights; then every MatMul whose weight we
have becomes a MatMulNBits with our codes and scales, and the embedding a GatherBlockQuantized, sharing the head's codes
where the two are tied. Each float weight is compared with ours before it is thrown away, so a graph whose names mean
something else is refused and not filled with wrong numbers. Letting the builder quantize and patching its result would
tie us to its spelling of each option; its float graph is the same for all of them. Left out: students whose fp32
weights do not fit in memory.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.base import named, require
from soloist.targets.files import whole_folder
from soloist.targets.quantized import Quantization, read_quantized, write_dequantized
from soloist.targets.repack import Matrix, stack, to_matmul_nbits

_FILE, _DATA = "model.onnx", "model.onnx.data"
_QKV = re.compile(r"\.[qkv]_proj\.")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# activations of a product in int8, four times faster on a CPU (1 keeps them in fp32); CUDA has its own way
ACCURACY_LEVEL = {"cpu": 4, "cuda": 0}


def compile_quantized(
    student: Path,
    out: Path,
    precision: str | None,
    build: Callable[[Path, Path, Mapping[str, str]], None],
    *,
    accuracy_level: int,
) -> dict[str, Any]:
    """Write the model folder `out`; `build(student, folder, options)` writes the builder's float package.

    Every product has the bits of its own matrix. A `precision` is what the caller takes the layers for.

    Raises:
        ArtifactError: another precision than the student has, or a graph that is not understood.
    """
    content = read_quantized(student)
    if precision not in (None, f"int{content.bits}"):
        raise ArtifactError(f"{student}: holds {content.bits}-bit layers; export it as onnx")
    options = {"shared_embeddings": "false", "disable_qkv_fusion": str(not _qkv_alike(content)).lower()}
    with whole_folder(out) as package, tempfile.TemporaryDirectory(dir=package.parent) as floats:
        write_dequantized(student, Path(floats))
        build(Path(floats), package, options)
        counts = put_integers(package, content, accuracy_level)
    options = {"accuracy_level": str(accuracy_level)}
    return {"file": out.name, "precision": f"int{content.bits}", "options": options, "nodes": counts}


def _qkv_alike(content: Quantization) -> bool:
    """Whether query, key and value of every layer can be one matrix."""
    for name in content.matrices:
        if _QKV.search(name):
            try:
                stack([content.matrices[_QKV.sub(f".{part}_proj.", name)] for part in "qkv"])
            except (KeyError, UsageError):
                return False
    return True


@dataclass
class _Graph:
    """A graph under change: its float weights, and what is put in their place."""

    onnx: Any
    floats: dict[str, Any]
    level: int
    added: dict[str, Any] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def add(self, name: str, array: Any) -> str:
        if name not in self.added:
            self.added[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def checked(self, node: Any, name: str, matrix: Matrix, transposed: bool) -> np.dtype[Any]:
        """Refuse a float weight that is not the matrix we are about to put there; returns the type of its numbers."""
        weight: npt.NDArray[Any] = self.onnx.numpy_helper.to_array(self.floats[name])
        ours = matrix.dequantized().astype(weight.dtype)
        if not np.array_equal(weight, ours.T if transposed else ours):
            raise ArtifactError(f"ONNX node {node.name}: its weight is not the student's; the builder has changed")
        self.gone.add(name)
        return weight.dtype


def put_integers(folder: Path, content: Quantization, accuracy_level: int) -> dict[str, int]:
    """Change the float package in `folder`; returns how many nodes of each kind were made.

    Raises:
        ArtifactError: a matrix that has no node, or a node whose weight is another.
    """
    onnx = require("onnx", "compile")
    model = onnx.load(str(folder / _FILE))
    graph = _Graph(onnx, named(model.graph.initializer), accuracy_level)
    left = set(content.matrices)
    nodes: list[Any] = []
    for node in model.graph.node:
        weight = {"MatMul": node.input[1:2], "Gather": node.input[:1]}.get(node.op_type)
        names = _names(node, content) if weight and weight[0] in graph.floats else []
        left -= set(names)
        if not names:
            nodes.append(node)
        elif node.op_type == "MatMul":
            nodes.append(_matmul(graph, node, names, content))
        else:
            nodes += _gather(graph, node, names[0], content)
    if left:
        raise ArtifactError(f"{folder}: the graph has no node for {sorted(left)[0]}; the builder has changed")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [tensor for name, tensor in graph.floats.items() if name not in graph.gone]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *graph.added.values()])
    for name in (_FILE, _DATA):
        (folder / name).unlink(missing_ok=True)
    onnx.save_model(
        model,
        str(folder / _FILE),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=_DATA,
        size_threshold=1024,
    )
    made = Counter(node.op_type for node in nodes)
    return {"MatMulNBits": made["MatMulNBits"], "GatherBlockQuantized": made["GatherBlockQuantized"]}


def _names(node: Any, content: Quantization) -> list[str]:
    """The student's tensors whose rows, one below the other, are this node's weight; empty if we have them not."""
    path = node.name.strip("/").split("/")
    if path[0] == "lm_head":
        names = [_HEAD if _HEAD in content.matrices else _EMBEDDING]
    elif path[1:2] == ["embed_tokens"]:
        names = [_EMBEDDING]
    elif len(path) == 5 and path[2] in ("attn", "mlp"):
        part = {"attn": "self_attn", "mlp": "mlp"}[path[2]]
        projections = ["q_proj", "k_proj", "v_proj"] if path[3] == "qkv_proj" else [path[3]]
        names = [f"model.{path[1]}.{part}.{projection}.weight" for projection in projections]
    else:
        return []
    return names if set(names) <= set(content.matrices) else []


def _put(graph: _Graph, name: str, matrix: Matrix, numbers: np.dtype[Any]) -> list[str]:
    """The constant inputs of a matrix, added once; `numbers` are those the graph computes with."""
    inputs = to_matmul_nbits(matrix)
    scales = inputs.scales.astype(numbers)  # of fp16 value, so nothing is lost
    constants = [graph.add(f"{name}.codes", inputs.weight), graph.add(f"{name}.scales", scales)]
    return constants if inputs.zeros is None else [*constants, graph.add(f"{name}.zeros", inputs.zeros)]


def _matmul(graph: _Graph, node: Any, names: list[str], content: Quantization) -> Any:
    matrix = stack([content.matrices[name] for name in names])
    numbers = graph.checked(node, node.input[1], matrix, transposed=True)
    name = names[0].removesuffix(".weight").replace(".q_proj", ".qkv_proj" if len(names) > 1 else ".q_proj")
    rows, columns = matrix.shape
    return graph.onnx.helper.make_node(
        "MatMulNBits",
        [node.input[0], *_put(graph, name, matrix, numbers)],
        list(node.output),
        name=f"{node.name}_Q{matrix.stored_bits}",
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=matrix.stored_bits,
        block_size=matrix.group,
        accuracy_level=graph.level,
    )


def _gather(graph: _Graph, node: Any, tensor: str, content: Quantization) -> list[Any]:
    """Rows of the embedding; the codes are the head's, seen as a table, where there is one matrix for both."""
    matrix = content.matrices[tensor]
    numbers = graph.checked(node, node.input[0], matrix, transposed=False)
    rows, columns = matrix.shape
    name = tensor.removesuffix(".weight")
    if columns % matrix.group:
        raise ArtifactError(
            f"the embedding's rows of {columns} do not divide into groups of {matrix.group}; quantize in groups of 32"
        )
    codes, *rest = _put(graph, name, matrix, numbers)
    shape = graph.add(f"{name}.table_shape", np.array([rows, columns * matrix.stored_bits // 8], np.int64))
    table = f"{name}.table"
    make = graph.onnx.helper.make_node
    return [
        make("Reshape", [codes, shape], [table], name=f"{node.name}/Reshape"),
        make(
            "GatherBlockQuantized",
            [table, node.input[1], *rest],
            list(node.output),
            name=f"{node.name}_Q{matrix.stored_bits}",
            domain="com.microsoft",
            bits=matrix.stored_bits,
            block_size=matrix.group,
            gather_axis=0,
            quantize_axis=1,
        ),
    ]
