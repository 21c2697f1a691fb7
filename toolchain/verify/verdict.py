"""Where a verdict stands, and who may open what.

An export writes the verdict on each format into its manifest; a format without a passing one is not there. What is
found later (`soloist verify`, with more questions or another machine) stands beside the files, in the format's folder:

    <export>/<format>/verdict.json    artifact, format, sha256 of the files that were verified, the verdict with its
                                      numbers and worst case, when and where; `forced`: every time it was opened though
                                      it had none, which no later verdict takes back

The manifest is not touched, so its digest and its file hashes hold. The latest verdict counts. Files that are not of
our making have none and are opened as they are. Left out: signatures; who can change a file can change its verdict.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soloist.kernels.errors import ArtifactError, GateError
from soloist.toolchain.core.artifact import MANIFEST, Artifact
from soloist.toolchain.core.environment import commit, device, versions
from soloist.toolchain.core.files import sha256_file, write_atomic

FILE = "verdict.json"
STAGE = "export"


@dataclass(frozen=True)
class Standing:
    """What is known about a format: its latest facts, `verdict` among them, and when it was opened by force."""

    facts: Mapping[str, Any]
    forced: tuple[Mapping[str, Any], ...] = ()

    @property
    def verdict(self) -> str:
        """ "pass", "fail", "not run", or "none"."""
        return str(self.facts.get("verdict", "none"))

    @property
    def note(self) -> str:
        """What a user must be told, empty for a file that simply passed."""
        said = [] if self.verdict == "pass" else [f"{self.verdict}: {self.facts.get('reason', 'never verified')}"]
        if self.forced:
            said.append(f"opened by --force without a passing verdict, first on {self.forced[0]['created']}")
        return "; ".join(said)


def standing(artifact: Artifact, format: str) -> Standing:
    """The latest verdict on a format of an export."""
    facts = dict(artifact.facts.get("formats", {}).get(format, {}))
    known = _read(artifact.path / format)
    if known is None:
        return Standing(facts)
    if known["artifact"] != artifact.digest:
        return Standing({"verdict": "none", "reason": f"{FILE} is of another artifact"}, tuple(known["forced"]))
    return Standing(known["facts"] or facts, tuple(known["forced"]))


def record(artifact: Artifact, format: str, facts: Mapping[str, Any]) -> Path:
    """Write what was found beside the files of a format; times it was forced are kept. Returns the file."""
    return _write(artifact.path / format, _head(artifact, format), facts, standing(artifact, format).forced)


def _head(artifact: Artifact, format: str) -> dict[str, Any]:
    files = {name: known["sha256"] for name, known in files_of(artifact, format).items()}
    return {"artifact": artifact.digest, "format": format, "files": files}


def _write(
    folder: Path, head: Mapping[str, Any], facts: Mapping[str, Any], forced: Sequence[Mapping[str, Any]]
) -> Path:
    content = {
        "schema": 1,
        **head,
        "facts": dict(facts),
        "forced": list(forced),
        "created": _now(),
        "versions": versions(),
        "device": device(),
        "commit": commit(),
    }
    write_atomic(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False))
    return folder / FILE


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _read(folder: Path) -> dict[str, Any] | None:
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        str(found["artifact"]), dict(found["facts"]), dict(found["files"]), [one["created"] for one in found["forced"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: not a verdict of ours ({error}); run `soloist verify` again") from error
    return found


def files_of(artifact: Artifact, format: str) -> dict[str, Mapping[str, Any]]:
    """The files of a format as the manifest lists them."""
    return {name: known for name, known in artifact.manifest["files"].items() if name.split("/")[0] == format}


def check_files(artifact: Artifact, format: str) -> None:
    """Raise ArtifactError where a file of the format is missing or not what was made."""
    for name, known in files_of(artifact, format).items():
        file = artifact.path / name
        if not file.is_file():
            raise ArtifactError(f"{file}: listed in the manifest but missing; make the artifact again")
        if sha256_file(file) != known["sha256"]:
            raise ArtifactError(f"{file}: changed after it was made (hash differs); make the artifact again")


def exported(model: Path) -> tuple[Artifact, str] | None:
    """The export that a model file or folder belongs to, and its format; None for any other model."""
    place = model.resolve()
    for folder in place.parents[:3]:  # export/gguf-q8_0/solver/model.gguf
        if not _ours(folder / MANIFEST):
            continue
        artifact = Artifact.open(folder, verify=False)
        inside = place.relative_to(folder).as_posix()
        listed = any(f"{name}/".startswith(f"{inside}/") for name in artifact.manifest["files"])
        return (artifact, inside.split("/")[0]) if artifact.manifest["stage"] == STAGE and listed else None
    return None


def _ours(manifest: Path) -> bool:
    """Other programs write a manifest.json too."""
    try:
        return {"stage", "files", "digest"} <= set(json.loads(manifest.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def admit(model: Path, *, force: bool, command: str) -> str:
    """Whether a model may be opened for a user; returns what the user must be told, mostly nothing.

    With `force` a refusal becomes a mark in the verdict that stays there for ever.

    Raises:
        ArtifactError: its files are not those that were made.
        GateError: it has no passing verdict.
    """
    found = exported(model)
    if found is not None:
        check_files(*found)
        folder, head, stands = found[0].path / found[1], _head(*found), standing(*found)
    else:  # a format's folder that was copied out of its export still says what was found
        folder = model if model.is_dir() else model.parent
        known = _read(folder)
        if known is None or not (model.is_dir() or model.name in {Path(name).name for name in known["files"]}):
            return ""
        head = {key: known[key] for key in ("artifact", "format", "files")}
        stands = Standing(known["facts"], tuple(known["forced"]))
    if stands.verdict not in ("pass", "not run"):
        if not force:
            raise GateError(
                f"{model}: no passing verdict ({stands.note}); verify it again (`soloist verify`), or open it with "
                "--force, which marks it for ever"
            )
        mark = {"created": _now(), "command": command, "verdict": stands.verdict}
        stands = Standing(stands.facts, (*stands.forced, mark))
        _write(folder, head, stands.facts, stands.forced)
    return f"{head['format']}: {stands.note}" if stands.note else ""
