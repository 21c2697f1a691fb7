"""The facts of a portable folder, and the names of its tensors.

    model.onnx, model.onnx.data      the graph and its weights
    tokenizer.json                   as the `tokenizers` package reads it
    chat_template.jinja              the student's
    portable.json                    these facts; written last, so that a folder that has it is whole

    input_ids, position_ids          int64 (batch, sequence)
    attention_mask                   int64 (batch, past + sequence), 0 where there is padding
    past_key_values.%d.key|value     (batch, kv heads, past, head dim), `past` may be 0
    logits                           float32 (batch, sequence, vocabulary)
    present.%d.key|value             (batch, kv heads, past + sequence, head dim)

Left out: hashes, which the export's manifest holds; the sizes here tell a file that was cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import named

GRAPH, DATA, FACTS = "model.onnx", "model.onnx.data", "portable.json"
TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
SCHEMA = 1
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Shapes:
    """The numbers of an architecture.

    Args:
        family: `model_type` of the student's configuration.
        context: positions the model was made for.
    """

    family: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    context: int


@dataclass(frozen=True)
class Facts(Shapes):
    """A portable model, without its weights.

    Args:
        dtype: of weights, activations and cache; logits are float32.
        stop_ids: tokens that end an answer.
        special: the special tokens a chat template may name ("bos_token" …).
        bits: how many matrices there are of each number of bits; empty for a float model.
        accuracy_level: ONNX Runtime's setting for products with quantized weights.
        operators: how often each operator stands in the graph.
        sizes: bytes of the files beside this one.
    """

    dtype: str
    opset: int
    stop_ids: tuple[int, ...]
    special: Mapping[str, str]
    bits: Mapping[str, int]
    accuracy_level: int
    operators: Mapping[str, int]
    sizes: Mapping[str, int]

    def write(self, folder: Path) -> None:
        """Put `portable.json` into a folder."""
        text = json.dumps({"schema": SCHEMA} | asdict(self), indent=1, ensure_ascii=False)
        (folder / FACTS).write_text(text + "\n", encoding="utf-8")


def cache_names(layers: int, prefix: str) -> list[str]:
    """Keys and values of every layer; `prefix` is "past_key_values" or "present"."""
    names = []
    for layer in range(layers):
        names += [f"{prefix}.{layer}.key", f"{prefix}.{layer}.value"]
    return names


def input_names(layers: int) -> list[str]:
    """All inputs of a graph, in order."""
    return ["input_ids", "attention_mask", "position_ids", *cache_names(layers, "past_key_values")]


def output_names(layers: int) -> list[str]:
    """All outputs of a graph, in order."""
    return ["logits", *cache_names(layers, "present")]


def is_portable(folder: Path) -> bool:
    """Whether a folder holds a portable graph."""
    return (folder / FACTS).is_file()


def read_facts(folder: Path) -> Facts:
    """The facts of a folder whose files are all there, at their full length. Raises ArtifactError."""
    file = folder / FACTS
    if not file.is_file():
        raise ArtifactError(f"{folder}: not a portable ONNX folder (no {FACTS})")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        if schema != SCHEMA or set(content) != set(named(fields(Facts))):
            raise ValueError(f"schema {schema}, this version reads {SCHEMA}")
        facts = Facts(**content | {"stop_ids": tuple(map(int, content["stop_ids"]))})
        sizes = dict(facts.sizes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file}: not facts of ours ({error}); export the student again") from error
    for name, size in sizes.items():
        there = (folder / name).stat().st_size if (folder / name).is_file() else None
        if there != size:
            what = "is missing" if there is None else f"has {there} bytes of {size}"
            raise ArtifactError(f"{folder}: {name} {what}; export the student again")
    return facts
