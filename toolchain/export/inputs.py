"""What formats may be made with beside the student: an importance matrix, our kernels.

    soloist export STUDENT --formats gguf-q4_k_m --importance QUANTIZED    llama.cpp's quantizer weighs columns by what
                                                                           `soloist quantize STUDENT` saw enter them
    soloist export QUANTIZED --formats tensorrt-7.2 --plugin KERNELS       4-bit products are our kernel, as a plugin

Refused before anything is compiled where they are another student's or no format takes them. What was given is part of
the export's config and of the facts of each format that took it. Left out: measuring an importance matrix, which
`quantize` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.compile import Inputs, release_of, takes_importance
from soloist.targets.formats import Format, parse
from soloist.targets.llama_quantize import IMPORTANCE, read_importance
from soloist.targets.quantized import is_quantized
from soloist.targets.tensorrt.builds import built_for
from soloist.targets.tensorrt.jetson import check_plugins
from soloist.toolchain.core.artifact import MANIFEST, Artifact
from soloist.toolchain.core.files import sha256_file
from soloist.toolchain.student.student import QUANTIZE, Student

_BITS = 4  # of the matrices that our kernel multiplies by


@dataclass(frozen=True)
class Given:
    """What was given: the files, for the compilers, and what the manifest says of each."""

    inputs: Inputs
    facts: dict[str, dict[str, str]] = field(default_factory=dict)

    def importance_of(self, format: Format) -> dict[str, str] | None:
        """What the manifest says of the importance matrix, where this format is made with one."""
        return self.facts.get("importance") if takes_importance(format) else None

    def kernels_of(self, format: Format) -> dict[str, str] | None:
        """The same of our kernels."""
        return self.facts.get("kernels") if format.target == "tensorrt" else None


def check_inputs(student: Student, formats: Sequence[str], importance: Path | None, kernels: Path | None) -> Given:
    """What was given with a student, checked.

    Raises:
        UsageError: no format or no student for it.
        ArtifactError: no such file or folder, or the importance of another student.
    """
    facts = {}
    file = None
    if importance is not None:
        file, facts["importance"] = _importance(importance, student, formats)
    if kernels is not None:
        facts["kernels"] = _kernels(kernels, student.bits, formats)
    return Given(Inputs(student.digest, file, kernels), facts)


def _importance(given: Path, student: Student, formats: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The importance matrix of a student: a file, or that of an artifact quantized from this very student."""
    if student.bits is not None or len(student.models) > 1:
        raise UsageError(f"{student.path}: --importance is for rounding a float student of one model")
    if not any(takes_importance(parse(format)) for format in formats):
        raise UsageError("--importance is for llama.cpp's own types, such as gguf-q4_k_m; name one in --formats")
    folder, file = (given, given / IMPORTANCE) if given.is_dir() else (given.parent, given)
    facts = {"file": file.name}
    if given.is_dir() or (is_quantized(folder) and (folder / MANIFEST).is_file()):
        made = Artifact.open(folder, stage=QUANTIZE)
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


def _kernels(given: Path, bits: int | None, formats: Sequence[str]) -> dict[str, str]:
    """Kernels that become plugins of TensorRT on a Jetson. `bits`: the fewest of the student's matrices."""
    jetsons = [format for format in map(parse, formats) if format.target == "tensorrt"]
    if not jetsons:
        raise UsageError("--plugin is for TensorRT on a Jetson; name a format such as tensorrt-7.2 in --formats")
    for format in jetsons:
        check_plugins(release_of(format))
        built_for(given, release_of(format).architectures)
    if bits != _BITS:
        raise UsageError("--plugin multiplies by 4-bit matrices, and this student has none; quantize it to 4 bits")
    return {"artifact": Artifact.open(given, stage="kernels").digest}
