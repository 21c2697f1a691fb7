"""Checkpoints of a training run: tensors as safetensors, the rest as JSON, never pickle.

    <folder>/step-00000120/   state-000.safetensors … (fp32 weights and both moments) · state.json

Tensors lie in files of bounded size, because writing a file takes a copy of all that goes into it.

A checkpoint is written under a temporary name, synced and renamed, then older ones are removed: a kill at
any moment leaves one whole checkpoint, the old or the new.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from soloist.kernels.errors import ArtifactError
from soloist.toolchain.core.artifact import Facts
from soloist.toolchain.core.files import explain_disk_errors, write_atomic

_FILE_BYTES = 128 * 2**20


class CheckpointFacts(Facts):
    """Where a run stands: steps done, the seconds of each, the processes that did them.

    `fingerprint` is of the settings and the data, which a run that resumes must share; `files` hold the tensors.
    """

    step: int
    fingerprint: str
    seconds: tuple[float, ...]
    processes: int = 1
    files: int = 0


def save_checkpoint(folder: Path, facts: CheckpointFacts, tensors: Mapping[str, Tensor]) -> None:
    """Write the checkpoint and remove the older ones."""
    target = folder / f"step-{facts.step:08d}"
    temporary = folder / f"{target.name}.tmp"
    with explain_disk_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = _in_files(tensors)
        for number, names in enumerate(files):
            path = temporary / f"state-{number:03d}.safetensors"
            save_file({name: tensors[name].detach().cpu().contiguous() for name in names}, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        whole = facts.model_copy(update={"files": len(files)})
        write_atomic(temporary / "state.json", whole.model_dump_json())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for old in folder.glob("step-*"):
            if old.name != target.name:
                shutil.rmtree(old)


def load_checkpoint(folder: Path) -> tuple[CheckpointFacts, dict[str, Tensor]] | None:
    """Facts and tensors of the newest whole checkpoint; None if there is none.

    Raises:
        ArtifactError: a checkpoint that was damaged after it was written.
    """
    whole = sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")
    if not whole:
        return None
    try:
        facts = CheckpointFacts.model_validate_json((whole[-1] / "state.json").read_bytes())
        tensors: dict[str, Tensor] = {}
        for number in range(facts.files):
            tensors |= load_file(whole[-1] / f"state-{number:03d}.safetensors")
        return facts, tensors
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{whole[-1]}: damaged checkpoint ({error}); delete it to start over") from error


def _in_files(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of the tensors, file by file."""
    files: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room or not files:
            files.append([])
            room = _FILE_BYTES
        files[-1].append(name)
        room -= size
    return files
