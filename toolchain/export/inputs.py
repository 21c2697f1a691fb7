"""What formats may be made with beside the student: an importance matrix, our kernels.

    soloist export STUDENT --formats gguf-q4_k_m --importance QUANTIZED    llama.cpp's quantizer weighs columns by what
                                                                           `soloist quantize STUDENT` saw enter them
    soloist export QUANTIZED --formats tensorrt-7.2 --plugin KERNELS       4-bit products are our kernel, as a plugin

Refused before anything is compiled where they are another student's or no format takes them. What was given is part of
the export's config and of the facts of each format that took it. Left out: measuring an importance matrix, which
`quantize` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.formats import JETPACK, Format, parse
from soloist.targets.llama_quantize import IMPORTANCE, read_importance
from soloist.targets.open import parts
from soloist.targets.quantized import is_quantized
from soloist.targets.tensorrt.builds import built_for
from soloist.targets.tensorrt.jetson import check_plugins
from soloist.targets.tensorrt.versions import Release, release
from soloist.targets.to_gguf import PRECISIONS
from soloist.toolchain.core.artifact import MANIFEST, Artifact
from soloist.toolchain.core.files import sha256_file

_QUANTIZED = "quantize"
_BITS = 4  # of the matrices that our kernel multiplies by

Given = tuple[Path, Mapping[str, str]]  # where it lies, and what the manifest says of it


@dataclass(frozen=True)
class Inputs:
    """What a format is made with beside the models, where it has a use for it.

    Args:
        digest: of the artifact, by which engines name their student.
        importance: a file of `write_importance`, for llama.cpp's own quantizer.
        kernels: a folder of `soloist kernels build`, for plugins of TensorRT.
    """

    digest: str = ""
    importance: Given | None = None
    kernels: Given | None = None

    @property
    def said(self) -> dict[str, Mapping[str, str]]:
        """What makes one export another."""
        given = {"importance": self.importance, "kernels": self.kernels}
        return {name: one[1] for name, one in given.items() if one is not None}

    def taken(self, format: Format) -> dict[str, Mapping[str, str]]:
        """What of it this format is made with."""
        takes = {"importance": weighs(format), "kernels": format.target == "tensorrt"}
        return {name: facts for name, facts in self.said.items() if takes[name]}


PLAIN = Inputs()


def inputs_of(
    student: Artifact, width: int | None, formats: Sequence[str], importance: Path | None, kernels: Path | None
) -> Inputs:
    """What was given with a student, checked: see `importance_of` and `kernels_of`."""
    return Inputs(
        student.digest,
        None if importance is None else importance_of(importance, student, formats),
        None if kernels is None else kernels_of(kernels, width, formats),
    )


def weighs(format: Format) -> bool:
    """Whether llama.cpp's own quantizer makes it."""
    return format.target == "gguf" and format.precision is not None and format.precision.upper() not in PRECISIONS


def release_of(format: Format) -> Release:
    """The TensorRT of a format for a Jetson."""
    return release(jetpack=format.precision or JETPACK)


def importance_of(given: Path, student: Artifact, formats: Sequence[str]) -> Given:
    """The importance matrix of a student: a file, or that of an artifact quantized from this very student.

    Raises:
        UsageError: no format or no student for it.
        ArtifactError: no such file, or the artifact of another student.
    """
    if student.manifest["stage"] == _QUANTIZED or parts(student.path):
        raise UsageError(f"{student.path}: --importance is for rounding a float student of one model")
    if not any(weighs(parse(format)) for format in formats):
        raise UsageError("--importance is for llama.cpp's own types, such as gguf-q4_k_m; name one in --formats")
    folder, file = (given, given / IMPORTANCE) if given.is_dir() else (given.parent, given)
    facts = {"file": file.name}
    if given.is_dir() or (is_quantized(folder) and (folder / MANIFEST).is_file()):
        made = Artifact.open(folder, stage=_QUANTIZED)
        source = made.manifest["parents"][0]["digest"]
        if source != student.digest:
            raise ArtifactError(
                f"{folder}: was quantized from another student ({source}) than {student.path} ({student.digest}); "
                "quantize this one with awq or gptq"
            )
        if not file.is_file():
            raise ArtifactError(f"{folder}: holds no {IMPORTANCE}; quantize with awq or gptq, which look at inputs")
        facts["artifact"] = made.digest
    read_importance(file)
    return file, {**facts, "sha256": sha256_file(file)}


def kernels_of(given: Path, width: int | None, formats: Sequence[str]) -> Given:
    """Kernels that become plugins of TensorRT on a Jetson. `width`: the fewest bits of the student's matrices.

    Raises:
        UsageError: no format for them, a JetPack whose TensorRT has none, or a student without 4-bit matrices.
        ArtifactError: no folder of `soloist kernels build`, or one without kernels for the JetPack's boards.
    """
    takes = [format for format in map(parse, formats) if format.target == "tensorrt"]
    if not takes:
        raise UsageError("--plugin is for TensorRT on a Jetson; name a format such as tensorrt-7.2 in --formats")
    for format in takes:
        check_plugins(release_of(format))
        built_for(given, release_of(format).architectures)
    if width != _BITS:
        raise UsageError("--plugin multiplies by 4-bit matrices, and this student has none; quantize it to 4 bits")
    return given, {"artifact": Artifact.open(given, stage="kernels").digest}
