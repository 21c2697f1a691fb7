"""Builds a TensorRT engine of a student, on the device that will run it. Needs Python 3.10 and TensorRT, nothing else.

    python3 build_engine.py                      model.onnx and build.json beside this file -> model.engine, engine.json
    python3 build_engine.py --check              only parse the graph, and say what this TensorRT refuses
    python3 build_engine.py --timing-cache t     measured timings kept for the next build
    python3 build_engine.py --refittable         an engine that takes the weights of a later student
    python3 build_engine.py --strip              the same without weights, small enough to send
    python3 build_engine.py --refit old.engine   put the weights of model.onnx into an engine built with one of these
    python3 build_engine.py --plugin KERNELS     Soloist's own kernels (Soloist must be installed; TensorRT 10.9)

This file is a module of Soloist (soloist.targets.tensorrt.build_engine), exported as it is: what is particular to a
student stands in build.json. There, and in engine.json beside the engine, is which student it is and which bytes of
the graph. Soloist itself runs this file to build for TensorRT-RTX, whose Python API is the same. It raises an exception
of its own, since Soloist's are not there. Left out: weak typing, calibration, implicit precision: the graph says all.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
PLAN, SIDECAR = "build.json", "engine.json"
Json = dict[str, Any]
ADVICE = (
    ("plugin|IPluginRegistry|creator", "the graph has kernels of Soloist: build with --plugin KERNELS, TensorRT 10.9"),
    ("zero.?point|symmetric", "TensorRT reads symmetric integers only: quantize without zero points"),
    ("positive", "its parser asks for scales above 0: export the student again with this version of Soloist"),
    ("block", "blocks of integers that this version does not take: quantize these tensors to 16 bits, or update"),
    ("int4|int8|uint4|dequantize", "an integer constant may only feed a DequantizeLinear: export the student again"),
    ("int64|float64|double", "a type this version does not compute in: export the student again"),
    ("opset|ir_version|version", "the graph is newer than this parser: a newer TensorRT reads it"),
    ("deserialize|protobuf|open|file", "the graph cannot be read: copy the folder again, model.onnx.data included"),
)


class Refused(Exception):
    """What is wrong and what to do, and the parser's errors."""

    def __init__(self, text: str, errors: Sequence[Json] = ()) -> None:
        super().__init__(text)
        self.errors = list(errors)


# --- the plan -------------------------------------------------------------------------------------------------------


def sha256(file: Path) -> str:
    """Hash of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_plan(file: Path, folder: Path) -> Json:
    """What to build, its graph in `folder` checked byte for byte. Raises Refused."""
    try:
        plan: Json = json.loads(file.read_text(encoding="utf-8"))
        schema, files = plan["schema"], dict(plan["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{file}: not a build plan of Soloist ({error}); export the student again") from error
    if schema != SCHEMA:
        raise Refused(f"{file}: schema {schema}, and this script reads {SCHEMA}; export the student again")
    for name, wanted in files.items():
        if not (folder / name).is_file():
            raise Refused(f"{folder / name} is missing; copy the whole folder")
        if sha256(folder / name) != wanted:
            raise Refused(f"{folder / name} is not the file that was exported (its hash differs); copy it again")
    return plan


def load_library(plan: Json, any_version: bool) -> Any:
    """TensorRT, in the version the plan was made for. Raises Refused."""
    target = plan["target"]
    try:
        trt = importlib.import_module(target["library"])
    except (ImportError, OSError) as error:  # OSError: a library of CUDA is missing
        raise Refused(f"no {target['library']} for this Python ({error}); {target['install']}") from error
    version, wanted = str(trt.__version__), str(target["version"])
    if not (version + ".").startswith(wanted + ".") and not any_version:
        raise Refused(
            f"this is {target['library']} {version}, and the folder was made for {target['title']}, version {wanted}; "
            "export the student again for what is installed here, or pass --any-version"
        )
    return trt


# --- refusals -------------------------------------------------------------------------------------------------------


def make_log(trt: Any) -> Any:
    """A logger that keeps warnings and errors."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the library is found at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.lines.append(" ".join(message.split()))

    return Log()


def advice_for(reason: str) -> str:
    """What to do about a refusal."""
    for pattern, advice in ADVICE:
        if re.search(pattern, reason, re.IGNORECASE):
            return advice
    return "no operator outside ONNX's own is exported; report this node with the versions in the report"


