"""Rotary embeddings as config.json and as GGUF state them, both ways.

    config.json   rope_parameters (or rope_theta and rope_scaling of older files); of Gemma one for whole attention
                  and one for sliding windows
    GGUF          rope.freq_base, rope.scaling.*; Llama 3's scaling as a tensor: by what each frequency is divided

Source of Llama 3's factors: transformers, `modeling_rope_utils._compute_llama3_parameters`. Left out: longrope,
dynamic scaling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError

FACTORS = "rope_freqs.weight"
_ORIGINAL = "original_max_position_embeddings"
_YARN = {"rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow"}
_SETTINGS = {
    "linear": {"factor"},
    "yarn": {"factor", _ORIGINAL, *_YARN.values()},  # its attention factor is the usual one in llama.cpp
    "llama3": {"factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"},
}


@dataclass(frozen=True)
class Rope:
    """One rotary embedding: base, kind of scaling, and the parameters that transformers has for it."""

    base: float
    kind: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def metadata(self, head: int) -> dict[str, int | float | str | list[bool]]:
        """GGUF's keys without the architecture's name; `head` is the width of a head."""
        keys: dict[str, int | float | str | list[bool]] = {"rope.freq_base": self.base}
        if self.kind not in ("linear", "yarn"):
            return keys
        keys |= {"rope.scaling.type": self.kind, "rope.scaling.factor": float(self.settings["factor"])}
        if self.kind == "yarn":
            keys["rope.scaling.original_context_length"] = int(self.settings[_ORIGINAL])
            for key, ours in _YARN.items():
                if self.settings.get(ours):
                    keys[key] = float(self.settings[ours])
        return keys

    def factors(self, head: int) -> npt.NDArray[np.float32] | None:
        """What each of the head / 2 frequencies is divided by, of Llama 3's scaling."""
        if self.kind != "llama3":
            return None
        factor, original = float(self.settings["factor"]), float(self.settings[_ORIGINAL])
        low, high = float(self.settings["low_freq_factor"]), float(self.settings["high_freq_factor"])
        turns = original / (2 * math.pi * self.base ** (np.arange(0, head, 2, dtype=np.float64) / head))
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)

    def strange(self) -> list[str]:
        """Settings llama.cpp has no place for."""
        return sorted(key for key, value in self.settings.items() if value and key not in _SETTINGS.get(self.kind, ()))

    def config(self) -> dict[str, Any]:
        """As `rope_parameters` of config.json."""
        return {"rope_type": self.kind, "rope_theta": self.base, **self.settings}


def ropes_of(config: Mapping[str, Any]) -> list[Rope]:
    """The rotary embedding of a config.json; of a Gemma that of whole attention, then that of its windows."""
    given = config.get("rope_parameters") or {}
    if "full_attention" in given:
        return [_rope(given["full_attention"]), _rope(given.get("sliding_attention") or {"rope_theta": 10000.0})]
    theta = config.get("rope_theta") or (1e6 if config.get("model_type") == "gemma3_text" else 10000.0)
    whole = _rope({"rope_theta": theta} | dict(config.get("rope_scaling") or {}) | dict(given))
    if config.get("model_type") != "gemma3_text":
        return [whole]
    return [whole, Rope(float(config.get("rope_local_base_freq") or 10000.0))]


def _rope(given: Mapping[str, Any]) -> Rope:
    kind = str(given.get("rope_type") or given.get("type") or "default")
    settings = dict(given) if kind != "default" else {}
    for key in ("rope_type", "type", "rope_theta"):
        settings.pop(key, None)
    return Rope(float(given["rope_theta"]), kind, settings)


def rope_from(get: Callable[[str], Any], factors: npt.NDArray[np.float32] | None, head: int, where: object) -> Rope:
    """The rotary embedding of a GGUF file; `get` reads a key without the architecture's name.

    Raises:
        ArtifactError: a scaling transformers has no parameters for.
    """
    base, kind = float(get("rope.freq_base") or 10000.0), get("rope.scaling.type") or "none"
    if factors is not None:
        return _llama3(base, factors, head, where)
    if kind == "none" or (kind == "linear" and (get("rope.scaling.factor") or 1.0) == 1.0):
        return Rope(base)
    if kind not in ("linear", "yarn"):
        raise ArtifactError(f"{where}: rotary embedding of type '{kind}' cannot become a student")
    settings = {"factor": float(get("rope.scaling.factor"))}
    if kind == "yarn":
        settings[_ORIGINAL] = int(get("rope.scaling.original_context_length"))
        for key, ours in _YARN.items():
            if get(key):
                settings[ours] = float(get(key))
    return Rope(base, kind, settings)


def _llama3(base: float, factors: npt.NDArray[np.float32], head: int, where: object) -> Rope:
    """The parameters behind a tensor of factors: all Llama 3 have the same but for the factor."""
    settings = {"factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0, _ORIGINAL: 8192}
    rope = Rope(base, "llama3", settings)
    again = rope.factors(head)
    if again is None or again.shape != factors.shape or not np.allclose(again, factors, rtol=1e-4):
        raise ArtifactError(f"{where}: its frequency factors are not those of a Llama 3; it cannot become a student")
    return rope
