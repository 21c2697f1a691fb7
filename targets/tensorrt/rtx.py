"""Portable ONNX folder -> TensorRT-RTX engine for GeForce RTX laptops, built here, without a GPU.

    build_rtx(portable, out)      out/model.engine   portable kernels for each compute capability named
                                  out/engine.json    versions, capabilities, profiles, names, student, hashes
                                  out/tokenizer.json, chat_template.jinja

The engine's kernels are finished on the machine that opens it. Parser and builder run in a process of their own, under
a limit of time and memory: what they read may be anything, and a parser may crash. Its script is the one that goes to
the Jetson. Left out: reading an engine back here, which takes a GPU; `runner` does it where there is one.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from soloist.kernels.child import run_module
from soloist.kernels.errors import ArtifactError, MissingExtraError, ResourceError
from soloist.targets.files import whole_folder
from soloist.targets.portable.facts import TEMPLATE, TOKENIZER, read_facts
from soloist.targets.tensorrt import build_engine
from soloist.targets.tensorrt.plan import Lengths, Student, digest_of, make_plan, write_plan
from soloist.targets.tensorrt.versions import check_capabilities

LIBRARY = "tensorrt_rtx"
VERSION = "1"  # a major version; engine.json has the whole of it
ENGINE = "model.engine"


def target(capabilities: tuple[str, ...]) -> dict[str, Any]:
    """What TensorRT-RTX is told. Raises UsageError."""
    check_capabilities(capabilities)
    return {
        "library": LIBRARY,
        "title": "RTX laptops",
        "version": VERSION,
        "strongly_typed_flag": False,
        "capabilities": list(capabilities),
    }


def require_rtx() -> None:
    """Raise MissingExtraError where TensorRT-RTX is not installed."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise MissingExtraError(LIBRARY, "rtx")


def build_rtx(
    portable: Path,
    out: Path,
    capabilities: tuple[str, ...] = ("8.6", "8.9", "12.0"),
    *,
    student: Student | None = None,
    lengths: Lengths | None = None,
    seconds: float = 3600,
    memory_mb: int = 16384,
) -> dict[str, Any]:
    """Write the engine folder `out`; returns its facts (`engine.json`).

    Args:
        portable: a folder of `compile_portable`, float16.
        student: its folder's name and the digest of its files if not given.
        lengths: 2048 tokens, or the student's context where that is shorter, if not given.
        seconds: of the build; a resource limit like `memory_mb`, its own memory.

    Raises:
        UsageError, ArtifactError, ResourceError: the graph is refused (which node, why), or a limit was reached.
        MissingExtraError: TensorRT-RTX is not installed.
    """
    aimed = target(capabilities)
    require_rtx()
    facts = read_facts(portable)
    plan = make_plan(
        portable,
        facts,
        lengths or Lengths(min(2048, facts.context)),
        student or Student(portable.name, digest_of(portable)),
        aimed,
    )
    with whole_folder(out) as folder:
        options = ["--folder", portable, "--plan", write_plan(plan, folder), "--out", folder / ENGINE]
        run_builder(list(map(str, options)), folder / "report.json", seconds, memory_mb)
        for name in (TOKENIZER, TEMPLATE):
            shutil.copy2(portable / name, folder / name)
        for name in (build_engine.PLAN, "report.json"):
            (folder / name).unlink()
    return _read(out / build_engine.SIDECAR)


def check_rtx(portable: Path, *, seconds: float = 600, memory_mb: int = 16384) -> list[dict[str, Any]]:
    """Only parse the graph of a portable folder; every refusal of the parser: node, operator, reason, advice.

    Raises ArtifactError where it refuses without saying what, ResourceError, MissingExtraError.
    """
    require_rtx()
    facts = read_facts(portable)
    plan = make_plan(portable, facts, Lengths(2, 1), Student(portable.name, ""), target(("8.9",)))
    with tempfile.TemporaryDirectory(dir=portable.parent) as scratch:
        options = ["--folder", str(portable), "--plan", str(write_plan(plan, Path(scratch))), "--check"]
        report = Path(scratch) / "report.json"
        try:
            run_builder(options, report, seconds, memory_mb)
        except ArtifactError:
            errors = list(_read(report).get("errors", []))
            if not errors:
                raise
            return errors
    return []


def run_builder(options: list[str], report: Path, seconds: float, memory_mb: int) -> dict[str, Any]:
    """Run `build_engine` in a process of its own; its report.

    Raises:
        ArtifactError: it refused, or it died.
        ResourceError: it took longer than `seconds`, or more memory than it may.
    """
    try:
        ended = run_module(
            build_engine.__name__, [*options, "--report", str(report)], limit_s=seconds, memory_mb=memory_mb
        )
    except TimeoutError as error:
        raise ResourceError(
            f"the engine was not built within {seconds:g} s; allow more, or a smaller student"
        ) from error
    facts = _read(report)
    if ended.code == 0 and facts:
        return facts
    if "refused" in facts:
        raise ArtifactError(str(facts["refused"]))
    if ended.out_of_memory:
        raise ResourceError(
            f"the builder ran out of the memory it may use ({ended.last}); allow more, or a smaller student"
        )
    raise ArtifactError(f"the builder of the engine {ended}; check the graph, or export it again")


def _read(file: Path) -> dict[str, Any]:
    """What the builder wrote before it ended; empty if it wrote nothing."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content
