"""Portable ONNX folder -> a folder for a Jetson, where the engine is built: an engine runs where it was built.

    model.onnx, model.onnx.data      the graph, as it was
    build.json                       what to build, which student, which bytes
    build_engine.py, run_engine.py   Python 3.10 and TensorRT; no Soloist, no torch
    README.txt                       the commands, trtexec's line, what is not certain
    tokenizer.json, chat_template.jinja, portable.json
    kernels/                         PTX of our product, where the graph has it as a plugin (`kernels`); portable.json
                                     is not there then, and its facts stand in build.json

A folder is made for one JetPack. Where TensorRT-RTX is installed, its parser, which is TensorRT's, reads the graph
first, without our plugins, which it does not have. What needs a Jetson has not been verified, and README.txt says so.
`standard` makes what ONNX Runtime runs of a folder whose graph has plugins. Left out: DLA cores.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soloist.kernels.choose import ARCHITECTURES
from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.base import require
from soloist.targets.files import whole_folder
from soloist.targets.portable.facts import (
    DATA,
    FACTS,
    GRAPH,
    SCHEMA,
    TEMPLATE,
    TOKENIZER,
    Facts,
    is_portable,
    read_facts,
)
from soloist.targets.tensorrt import build_engine, run_engine
from soloist.targets.tensorrt.builds import copy_builds
from soloist.targets.tensorrt.nodes import groups_of, replace_all, restore_all
from soloist.targets.tensorrt.plan import Lengths, Student, digest_of, make_plan, write_plan
from soloist.targets.tensorrt.rtx import LIBRARY, check_rtx
from soloist.targets.tensorrt.versions import Release

README, KERNELS = "README.txt", "kernels"
SCRIPTS = (build_engine, run_engine)


def target(release: Release) -> dict[str, Any]:
    """What TensorRT on a device is told."""
    return {
        "library": "tensorrt",
        "title": release.title,
        "version": release.tensorrt,
        "strongly_typed_flag": release.strongly_typed_flag,
        "capabilities": [],
    }


def compile_tensorrt(
    portable: Path,
    out: Path,
    release: Release,
    *,
    student: Student | None = None,
    lengths: Lengths | None = None,
    kernels: Path | None = None,
) -> dict[str, Any]:
    """Write the device's folder `out`; returns its plan (`build.json`).

    Args:
        portable: a folder of `compile_portable`.
        student: its folder's name and the digest of its files if not given.
        lengths: 2048 tokens, or the student's context where that is shorter, if not given.
        kernels: a folder of `soloist kernels build`: products of 4-bit blocks become plugins, their PTX is copied.

    Raises:
        UsageError: a float32 graph, which a Jetson runs at half the speed, a context that is too long, or kernels for a
            TensorRT without plugins, a graph without 4-bit blocks, or blocks that they were not built for.
        ArtifactError: not a portable folder, one whose files are cut off, a graph that the parser refuses, or kernels
            that are not whole or of other boards.
    """
    facts = read_facts(portable)
    if facts.dtype != "float16":
        raise UsageError(f"{portable}: its graph is {facts.dtype}; export it in float16 for TensorRT")
    if kernels is not None:
        check_plugins(release)
    parsed = _parsed(portable)
    with whole_folder(out) as folder:
        for name in (TOKENIZER, TEMPLATE):
            shutil.copy2(portable / name, folder / name)
        graph_facts: dict[str, Any] = {"plugins": 0}
        if kernels is None:
            for name in (GRAPH, DATA, FACTS):
                shutil.copy2(portable / name, folder / name)
        else:
            graph_facts = _with_plugins(portable, folder, kernels, release) | {"portable": asdict(facts)}
        plan = make_plan(
            folder,
            facts,
            lengths or Lengths(min(2048, facts.context)),
            student or Student(portable.name, digest_of(portable)),
            target(release),
        )
        plan |= {"parsed": parsed, **graph_facts}
        for script in SCRIPTS:
            shutil.copyfile(str(script.__file__), folder / Path(str(script.__file__)).name)
        write_plan(plan, folder)
        (folder / README).write_text(readme(plan, facts, release), encoding="utf-8")
    return plan


def check_plugins(release: Release) -> None:
    """Raise UsageError where a TensorRT takes no plugins compiled ahead of time."""
    if not release.has_plugins:
        raise UsageError(
            f"{release.title} has TensorRT {release.tensorrt}; our kernels are plugins from 10.9 on (JetPack 7.0)"
        )


def _with_plugins(portable: Path, out: Path, kernels: Path, release: Release) -> dict[str, Any]:
    """Write the graph with our kernels in it and their PTX; how many, for which boards."""
    onnx = require("onnx", "compile")
    model = onnx.load(str(portable / GRAPH))
    count = replace_all(model)
    if not count:
        raise UsageError(f"{portable}: no products of 4-bit blocks in its graph; quantize to 4 bits, or export without")
    (out / KERNELS).mkdir()
    boards = copy_builds(kernels, out / KERNELS, release.architectures or ARCHITECTURES, groups_of(model))
    onnx.save(model, str(out / GRAPH), save_as_external_data=True, location=DATA, size_threshold=1024)
    return {"plugins": count, "boards": boards}


def standard(folder: Path, scratch: Path) -> Path:
    """A portable folder of the graph of a device's folder: that one, or `scratch`, with standard operators in the place
    of our kernels, made of the very integers that they were given. Raises ArtifactError."""
    if is_portable(folder):
        return folder
    onnx = require("onnx", "compile")
    try:
        facts = dict(json.loads((folder / build_engine.PLAN).read_text(encoding="utf-8"))["portable"])
        model = onnx.load(str(folder / GRAPH))
    except Exception as error:  # protobuf and onnx raise kinds of their own for a graph that is none
        raise ArtifactError(f"{folder}: no whole folder for a Jetson ({error}); export the student again") from error
    restore_all(model)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    onnx.save(model, str(scratch / GRAPH), save_as_external_data=True, location=DATA, size_threshold=1024)
    for name in (TOKENIZER, TEMPLATE):
        shutil.copyfile(folder / name, scratch / name)
    sizes = {GRAPH: (scratch / GRAPH).stat().st_size, DATA: (scratch / DATA).stat().st_size}
    facts |= {"schema": SCHEMA, "sizes": sizes}
    (scratch / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return scratch


def _parsed(portable: Path) -> str:
    """Which parser has read the graph; empty where there is none here. Raises ArtifactError."""
    if importlib.util.find_spec(LIBRARY) is None:
        return ""
    for refused in check_rtx(portable):
        raise ArtifactError(
            f"{portable}: TensorRT's parser refuses node '{refused['node']}' ({refused['operator']}): "
            f"{refused['reason']}; {refused['advice']}"
        )
    return LIBRARY


def trtexec(plan: dict[str, Any]) -> str:
    """The same build in TensorRT's own tool."""
    words = ["trtexec", f"--onnx={plan['graph']}", "--saveEngine=model.engine", "--timingCacheFile=timings"]
    words += ["--stronglyTyped"] if plan["target"]["strongly_typed_flag"] else []
    for place, shapes in enumerate(plan["profiles"].values()):
        words.append(f"--profile={place}")
        for at, corner in enumerate(("min", "opt", "max")):
            sizes = [f"{name}:{'x'.join(map(str, corners[at]))}" for name, corners in shapes.items()]
            words.append(f"--{corner}Shapes={','.join(sizes)}")
    return " ".join(words)


