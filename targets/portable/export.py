"""Hugging Face folder or quantized student -> a folder with a graph of standard ONNX operators.

torch's exporter traces the model through a wrapper of flat tensors (`flat`); a quantized student is traced with the
weights its integers stand for, which are then replaced by the integers (`weights`). The graph is walked before the
folder gets its name, so a folder that exists is portable. optimum's own ONNX exporter cannot be used with
transformers 5; its normalized configurations can, and are.
A configuration whose graph would be wrong in silence is refused: rotary frequencies that change with the length (they
would be frozen at the length of the trace), soft-capped scores, attention in both directions. The tokenizer is written
as transformers loads it, not copied: what the classes of older models change at load stands in no file of theirs.

float32 is for ONNX Runtime on a CPU, which computes in nothing else; float16 for TensorRT and CUDA. Left out: bfloat16
(TensorRT on Orin has none), and students that do not fit in memory as float32.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import first_line, require
from soloist.targets.families import FAMILIES
from soloist.targets.files import whole_folder
from soloist.targets.portable.facts import (
    DATA,
    DTYPES,
    GRAPH,
    TEMPLATE,
    TOKENIZER,
    Facts,
    Shapes,
    input_names,
    output_names,
)
from soloist.targets.portable.graph import OPSET, check_portable, save, tidy
from soloist.targets.portable.weights import EMBEDDING, Integers, put_integers
from soloist.targets.quantized import is_quantized, read_quantized, write_dequantized
from soloist.targets.to_gguf import read_config

# Activations of products in int8. On SmolLM2-135M at 4 bits with an 8-bit head this costs a KL of 0.0035 (levels 0 and
# 1: below 1e-10) and takes 0.018 s of one core a token instead of 0.19: ONNX Runtime 1.32 has no float32 product for
# 8-bit weights on a CPU and unpacks all of them for every token. Level 1 is for graphs of 4-bit weights alone (2.6
# times slower than 4, as exact as float32).
ACCURACY_LEVEL = 4
_ROPES = ("default", "linear", "llama3", "yarn")  # whose frequencies do not change with the length of the text


def compile_portable(student: Path, out: Path, dtype: str = "float32") -> dict[str, Any]:
    """Write the model folder `out`; returns facts. `student` is a float or a quantized folder.

    Raises:
        ArtifactError: not a student, an architecture without a portable graph, or no tokenizer.
    """
    if dtype not in DTYPES:
        raise ArtifactError(f"portable ONNX in '{dtype}' is not one of {', '.join(DTYPES)}")
    for package in ("torch", "transformers", "onnxscript", "onnx_ir", "onnx", "optimum"):
        require(package, "compile")
    quantized = is_quantized(student)
    if not quantized:
        read_config(student)
    try:
        config = require("transformers", "compile").AutoConfig.from_pretrained(str(student), local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise ArtifactError(f"{student}: transformers does not know this architecture ({first_line(error)})") from error
    shapes = read_shapes(config)
    with whole_folder(out) as folder:
        special, stop = _tokenizer(student, folder, config)
        done = _graph(student, folder, shapes, dtype, quantized)
        operators = check_portable(folder / GRAPH)
        facts = Facts(
            **asdict(shapes),
            dtype=dtype,
            opset=OPSET,
            stop_ids=stop,
            special=special,
            bits=dict(done.bits),
            accuracy_level=ACCURACY_LEVEL,
            operators=operators,
            sizes={name: (folder / name).stat().st_size for name in (GRAPH, DATA, TOKENIZER, TEMPLATE)},
        )
        facts.write(folder)
    return {"file": out.name, "dtype": dtype, "opset": OPSET, "bits": dict(done.bits), "operators": operators}


def read_shapes(config: Any) -> Shapes:
    """The shapes of a transformers configuration. Raises ArtifactError: a family or variant without a graph."""
    family = str(config.model_type)
    if family not in FAMILIES:
        raise ArtifactError(f"architecture '{family}' has no portable ONNX graph; there are {', '.join(FAMILIES)}")
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [value for value in ropes.values() if isinstance(value, Mapping)] or [ropes]:
        kind = str(rope.get("rope_type", "default"))
        if kind not in _ROPES:
            raise ArtifactError(
                f"rotary embedding '{kind}' changes with the length of the text and cannot stand in a fixed graph; "
                f"there are {', '.join(_ROPES)}"
            )
    for name in ("attn_logit_softcapping", "use_bidirectional_attention"):
        if getattr(config, name, None):
            raise ArtifactError(f"{family} with '{name}' has no portable ONNX graph")
    normalized = _normalized(config, family)
    heads, hidden = int(normalized.num_attention_heads), int(normalized.hidden_size)
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
    """The configuration under optimum's names, which are the same for every family."""
    optimum = require("optimum.utils", "compile")
    try:
        return optimum.NormalizedConfigManager.get_normalized_config_class(family)(config)
    except KeyError:  # Gemma 3: a family that optimum 2.3 does not list, with the names of Llama
        return optimum.NormalizedTextConfig(config)


