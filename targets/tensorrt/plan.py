"""What an engine is built from and for: `build.json`, read by `build_engine` on the device and here.

Two profiles, one sequence each: `prefill` takes a piece of a prompt, `decode` one token; both go on after 0 to
`context` - 1 tokens in the cache. Sizes in a profile agree with each other (attention_mask is as long as cache and
input together at each of its three corners), since TensorRT checks them there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.portable.facts import DATA, GRAPH, TEMPLATE, Facts, cache_names, input_names, output_names
from soloist.targets.portable.template import chat_template
from soloist.targets.tensorrt.build_engine import PLAN, SCHEMA, sha256

PREFILL, DECODE = "prefill", "decode"
_MARK = "\u241f"  # stands where the question goes
_INSTALL = {
    "tensorrt": "on a Jetson it is part of JetPack: apt install python3-libnvinfer",
    "tensorrt_rtx": "pip install 'soloist[rtx]'",
}

Corners = Sequence[tuple[int, ...]]  # least, likeliest and largest shape


@dataclass(frozen=True)
class Lengths:
    """How much an engine holds.

    Args:
        context: tokens of prompt and answer together.
        piece: tokens of a prompt computed at once.
    """

    context: int = 2048
    piece: int = 128

    def __post_init__(self) -> None:
        if self.context < 2 or not 1 <= self.piece <= self.context:
            raise UsageError(
                f"a context of {self.context} tokens in pieces of {self.piece}: it takes at least 2 and 1, "
                "and a piece is no longer than the context"
            )


def profiles(facts: Facts, lengths: Lengths) -> dict[str, dict[str, Corners]]:
    """The shapes of each input, by profile."""
    past = (0, lengths.context // 4, lengths.context - 1)
    return {
        PREFILL: _shapes(facts, (1, lengths.piece, lengths.piece), past),
        DECODE: _shapes(facts, (1, 1, 1), past),
    }


def _shapes(facts: Facts, counts: Sequence[int], past: Sequence[int]) -> dict[str, Corners]:
    tokens, mask, cache = [], [], []
    for count, held in zip(counts, past, strict=True):
        tokens.append((1, count))
        mask.append((1, held + count))
        cache.append((1, facts.kv_heads, held, facts.head_dim))
    shapes: dict[str, Corners] = {"input_ids": tokens, "attention_mask": mask, "position_ids": tokens}
    return shapes | dict.fromkeys(cache_names(facts.layers, "past_key_values"), cache)


@dataclass(frozen=True)
class Student:
    """Who is compiled: the name people see, and the digest of the artifact."""

    name: str
    digest: str


def make_plan(
    folder: Path, facts: Facts, lengths: Lengths, student: Student, target: Mapping[str, Any]
) -> dict[str, Any]:
    """`build.json` of a portable folder.

    Args:
        target: `library`, `title`, `version` (as much of it as must agree), `strongly_typed_flag`, `capabilities`.

    Raises:
        UsageError: a context that is longer than the student's.
        ArtifactError: the folder's chat template does not hold the question.
    """
    if lengths.context > facts.context:
        raise UsageError(f"a context of {lengths.context} tokens: this student was made for {facts.context}")
    return {
        "schema": SCHEMA,
        "graph": GRAPH,
        "files": {GRAPH: sha256(folder / GRAPH), DATA: sha256(folder / DATA)},
        "student": {"name": student.name, "digest": student.digest},
        "target": {**target, "install": _INSTALL[target["library"]]},
        "inputs": input_names(facts.layers),
        "outputs": output_names(facts.layers),
        "profiles": profiles(facts, lengths),
        "model": {
            "dtype": facts.dtype,
            "layers": facts.layers,
            "kv_heads": facts.kv_heads,
            "head_dim": facts.head_dim,
            "vocabulary": facts.vocabulary,
            "context": lengths.context,
            "piece": lengths.piece,
            "stop_ids": list(facts.stop_ids),
            "special": dict(facts.special),
            "bits": dict(facts.bits),
            "around": around(folder, facts),
        },
    }


def around(folder: Path, facts: Facts) -> list[str]:
    """What the chat template puts before and after one question, for a device without a template engine."""
    render = chat_template((folder / TEMPLATE).read_text(encoding="utf-8"), facts.special)
    parts = render([{"role": "user", "content": _MARK}]).split(_MARK)
    if len(parts) != 2:
        raise ArtifactError(f"{folder}: its chat template shows a question {len(parts) - 1} times, not once")
    return parts


def write_plan(plan: Mapping[str, Any], folder: Path) -> Path:
    """Put `build.json` into a folder."""
    file = folder / PLAN
    file.write_text(json.dumps(plan, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def digest_of(folder: Path) -> str:
    """A digest for a student that has none: of its graph and weights."""
    return hashlib.sha256((sha256(folder / GRAPH) + sha256(folder / DATA)).encode()).hexdigest()
