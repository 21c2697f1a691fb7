"""Shapes of an architecture, read through optimum's normalized configurations, and what cannot be exported.

optimum knows under which name each family keeps a number; Gemma 3's text models are not in its list and have Llama's
names. A configuration whose graph would be wrong in silence is refused here: rotary frequencies that change with the
length (they would be frozen at the length of the trace), soft-capped scores, attention in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require

FAMILIES = ("llama", "qwen2", "qwen3", "smollm3", "gemma3_text")
_ROPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Shapes:
    """The numbers of an architecture."""

    family: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    context: int


def read_shapes(config: Any) -> Shapes:
    """The shapes of a model. Raises ArtifactError for a family or a variant that has no portable graph."""
    family = str(config.model_type)
    if family not in FAMILIES:
        raise ArtifactError(f"architecture '{family}' has no portable ONNX graph; there are {', '.join(FAMILIES)}")
    normalized = _normalized(config, family)
    heads, hidden = int(normalized.num_attention_heads), int(normalized.hidden_size)
    _check(config, family)
    return Shapes(
        family=family,
        layers=int(normalized.num_layers),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        hidden=hidden,
        vocabulary=int(normalized.vocab_size),
        context=int(config.max_position_embeddings),
    )


def _normalized(config: Any, family: str) -> Any:
    optimum = require("optimum.utils", "compile")
    manager = optimum.NormalizedConfigManager
    try:
        return manager.get_normalized_config_class(family)(config)
    except KeyError:  # Gemma 3: a family optimum 2.3 does not list
        return optimum.NormalizedTextConfig(config)


def _check(config: Any, family: str) -> None:
    ropes = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in ropes.values() if isinstance(value, Mapping)] or [ropes]
    for rope in nested:
        kind = str(rope.get("rope_type", "default"))
        if kind not in _ROPES:
            raise ArtifactError(
                f"rotary embedding '{kind}' changes with the length of the text and cannot stand in a fixed graph; "
                f"there are {', '.join(_ROPES)}"
            )
    for name in ("attn_logit_softcapping", "use_bidirectional_attention"):
        if getattr(config, name, None):
            raise ArtifactError(f"{family} with '{name}' has no portable ONNX graph")
