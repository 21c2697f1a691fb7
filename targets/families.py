"""The model families that can become GGUF: which tensors, under which names and shapes, and what they mean.

    config.json     GGUF       what is not plain Llama
    llama           llama      query and key rows reordered; frequencies scaled as in Llama 3 by a tensor of factors
    smollm3         smollm3    reordered; every fourth layer without rotary embedding, which llama.cpp fixes so
    qwen2           qwen2      biases of query, key and value
    qwen3           qwen3      norms of query and key
    gemma3_text     gemma3     norms multiply by 1 + weight, two more a layer; sliding windows with a base of their own

The tables are what llama.cpp's loader asks of each architecture: a tensor too many is refused there like one
missing, so both are refused here, with the tensor's name. What a config asks for beyond the architecture (yarn on
Llama 3's frequencies, sliding windows outside Gemma, another activation) is refused as well: such a file would load
and answer wrongly. Left out: mixtures of experts, encoders, images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError
from soloist.targets.ropes import ropes_of

Config = Mapping[str, Any]

_MATRICES: Mapping[str, tuple[str, str, str]] = {
    "self_attn.q_proj": ("attn_q", "query", "hidden"),
    "self_attn.k_proj": ("attn_k", "key", "hidden"),
    "self_attn.v_proj": ("attn_v", "key", "hidden"),
    "self_attn.o_proj": ("attn_output", "hidden", "query"),
    "mlp.gate_proj": ("ffn_gate", "inner", "hidden"),
    "mlp.up_proj": ("ffn_up", "inner", "hidden"),
    "mlp.down_proj": ("ffn_down", "hidden", "inner"),
}
_ATTENTION, _MLP = tuple(_MATRICES)[:4], tuple(_MATRICES)[4:]
_TWO_NORMS = {"input_layernorm": ("attn_norm", "hidden"), "post_attention_layernorm": ("ffn_norm", "hidden")}
_HEAD_NORMS = {"self_attn.q_norm": ("attn_q_norm", "head"), "self_attn.k_norm": ("attn_k_norm", "head")}


@dataclass(frozen=True)
class Family:
    """One row of the table above.

    Args:
        model_type: the word in config.json; `architecture` the one in GGUF; `class_name` transformers' class.
        norms: of a layer: name -> (name in GGUF, dimension).
        biases: the matrices of a layer that have one; `flagged` those that have one if config.json says so.
        scalings: of the rotary embedding, besides "default".
        reordered: llama.cpp rotates neighbors of a head where transformers rotates halves.
        shift: what llama.cpp expects added to the weights of a norm.
        square: the heads together must be as wide as the model.
    """

    model_type: str
    architecture: str
    class_name: str
    norms: Mapping[str, tuple[str, str]] = field(default_factory=lambda: _TWO_NORMS)
    biases: tuple[str, ...] = ()
    flagged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scalings: tuple[str, ...] = ("linear", "yarn")
    reordered: bool = False
    shift: float = 0.0
    activation: str = "silu"
    square: bool = False


_FOUR_NORMS = {
    "input_layernorm": ("attn_norm", "hidden"),
    "post_attention_layernorm": ("post_attention_norm", "hidden"),
    "pre_feedforward_layernorm": ("ffn_norm", "hidden"),
    "post_feedforward_layernorm": ("post_ffw_norm", "hidden"),
}
FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "llama",
        "llama",
        "LlamaForCausalLM",
        flagged={"attention_bias": _ATTENTION, "mlp_bias": _MLP},
        scalings=("linear", "yarn", "llama3"),
        reordered=True,
    ),
    "smollm3": Family("smollm3", "smollm3", "SmolLM3ForCausalLM", reordered=True),
    "qwen2": Family("qwen2", "qwen2", "Qwen2ForCausalLM", biases=_ATTENTION[:3], square=True),
    "qwen3": Family("qwen3", "qwen3", "Qwen3ForCausalLM", norms={**_TWO_NORMS, **_HEAD_NORMS}),
    "gemma3_text": Family(
        "gemma3_text",
        "gemma3",
        "Gemma3ForCausalLM",
        scalings=("linear",),
        shift=1.0,
        activation="gelu_pytorch_tanh",
        norms={**_FOUR_NORMS, **_HEAD_NORMS},
    ),
}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in GGUF: name, shape in rows, heads whose rows are reordered (or 0), what is added."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    shift: float = 0.0


def family_of(config: Config, where: object) -> Family:
    """The family of a config.json. Raises ArtifactError for an architecture outside the table."""
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise ArtifactError(
            f"{where}: architecture '{model_type}' cannot become GGUF; only {', '.join(map(repr, FAMILIES))} can"
        )
    return FAMILIES[model_type]


def family_by_architecture(architecture: str | None, where: object) -> Family:
    """The family of a GGUF file. Raises ArtifactError."""
    by_architecture = {family.architecture: family for family in FAMILIES.values()}
    if architecture not in by_architecture:
        known = ", ".join(map(repr, by_architecture))
        raise ArtifactError(f"{where}: architecture '{architecture}' cannot become a student; only {known} can")
    return by_architecture[str(architecture)]


def sizes(config: Config, where: object) -> dict[str, int]:
    """The dimensions that shapes are made of, and the number of heads. Raises ArtifactError for a key missing."""
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        head = int(config.get("head_dim") or hidden // heads)
        kv = int(config.get("num_key_value_heads") or heads)
        return {
            "hidden": hidden,
            "inner": int(config["intermediate_size"]),
            "vocabulary": int(config["vocab_size"]),
            "layers": int(config["num_hidden_layers"]),
            "head": head,
            "heads": heads,
            "kv_heads": kv,
            "query": heads * head,
            "key": kv * head,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: config.json lacks or misstates {error}; save the student again") from error


def places(config: Config, where: object) -> dict[str, Place]:
    """Every tensor of a student, by its name in the Hugging Face folder.

    Raises:
        ArtifactError: an architecture we do not know, or a config that lacks a dimension.
    """
    family, size = family_of(config, where), sizes(config, where)
    shift = family.shift
    table = (size["vocabulary"], size["hidden"])
    tensors = {
        "model.embed_tokens.weight": Place("token_embd.weight", table),
        "model.norm.weight": Place("output_norm.weight", (size["hidden"],), shift=shift),
    }
    if not tied(config):
        tensors["lm_head.weight"] = Place("output.weight", table)
    biased = set(family.biases)
    for flag, matrices in family.flagged.items():
        if config.get(flag):
            biased.update(matrices)
    reordered = {"self_attn.q_proj": size["heads"], "self_attn.k_proj": size["kv_heads"]} if family.reordered else {}
    for layer in range(size["layers"]):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        for norm, (name, dimension) in family.norms.items():
            tensors[f"{ours}{norm}.weight"] = Place(f"{theirs}{name}.weight", (size[dimension],), shift=shift)
        for matrix, (name, rows, columns) in _MATRICES.items():
            heads = reordered.get(matrix, 0)
            tensors[f"{ours}{matrix}.weight"] = Place(f"{theirs}{name}.weight", (size[rows], size[columns]), heads)
            if matrix in biased:
                tensors[f"{ours}{matrix}.bias"] = Place(f"{theirs}{name}.bias", (size[rows],), heads)
    return tensors


def tied(config: Config) -> bool:
    """Whether the head is the embedding; Gemma's config says nothing where it is."""
    return bool(config.get("tie_word_embeddings", config.get("model_type") == "gemma3_text"))


