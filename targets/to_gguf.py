"""Hugging Face folder -> GGUF, one file that llama.cpp runs.

    precision   weights   embedding (= head)   norms
    F16         F16       F16                  F32
    Q8_0        Q8_0      Q8_0                 F32
    Q5_0        Q5_0      Q8_0                 F32     small students lose most in a 4-5-bit embedding
    Q4_0        Q4_0      Q8_0                 F32

Tensors are read, quantized and written one by one, so memory holds one tensor; the file gets its name
when it is whole. llama.cpp rotates neighboring pairs of a head where transformers rotates halves, hence
the reordering of query and key rows. A student that `soloist quantize` made keeps its own integers: Q4_0 for 4 bits,
Q8_0 for 8. Left out: K- and I-quants (their rows must divide by 256, which
hidden size 576 does not), scaled rotary embeddings, and every architecture but Llama's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require
from soloist.targets.pretokenizers import name_of
from soloist.targets.quantized import is_quantized, read_quantized
from soloist.targets.repack import to_q4_0, to_q8_0

Array = npt.NDArray[np.float32]


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

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def compile_gguf(student: Path, out: Path, precision: str, name: str | None = None) -> dict[str, Any]:
    """Write `Name-135M-Q5_0.gguf` into the folder `out`; returns facts, `file` among them.

    Raises:
        ArtifactError: not a student folder, or one whose architecture or tokenizer GGUF cannot carry.
    """
    gguf = require("gguf", "train")
    if precision not in PRECISIONS:
        raise ArtifactError(f"GGUF precision '{precision}' is not one of {', '.join(PRECISIONS)}")
    config = read_config(student)
    _check(student, config)
    with ExitStack() as stack:
        found = _integers(student, config, precision) if is_quantized(student) else _tensors(student, config, stack)
        tensors = list(found)
        parameters = sum(tensor.size for tensor in tensors)
        label = size_label(parameters)
        name = name or student.name
        file = out / f"{name.replace(' ', '-')}-{label}-{precision}.gguf"
        out.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        writer = gguf.GGUFWriter(str(temporary), "llama")
        try:
            _add_model(writer, config, name, label, PRECISIONS[precision])
            _add_tokenizer(writer, student, config)
            kinds = _write(writer, tensors, PRECISIONS[precision])
        except BaseException:
            writer.close()
            temporary.unlink(missing_ok=True)
            raise
        writer.close()
        temporary.replace(file)
    return {"file": file.name, "parameters": parameters, "precision": precision, "tensors": kinds}


def read_config(student: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face folder."""
    file = student / "config.json"
    if not file.is_file() or not list(student.glob("*.safetensors")):
        raise ArtifactError(f"{student}: not a student (needs config.json and model.safetensors)")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def size_label(parameters: int) -> str:
    """135M, 1.7B: the size as GGUF file names carry it."""
    for unit, scale in (("B", 1e9), ("M", 1e6)):
        if parameters >= scale:
            value = parameters / scale
            return f"{value:.1f}{unit}" if value < 10 and unit == "B" else f"{value:.0f}{unit}"
    return f"{max(1, round(parameters / 1e3))}K"


def _check(student: Path, config: Mapping[str, Any]) -> None:
    if config.get("model_type") != "llama":
        raise ArtifactError(
            f"{student}: architecture '{config.get('model_type')}' cannot become GGUF; only 'llama' can"
        )
    kind = _rope(config).get("rope_type", "default")
    if kind != "default":
        raise ArtifactError(f"{student}: rotary embedding of type '{kind}' cannot become GGUF; only 'default' can")


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    legacy = {"rope_theta": config.get("rope_theta", 10000.0)} | (config.get("rope_scaling") or {})
    found: Mapping[str, Any] = config.get("rope_parameters") or legacy
    return found


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


