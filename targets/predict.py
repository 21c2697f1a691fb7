"""What a device allows a student: bytes that one token has to stream, the least time that takes, and a prediction.

    floor of a token  (weights + KV cache) / bandwidth
    ITL               (weights + KV cache) / (bandwidth_share * bandwidth) + layers * layer_ms
    TTFT              max(operations / (peak_share * peak), weights / (bandwidth_share * bandwidth)) + layers * layer_ms

Decoding one token reads every weight of the layers and of the head once (of the embedding one row) and the whole KV
cache; a prompt of T tokens costs 2 T operations a weight, the head once, and 4 * T^2 / 2 * heads * head_dim a layer for
attention. Shares and layer_ms are the device's (`soloist.targets.devices`), with the evidence of each.
A floor is arithmetic and cannot be beaten; everything else is a PREDICTION and is labeled so wherever it is shown.
Measured rates come from `soloist bench`. Left out: tokenizer and loading (measured, not predicted), more than one
question at a time, and small students' launches beyond a constant per layer: below half a billion weights that constant
is most of the time, and the bandwidth says little.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.devices.spec import Device

PREDICTED: Literal["predicted"] = "predicted"


@dataclass(frozen=True)
class Matrix:
    """A weight matrix (outputs, inputs) that a token passes `count` times, once a layer."""

    name: str
    rows: int
    columns: int
    count: int


@dataclass(frozen=True)
class Student:
    """The shape of a decoder of the Llama family."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = True

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """What one token streams; matrices of the same input as one, the way kernels are launched."""
        kv = 2 * self.kv_heads * self.head_dim
        queries = self.heads * self.head_dim
        return (
            Matrix("q, k, v", queries + kv, self.hidden, self.layers),
            Matrix("attention out", self.hidden, queries, self.layers),
            Matrix("gate, up", 2 * self.intermediate, self.hidden, self.layers),
            Matrix("down", self.hidden, self.intermediate, self.layers),
            Matrix("head", self.vocabulary, self.hidden, 1),
        )

    @property
    def weights(self) -> int:
        """Weights of all matrices; an untied embedding is not among them."""
        return sum(matrix.rows * matrix.columns * matrix.count for matrix in self.matrices)

    def kv_bytes(self, context: int, bits: int = 16) -> int:
        """Bytes of the cache of `context` tokens; at 8 bits with one fp16 scale per head and token."""
        per_head = self.head_dim * bits // 8 + (2 if bits == 8 else 0)
        return 2 * self.layers * self.kv_heads * per_head * context


STUDENTS: Mapping[str, Student] = {
    "smollm2-135m": Student("smollm2-135m", 576, 1536, 30, 9, 3, 64, 49152),
    "smollm2-360m": Student("smollm2-360m", 960, 2560, 32, 15, 5, 64, 49152),
    "smollm2-1.7b": Student("smollm2-1.7b", 2048, 8192, 24, 32, 32, 64, 49152),
    "qwen2.5-0.5b": Student("qwen2.5-0.5b", 896, 4864, 24, 14, 2, 64, 151936),
    "qwen2.5-1.5b": Student("qwen2.5-1.5b", 1536, 8960, 28, 12, 2, 128, 151936),
    "qwen3-0.6b": Student("qwen3-0.6b", 1024, 3072, 28, 16, 8, 128, 151936),
    "qwen3-4b": Student("qwen3-4b", 2560, 9728, 36, 32, 8, 128, 151936),
    "tinyllama-1.1b": Student("tinyllama-1.1b", 2048, 5632, 22, 32, 4, 64, 32000, tied=False),
    "llama-3.2-1b": Student("llama-3.2-1b", 2048, 8192, 16, 32, 8, 64, 128256),
    "llama-3.2-3b": Student("llama-3.2-3b", 3072, 8192, 28, 24, 8, 128, 128256),
    "llama-3.1-8b": Student("llama-3.1-8b", 4096, 14336, 32, 32, 8, 128, 128256, tied=False),
}


