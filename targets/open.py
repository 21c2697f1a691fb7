"""Open any model by what lies on disk: a GGUF file, an onnxruntime-genai folder, a Hugging Face folder."""

from __future__ import annotations

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


def open_runtime(path: Path, format: str | None = None) -> Runtime:
    """Open the model at `path` in its own runtime; `format` is found from the files if not given."""
    kind = format or format_of(path)
    if kind == "gguf":
        from soloist.targets.run_gguf import GgufRuntime

        return GgufRuntime(path)
    if kind == "onnx":
        from soloist.targets.run_onnx import OnnxRuntime

        return OnnxRuntime(path)
    if kind == "torch":
        from soloist.targets.run_torch import TorchRuntime

        return TorchRuntime(path)
    raise ArtifactError(f"unknown format '{kind}': use one of {', '.join(FORMATS)}")