def parser_errors(parser: Any) -> list[Json]:
    """Every refusal of the parser: node, operator, kind, reason, and what to do."""
    errors = []
    for place in range(parser.num_errors):
        error = parser.get_error(place)
        reason = " ".join(str(error.desc()).split())
        operator, kind = str(error.node_operator()), str(error.code()).rsplit(".", 1)[-1]
        errors.append(
            {
                "node": str(error.node_name()),
                "operator": operator,
                "kind": kind,
                "reason": reason,
                "advice": advice_for(f"{kind} {operator} {reason}"),
            }
        )
    return errors


def explain(what: str, errors: Sequence[Json], lines: Sequence[str]) -> Refused:
    """One line out of many: the first refusal, how many more, what to do."""
    if not errors:
        last = lines[-1] if lines else "it gave no reason"
        for line in lines:
            if "rror" in line:
                last = line
        return Refused(f"{what}: {last}; {advice_for(last)}")
    first = errors[0]
    where = f"node '{first['node']}' ({first['operator']}): " if first["node"] or first["operator"] else ""
    more = f" (and {len(errors) - 1} more in the report)" if len(errors) > 1 else ""
    return Refused(f"{what}: {where}{first['reason']}{more}; {first['advice']}", errors)


# --- building -------------------------------------------------------------------------------------------------------


def parse(trt: Any, builder: Any, plan: Json, graph: Path, log: Any) -> Any:
    """The network of a graph. Raises Refused with every error of the parser."""
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if plan["target"]["strongly_typed_flag"] else 0
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise explain(f"{graph.name}: {trt.__name__} {trt.__version__} refuses it", parser_errors(parser), log.lines)
    names = [network.get_input(place).name for place in range(network.num_inputs)]
    if sorted(names) != sorted(plan["inputs"]):
        raise Refused(f"{graph.name}: its inputs are {', '.join(names)}, and the plan names others; export it again")
    return network