def _tokenizer(student: Path, out: Path, config: Any) -> tuple[dict[str, str], tuple[int, ...]]:
    """Write tokenizer and chat template; the special tokens by name, and the ids that end an answer."""
    transformers = require("transformers", "compile")
    if not (student / TOKENIZER).is_file():
        raise ArtifactError(f"{student}: no {TOKENIZER}; save the student with a fast tokenizer")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(student), local_files_only=True)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # the tokenizers package raises plain Exception
        raise ArtifactError(f"{student}: its tokenizer does not load ({first_line(error)})") from error
    if not isinstance(tokenizer.chat_template, str):
        raise ArtifactError(f"{student}: no chat template (chat_template.jinja); a chat student needs one")
    backend.no_padding()
    backend.no_truncation()
    (out / TOKENIZER).write_text(backend.to_str(), encoding="utf-8")
    (out / TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
    special = {str(name): str(token) for name, token in tokenizer.special_tokens_map.items()}
    return special, _stop_ids(student, config, tokenizer)


def _stop_ids(student: Path, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer, by the first of generation_config.json, config and tokenizer that names any."""
    file = student / "generation_config.json"
    try:
        stop = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    except ValueError as error:
        raise ArtifactError(f"{file}: not JSON ({error}); save the student again") from error
    if stop is None:
        stop = getattr(config, "eos_token_id", None)
    if stop is None:
        stop = tokenizer.eos_token_id
    if stop is None:
        return ()
    return tuple(map(int, stop)) if isinstance(stop, list) else (int(stop),)


def _graph(student: Path, out: Path, shapes: Shapes, dtype: str, quantized: bool) -> Integers:
    if not quantized:
        model = _traced(student, shapes, dtype, apart=False)
        tidy(model, shapes)
        save(model, out, {})
        return Integers()
    content = read_quantized(student)
    with tempfile.TemporaryDirectory(dir=out.parent) as floats:
        write_dequantized(student, Path(floats))
        model = _traced(Path(floats), shapes, dtype, apart=EMBEDDING in content.matrices)
    tidy(model, shapes)
    done = put_integers(model, content, dtype)
    save(model, out, done.same_bytes)
    return done


def _traced(folder: Path, shapes: Shapes, dtype: str, *, apart: bool) -> Any:
    """The graph of a float folder; `apart` gives a tied head a weight of its own."""
    torch, transformers = require("torch", "compile"), require("transformers", "compile")
    from soloist.targets.portable.flat import Flat, example

    kind = getattr(torch, dtype)
    transformers.utils.logging.disable_progress_bar()
    try:
        student = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=kind, local_files_only=True)
    except Exception as error:  # safetensors, json and transformers each raise their own kinds
        reason = str(error) or type(error).__name__  # a MemoryError says nothing
        raise ArtifactError(f"{folder}: the model does not load ({reason})") from error
    arguments, free = example(shapes.layers, shapes.kv_heads, shapes.head_dim, kind)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            Flat(student.eval(), apart=apart),
            arguments,
            dynamo=True,
            dynamic_shapes=free,
            opset_version=OPSET,
            input_names=input_names(shapes.layers),
            output_names=output_names(shapes.layers),
            verbose=False,
        )
    return program.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about packages nobody asked for and about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
