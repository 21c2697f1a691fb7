"""Open any model by what lies on disk: a GGUF file, an onnxruntime-genai or a portable ONNX folder, a TensorRT engine's
folder, a Hugging Face folder, or a quantized one, which torch runs on our kernels where there is a GPU for them.

A student may be two models that answer as one: a folder with a folder `decomposer` and a folder `solver`.
"""

from __future__ import annotations

from pathlib import Path

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.base import Runtime
from soloist.targets.portable.facts import is_portable
from soloist.targets.providers import Provider
from soloist.targets.quantized import is_quantized
from soloist.targets.tensorrt.build_engine import SIDECAR

FORMATS = ("gguf", "onnx", "onnx-portable", "engine", "quantized", "torch")
PARTS = ("decomposer", "solver")


def parts(path: Path) -> dict[str, Path]:
    """The models of a student that is two, by what they do; empty for a single model.

    Raises ArtifactError where a part is no model.
    """
    if not all((path / name).is_dir() for name in PARTS):
        return {}
    models = {}
    for name in PARTS:
        files = sorted((path / name).glob("*.gguf"))
        models[name] = files[0] if len(files) == 1 else path / name
        format_of(models[name])
    return models


def format_of(path: Path) -> str:
    """The format of the model at `path`. Raises ArtifactError if it is none we know."""
    if path.is_file() and path.suffix == ".gguf":
        return "gguf"
    if (path / "genai_config.json").is_file():
        return "onnx"
    if (path / SIDECAR).is_file():
        return "engine"
    if is_portable(path):
        return "onnx-portable"
    if is_quantized(path):
        return "quantized"
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return "torch"
    what = "no such file or folder" if not path.exists() else "not a model"
    raise ArtifactError(
        f"{path}: {what}; give a .gguf file, a folder with genai_config.json, portable.json or engine.json, "
        "or a folder with config.json and model.safetensors"
    )


def open_runtime(path: Path, format: str | None = None, *, provider: Provider = "auto") -> Runtime:
    """Open the model at `path` in its own runtime; `format` is found from the files if not given.

    Args:
        provider: what computes an ONNX model, see `soloist.targets.providers`.

    Raises:
        SoloistError: whatever the runtime says; a UsageError for a provider of another format.
    """
    kind = format or format_of(path)
    if provider != "auto" and kind not in ("onnx", "onnx-portable"):
        raise UsageError(f"{path}: the provider '{provider}' is of ONNX Runtime, and this is {kind}")
    if kind == "gguf":
        from soloist.targets.run_gguf import GgufRuntime

        return GgufRuntime(path)
    if kind == "onnx":
        from soloist.targets.run_onnx import OnnxRuntime

        return OnnxRuntime(path, provider=provider)
    if kind == "onnx-portable":
        from soloist.targets.portable.run import PortableRuntime

        return PortableRuntime(path, provider=provider)
    if kind == "engine":
        from soloist.targets.tensorrt.runner import EngineRuntime

        return EngineRuntime(path)
    if kind in ("torch", "quantized"):
        from soloist.targets.run_torch import TorchRuntime

        return TorchRuntime(path)
    raise ArtifactError(f"unknown format '{kind}': use one of {', '.join(FORMATS)}")
