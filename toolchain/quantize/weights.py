"""The tensors of a Hugging Face folder, read one by one, and which of them are quantized together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require
from soloist.toolchain.quantize.plan import TABLES

if TYPE_CHECKING:
    from torch import Tensor

TABLES_GROUP = "tables"  # of embedding and head


@dataclass(frozen=True)
class Source:
    """A tensor of a folder: its shape, and how to read it."""

    shape: tuple[int, ...]
    load: Callable[[], Tensor]


def architecture(folder: Path) -> str:
    """The `model_type` of a folder's config."""
    return str(_config(folder).get("model_type"))


def tied(folder: Path) -> bool:
    """Whether the head is the embedding."""
    return bool(_config(folder).get("tie_word_embeddings"))


def _config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def read_weights(folder: Path, stack: ExitStack) -> dict[str, Source]:
    """Every tensor of a folder, read when it is called for. Raises ArtifactError: none, or a file cut off."""
    safetensors = require("safetensors", "train")
    sources: dict[str, Source] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
        except (safetensors.SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: cut off or damaged ({error}); make the student again") from error
        for key in sorted(file.keys()):
            if not (key == "lm_head.weight" and tied(folder)):
                sources[key] = Source(tuple(file.get_slice(key).get_shape()), partial(file.get_tensor, key))
    if not sources:
        raise ArtifactError(f"{folder}: not a student (no model.safetensors); run the distill stage again")
    return sources


def groups_of(read: Mapping[str, Source]) -> dict[str, dict[str, Source]]:
    """Matrices to quantize: `tables` (embedding, head), then each layer by its number."""
    tables: dict[str, Source] = {}
    layers: dict[int, dict[str, Source]] = {}
    for name, source in read.items():
        if name.endswith(TABLES):
            tables[name] = source
        elif ".layers." in name and name.endswith("_proj.weight") and source.shape[-1] % 32 == 0:
            layers.setdefault(int(name.split(".layers.")[1].split(".")[0]), {})[name] = source
    return {TABLES_GROUP: tables} | {str(number): layers[number] for number in sorted(layers)}


def shapes_of(groups: Mapping[str, Mapping[str, Source]]) -> dict[str, tuple[int, ...]]:
    """The shapes of all matrices to quantize, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for members in groups.values():
        shapes |= {name: source.shape for name, source in members.items()}
    return shapes