def configure(trt: Any, builder: Any, plan: Json, options: argparse.Namespace) -> Any:
    """Profiles, flags, targets. Raises Refused."""
    config = builder.create_builder_config()
    for name, shapes in plan["profiles"].items():
        profile = builder.create_optimization_profile()
        for tensor, (least, best, most) in shapes.items():
            profile.set_shape(tensor, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise Refused(f"the profile '{name}' is not one of {trt.__name__} {trt.__version__}; export again")
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.refittable or options.strip:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    capabilities = plan["target"]["capabilities"]
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for place, capability in enumerate(capabilities):
            known = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
            if known is None or not config.set_compute_capability(known, place):
                raise Refused(f"{trt.__name__} {trt.__version__} builds nothing for compute capability {capability}")
    return config


def use_timings(config: Any, file: Path | None) -> None:
    """Begin with the timings of an earlier build on this device. Raises Refused."""
    if file is None:
        return
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise Refused(f"{file}: timings of another device or version; delete the file")


def keep_timings(config: Any, file: Path | None) -> None:
    """Write what was measured."""
    if file is not None:
        write_whole(file, bytes(config.get_timing_cache().serialize()))


def write_whole(file: Path, content: bytes) -> None:
    """Write under another name, then rename: there is never half a file."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)  # noqa: PTH105 - replaces on Windows as well
    finally:
        if temporary.exists():
            temporary.unlink()


def build(trt: Any, plan: Json, folder: Path, options: argparse.Namespace) -> Json:
    """Parse, build and write; what was done. Raises Refused."""
    log = make_log(trt)
    builder = trt.Builder(log)
    start = time.monotonic()
    network = parse(trt, builder, plan, folder / plan["graph"], log)
    report: Json = {"layers": network.num_layers, "seconds_parsing": round(time.monotonic() - start, 3), "errors": []}
    if not options.check:
        config = configure(trt, builder, plan, options)
        use_timings(config, options.timing_cache)
        blob = builder.build_serialized_network(network, config)
        if blob is None:
            raise explain(f"{plan['graph']}: {trt.__name__} {trt.__version__} builds no engine", (), log.lines)
        keep_timings(config, options.timing_cache)
        report["seconds"] = round(time.monotonic() - start, 3)
        report["warnings"] = list(dict.fromkeys(log.lines))[:20]
        write_engine(trt, plan, bytes(blob), report, options)
    return report


def refit(trt: Any, plan: Json, folder: Path, options: argparse.Namespace) -> Json:
    """Put this folder's weights into an engine that was built to take them. Raises Refused."""
    log = make_log(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(options.refit.read_bytes())
    if engine is None:
        raise explain(f"{options.refit}: not an engine of {trt.__name__} {trt.__version__}", (), log.lines)
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(folder / plan["graph"])) or not refitter.refit_cuda_engine():
        raise explain(f"{options.refit}: it does not take these weights", parser_errors(parser), log.lines)
    settings = engine.create_serialization_config()
    settings.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    report: Json = {"refitted_from": sha256(options.refit), "errors": [], "warnings": log.lines[:20]}
    write_engine(trt, plan, bytes(engine.serialize_with_config(settings)), report, options)
    return report


def write_engine(trt: Any, plan: Json, blob: bytes, report: Json, options: argparse.Namespace) -> None:
    """The engine, then what it is: an engine without engine.json beside it is not whole."""
    sidecar = options.out.with_name(SIDECAR)
    if sidecar.exists():
        sidecar.unlink()
    write_whole(options.out, blob)
    facts = {
        **plan,
        "engine": {"file": options.out.name, "bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()},
        "built_with": {"library": trt.__name__, "version": str(trt.__version__)},
        "options": {"refittable": bool(options.refittable), "stripped": bool(options.strip)},
        "report": report,
    }
    write_whole(sidecar, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


# --- the command line -----------------------------------------------------------------------------------------------


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    here = Path(__file__).resolve().parent
    reader = argparse.ArgumentParser(description="Build a TensorRT engine of a student.")
    reader.add_argument("--folder", type=Path, default=here, help="where the graph is")
    reader.add_argument("--plan", type=Path, help=f"{PLAN} of that folder if not given")
    reader.add_argument("--out", type=Path, help="model.engine of that folder if not given")
    reader.add_argument("--report", type=Path, help="write what happened here as JSON")
    reader.add_argument("--check", action="store_true", help="only parse")
    reader.add_argument("--timing-cache", type=Path)
    reader.add_argument("--workspace-mb", type=int, default=0, help="0: what the device has")
    reader.add_argument("--level", type=int, choices=range(6), help="how long the builder searches")
    reader.add_argument("--refittable", action="store_true")
    reader.add_argument("--strip", action="store_true")
    reader.add_argument("--refit", type=Path, metavar="ENGINE")
    reader.add_argument("--plugin", type=Path, metavar="KERNELS")
    reader.add_argument("--any-version", action="store_true")
    options = reader.parse_args(given)
    options.plan = options.plan or options.folder / PLAN
    options.out = options.out or options.folder / "model.engine"
    return options


def run(options: argparse.Namespace) -> Json:
    """Do what the command line says. Raises Refused."""
    plan = read_plan(options.plan, options.folder)
    student, graph = plan["student"], plan["files"][plan["graph"]]
    print(f"student {student['name']} {student['digest'][:16]}, graph {graph[:16]}")
    trt = load_library(plan, options.any_version)
    if plan.get("plugins") and options.plugin is None:
        raise Refused(f"{plan['plugins']} products of this graph are Soloist's kernel: build with --plugin KERNELS")
    if options.plugin is not None:
        try:
            plugin = importlib.import_module("soloist.targets.tensorrt.plugin")
        except ImportError as error:
            raise Refused(f"--plugin needs Soloist, Python 3.11 or newer ({error}): pip install soloist") from error
        plugin.register(options.plugin)
    done = refit if options.refit is not None else build
    return done(trt, plan, options.folder, options)


def main(given: Sequence[str] | None = None) -> int:
    """0, or 1 with one line that says why."""
    options = arguments(sys.argv[1:] if given is None else given)
    status = 0
    report: Json
    try:
        report = run(options)
        print("parsed" if options.check else f"wrote {options.out}")
    except Refused as refused:
        status, report = 1, {"refused": str(refused), "errors": refused.errors}
        print(f"error: {refused}", file=sys.stderr)
    if options.report is not None:
        write_whole(options.report, json.dumps(report).encode("utf-8"))
    return status


if __name__ == "__main__":
    raise SystemExit(main())
