"""Open any model by what lies on disk: a GGUF file, an onnxruntime-genai folder, a Hugging Face folder."""

from __future__ import annotations

import os
from pathlib import Path

from soloist.kernels.errors import ArtifactError
from soloist.targets.base import Runtime

FORMATS = ("gguf", "onnx", "torch")


def format_of(path: Path) -> str:
    """The format of the model at `path`. Raises ArtifactError if it is none we know."""
    if path.is_file() and path.suffix == ".gguf":
        return "gguf"
    if (path / "genai_config.json").is_file():
        return "onnx"
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return "torch"
    what = "no such file or folder" if not path.exists() else "not a model"
    raise ArtifactError(
        f"{path}: {what}; give a .gguf file, a folder with genai_config.json, "
        "or a folder with config.json and model.safetensors"
    )


def threads_here() -> int | None:
    """OMP_NUM_THREADS, which torch obeys by itself; None (all cores) if it is not set.

    Runtimes wait for each other in busy loops: two threads on two cores that others use too measured
    twenty times slower than one, so whoever shares a machine needs one setting that all of them follow.
    """
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def open_runtime(path: Path, format: str | None = None) -> Runtime:
    """Open the model at `path` in its own runtime; `format` is found from the files if not given."""
    kind = format or format_of(path)
    if kind == "gguf":
        from soloist.targets.run_gguf import GgufRuntime

        return GgufRuntime(path, threads=threads_here())
    if kind == "onnx":
        from soloist.targets.run_onnx import OnnxRuntime

        return OnnxRuntime(path, threads=threads_here())
    if kind == "torch":
        from soloist.targets.run_torch import TorchRuntime

        return TorchRuntime(path)
    raise ArtifactError(f"unknown format '{kind}': use one of {', '.join(FORMATS)}")