def student(name: str) -> Student:
    """A shape by name, or of a folder with a Hugging Face config.json.

    Raises:
        UsageError: neither.
        ArtifactError: a config.json that is not one of a decoder.
    """
    if name in STUDENTS:
        return STUDENTS[name]
    file = Path(name) / "config.json"
    if not file.is_file():
        raise UsageError(f"student '{name}': no folder with a config.json, and none of {', '.join(STUDENTS)}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Student(
            Path(name).resolve().name,
            hidden,
            config["intermediate_size"],
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads,
            config["vocab_size"],
            bool(config.get("tie_word_embeddings", False)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: not the config of a decoder ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Precision:
    """How weights are stored: bits of a code, group of columns per fp16 scale (0: none), and the same of the head."""

    name: str
    bits: int
    group: int
    head_bits: int
    head_group: int

    def bytes_of(self, matrix: Matrix) -> int:
        """Bytes of one such matrix in the layout of `soloist.kernels.layout`."""
        bits, group = (self.head_bits, self.head_group) if matrix.name == "head" else (self.bits, self.group)
        scales = 2 * -(-matrix.columns // group) if group else 0
        return matrix.rows * (matrix.columns * bits // 8 + scales)

    def weight_bytes(self, shape: Student) -> int:
        """Bytes that one token streams."""
        return sum(self.bytes_of(matrix) * matrix.count for matrix in shape.matrices)


PRECISIONS: Mapping[str, Precision] = {
    "fp16": Precision("fp16", 16, 0, 16, 0),
    "w8-g32": Precision("w8-g32", 8, 32, 8, 32),
    "w4-g128": Precision("w4-g128", 4, 128, 8, 32),
    "w4-g32": Precision("w4-g32", 4, 32, 8, 32),
    "w4-g32-head4": Precision("w4-g32-head4", 4, 32, 4, 32),
}


@dataclass(frozen=True)
class Prediction:
    """A token and a prompt of a student on a device.

    Args:
        floor_ms: no token can take less.
        itl_ms: predicted time of a token.
        ttft_ms: predicted time to the first token; None where the device's peak is not known.
        fits: whether weights and cache fit the memory left for a model (all of it where that is not known).
        evidence: the weakest behind the prediction.
    """

    student: str
    device: str
    precision: str
    context: int
    prompt: int
    weight_bytes: int
    kv_bytes: int
    floor_ms: float
    itl_ms: float
    ttft_ms: float | None
    fits: bool
    evidence: str
    label: Literal["predicted"] = PREDICTED

    @property
    def tokens_per_second(self) -> float:
        """Predicted."""
        return 1000 / self.itl_ms


def predict(
    shape: Student, device: Device, precision: Precision, *, context: int = 512, prompt: int = 512
) -> Prediction:
    """The prediction of a precision that kernels here read, from its exact bytes."""
    weights, cache = precision.weight_bytes(shape), shape.kv_bytes(context)
    stored = weights if shape.tied else weights + precision.bytes_of(shape.matrices[-1])
    usable = device.usable_gb or device.memory_gb
    return Prediction(
        shape.name,
        device.name,
        precision.name,
        context,
        prompt,
        weights,
        cache,
        floor_ms=1e3 * (weights + cache) / (1e9 * device.bandwidth_gbs),
        itl_ms=itl_ms(device, shape, weights + cache),
        ttft_ms=_ttft_ms(device, shape, weights, prompt),
        fits=stored + cache <= 1e9 * usable,
        evidence=device.worst_evidence,
    )


def itl_ms(device: Device, shape: Student, streamed: float) -> float:
    """Predicted time of a token that streams so many bytes."""
    return 1e3 * streamed / (device.bandwidth_share * 1e9 * device.bandwidth_gbs) + shape.layers * device.layer_ms


def _ttft_ms(device: Device, shape: Student, weights: int, prompt: int) -> float | None:
    if device.peak_tflops is None or device.peak_share is None:
        return None
    head = shape.matrices[-1].rows * shape.matrices[-1].columns
    attention = 2 * prompt**2 * shape.heads * shape.head_dim * shape.layers
    operations = 2 * (shape.weights - head) * prompt + 2 * head + attention
    computing = 1e3 * operations / (device.peak_share * 1e12 * device.peak_tflops)
    streaming = 1e3 * weights / (device.bandwidth_share * 1e9 * device.bandwidth_gbs)
    return max(computing, streaming) + shape.layers * device.layer_ms


def matrix_rows(shape: Student, device: Device, precision: Precision) -> Iterator[dict[str, Any]]:
    """For each matrix its bytes, with fp16 activations in and out, its floor, and its predicted time at one row."""
    for matrix in shape.matrices:
        moved = precision.bytes_of(matrix) + 2 * (matrix.rows + matrix.columns)
        floor = 1e6 * moved / (1e9 * device.bandwidth_gbs)
        yield {
            "matrix": matrix.name,
            "rows": matrix.rows,
            "columns": matrix.columns,
            "count": matrix.count,
            "bytes": moved,
            "floor_us": floor,
            "streaming_us": floor / device.bandwidth_share,
            "label": PREDICTED,
        }
