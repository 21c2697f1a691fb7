"""What was found out about a compiled format, where it is kept, and who may open what.

An export writes the verdict on each format into its manifest; a format that failed is not there. What is found later
(`soloist verify`, with more questions or another machine) lies beside the files, in the format's folder:

    <export>/<format>/verdict.json    artifact, format, sha256 of the files that were verified, the verdict with its
                                      numbers and worst case, when and where; `forced`: every time it was opened though
                                      it had none, which no later verdict takes back

The manifest is not touched, so its digest and its file hashes hold. The latest verdict counts. Files that are not of
our making have none and are opened as they are. Left out: signatures; who can change a file can change its verdict.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from soloist.kernels.errors import ArtifactError, GateError
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.core.artifact import MANIFEST, Artifact, Facts
from soloist.toolchain.core.config import describe
from soloist.toolchain.core.environment import commit, device, versions
from soloist.toolchain.core.files import sha256_file, write_atomic

FILE = "verdict.json"
EXPORT = "export"


class Limits(Facts):
    """What a file was allowed while it was observed."""

    seconds: float
    memory_mb: int


class Bounds(Facts):
    """The tolerance a verdict was given by, see `soloist.targets.tolerances.Tolerance`; None: held to nothing."""

    kl: float
    top1: float
    p99: float | None = None
    first: float | None = None
    points: float | None = None

    @classmethod
    def of(cls, tolerance: Tolerance) -> Bounds:
        finite = {name: value for name, value in vars(tolerance).items() if math.isfinite(value)}
        return cls.model_validate(finite)


class Accuracy(Facts):
    """Right answers of a file and of its 16-bit student on the same questions; differences in percentage points."""

    questions: int
    student: int
    file: int
    points: float
    low: float
    high: float
    p_value: float
    lost: tuple[str, ...] = ()


class Token(Facts):
    """A next token, and the probability that the student and the file give it."""

    token: int
    student: float
    file: float
    text: str | None = None


class Worst(Facts):
    """The answer token where file and student are furthest apart."""

    prompt: int
    position: int
    kl: float
    expected: Token
    got: Token
    prompt_text: str | None = None
    after: str | None = None


class Drift(Facts):
    """How far a file's next-token distributions are from its student's, over the tokens of the reference answers.

    KL in nats, KL(student || file); `top1` and `same_answers` are shares.
    """

    kl_mean: float
    kl_p99: float
    kl_first: float
    top1: float
    top1_first: float
    same_answers: float
    tokens: int
    prompts: int
    worst: Worst


class Verdict(Facts):
    """What a comparison came to. `drift` is None where the file never got as far as to be compared.

    `note` is what its runtime had to say, `checked` what was done instead where its device is not here; `parts` are
    the verdicts on the two models of a pair, of which the worse one counts.
    """

    verdict: Literal["pass", "fail", "not run", "none"] = "none"
    reason: str | None = None
    note: str | None = None
    drift: Drift | None = None
    accuracy: Accuracy | None = None
    tolerance: Bounds | None = None
    limits: Limits | None = None
    load_s: float | None = None
    peak_mb: float | None = None
    checked: tuple[str, ...] = ()
    parts: dict[str, Verdict] = Field(default_factory=dict)


class FormatFacts(Facts):
    """One format of an export: `path` of its model inside the export, what it was made with, and its verdict."""

    path: str = ""
    size_mb: float = 0.0
    checked: tuple[str, ...] = ()
    importance: dict[str, str] | None = None
    kernels: dict[str, str] | None = None
    verdict: Verdict


class ExportFacts(Facts):
    """What stage `export` writes into its manifest, by the name of the format."""

    formats: dict[str, FormatFacts]


class Forced(BaseModel):
    """A time when a file was opened without a passing verdict."""

    model_config = ConfigDict(frozen=True)

    created: str
    command: str
    verdict: str


class Recorded(BaseModel):
    """The content of `verdict.json`."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[2] = Field(default=2, alias="schema")
    artifact: str
    format: str
    files: dict[str, str]
    verdict: Verdict | None = None
    forced: tuple[Forced, ...] = ()
    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    device: dict[str, Any] = Field(default_factory=dict)
    commit: str | None = None


