"""A student, opened once: all that later stages ask about it, in one frozen record that is handed on.

    distill ─► Student(bits=None) ─► quantize ─► Student(bits=4, parent=the float one) ─► export, verify, bench …

Nothing downstream looks into a student's folder again. Left out: running it (`ask.py`, `targets.open`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from soloist.kernels.errors import ArtifactError
from soloist.targets.open import parts
from soloist.targets.quantized import is_quantized, read_plan
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.knowledge import context
from soloist.toolchain.student.artifact import CARD, StudentCard, read_card
from soloist.toolchain.tools.calls import grammar
from soloist.toolchain.tools.tool_list import FILE as TOOLS
from soloist.toolchain.tools.tool_list import ToolList, read_tool_list
from soloist.toolchain.traces.recording import TRACES, open_traces

DISTILL, QUANTIZE = "distill", "quantize"
GRAMMAR = "calls.gbnf"


@dataclass(frozen=True)
class Student:
    """One student artifact.

    Attributes:
        models: its Hugging Face (or quantized) folder by the name "", or its two by what they do.
        bits: the fewest bits of a matrix of it; None for floats.
        card: how it was made and has to be asked; None for a model that `distill` did not make.
        tools: the tools it calls, with where their functions are; None where it answers in words, or nobody knows.
        graph: the knowledge graph whose facts stand before its questions, if there is one.
        parent: the float student that a quantized one was made from.
    """

    artifact: Artifact
    models: Mapping[str, Path]
    bits: int | None = None
    card: StudentCard | None = None
    tools: ToolList | None = None
    graph: Path | None = None
    parent: Student | None = None

    @property
    def path(self) -> Path:
        return self.artifact.path

    @property
    def digest(self) -> str:
        return self.artifact.digest

    @property
    def reference(self) -> Student:
        """What files are compared with: the float student."""
        return self.parent or self

    @property
    def called_tools(self) -> tuple[str, ...]:
        """Names of the tools it was trained to call."""
        return self.card.called_tools if self.card is not None else ()

    def entries(self, given: Sequence[str] = ()) -> tuple[str, ...]:
        """Where the functions of its tools are: as given, else as its list says where they ship with Soloist.

        Raises:
            UsageError: it calls tools that nobody named.
        """
        if not self.called_tools:
            return ()
        return (self.tools or ToolList.undeclared(self.called_tools)).trusted(given, self.path)

    def sidecars(self) -> dict[str, str]:
        """What lies beside every compiled model: its tools, the grammar of their calls, the graph it is asked with."""
        texts: dict[str, str] = {}
        if self.graph is not None:
            texts[context.FILE] = self.graph.read_text(encoding="utf-8")
        if self.tools is not None:
            texts[TOOLS] = self.tools.text()
            texts[GRAMMAR] = grammar(self.tools.toolbox())
        return texts

    def write_sidecars(self, folder: Path) -> None:
        """Write them into the folder of a compiled format."""
        for name, text in self.sidecars().items():
            write_atomic(folder / name, text)

    def traces(self) -> Artifact:
        """The traces it learned from. Raises ArtifactError where they are gone or others lie in their place."""
        artifact = self.reference.artifact
        for parent in artifact.manifest["parents"]:
            path = (artifact.path.parent / parent["path"]).resolve()
            if (path / TRACES).is_file():
                found = open_traces(path)
                if found.digest == parent["digest"]:
                    return found
        raise ArtifactError(
            f"{artifact.path}: the traces it learned from are not where they were; name them with --traces, "
            "or use a rounding that needs none (rtn, mse)"
        )


def open_student(student: Path | Artifact) -> Student:
    """Open a student, float or quantized.

    Raises:
        ArtifactError: no student, or the one that a quantized student was made from is not where it was.
    """
    artifact = student if isinstance(student, Artifact) else Artifact.open(student)
    stage = artifact.manifest["stage"]
    if stage not in (DISTILL, QUANTIZE):
        raise ArtifactError(
            f"{artifact.path}: this is an artifact of stage '{stage}', '{DISTILL}' or '{QUANTIZE}' is needed here"
        )
    models = parts(artifact.path) or {"": _model_folder(artifact.path)}
    graph = artifact.path / context.FILE
    tools = artifact.path / TOOLS
    return Student(
        artifact=artifact,
        models=models,
        bits=_fewest_bits(models),
        card=read_card(artifact.path) if (artifact.path / CARD).is_file() else None,
        tools=read_tool_list(tools) if tools.is_file() else None,
        graph=graph if graph.is_file() else None,
        parent=open_student(parent_of(artifact)) if stage == QUANTIZE else None,
    )


def open_float(path: Path) -> Student:
    """Open a student that `distill` made. Raises ArtifactError for any other artifact, a quantized one too."""
    return open_student(Artifact.open(path, stage=DISTILL))


def parent_of(made: Artifact) -> Artifact:
    """The student that an artifact was made from. Raises ArtifactError: not where it was, or another by now."""
    parent = made.manifest["parents"][0]
    path = (made.path.parent / parent["path"]).resolve()
    student = Artifact.open(path) if path.is_dir() else None
    if student is None or student.digest != parent["digest"]:
        raise ArtifactError(
            f"{made.path}: the student it was made from is not at {path}, and files are compared with that one"
        )
    return student


def _model_folder(student: Path) -> Path:
    for folder in (student, student / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ArtifactError(f"{student}: holds no model (no config.json); run the distill stage again")


def _fewest_bits(models: Mapping[str, Path]) -> int | None:
    bits: list[int] = []
    for folder in models.values():
        if is_quantized(folder):
            bits += [int(matrix["bits"]) for matrix in read_plan(folder)["tensors"].values()]
    return min(bits, default=None)
