"""Builds of `w4a16_gemv` for TensorRT: which of them a plugin can launch, with what, and the PTX it takes.

    Builds.read(folder, "sm_87").tactics("bias", "FP16", 32)     records of the manifest, the tactics 1, 2, …
    builds.ptx(record)                                           its entry as TensorRT calls it
    launch_of(record, {"M": …, "N": …, "K": …}, plugin)          grid, block, shared memory, scalars
    copy_builds(folder, out, (87, 110), {32})                    what a graph needs of a folder, read the same way

TensorRT hands over inputs, then scalars, then outputs; Triton's entry wants y before the sizes, and two hidden pointers
behind them. PTX names its parameters, so their declarations are put in another order and nothing else (`in_order`).

Zero points are INT8 here (0 .. 15: the same bytes), because TensorRT's ONNX parser turns UINT8 constants into INT32.
Only builds with SPLITS = 1 are taken: split columns need a second kernel, and a plugin launches one. Only builds within
48 KiB of shared memory: nothing says that TensorRT asks the driver for more. Left out: the cubins, since TensorRT
documents PTX alone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soloist.kernels.aot import Record, read_builds
from soloist.kernels.choose import ARCHITECTURES
from soloist.kernels.errors import ArtifactError, UsageError
from soloist.kernels.grid import work_out

NAMESPACE = "soloist"
KERNEL = "w4a16_gemv"
INPUTS: Mapping[str, tuple[str, ...]] = {  # of each plugin, in the order of the kernel's arguments
    "": ("x", "words", "scales"),
    "zeros": ("x", "words", "scales", "zeros"),
    "bias": ("x", "words", "scales", "bias"),
    "gated": ("x", "words", "scales", "up_words", "up_scales"),
}
ACTIVATIONS = ("FP16", "BF16")  # in TensorRT's words, like the types below; the type of x, bias and y
_FIXED = {"words": "INT32", "scales": "FP16", "zeros": "INT8", "up_words": "INT32", "up_scales": "FP16"}
_TRITON = {"FP16": "*fp16", "BF16": "*bf16", "INT32": "*i32", "INT8": "*u8"}
_SHARED = 48 * 1024
_ENTRY = re.compile(r"\.entry\s+[\w$]+\s*\((?P<declared>[^)]*)\)")


def plugin_name(extra: str) -> str:
    """Name of the plugin with this addition ("" for none), as an ONNX node says it."""
    return "_".join(filter(None, (KERNEL, extra)))


def types_of(extra: str, activations: str) -> dict[str, str]:
    """TensorRT's type of each input and of y."""
    return {name: _FIXED.get(name, activations) for name in (*INPUTS[extra], "y")}


@dataclass(frozen=True)
class Builds:
    """The builds of one architecture in a folder that `soloist kernels build` wrote."""

    folder: Path
    arch: str
    records: tuple[Record, ...]

    @classmethod
    def read(cls, folder: Path, arch: str) -> Builds:
        """Those that a plugin can launch. Raises ArtifactError."""
        records, others = [], []
        for record in read_builds(folder):
            if record["kernel"] != KERNEL:
                continue
            others.append(record["arch"])
            constants, scratch = record["constants"], record["scratch"]
            whole = constants.get("SPLITS") == 1 and "GROUP" in constants and record["shared"] <= _SHARED
            if record["arch"] == arch and whole and not scratch["global"][0] and not scratch["profile"][0]:
                records.append(record)
        if not records:
            there = ", ".join(dict.fromkeys(others)) or "none at all"
            raise ArtifactError(
                f"{folder}: no builds of {KERNEL} for {arch}, but {there}; `soloist kernels build` compiles for "
                f"sm_{', sm_'.join(map(str, ARCHITECTURES))}"
            )
        return cls(folder, arch, tuple(sorted(records, key=lambda record: str(record["build"]))))

    def tactics(self, extra: str, activations: str, group: int) -> tuple[Record, ...]:
        """Builds that compute the same, by name; TensorRT counts them from 1."""
        wanted = {f"{name}_ptr": _TRITON[kind] for name, kind in types_of(extra, activations).items()}
        tactics = []
        for record in self.records:
            if record["constants"]["GROUP"] == group and _pointers(record) == wanted:
                tactics.append(record)
        return tuple(tactics)

    def kinds(self, extra: str) -> list[tuple[str, int]]:
        """Types of activations and groups that a plugin was built for."""
        groups = sorted({record["constants"]["GROUP"] for record in self.records})
        kinds = []
        for kind in ACTIVATIONS:
            for group in groups:
                if self.tactics(extra, kind, group):
                    kinds.append((kind, group))
        return kinds

    def missing(self, extra: str, group: int) -> UsageError:
        """The error where a plugin was built for no type of activations in such groups."""
        there = ", ".join(f"{activations} in groups of {size}" for activations, size in self.kinds(extra)) or "none"
        return UsageError(f"{plugin_name(extra)} in groups of {group} was not built for {self.arch}; there are {there}")

    def tactic(self, extra: str, activations: str, group: int, number: int) -> Record:
        """One of them. Raises UsageError."""
        tactics = self.tactics(extra, activations, group)
        if not 1 <= number <= len(tactics):
            raise UsageError(
                f"tactic {number} of {plugin_name(extra)}, {activations}, groups of {group}, {self.arch}: there are "
                f"{len(tactics)}; register the folder that the engine is built with, once"
            )
        return tactics[number - 1]

    def ptx(self, record: Record) -> str:
        """The build's PTX, its entry as TensorRT calls it. Raises ArtifactError."""
        text = (self.folder / record["files"]["ptx"]["path"]).read_text(encoding="utf-8")
        return in_order(text, [argument["name"] for argument in record["arguments"]], call_order(record))