def head_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """Where llama.cpp's row i of a query or key matrix comes from: it rotates neighbors, transformers halves."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def check(config: Config, where: object) -> None:
    """Refuse what llama.cpp would load and compute differently. Raises ArtifactError."""
    family, size = family_of(config, where), sizes(config, where)
    activation = config.get("hidden_activation") or config.get("hidden_act", family.activation)
    settings = [  # what it is, what llama.cpp computes with, its name
        (activation, family.activation, "activation"),
        (float(config.get("partial_rotary_factor") or 1.0), 1.0, "partial_rotary_factor"),
        (bool(config.get("use_bidirectional_attention")), False, "use_bidirectional_attention"),
        (config.get("attn_logit_softcapping"), None, "attn_logit_softcapping"),
    ]
    if not family.flagged:
        settings.append((bool(config.get("attention_bias")), False, "attention_bias"))
        settings.append((bool(config.get("mlp_bias")), False, "mlp_bias"))
    if family.square:
        settings.append((size["query"], size["hidden"], "width of all heads"))
    if family.model_type == "smollm3":
        plain = [int((layer + 1) % 4 != 0) for layer in range(size["layers"])]
        settings.append((config.get("no_rope_layers") or plain, plain, "no_rope_layers"))
    if family.model_type == "gemma3_text":
        # only at 62 layers (27B) llama.cpp scales by the width of a head's share, not by the head's own
        scalar = size["hidden"] // size["heads"] if size["layers"] == 62 else size["head"]
        settings.append((int(config.get("query_pre_attn_scalar", scalar)), scalar, "query_pre_attn_scalar"))
    elif any(windows(config)):
        settings.append(("sliding windows", "attention over everything", "attention"))
    for value, wanted, name in settings:
        if value != wanted:
            raise ArtifactError(
                f"{where}: {name} is {value!r} and llama.cpp computes '{family.architecture}' with {wanted!r}; "
                "this student cannot become GGUF"
            )
    for rope in ropes_of(config):
        if rope.kind not in ("default", *family.scalings):
            raise ArtifactError(
                f"{where}: rotary embedding of type '{rope.kind}' cannot become GGUF; "
                f"'{family.architecture}' can have {', '.join(('default', *family.scalings))}"
            )
        if rope.strange():
            raise ArtifactError(f"{where}: llama.cpp has no {', '.join(rope.strange())} of '{rope.kind}' embeddings")


def windows(config: Config) -> list[bool]:
    """Of every layer, whether its attention slides over `sliding_window` tokens."""
    layers = int(config["num_hidden_layers"])
    kinds = config.get("layer_types")
    if kinds:
        return [kind == "sliding_attention" for kind in kinds]
    if config.get("model_type") == "gemma3_text":
        period = int(config.get("sliding_window_pattern") or 6)
        return [(layer + 1) % period != 0 for layer in range(layers)]
    start = int(config.get("max_window_layers") or 0) if config.get("use_sliding_window") else layers
    return [layer >= start for layer in range(layers)]


def metadata(config: Config, where: object) -> dict[str, int | float | str | list[bool]]:
    """The keys of the architecture without its name in front, as llama.cpp's loader wants them."""
    size = sizes(config, where)
    keys: dict[str, int | float | str | list[bool]] = {
        "block_count": size["layers"],
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": size["hidden"],
        "feed_forward_length": size["inner"],
        "attention.head_count": size["heads"],
        "attention.head_count_kv": size["kv_heads"],
        "attention.key_length": size["head"],
        "attention.value_length": size["head"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": size["head"],
        "vocab_size": size["vocabulary"],
    }
    whole, *sliding = ropes_of(config)
    keys |= whole.metadata(size["head"])
    if sliding and any(windows(config)):
        keys["attention.sliding_window"] = int(config["sliding_window"])
        keys["attention.sliding_window_pattern"] = windows(config)
        keys["rope.freq_base_swa"] = sliding[0].base
    if config.get("final_logit_softcapping"):
        keys["final_logit_softcapping"] = float(config["final_logit_softcapping"])
    return keys
