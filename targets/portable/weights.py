"""Our integers in place of a graph's float weights: block-wise DequantizeLinear, INT4 or INT8, symmetric.

    layer            codes (K, N) INT4 | INT8, scales (K / G, N) -> DequantizeLinear(axis 0) -> MatMul
    embedding        the row of a token is read out of the codes as they lie in the file, four (INT8) or eight (INT4)
                     of them in an int32 word, taken apart by integer arithmetic and multiplied by its scales

ONNX Runtime fuses the first into MatMulNBits; TensorRT keeps the integers in the engine. The second exists because
neither can look up a row otherwise: TensorRT takes an INT8 constant only directly before a DequantizeLinear, ONNX has
no Gather of INT4, and a DequantizeLinear of the whole table would be computed for every token. Where the head is the
embedding, the words *are* the head's codes: two constants over the same bytes of the file (`graph.save`), the
words beginning a little earlier, since TensorRT refuses two constants of different lengths at one address.

Every float weight is compared with ours before it goes, so a graph that means something else is refused. A last group
that is short (576 columns in groups of 128) is refused by TensorRT: the groups are split until they divide, with the
same scales. Scales are float16 in the file, as in every format of ours; a float32 graph casts them. TensorRT's parser
refuses constant scales that are not above 0, and four in ten groups of 4 bits have one below: INT8 takes the signs
into its codes; INT4, which has no code 8, hides them behind a Cast. Left out: zero points, which TensorRT does not read
at all.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require
from soloist.targets.portable.graph import LEAD
from soloist.targets.quantized import Quantization
from soloist.targets.repack import Matrix, to_block_dq

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_WORD = 32


@dataclass
class Integers:
    """What `put_integers` did: matrices by their bits, and int32 constants that are another tensor's bytes."""

    bits: Counter[str] = field(default_factory=Counter)
    same_bytes: dict[str, str] = field(default_factory=dict)


def put_integers(model: Any, content: Quantization, dtype: str) -> Integers:
    """Change a graph whose weights are the dequantized ones.

    Raises:
        ArtifactError: a matrix that has no weight in the graph, a weight that is another, or zero points.
    """
    graph = _Graph(model.graph, dtype)
    done = Integers()
    tied = bool(content.plan["tied"]) and HEAD not in content.matrices
    for name, matrix in sorted(content.matrices.items(), key=lambda entry: entry[0] == EMBEDDING):  # last: see LEAD
        done.bits[str(matrix.bits)] += 1
        matrix = positive(matrix)  # noqa: PLW2901
        if name != EMBEDDING:
            graph.layer(name, matrix)
            continue
        codes = graph.layer(HEAD, matrix, EMBEDDING) if tied else None
        words = graph.embedding(matrix, stored=codes is not None)
        if codes is not None:
            done.same_bytes[words] = codes
    return done


def positive(matrix: Matrix) -> Matrix:
    """The same values by scales above 0, where codes in int8 can say them."""
    if matrix.bits == 4 or (matrix.scales > 0).all() or (matrix.codes == -128).any():
        return matrix
    signs = np.repeat(np.sign(matrix.scales).astype(np.int8), matrix.group, axis=1)[:, : matrix.shape[1]]
    scales = np.where(matrix.scales == 0, np.float16(1), np.abs(matrix.scales))
    return replace(matrix, codes=matrix.codes * signs, scales=scales, narrow=None)


