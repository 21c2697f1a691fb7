"""Artifacts: a folder is what its manifest says, and the manifest is written last.

    <out>.partial/   work in progress, of one process at a time; survives a kill, picked up again if config and parents
                     are the same
    .<out>.lock      held by that process; beside the folder, because Windows renames none with an open file in it
    .<out>.replaced/ what <out> was, for the moment in which the partial folder takes its place
    <out>/           whole: every file is listed in manifest.json with its sha256

`stage()` is the only way an artifact comes to be: it builds into the partial folder, hashes the files,
writes the manifest and renames. An artifact's `digest` covers stage, config, parents and file hashes,
never times or machines, so the same work gives the same digest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from soloist.kernels.errors import ArtifactError
from soloist.toolchain.core.config import describe
from soloist.toolchain.core.environment import commit, device, versions
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import explain_disk_errors, sha256_file, write_atomic
from soloist.toolchain.core.memory import peak_memory

MANIFEST = "manifest.json"
_PLAN = "plan.json"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # some network disks: made without


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Facts(BaseModel):
    """What a stage has to say, typed: one subclass a stage, written into its manifest and read by the next stage.

    Unknown values are None and not written. A field that a later version writes is passed over by an earlier one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)


F = TypeVar("F", bound=Facts)


@dataclass(frozen=True)
class Artifact:
    """A whole artifact on disk."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])

    @property
    def facts(self) -> Mapping[str, Any]:
        return dict(self.manifest["facts"])

    def read(self, kind: type[F]) -> F:
        """The facts of the stage that made it. Raises ArtifactError where they are not of this kind."""
        try:
            return kind.model_validate(self.manifest["facts"])
        except ValidationError as error:
            faults = describe(error, "facts.")
            raise ArtifactError(
                f"{self.path / MANIFEST}: {faults}; make the artifact again with this version"
            ) from error

    @classmethod
    def open(cls, path: Path, *, stage: str | None = None, verify: bool = True) -> Artifact:
        """Read and check an artifact.

        Raises:
            ArtifactError: no manifest, another stage than asked for, a file missing or changed.
        """
        file = path / MANIFEST
        if not file.is_file():
            raise ArtifactError(f"{path}: not a whole artifact (no {MANIFEST}); run the stage that makes it again")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            made_by, files, digest = manifest["stage"], manifest["files"], manifest["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{file}: not a manifest of ours ({error})") from error
        if stage is not None and made_by != stage:
            raise ArtifactError(f"{path}: this is an artifact of stage '{made_by}', '{stage}' is needed here")
        if _digest(manifest) != digest:
            raise ArtifactError(f"{file}: the manifest was changed after it was written; make the artifact again")
        if verify:
            _verify(path, files)
        return cls(path, manifest)


def _digest(manifest: Mapping[str, Any]) -> str:
    covered = {key: manifest.get(key) for key in ("stage", "config", "parents", "files")}
    covered["parents"] = [parent["digest"] for parent in manifest.get("parents", [])]
    return hashlib.sha256(_canonical(covered)).hexdigest()[:16]


def _verify(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{file}: listed in the manifest but missing; make the artifact again")
        if file.stat().st_size != facts["bytes"] or sha256_file(file) != facts["sha256"]:
            raise ArtifactError(f"{file}: changed after it was made (hash differs); make the artifact again")


def _files(path: Path, ignore: Sequence[str]) -> dict[str, dict[str, Any]]:
    files = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and name not in (MANIFEST, _PLAN) and name.split("/")[0] not in ignore:
            files[name] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    return files


def stage(
    name: str,
    out: Path,
    config: Mapping[str, Any],
    parents: Sequence[Artifact],
    build: Callable[[Path], Facts | Mapping[str, Any]],
    *,
    events: EventLog = QUIET,
    scratch: Sequence[str] = (),
) -> Artifact:
    """Make the artifact `out`, or return it if it is there already with the same config and parents.

    `build(folder)` writes into a folder that survives a kill and returns facts for the manifest; it
    should look at what the folder holds and go on from there. Names in `scratch` (checkpoints, say)
    are removed at the end. Facts are not part of the digest.

    Raises ArtifactError (`out` holds something else, or another process is making it) and ResourceError (the disk).
    """
    config = json.loads(_canonical(config))
    plan = {"stage": name, "config": config, "parents": [parent.digest for parent in parents]}
    shutil.rmtree(_replaced(out), ignore_errors=True)
    existing = _existing(out, plan)
    if existing is not None:
        events.emit(name, "end", reused=True, path=str(out), digest=existing.digest)
        return existing
    partial = out.with_name(out.name + ".partial")
    with explain_disk_errors(out), _held(out, partial):
        finished = _finished(partial, plan)
        if finished is not None:  # killed between the manifest and the rename
            _take_place(partial, out)
            events.emit(name, "end", reused=True, path=str(out), digest=finished["digest"])
            return Artifact(out, finished)
        if not _same_plan(partial, plan):
            _clear(partial)
        for stale in (MANIFEST, MANIFEST + ".tmp"):
            (partial / stale).unlink(missing_ok=True)
        began = time.time()
        write_atomic(partial / _PLAN, json.dumps(plan, indent=1))
        events.emit(name, "start", path=str(out))
        with peak_memory() as peak:
            facts = build(partial)
        for entry in scratch:
            shutil.rmtree(partial / entry, ignore_errors=True)
            if (partial / entry).is_file():
                (partial / entry).unlink()
        places = [{"path": os.path.relpath(p.path, out.parent), "digest": p.digest} for p in parents]
        made = {"facts": facts.model_dump(mode="json", exclude_none=True) if isinstance(facts, Facts) else facts}
        took = {"seconds": round(time.time() - began, 1), "peak_mb": peak.mb}
        manifest = _manifest({**plan, "parents": places, "files": _files(partial, scratch), **made, **took})
        write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
        _take_place(partial, out)
    events.emit(name, "end", reused=False, path=str(out), digest=manifest["digest"], seconds=manifest["seconds"])
    return Artifact(out, manifest)


def _manifest(content: Mapping[str, Any]) -> dict[str, Any]:
    """What was made, with where it was made and the digest of it."""
    manifest = {"schema": 1, **content, "versions": versions(), "device": device(), "commit": commit()}
    return {**manifest, "digest": _digest(manifest)}


@contextlib.contextmanager
def _held(out: Path, partial: Path) -> Iterator[None]:
    """The partial folder is this process's alone until the end; the system lets go of it when the process is killed."""
    partial.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_file(out), blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ArtifactError(
            f"{partial}: another process is at work here; wait for it, or choose another folder with --output"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    except BaseException:
        _forget_lock(out)
        raise
    finally:
        lock.release()


def _lock_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


def _forget_lock(out: Path) -> None:
    """Remove the lock file; whoever waits for it sees that and makes another. Windows removes it on release."""
    with contextlib.suppress(OSError):
        _lock_file(out).unlink()


def _clear(folder: Path) -> None:
    """Remove what a folder holds, but not the folder, which may be held."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _existing(out: Path, plan: Mapping[str, Any]) -> Artifact | None:
    """The artifact at `out` if it follows the plan. Another one may be replaced, a foreign folder may not."""
    if (out / MANIFEST).is_file():
        standing = Artifact.open(out, verify=False)
        return Artifact.open(out) if _plan_of(standing.manifest) == plan else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtifactError(f"{out}: exists and is no artifact of ours (no {MANIFEST}); move it or choose another name")
    return None


def _plan_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    parents = [parent["digest"] for parent in manifest["parents"]]
    return {"stage": manifest["stage"], "config": manifest["config"], "parents": parents}


def _finished(partial: Path, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a partial folder that only has to be renamed."""
    try:
        manifest = dict(Artifact.open(partial).manifest)
    except ArtifactError:
        return None
    return manifest if _plan_of(manifest) == plan else None


def _take_place(partial: Path, out: Path) -> None:
    """Put a whole partial folder where `out` is; after a kill at any moment the next `stage` goes on."""
    (partial / _PLAN).unlink(missing_ok=True)
    if out.exists():
        out.rename(_replaced(out))
    partial.rename(out)
    _forget_lock(out)
    shutil.rmtree(_replaced(out), ignore_errors=True)


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def _same_plan(partial: Path, plan: Mapping[str, Any]) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads((partial / _PLAN).read_text(encoding="utf-8")) == plan)
    return False
