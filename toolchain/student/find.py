"""A model by what a user names: a file, a folder, or the folder of a job; with the tools it calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soloist.kernels.errors import UsageError
from soloist.targets.llama_quantize import IMPORTANCE
from soloist.targets.open import parts
from soloist.toolchain.student.artifact import CARD, read_card
from soloist.toolchain.student.ask import student_team
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.tools.files import load_tools
from soloist.toolchain.tools.tool_list import FILE, read_tool_list

RECOMMENDED = "recommended"
_FOLDERS = ("config.json", "genai_config.json", "portable.json", "engine.json", "quantization.json")


@dataclass(frozen=True)
class Model:
    """A model to be asked: the file or folder itself, the tools it calls, and where their functions are."""

    path: Path
    tools: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()

    @property
    def team(self) -> TeamConfig:
        """The model as a team of one."""
        return student_team(self.path, self.tools, self.entries)


def find_model(path: Path, entries: Sequence[str] = ()) -> Model:
    """The model at `path` with its tools: those of `tools.json` beside it, or those at `entries`.

    Of a job's folder it is the file that its report recommends, else the smallest GGUF file (of a student of two
    models, their folder).

    Raises:
        UsageError: a student that calls tools nobody gave it.
        ArtifactError: a list of tools or a card that is not one of ours.
    """
    model = _model(path)
    folder = model if model.is_dir() else model.parent
    if (folder / FILE).is_file():
        tools = read_tool_list(folder / FILE)
        return Model(model, tools.names, tools.trusted(entries, model))
    if entries:
        return Model(model, tuple(load_tools(entries).tools), tuple(entries))
    called = read_card(folder).called_tools if (folder / CARD).is_file() else ()
    if called:
        raise UsageError(
            f"{model}: this student calls tools ({', '.join(called)}), and no {FILE} beside it says where they are: "
            "name them with --tools MODULE:NAME"
        )
    return Model(model)


def _model(path: Path) -> Path:
    if not path.is_dir() or parts(path) or any((path / name).is_file() for name in _FOLDERS):
        return path
    if (recommended := _recommended(path)) is not None:
        return recommended
    files = [file for file in path.rglob("*.gguf") if file.name != IMPORTANCE]  # which holds no model
    files.sort(key=lambda file: file.stat().st_size)
    if not files:
        return path
    folder = files[0].parent.parent
    return folder if parts(folder) else files[0]


def _recommended(job: Path) -> Path | None:
    """The model that a job recommends: its file `recommended` says where, inside the job."""
    try:
        named = (job / RECOMMENDED).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    model = (job / named).resolve()
    return job / named if job.resolve() in model.parents and model.exists() else None
