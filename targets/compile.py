"""A student's model folder, or its two, compiled to one format: the one place that knows every compiler.

    compile_format(models, out, "gguf-q8_0", name)     out/gguf-q8_0/Name-Q8_0.gguf
                                                       out/gguf-q8_0/decomposer/…, solver/… of a student of two models

Nothing is compared here, and nothing but the model is written. An ONNX graph in fp16 that several engines are built
from is made once, in the folder `graphs`. Left out: choosing formats.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from soloist.kernels.errors import ArtifactError
from soloist.targets.families import FAMILIES
from soloist.targets.formats import DEVICES, ENGINES, JETPACK, Format, parse
from soloist.targets.llama_quantize import mean_squares, read_importance
from soloist.targets.open import parts
from soloist.targets.portable.export import compile_portable
from soloist.targets.tensorrt.jetson import compile_tensorrt, standard
from soloist.targets.tensorrt.plan import Student
from soloist.targets.tensorrt.rtx import build_rtx, require_rtx
from soloist.targets.tensorrt.versions import Release, release
from soloist.targets.to_gguf import PRECISIONS, compile_gguf, read_config
from soloist.targets.to_onnx import compile_onnx


@dataclass(frozen=True)
class Inputs:
    """What a format is made with beside the models, where it has a use for it.

    Args:
        digest: of the student, by which engines name it.
        importance: a file of `write_importance`, for llama.cpp's own quantizer.
        kernels: a folder of `soloist kernels build`, for plugins of TensorRT.
    """

    digest: str = ""
    importance: Path | None = None
    kernels: Path | None = None


@dataclass(frozen=True)
class Compiled:
    """A compiled format: `path` of its model, file or folder, relative to where it was compiled to.

    `checked`: what the compiler itself checked on the way, in words.
    """

    path: str
    size_mb: float
    checked: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Work:
    """One model to compile: its folder, where to, as what, what to call it, and a folder for its graph on the way."""

    folder: Path
    out: Path
    format: Format
    name: str
    graph: Path
    inputs: Inputs


@dataclass(frozen=True)
class _Made:
    """`file` is empty where the folder itself is the model."""

    file: str = ""
    checked: list[str] = field(default_factory=list)


def takes_importance(format: Format) -> bool:
    """Whether llama.cpp's own quantizer makes it, which weighs columns by an importance matrix."""
    return format.target == "gguf" and format.precision is not None and format.precision.upper() not in PRECISIONS


def release_of(format: Format) -> Release:
    """The TensorRT of a format for a Jetson."""
    return release(jetpack=format.precision or JETPACK)


def _gguf(work: _Work) -> _Made:
    precision = work.format.precision.upper() if work.format.precision else None
    importance = work.inputs.importance if takes_importance(work.format) else None
    weights = None if importance is None else mean_squares(read_importance(importance))
    return _Made(str(compile_gguf(work.folder, work.out, precision, work.name, importance=weights)["file"]))


def _onnx(work: _Work) -> _Made:
    try:
        compile_onnx(work.folder, work.out, work.format.precision, device=DEVICES[work.format.target])
    except ArtifactError as error:
        kind = read_config(work.folder).get("model_type")
        if kind in FAMILIES:
            raise
        known = ", ".join(FAMILIES)  # the builder itself may not name what it does not know
        raise ArtifactError(f"{error}; its architecture is '{kind}', and those that work are {known}") from error
    return _Made()


def _portable(work: _Work) -> _Made:
    compile_portable(work.folder, work.out, "float16" if work.format.precision == "fp16" else "float32")
    return _Made()


def _engine(work: _Work) -> _Made:
    """An engine, or what a device builds it of, from a graph in fp16 that other engines take too."""
    if work.format.target == "tensorrt-rtx":
        require_rtx()
    if not work.graph.is_dir():
        compile_portable(work.folder, work.graph, "float16")
    student = Student(work.name, work.inputs.digest) if work.inputs.digest else None
    if work.format.target == "tensorrt-rtx":
        build_rtx(work.graph, work.out, student=student)
        return _Made(checked=["parsed and built by TensorRT-RTX"])
    kernels = work.inputs.kernels
    plan = compile_tensorrt(work.graph, work.out, release_of(work.format), student=student, kernels=kernels)
    if not plan["parsed"]:
        return _Made()
    return _Made(checked=[f"parsed by {plan['parsed']}{'' if kernels is None else ' without our kernels'}"])


_COMPILERS: Mapping[str, Callable[[_Work], _Made]] = {
    "gguf": _gguf,
    **dict.fromkeys(DEVICES, _onnx),
    "onnx-portable": _portable,
    **dict.fromkeys(ENGINES, _engine),
}


def compile_format(
    models: Mapping[str, Path], out: Path, format: str, name: str, *, graphs: Path, inputs: Inputs | None = None
) -> Compiled:
    """Write one format of a student's models, by the name of the part, into `out/format`.

    Args:
        graphs: a scratch folder; what is there already is taken.

    Raises:
        SoloistError: whatever the compiler of the format says.
    """
    target = parse(format)
    shutil.rmtree(out / format, ignore_errors=True)
    path = format
    checked: list[str] = []
    for part, folder in models.items():
        title = f"{name}-{part.capitalize()}" if part else name
        work = _Work(folder, out / format / part, target, title, graph_of(graphs, part), inputs or Inputs())
        made = _COMPILERS[target.target](work)
        checked += made.checked
        if made.file and not part:
            path = f"{format}/{made.file}"
    return Compiled(path, size_mb(out / path), tuple(checked))


def graph_of(graphs: Path, part: str) -> Path:
    """Where `compile_format` leaves the graph in fp16 of a part that engines are built from."""
    return graphs / (part or "model")


def files_of(folder: Path, path: Path, models: Mapping[str, Path]) -> dict[str, Path]:
    """The model or models of a compiled format by the name of the part."""
    return parts(folder) if len(models) > 1 else {"": path}


def graphs_of(folder: Path, models: Mapping[str, Path], scratch: Path) -> dict[str, Path]:
    """What ONNX Runtime opens of a folder for a Jetson, by the name of the part."""
    return {part: standard(folder / part, scratch / "graph" / part) for part in models}


def size_mb(path: Path) -> float:
    """Megabytes (10^6 bytes) of a file or of all files of a folder. Raises FileNotFoundError where there is none."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not files:
        raise FileNotFoundError(path)
    return round(sum(file.stat().st_size for file in files) / 1e6, 3)