class LatestVerdict(BaseModel):
    """The latest verdict on a format, and when it was opened by force."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    forced: tuple[Forced, ...] = ()

    @property
    def note(self) -> str:
        """What a user must be told, empty for a file that simply passed."""
        notes = []
        if self.verdict.verdict != "pass":
            notes.append(f"{self.verdict.verdict}: {self.verdict.reason or 'never verified'}")
        if self.forced:
            notes.append(f"opened by --force without a passing verdict, first on {self.forced[0].created}")
        return "; ".join(notes)


def latest_verdict(export: Artifact, format: str) -> LatestVerdict:
    """The latest verdict on a format of an export."""
    made = export.read(ExportFacts).formats.get(format)
    verdict = made.verdict if made is not None else Verdict()
    recorded = _read(export.path / format)
    if recorded is None:
        return LatestVerdict(verdict=verdict)
    if recorded.artifact != export.digest:
        foreign = Verdict(verdict="none", reason=f"{FILE} is of another artifact")
        return LatestVerdict(verdict=foreign, forced=recorded.forced)
    return LatestVerdict(verdict=recorded.verdict or verdict, forced=recorded.forced)


def record_verdict(export: Artifact, format: str, verdict: Verdict) -> Path:
    """Write a verdict beside the files of a format; times it was forced are kept. Returns the file."""
    forced = latest_verdict(export, format).forced
    return _write(export.path / format, _header(export, format), verdict, forced)


def _header(export: Artifact, format: str) -> Recorded:
    files = {name: str(known["sha256"]) for name, known in files_of(export, format).items()}
    return Recorded(artifact=export.digest, format=format, files=files)


def _write(folder: Path, header: Recorded, verdict: Verdict | None, forced: tuple[Forced, ...]) -> Path:
    content = header.model_copy(
        update={
            "verdict": verdict,
            "forced": forced,
            "created": _now(),
            "versions": versions(),
            "device": device(),
            "commit": commit(),
        }
    )
    write_atomic(folder / FILE, content.model_dump_json(indent=1, by_alias=True, exclude_none=True))
    return folder / FILE


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _read(folder: Path) -> Recorded | None:
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Recorded.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{file}: not a verdict of ours ({describe(error)}); run `soloist verify` again") from error


def files_of(export: Artifact, format: str) -> dict[str, Mapping[str, Any]]:
    """The files of a format as the manifest lists them."""
    return {name: known for name, known in export.manifest["files"].items() if name.split("/")[0] == format}


def check_files(export: Artifact, format: str) -> None:
    """Raise ArtifactError where a file of the format is missing or not what was made."""
    for name, known in files_of(export, format).items():
        file = export.path / name
        if not file.is_file():
            raise ArtifactError(f"{file}: listed in the manifest but missing; make the artifact again")
        if sha256_file(file) != known["sha256"]:
            raise ArtifactError(f"{file}: changed after it was made (hash differs); make the artifact again")


def export_around(model: Path) -> tuple[Artifact, str] | None:
    """The export that a model file or folder belongs to, and its format; None for any other model."""
    place = model.resolve()
    for folder in place.parents[:3]:  # export/gguf-q8_0/solver/model.gguf
        if not _ours(folder / MANIFEST):
            continue
        artifact = Artifact.open(folder, verify=False)
        inside = place.relative_to(folder).as_posix()
        listed = any(f"{name}/".startswith(f"{inside}/") for name in artifact.manifest["files"])
        return (artifact, inside.split("/")[0]) if artifact.manifest["stage"] == EXPORT and listed else None
    return None


def _ours(manifest: Path) -> bool:
    """Other programs write a manifest.json too."""
    try:
        return {"stage", "files", "digest"} <= set(json.loads(manifest.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def check_openable(model: Path, *, force: bool, command: str) -> str:
    """Whether a model may be opened for a user; returns what the user must be told, mostly nothing.

    With `force` a refusal becomes a mark in the verdict that stays there for ever.

    Raises:
        ArtifactError: its files are not those that were made.
        GateError: it has no passing verdict.
    """
    around = export_around(model)
    if around is not None:
        check_files(*around)
        folder, header, latest = around[0].path / around[1], _header(*around), latest_verdict(*around)
    else:  # a format's folder that was copied out of its export still has its verdict
        folder = model if model.is_dir() else model.parent
        recorded = _read(folder)
        if recorded is None or not (model.is_dir() or model.name in {Path(name).name for name in recorded.files}):
            return ""
        header = recorded
        latest = LatestVerdict(verdict=recorded.verdict or Verdict(), forced=recorded.forced)
    if latest.verdict.verdict not in ("pass", "not run"):
        if not force:
            raise GateError(
                f"{model}: no passing verdict ({latest.note}); verify it again (`soloist verify`), or open it with "
                "--force, which marks it for ever"
            )
        mark = Forced(created=_now(), command=command, verdict=latest.verdict.verdict)
        latest = latest.model_copy(update={"forced": (*latest.forced, mark)})
        _write(folder, header, latest.verdict, latest.forced)
    return f"{header.format}: {latest.note}" if latest.note else ""