def built_for(folder: Path, architectures: Sequence[int]) -> list[Builds]:
    """The builds for those of the architectures that a folder has. Raises ArtifactError where it has none of them."""
    there = {(record["kernel"], record["arch"]) for record in read_builds(folder)}
    builds = []
    for architecture in architectures:
        if (KERNEL, f"sm_{architecture}") in there:
            builds.append(Builds.read(folder, f"sm_{architecture}"))
    return builds or [Builds.read(folder, f"sm_{architectures[0]}")]  # raises, and says what there is


def copy_builds(folder: Path, out: Path, architectures: Sequence[int], groups: Iterable[int]) -> list[str]:
    """Put the PTX of the plain product in float16 into `out`, with a manifest; returns the architectures there are.

    Raises:
        UsageError: no build for groups of this size.
        ArtifactError: no folder of `soloist kernels build`, or one without these architectures.
    """
    taken: list[Record] = []
    boards = []
    for builds in built_for(folder, architectures):
        boards.append(builds.arch)
        for group in sorted(set(groups)):
            tactics = builds.tactics("", "FP16", group)
            if not tactics:
                raise builds.missing("", group)
            for record in tactics:
                ptx = record["files"]["ptx"]
                (out / ptx["path"]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / ptx["path"], out / ptx["path"])
                taken.append({**record, "files": {"ptx": ptx}})
    (out / "manifest.json").write_text(json.dumps({"facts": {"builds": taken}}, indent=1) + "\n", encoding="utf-8")
    return boards


def _pointers(record: Record) -> dict[str, str]:
    """Triton types of the pointers we hand over, by name."""
    pointers = {}
    for argument in record["arguments"]:
        if argument["type"].startswith("*") and not argument["hidden"]:
            pointers[argument["name"]] = argument["type"]
    return pointers


def _scalars(record: Record) -> list[str]:
    return [argument["name"] for argument in record["arguments"] if not argument["type"].startswith("*")]


def call_order(record: Record) -> list[str]:
    """Arguments as TensorRT passes them: inputs, scalars, outputs."""
    pointers = list(_pointers(record))
    pointers.remove("y_ptr")
    return [*pointers, *_scalars(record), "y_ptr"]


def in_order(ptx: str, names: Sequence[str], order: Sequence[str]) -> str:
    """PTX whose entry takes the arguments `order` instead of `names`.

    Raises:
        ArtifactError: no such entry, or an argument that would be missing is read.
    """
    entry = _ENTRY.search(ptx)
    declared = entry["declared"].split(",") if entry else []
    if entry is None or len(declared) != len(names):
        raise ArtifactError(f"this PTX has no entry of {len(names)} arguments, as its manifest says")
    by_name = {}
    for name, declaration in zip(names, declared, strict=True):
        by_name[name] = declaration.strip()
        symbol = declaration.split()[-1]
        if name not in order and re.search(rf"\b{re.escape(symbol)}\b", ptx[entry.end() :]):
            raise ArtifactError(f"this kernel reads {name}, which TensorRT has not to give")
    inside = ",\n\t".join(map(by_name.__getitem__, order))
    return f"{ptx[: entry.start('declared')]}\n\t{inside}\n{ptx[entry.end('declared') :]}"


def launch_of(record: Record, sizes: Mapping[str, Any], plugin: Any) -> tuple[Any, Any]:
    """Launch parameters and scalar arguments of a build.

    Args:
        sizes: M, N and K as shape expressions.
        plugin: the module `tensorrt.plugin`.

    Raises:
        ArtifactError: a scalar that is no size.
    """
    if unknown := [name for name in _scalars(record) if name not in sizes]:
        raise ArtifactError(f"{record['build']}: its arguments {', '.join(unknown)} are no sizes of a product")
    functions = {"cdiv": plugin.cdiv, "min": plugin.min, "max": plugin.max}
    values = {**record["constants"], **sizes}

    def expression(value: Any) -> Any:
        return plugin.ShapeExpr(value) if isinstance(value, int) else value

    grid = [work_out(axis, values, expression, functions) for axis in record["grid"]]
    parameters = plugin.KernelLaunchParams()
    parameters.grid_x, parameters.grid_y, parameters.grid_z = grid
    parameters.block_x, parameters.block_y, parameters.block_z = record["block"]
    parameters.shared_mem = record["shared"]
    scalars = plugin.SymIntExprs(len(_scalars(record)))
    for place, name in enumerate(_scalars(record)):
        scalars[place] = plugin.SymInt32(sizes[name])
    return parameters, scalars
