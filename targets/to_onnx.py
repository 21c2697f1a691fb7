"""Hugging Face folder -> an onnxruntime-genai folder, made by that package's own builder.

    precision   options                                     SmolLM2-135M
    none        fp32
    int8        shared_embeddings=false                     the embedding stays in fp32
    int4        algo_config=k_quant_mixed, blocks of 32     8 bits for the head, the embedding and the
                                                            layers that suffer most, shared

A package is made for one device, "cpu" or "cuda": for CUDA it computes in fp16 where one for the CPU does in fp32.

The builder exits 0 with files that do not load for some options (edge cases: asymmetric weights or a
mixed last matmul with a shared embedding), which is why an export is nothing before `verify` has opened
it. It runs in a process of its own: it holds the whole model in memory and prints progress bars. A student
that `soloist quantize` made keeps its own integers (`quantized_onnx`). Left out: other devices.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soloist.kernels.child import run_module
from soloist.kernels.errors import ArtifactError, ResourceError
from soloist.targets.base import require
from soloist.targets.files import whole_folder
from soloist.targets.gguf_tokenizer import chat_template
from soloist.targets.pretokenizers import PRE_TOKENIZERS, name_of
from soloist.targets.quantized import is_quantized
from soloist.targets.quantized_onnx import ACCURACY_LEVEL, compile_quantized
from soloist.targets.to_gguf import read_config

PRECISIONS: Mapping[str, Mapping[str, str]] = {
    "int8": {},
    "int4": {"algo_config": "k_quant_mixed", "block_size": "32", "accuracy_level": "4"},
}
FLOATS = {"cpu": "fp32", "cuda": "fp16"}  # the builder has no fp16 for a CPU, CUDA no attention in fp32
TIME_LIMIT_S = 1800


def compile_onnx(
    student: Path,
    out: Path,
    precision: str | None = None,
    *,
    options: Mapping[str, str] | None = None,
    device: str = "cpu",
    limit_s: int = TIME_LIMIT_S,
) -> dict[str, Any]:
    """Write the model folder `out`; returns facts. `options` replace the builder options of the precision.

    Without a `precision` a quantized student keeps its integers and any other becomes fp32, or fp16 for "cuda".

    Raises:
        ArtifactError: not a student, or the builder refuses it.
        ResourceError: the builder took longer than `limit_s`.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ArtifactError(f"ONNX precision '{precision}' is not one of {', '.join(PRECISIONS)}")
    read_config(student)
    for package in ("onnxruntime_genai", "onnx_ir"):
        require(package, "onnx")

    def build_floats(folder: Path, package: Path, options: Mapping[str, str]) -> None:
        _build(folder, package, FLOATS[device], options, device, limit_s)
        _carry(folder, package)

    if is_quantized(student):
        return compile_quantized(
            student,
            out,
            precision,
            build_floats,
            accuracy_level=ACCURACY_LEVEL[device],
        )
    chosen = dict(PRECISIONS.get(precision or "", {}) if options is None else options)
    with whole_folder(out) as folder:
        _build(student, folder, precision or FLOATS[device], chosen, device, limit_s)
        _carry(student, folder)
    return {"file": out.name, "precision": precision or FLOATS[device], "options": chosen}


def _build(student: Path, out: Path, precision: str, options: Mapping[str, str], device: str, limit_s: int) -> None:
    arguments = ["-m", student.name, "-i", str(student), "-o", str(out), "-c", str(out / "cache"), "-p", precision]
    extra = [f"{key}={value}" for key, value in {**options, "hf_token": "false"}.items()]
    # without these the builder asks the hub about a model that lies on this disk
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    try:
        ended = run_module(
            "onnxruntime_genai.models.builder",
            [*arguments, "-e", device, "--extra_options", *extra],
            limit_s=limit_s,
            environment=offline,
        )
    except TimeoutError as error:
        raise ResourceError(f"{student}: the ONNX builder took longer than {limit_s} s; give it more time") from error
    shutil.rmtree(out / "cache", ignore_errors=True)
    if ended.code != 0 or not (out / "model.onnx").is_file():
        raise ArtifactError(f"{student}: the ONNX builder failed ({ended.last or ended})")


def _carry(student: Path, out: Path) -> None:
    """Put the student's tokenizer and chat template beside the graph, in the spelling the runtime reads right."""
    if (student / "tokenizer_config.json").is_file():
        shutil.copyfile(student / "tokenizer_config.json", out / "tokenizer_config.json")
    (out / "chat_template.jinja").write_text(chat_template(student), encoding="utf-8")
    content = json.loads((student / "tokenizer.json").read_text(encoding="utf-8"))
    known = PRE_TOKENIZERS[name_of(content.get("pre_tokenizer"))]
    content["pre_tokenizer"] = dict(known.plain or known.spec)
    (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
