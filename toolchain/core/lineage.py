"""Which benchmarks' test questions a student was trained on: read from the manifests it descends from.

An artifact of imported traces says in its facts whose test questions it holds; everything made from it names
it as parent, by place and digest. So the answer is found by walking up, and no stage in between has to hand
it on. A parent that is no longer where its manifest says leaves a gap, which is told and never passed over:
the model may have seen anything. Left out: what a base model saw before it came to us.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from soloist.kernels.errors import ArtifactError, DataError
from soloist.toolchain.core.artifact import MANIFEST, Artifact, Facts


class BenchmarkFacts(Facts):
    """Facts of an artifact that holds questions: the benchmarks whose test questions are among them, by name."""

    benchmarks: dict[str, Literal["test"]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Lineage:
    """`benchmarks`: whose test questions lie among the ancestors; `missing`: ancestors that are not there."""

    benchmarks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def ancestors(artifacts: Iterable[Artifact]) -> tuple[list[Artifact], list[str]]:
    """The artifacts and all they descend from, each once, nearest first; and which of them are not there any more.

    A parent given beside its child is not looked for on disk.
    """
    waiting = list(artifacts)
    known = {artifact.digest: artifact for artifact in waiting}
    opened: dict[str, Artifact] = {}
    missing: set[str] = set()
    while waiting:
        artifact = waiting.pop(0)
        if artifact.digest in opened:
            continue
        opened[artifact.digest] = artifact
        for parent in artifact.manifest["parents"]:
            place = artifact.path.parent / parent["path"]
            older = known.get(parent["digest"]) or _open(place, parent["digest"])
            if older is None:
                missing.add(f"{parent['path']} ({parent['digest']})")
            else:
                waiting.append(older)
    return list(opened.values()), sorted(missing)


def lineage_of(artifacts: Iterable[Artifact]) -> Lineage:
    """The lineage of artifacts taken together."""
    family, missing = ancestors(artifacts)
    benchmarks: set[str] = set()
    for artifact in family:
        benchmarks |= artifact.read(BenchmarkFacts).benchmarks.keys()
    return Lineage(tuple(sorted(benchmarks)), tuple(missing))


def artifact_around(model: Path) -> Artifact | None:
    """The artifact that a model file or folder lies in; None for a model that is not of our making."""
    for folder in (model, *model.resolve().parents[:3]):  # compiled/gguf-q8_0/solver/model.gguf
        if (folder / MANIFEST).is_file():
            return Artifact.open(folder, verify=False)
    return None


def refuse_trained(lineage: Lineage, tested: Iterable[str | None]) -> None:
    """Raise DataError if any benchmark among `tested` is one whose test questions were trained on."""
    asked = {name.casefold() for name in tested if name}
    seen = [name for name in lineage.benchmarks if name.casefold() in asked]
    if seen:
        raise DataError(
            f"the student was trained on test questions of {', '.join(seen)}: what it scores there says nothing and "
            "is not reported; measure it on other questions"
        )


def _open(place: Path, digest: str) -> Artifact | None:
    """The artifact at `place` if it is still the one meant."""
    try:
        artifact = Artifact.open(place, verify=False)
    except (ArtifactError, OSError):
        return None
    return artifact if artifact.digest == digest else None