def readme(plan: dict[str, Any], facts: Facts, release: Release) -> str:
    """What a person on the device needs to know."""
    eights = sum(facts.bits.values()) - facts.bits.get("4", 0)  # 5 and 6 bits are INT8 there, too
    parsed = "Not parsed yet."
    if plan["parsed"]:
        parsed = "Read by the parser of TensorRT-RTX" + (", without the plugins." if plan["plugins"] else ".")
    build = "python3 build_engine.py --timing-cache timings" + (f" --plugin {KERNELS}" if plan["plugins"] else "")
    lines = [
        f"Student {plan['student']['name']}, digest {plan['student']['digest']}",
        f"for {release.title}, TensorRT {release.tensorrt}, Python {release.python or '3.10 or newer'}",
        *map(" sha256 ".join, plan["files"].items()),
        "",
        "Build the engine on the device, once for each JetPack, then ask:",
        "",
        "    " + build,
        '    python3 run_engine.py "What is 12 + 30?"      (needs: pip install numpy tokenizers)',
        "",
        "build_engine.py --check only parses. --refittable and --strip build an engine that takes the weights of a",
        "later student: --refit model.engine, run in that student's folder. --workspace-mb 1024 where memory is short.",
        "",
        "The same in TensorRT's own tool (it writes no engine.json, without which nothing here opens the engine):",
        "",
        "    " + trtexec(plan),
        "",
        f"Not verified on a Jetson. {parsed}",
    ]
    if plan["plugins"]:
        lines += [
            f"{plan['plugins']} products are Soloist's kernel, whose PTX for {' and '.join(plan['boards'])} lies in",
            f"{KERNELS}. pip install soloist on the device first. trtexec alone cannot build it.",
        ]
    if eights:
        lines += [
            f"{eights} of its tensors are INT8 in blocks. TensorRT documents blocks for INT4; if this version refuses",
            "them, --check says which tensor: quantize it to 4 or 16 bits and export again.",
        ]
    return "\n".join(lines) + "\n"