def _tensors(student: Path, config: Mapping[str, Any], stack: ExitStack) -> Iterator[_Tensor]:
    safetensors = require("safetensors", "train")
    found = set()
    for path in sorted(student.glob("*.safetensors")):
        try:
            file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
        except (safetensors.SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: cut off or damaged ({error}); make the student again") from error
        for key in sorted(file.keys()):
            name = _gguf_name(key, path)
            if name == "output.weight" and config.get("tie_word_embeddings", False):
                continue
            found.add(name)
            shape = tuple(file.get_slice(key).get_shape())
            yield _Tensor(name, shape, partial(_load, file, key, _heads(key, config)))
    wanted = {"token_embd.weight", "output_norm.weight"} | {
        f"blk.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in _LAYER.values()
    }
    if wanted - found:
        raise ArtifactError(f"{student}: weights are missing ({', '.join(sorted(wanted - found)[:3])} …)")


def _integers(student: Path, config: Mapping[str, Any], precision: str) -> Iterator[_Tensor]:
    """The tensors of a quantized student: its very integers and scales, in GGUF's order."""
    content = read_quantized(student)
    wanted = "Q4_0" if content.bits == 4 else "Q8_0"
    if precision != wanted:
        raise ArtifactError(f"{student}: holds {content.bits}-bit layers; export it as gguf-{wanted.lower()}")
    for key, matrix in content.matrices.items():
        heads = _heads(key, config)
        ordered = matrix if heads is None else matrix.rows(head_order(matrix.shape[0], heads))
        kind, write = ("Q4_0", to_q4_0) if matrix.bits == 4 else ("Q8_0", to_q8_0)
        yield _Tensor(_gguf_name(key, student), matrix.shape, partial(write, ordered), kind)
    for key, array in content.others.items():
        yield _Tensor(_gguf_name(key, student), array.shape, partial(_ordered, array, _heads(key, config)))


def _gguf_name(key: str, path: Path) -> str:
    if key in _TOP:
        return _TOP[key]
    head, _, rest = key.removeprefix("model.layers.").partition(".")
    if key.startswith("model.layers.") and rest in _LAYER:
        return f"blk.{head}.{_LAYER[rest]}"
    raise ArtifactError(f"{path}: weight '{key}' has no place in a Llama GGUF file; the student cannot become one")


def _load(file: Any, key: str, heads: int | None) -> Array:  # noqa: ANN401 - an untyped open safetensors file
    return _ordered(file.get_tensor(key).float().numpy(), heads)


def _ordered(array: Array, heads: int | None) -> Array:
    return array if heads is None else array[head_order(len(array), heads)]


def _heads(key: str, config: Mapping[str, Any]) -> int | None:
    """How many heads the rows of a tensor make, where they are to be reordered."""
    count: int = config["num_attention_heads"]
    if ".k_proj." in key:
        count = config.get("num_key_value_heads") or count
    return count if ".q_proj." in key or ".k_proj." in key else None


def head_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """Where llama.cpp's row i of a query or key matrix comes from: it turns neighbors, transformers halves."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _add_model(writer: Any, config: Mapping[str, Any], name: str, label: str, plan: Plan) -> None:  # noqa: ANN401
    heads = config["num_attention_heads"]
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(label)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(plan.file_type)
    writer.add_quantization_version(2)


def _add_tokenizer(writer: Any, student: Path, config: Mapping[str, Any]) -> None:  # noqa: ANN401
    gguf = require("gguf", "train")
    file = student / "tokenizer.json"
    if not file.is_file():
        raise ArtifactError(f"{student}: no tokenizer.json; save the student's fast tokenizer beside its weights")
    content = json.loads(file.read_text(encoding="utf-8"))
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise ArtifactError(f"{file}: only byte-level BPE tokenizers can become GGUF")
    by_id = {number: token for token, number in model["vocab"].items()}
    types = dict.fromkeys(by_id, gguf.TokenType.NORMAL)
    for token in content["added_tokens"]:
        by_id[token["id"]] = token["content"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    size = config["vocab_size"]
    if max(by_id) >= size:
        raise ArtifactError(f"{file}: token {max(by_id)} lies outside the embedding of {size} rows")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name_of(content.get("pre_tokenizer")))
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([types.get(number, gguf.TokenType.UNUSED) for number in range(size)])
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges(pairs)
    _add_special(writer, student, config, {token: number for number, token in by_id.items()})


def _add_special(writer: Any, student: Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> None:  # noqa: ANN401
    file = student / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "pad": writer.add_pad_token_id,
        "unk": writer.add_unk_token_id,
    }
    for kind, write in add.items():
        token = settings.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number = ids.get(text) if text else config.get(f"{kind}_token_id")
        if number is not None:
            write(number)
    writer.add_add_bos_token(bool(settings.get("add_bos_token", False)))
    writer.add_add_space_prefix(False)
    template = student / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template")
    if not text:
        raise ArtifactError(f"{student}: no chat template (chat_template.jinja); a chat student needs one")
    writer.add_chat_template(text)


def _kind(tensor: _Tensor, plan: Plan) -> str:
    if tensor.kind:
        return tensor.kind
    if len(tensor.shape) == 1:
        return "F32"
    wanted = plan.embedding if tensor.name in ("token_embd.weight", "output.weight") else plan.weights
    # quantized rows are made of blocks of 32
    return wanted if tensor.shape[-1] % 32 == 0 else "F16"


def _write(writer: Any, tensors: list[_Tensor], plan: Plan) -> dict[str, int]:  # noqa: ANN401 - gguf.GGUFWriter
    gguf = require("gguf", "train")
    counts: dict[str, int] = {}
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
        counts[kind.name] = counts.get(kind.name, 0) + 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in zip(tensors, kinds, strict=True):
        writer.write_tensor_data(tensor.load() if tensor.kind else gguf.quants.quantize(tensor.load(), kind))
    return counts
