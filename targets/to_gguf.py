"""Hugging Face folder -> GGUF, one file that llama.cpp runs, and a Modelfile for Ollama beside it.

    precision   weights   embedding (= head)   norms, biases
    F16         F16       F16                  F32
    Q8_0        Q8_0      Q8_0                 F32
    Q5_0        Q5_0      Q8_0                 F32     small students lose most in a 4-5-bit embedding
    Q4_0        Q4_0      Q8_0                 F32
    any other   llama.cpp's own mix of that name, made from F16 by its quantizer (llama_quantize.py)

Which tensors and keys an architecture has stands in `families.py`. Tensors are read, quantized and written one by
one, so memory holds one tensor; the file gets its name when it is whole. llama.cpp rotates neighboring pairs of a
head where transformers rotates halves, hence the reordering of query and key rows of some families. A student that
`soloist quantize` made keeps its own integers, whichever container holds its bits.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError
from soloist.targets import gguf_tokenizer, modelfile
from soloist.targets.base import require
from soloist.targets.families import Place, check, family_of, head_order, metadata, places, sizes, tied
from soloist.targets.files import whole_file
from soloist.targets.llama_quantize import Importance, quantize_gguf, types
from soloist.targets.quantized import is_quantized, read_quantized
from soloist.targets.repack import Matrix, to_q4_0, to_q5_0, to_q8_0
from soloist.targets.ropes import FACTORS, ropes_of

Array = npt.NDArray[np.float32]
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Plan:
    """Quantization types of one precision, by their names in GGUF, and llama.cpp's number for the mix."""

    weights: str
    embedding: str
    file_type: int


PRECISIONS: Mapping[str, Plan] = {
    "F16": Plan("F16", "F16", 1),
    "Q8_0": Plan("Q8_0", "Q8_0", 7),
    "Q5_0": Plan("Q5_0", "Q8_0", 8),
    "Q4_0": Plan("Q4_0", "Q8_0", 2),
}
# what holds the codes of a quantized student: width -> container and the bytes of a matrix in it
_CONTAINERS: Mapping[int, tuple[str, Callable[[Matrix], npt.NDArray[np.uint8]]]] = {
    4: ("Q4_0", to_q4_0),
    5: ("Q5_0", to_q5_0),
    6: ("Q8_0", to_q8_0),
    8: ("Q8_0", to_q8_0),
}