def whole_groups(matrix: Matrix) -> Matrix:
    """The same values in groups that divide the columns."""
    columns = matrix.shape[1]
    group = math.gcd(columns, matrix.group)
    if group == matrix.group:
        return matrix
    scales = np.repeat(matrix.scales, matrix.group // group, axis=1)[:, : columns // group]
    return replace(matrix, scales=np.ascontiguousarray(scales), group=group)


class _Graph:
    """An onnx_ir graph under change."""

    def __init__(self, graph: Any, dtype: str) -> None:
        self.ir, self.onnx = require("onnx_ir", "compile"), require("onnx", "compile")
        self.graph = graph
        self.dtype = np.dtype(dtype)
        self.onnx_dtype = int(self.ir.DataType.from_numpy(self.dtype))

    def constant(self, name: str, array: npt.NDArray[Any]) -> Any:
        """An initializer; an array of the same name is there already or is added."""
        return self._add(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))

    def _add(self, tensor: Any) -> Any:
        if tensor.name not in self.graph.initializers:
            content = self.ir.from_proto(tensor)
            value = self.ir.Value(
                name=tensor.name, type=self.ir.TensorType(content.dtype), shape=content.shape, const_value=content
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[tensor.name]

    def weight(self, name: str, matrix: Matrix, transposed: bool) -> Any:
        """The float weight of a name, checked."""
        value = self.graph.initializers.get(name)
        if value is None:
            raise ArtifactError(f"the graph has no weight '{name}'; the exporter has changed")
        ours = matrix.dequantized().astype(self.dtype)
        if not np.array_equal(value.const_value.numpy(), ours.T if transposed else ours):
            raise ArtifactError(f"the weight '{name}' of the graph is not the student's; the exporter has changed")
        return value

    def layer(self, name: str, matrix: Matrix, stored_as: str | None = None) -> str:
        """DequantizeLinear for the right operand (K, N) of a MatMul; the name of its codes."""
        value = self.weight(name, matrix, transposed=True)
        stem = (stored_as or name).removesuffix(".weight")
        tensor = to_block_dq(whole_groups(matrix), axis=0)
        kind = self.onnx.TensorProto.INT4 if tensor.bits == 4 else self.onnx.TensorProto.INT8
        codes = self._add(
            self.onnx.helper.make_tensor(f"{stem}.codes", kind, tensor.shape, tensor.data.tobytes(), raw=True)
        )
        scales = self.constant(f"{stem}.scales", tensor.scales)
        nodes = _Nodes(self.ir, name.removesuffix(".weight"))
        if self.dtype != np.float16 or not (tensor.scales > 0).all():
            scales = nodes.add("Cast", [scales], to=self.onnx_dtype)
        out = nodes.add("DequantizeLinear", [codes, scales], axis=0, block_size=tensor.block_size)
        self.graph.insert_before(next(iter(value.consumers())), nodes.made)
        self.swap(value, out)
        return str(codes.name)

    def swap(self, value: Any, out: Any) -> None:
        """Let `out` stand where the initializer `value` stood."""
        value.replace_all_uses_with(out)
        self.graph.initializers.pop(value.name)

    def embedding(self, matrix: Matrix, *, stored: bool) -> str:
        """Rows looked up in words of codes; the name of the words, which are not added where they are `stored`."""
        value = self.weight(EMBEDDING, matrix, transposed=False)
        gathers = list(value.consumers())
        if len(gathers) != 1 or gathers[0].op_type != "Gather":
            raise ArtifactError(f"'{EMBEDDING}' is not looked up once in this graph; the exporter has changed")
        (gather,) = gathers
        stem = EMBEDDING.removesuffix(".weight")
        whole = whole_groups(matrix)
        if stored:  # `save` adds the constant, over the bytes of the head's codes
            words = self.ir.Value(name=f"{stem}.words", type=self.ir.TensorType(self.ir.DataType.INT32))
        else:
            words = self.constant(f"{stem}.words", to_block_dq(whole, axis=0).data.view("<i4"))
        scales = self.constant(f"{stem}.scales", to_block_dq(whole, axis=0).scales)
        nodes = _Nodes(self.ir, stem)
        ids = gather.inputs[1]
        codes = self._unpacked(nodes, words, ids, matrix, LEAD if stored else 0)
        columns = self.constant(f"{stem}.group_of_column", np.arange(whole.shape[1]) // whole.group)
        factors = nodes.add("Gather", [nodes.add("Gather", [scales, ids], axis=1), columns], axis=0)
        if self.dtype != np.float16:
            factors = nodes.add("Cast", [factors], to=self.onnx_dtype)
        rows = nodes.add("Transpose", [nodes.add("Mul", [codes, factors])], perm=[1, 2, 0])
        self.graph.insert_before(gather, nodes.made)
        gather.outputs[0].replace_all_uses_with(rows)
        self.graph.remove(gather, safe=True)
        self.graph.initializers.pop(EMBEDDING)
        return str(words.name)

    def _unpacked(self, nodes: _Nodes, words: Any, ids: Any, matrix: Matrix, lead: int) -> Any:
        """Codes (K, batch, sequence) of tokens, in the graph's type: code k of token t is number k · N + t after the
        `lead` words.

        A word w, seen as w + 2³² > 0, holds code i in its digit i to the base 2^bits; codes are two's complement.
        """
        rows, columns = matrix.shape
        base, per_word = 1 << matrix.stored_bits, _WORD // matrix.stored_bits
        count = self._whole("codes_per_word", per_word)
        first = self._whole("first_of_column", np.arange(columns).reshape(-1, 1, 1) * rows + lead * per_word)
        powers = self._whole("powers", base ** np.arange(per_word))
        half, wrap = self._whole("half", base // 2), self._whole("wrap", 1 << _WORD)
        at = nodes.add("Add", [ids, first])
        word = nodes.add("Gather", [words, nodes.add("Div", [at, count])], axis=0)
        power = nodes.add("Gather", [powers, nodes.add("Mod", [at, count])], axis=0)
        positive = nodes.add("Add", [nodes.add("Cast", [word], to=int(self.ir.DataType.INT64)), wrap])
        moved = nodes.add("Add", [nodes.add("Div", [positive, power]), half])
        signed = nodes.add("Sub", [nodes.add("Mod", [moved, self._whole("base", base)]), half])
        return nodes.add("Cast", [signed], to=self.onnx_dtype)

    def _whole(self, name: str, value: Any) -> Any:
        return self.constant(f"embedding.{name}", np.asarray(value, np.int64))


class _Nodes:
    """New nodes in order, their outputs named after a weight."""

    def __init__(self, ir: Any, stem: str) -> None:
        self.ir, self.stem = ir, stem
        self.made: list[Any] = []

    def add(self, kind: str, inputs: list[Any], **attributes: Any) -> Any:
        """The output of a new node."""
        name = f"{self.stem}/{kind}" + (f"_{len(self.made)}" if self.made else "")
        node = self.ir.node(kind, inputs, attributes, name=name)
        node.outputs[0].name = name + "_output"
        self.made.append(node)
        return node.outputs[0]