def compile_gguf(
    student: Path,
    out: Path,
    precision: str | None = None,
    name: str | None = None,
    *,
    importance: Importance | None = None,
    overrides: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write `Name-135M-Q5_0.gguf` into the folder `out`; returns facts, `file` among them.

    Without a `precision` a quantized student keeps its integers and any other becomes F16. `importance` and
    `overrides` are for llama.cpp's quantizer (`llama_quantize.quantize_gguf`).

    Raises:
        ArtifactError: not a student folder, or one whose architecture or tokenizer GGUF cannot carry.
    """
    if precision is None:
        precision = _container(student, read_quantized(student).bits)[0] if is_quantized(student) else "F16"
    if precision not in PRECISIONS and precision not in types():
        raise ArtifactError(f"GGUF precision '{precision}' is not one of {', '.join([*PRECISIONS, *types()])}")
    config = read_config(student)
    name = name or student.name
    out.mkdir(parents=True, exist_ok=True)
    if precision in PRECISIONS and importance is None and not overrides:
        facts = _write_file(student, config, out, precision, name)
    else:
        facts = _requantized(student, config, out, precision, name, importance, overrides)
    modelfile.write(out / facts["file"], student, facts.get("notes", ()))
    return facts


def _requantized(
    student: Path,
    config: Mapping[str, Any],
    out: Path,
    precision: str,
    name: str,
    importance: Importance | None,
    overrides: Mapping[str, str] | None,
) -> dict[str, Any]:
    if is_quantized(student):
        raise ArtifactError(f"{student}: its weights are integers already; '{precision}' would round them again")
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        plain = _write_file(student, config, Path(scratch), "F16", name)
        file = out / plain["file"].replace("-F16.gguf", f"-{precision}.gguf")
        made = quantize_gguf(Path(scratch) / plain["file"], file, precision, importance=importance, overrides=overrides)
    return {**plain, "file": file.name, "precision": precision, "tensors": made["tensors"]}


def _write_file(student: Path, config: Mapping[str, Any], out: Path, precision: str, name: str) -> dict[str, Any]:
    gguf = require("gguf", "train")
    check(config, student)
    plan = PRECISIONS[precision]
    if is_quantized(student):  # what its plan left in 16 bits stays so
        plan = replace(PRECISIONS["F16"], file_type=plan.file_type)
    with ExitStack() as stack:
        tensors = _all_tensors(student, config, precision, stack)
        parameters = sum(tensor.size for tensor in tensors)
        label = size_label(parameters)
        stem = name.replace(" ", "-")
        stem = stem if label.lower() in stem.lower().split("-") else f"{stem}-{label}"  # "SmolLM2-135M" says it
        file = out / f"{stem}-{precision}.gguf"
        with whole_file(file) as temporary:
            writer = gguf.GGUFWriter(str(temporary), family_of(config, student).architecture)
            try:
                _add_model(writer, config, student, name, label, plan)
                notes = gguf_tokenizer.add(writer, student, config)
                kinds = _write(writer, tensors, plan)
            finally:
                writer.close()
    facts = {"file": file.name, "parameters": parameters, "precision": precision, "tensors": kinds}
    return facts | ({"notes": notes} if notes else {})


def read_config(student: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face folder."""
    file = student / "config.json"
    if not file.is_file() or not list(student.glob("*.safetensors")):
        raise ArtifactError(f"{student}: not a student (needs config.json and model.safetensors)")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{file}: not JSON ({error}); save the student again") from error
    return config


def size_label(parameters: int) -> str:
    """135M, 1.7B: the size as GGUF file names carry it."""
    for unit, scale in (("B", 1e9), ("M", 1e6)):
        if parameters >= scale:
            value = parameters / scale
            return f"{value:.1f}{unit}" if value < 10 and unit == "B" else f"{value:.0f}{unit}"
    return f"{max(1, round(parameters / 1e3))}K"


@dataclass(frozen=True)
class _Tensor:
    """One tensor to write: its name in GGUF, its shape in rows, and how to get it: values, or bytes of type `kind`."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], npt.NDArray[Any]]
    kind: str = ""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


def _all_tensors(student: Path, config: Mapping[str, Any], precision: str, stack: ExitStack) -> list[_Tensor]:
    """Every tensor of the file. Raises ArtifactError for one missing, one without a place, one of another shape."""
    stored = _integers(student, precision) if is_quantized(student) else _values(student, stack)
    wanted = places(config, student)
    tensors: dict[str, _Tensor] = {}
    for key, shape, kind, load in stored:
        if (key == "lm_head.weight" and tied(config)) or key.endswith(".rotary_emb.inv_freq"):
            continue  # the embedding again, and what old checkpoints keep though it is computed
        if key not in wanted:
            family = config["model_type"]
            raise ArtifactError(f"{student}: weight '{key}' has no place in a GGUF file of a '{family}' model")
        if shape != wanted[key].shape:
            raise ArtifactError(
                f"{student}: weight '{key}' is {list(shape)} and its config.json says {list(wanted[key].shape)}"
            )
        tensors[key] = _Tensor(wanted[key].name, shape, partial(load, wanted[key]), kind)
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise ArtifactError(f"{student}: {len(missing)} weights are missing ({', '.join(missing[:3])} …)")
    factors = ropes_of(config)[0].factors(sizes(config, student)["head"])
    extra = [] if factors is None else [_Tensor(FACTORS, factors.shape, lambda: factors)]
    return [*extra, *tensors.values()]


_Stored = Iterator[tuple[str, tuple[int, ...], str, Callable[[Place], npt.NDArray[Any]]]]


def _values(student: Path, stack: ExitStack) -> _Stored:
    safetensors = require("safetensors", "train")
    index = student / _INDEX
    files = sorted(student.glob("*.safetensors"))
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{index}: cut off or not an index ({error}); make the student again") from error
        lost = sorted(shards - {path.name for path in files})
        if lost:
            raise ArtifactError(f"{student}: {_INDEX} names {', '.join(lost)}, which is missing; copy all its files")
    for path in files:
        try:
            file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
        except (safetensors.SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: cut off or damaged ({error}); make the student again") from error
        for key in sorted(file.keys()):
            yield key, tuple(file.get_slice(key).get_shape()), "", partial(_load, file, key)


def _load(file: Any, key: str, place: Place) -> Array:
    return _placed(file.get_tensor(key).float().numpy(), place)


def _placed(array: Array, place: Place) -> Array:
    if place.shift:
        array = array + np.float32(place.shift)
    return array[head_order(len(array), place.heads)] if place.heads else array


def _integers(student: Path, precision: str) -> _Stored:
    """The tensors of a quantized student: its very integers and scales, in GGUF's order."""
    content = read_quantized(student)
    wanted = _container(student, content.bits)[0]
    if precision != wanted:
        raise ArtifactError(f"{student}: holds {content.bits}-bit layers; export it as gguf-{wanted.lower()}")
    for key, matrix in content.matrices.items():
        kind, write = _container(student, matrix.bits)
        yield key, matrix.shape, kind, partial(_bytes, matrix, write)
    for key, array in content.others.items():
        yield key, array.shape, "", partial(_placed, array)


def _container(student: Path, bits: int) -> tuple[str, Callable[[Matrix], npt.NDArray[np.uint8]]]:
    if bits not in _CONTAINERS:
        raise ArtifactError(f"{student}: GGUF has no container for {bits}-bit codes; only {list(_CONTAINERS)} bits")
    return _CONTAINERS[bits]


def _bytes(matrix: Matrix, write: Callable[[Matrix], npt.NDArray[np.uint8]], place: Place) -> npt.NDArray[np.uint8]:
    return write(matrix.rows(head_order(matrix.shape[0], place.heads)) if place.heads else matrix)


def _add_model(writer: Any, config: Mapping[str, Any], student: Path, name: str, label: str, plan: Plan) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(label)
    for key, value in metadata(config, student).items():
        where = f"{writer.arch}.{key}"
        if isinstance(value, list):
            writer.add_array(where, value)
        elif isinstance(value, str):
            writer.add_string(where, value)
        elif isinstance(value, float):
            writer.add_float32(where, value)
        else:
            writer.add_uint32(where, value)
    writer.add_file_type(plan.file_type)
    writer.add_quantization_version(2)


def _kind(tensor: _Tensor, plan: Plan) -> str:
    if tensor.kind:
        return tensor.kind
    if len(tensor.shape) == 1:
        return "F32"
    wanted = plan.embedding if tensor.name in ("token_embd.weight", "output.weight") else plan.weights
    # quantized rows are made of blocks of 32
    return wanted if tensor.shape[-1] % 32 == 0 else "F16"


def _write(writer: Any, tensors: list[_Tensor], plan: Plan) -> dict[str, int]:
    gguf = require("gguf", "train")
    kinds = [gguf.GGMLQuantizationType[_kind(tensor, plan)] for tensor in tensors]
    for tensor, kind in zip(tensors, kinds, strict=True):
        shape, size = tensor.shape, tensor.size * 2
        dtype: np.dtype[Any] = np.dtype(np.float16)
        if kind == gguf.GGMLQuantizationType.F32:
            dtype, size = np.dtype(np.float32), tensor.size * 4
        elif kind != gguf.GGMLQuantizationType.F16:
            shape, dtype = gguf.quant_shape_to_byte_shape(tensor.shape, kind), np.dtype(np.uint8)
            size = int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in zip(tensors, kinds, strict=True):
        writer.write_tensor_data(tensor.load() if tensor.kind else gguf.quants.quantize(tensor.load(), kind))
    return dict(Counter(kind.name for kind in kinds))
