"""Kernels to PTX and cubin for named GPUs, on a machine without one.

    parent:  build_kernels(impls, (87, 90), folder, cache)      one record per kernel build and architecture
    worker:  python -m soloist.kernels.aot                      triton.compile(ASTSource, GPUTarget("cuda", 87, 32))

Workers are processes of their own because a kernel decorated while TRITON_INTERPRET is set cannot be compiled. What was
compiled is kept in a cache under a hash of source, constants, options and Triton's version, so that nothing is compiled
twice. A record has all that a launch without Triton needs and what the build uses: entry and arguments (Triton adds
hidden ones at the end), grid, threads, shared memory, registers, spilled bytes, widths of loads. `check_limits` refuses
spills in what is shipped and more shared memory than a program may have.

The cubin is what ships: it needs no compiler in the driver. From sm_90 on it is made for the `a` variant, which runs on
that very architecture. The PTX beside it is kept to the oldest version its architecture and driver take (JetPack 6:
CUDA 12.6, PTX 8.5; Thor: CUDA 13.0, PTX 9.0), because a driver refuses PTX newer than itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import queue
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soloist.kernels.child import Child, ChildDied, Parent
from soloist.kernels.choose import ARCHITECTURES, Impl, require_triton
from soloist.kernels.errors import ArtifactError, GateError, ResourceError, UsageError
from soloist.kernels.listing import Listing, read_ptx
from soloist.kernels.spec import Build

Record = dict[str, Any]
Progress = Callable[[int, int, str], None]
RECORD = 1  # raise it when records change, so that cached ones are made again
HIDDEN = ("global_scratch", "profile_scratch")  # what Triton appends to every entry


@dataclass(frozen=True)
class Limits:
    """What an architecture allows.

    Args:
        shared: bytes of shared memory per program; CUDA Programming Guide, table "Memory Information per Compute
            Capability", row "per thread block".
        ptx: version written into the PTX, times ten: at least what the architecture needs (8.7 and 9.0 brought sm_120
            and sm_110), at most what the oldest driver of its machines takes.
    """

    shared: int
    ptx: int


LIMITS = {
    87: Limits(163 * 1024, 85),
    89: Limits(99 * 1024, 85),
    90: Limits(227 * 1024, 85),
    110: Limits(227 * 1024, 90),
    120: Limits(99 * 1024, 87),
}
assert tuple(LIMITS) == ARCHITECTURES


def architectures(text: str) -> tuple[int, ...]:
    """`sm_87,sm_90` as numbers. Raises UsageError."""
    by_name = {f"sm_{sm}": sm for sm in LIMITS}
    numbers, unknown = [], []
    for part in text.split(","):
        name = "sm_" + part.strip().removeprefix("sm_")
        if name in by_name:
            numbers.append(by_name[name])
        else:
            unknown.append(part)
    if unknown:
        raise UsageError(f"architecture {', '.join(unknown)}: there are {', '.join(by_name)}")
    return tuple(dict.fromkeys(numbers))


# --- parent ---------------------------------------------------------------------------------------------------------


def build_kernels(
    impls: Sequence[Impl],
    targets: Sequence[int],
    folder: Path,
    cache: Path,
    *,
    workers: int = 1,
    ptx: int | None = None,
    only: Sequence[str] | None = None,
    progress: Progress = lambda done, total, name: None,
) -> list[Record]:
    """Compile every build of the kernels into `folder`/sm_N/, and return their records sorted by file.

    Args:
        cache: folder of what was compiled before; made where it is not.
        ptx: version of the PTX times ten, in place of each architecture's own.
        only: names of builds; all unless given.

    Raises:
        MissingExtraError, ResourceError: no Triton here.
        GateError: what did not compile.
    """
    require_triton()
    cache.mkdir(parents=True, exist_ok=True)
    order = {
        "impls": [dataclasses.astuple(impl) for impl in impls],
        "targets": list(targets),
        "folder": str(folder),
        "cache": str(cache),
        "ptx": ptx,
        "only": None if only is None else list(only),
    }
    records: list[Record] = []
    faults: list[str] = []
    done = 0
    for answer in _answers(order, workers):
        if "fault" in answer:
            faults.append(answer["fault"])
        else:
            records.append(answer["record"])
        done += 1
        progress(done, answer["total"], answer["name"])
    if faults:
        raise GateError(f"{len(faults)} of {done} builds did not compile: {_some(faults)}")
    return sorted(records, key=lambda record: str(record["files"]["cubin"]["path"]))


def check_limits(records: Sequence[Record]) -> None:
    """Refuse spills in shipped builds and too much shared memory. Raises GateError naming all."""
    faults = []
    for record in records:
        name, limit = f"{record['arch']} {record['build']}", LIMITS[int(record["arch"].removeprefix("sm_"))].shared
        spilled = record["spill_stores"] + record["spill_loads"]
        if record["shipped"] and spilled:
            faults.append(f"{name} spills {spilled} bytes")
        if record["shared"] + record["static_shared"] > limit:
            faults.append(f"{name} takes {record['shared']} bytes of shared memory, {limit} there are")
    if faults:
        raise GateError(f"{len(faults)} of {len(records)} builds are over a limit: {_some(faults)}")


def _some(faults: Sequence[str], most: int = 6) -> str:
    more = f"; and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(sorted(faults)[:most]) + more


def _answers(order: Mapping[str, Any], workers: int) -> Iterator[Record]:
    """Answers of the workers as they come. Raises ResourceError where one of them died."""
    answers: queue.SimpleQueue[Record | ChildDied | None] = queue.SimpleQueue()

    def forward(child: Child, share: int) -> None:
        with child:
            try:
                child.send({**order, "share": [share, workers]})
                for answer in child.answers():
                    answers.put(answer)
            except ChildDied as error:
                answers.put(error)
        answers.put(None)

    died: list[ChildDied] = []
    with tempfile.TemporaryDirectory() as scratch:
        children, threads = [], []
        for share in range(workers):
            children.append(Child("soloist.kernels.aot", _environment(Path(scratch) / f"{share}")))
            threads.append(threading.Thread(target=forward, args=(children[-1], share)))
            threads[-1].start()
        try:
            running = workers
            while running:
                answer = answers.get()
                if answer is None:
                    running -= 1
                elif isinstance(answer, ChildDied):
                    died.append(answer)
                else:
                    yield answer
        finally:
            for child, thread in zip(children, threads, strict=True):
                child.process.kill()
                thread.join()
    if died:
        raise ResourceError(f"a compiling process {died[0]}") from died[0]


def _environment(cache: Path) -> dict[str, str | None]:
    return {
        "TRITON_INTERPRET": None,
        "TRITON_CACHE_DIR": str(cache),
        "TRITON_ALWAYS_COMPILE": "1",
        "TRITON_DUMP_PTXAS_LOG": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


# --- worker ---------------------------------------------------------------------------------------------------------


def work() -> None:
    """Compile this worker's share of the parent's order; an answer a build."""
    parent = Parent()
    order = parent.receive()
    assert order is not None
    share, workers = order["share"]
    jobs: list[tuple[int, Build]] = []
    for fields in order["impls"]:
        for build in Impl(*fields).load().builds():
            if order["only"] is None or build.name in order["only"]:
                known = build.architectures or ARCHITECTURES
                jobs.extend((sm, build) for sm in order["targets"] if sm in known)
    for sm, build in jobs[share::workers]:
        answer: Record = {"total": len(jobs), "name": f"sm_{sm} {build.name}"}
        try:
            answer["record"] = _make(build, sm, order["ptx"] or LIMITS[sm].ptx, Path(order["cache"]), order["folder"])
        except Exception as error:  # Triton raises many kinds; all faults are told at once
            answer["fault"] = f"{answer['name']}: {type(error).__name__}: {' '.join(str(error).split())[-300:]}"
        parent.send(answer)


def _make(build: Build, sm: int, ptx: int, cache: Path, folder: str) -> Record:
    """Compile or take from the cache, put both files where they belong, and return the record."""
    source = _source(build)
    options = {**build.configuration.launch_options(fused=build.fused), "ptx_version": ptx}
    key = _key(build, source, sm, options)
    kept = cache / f"{key}.json"
    if not kept.is_file():
        _compile(build, source, sm, options, cache / key)
    record: Record = json.loads(kept.read_text())
    for kind in ("ptx", "cubin"):
        made = Path(folder) / f"sm_{sm}" / f"{build.name}.{kind}"
        made.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cache / f"{key}.{kind}", made)
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        record["files"][kind] = {"path": f"sm_{sm}/{made.name}", "bytes": made.stat().st_size, "sha256": digest}
    return record


def _source(build: Build) -> Any:
    from triton.compiler import ASTSource

    names = list(build.function.arg_names)
    wrong = [name for name in names if (name in build.signature) == (name in build.constants)]
    wrong += [name for name in (*build.signature, *build.constants, *build.aligned) if name not in names]
    if wrong:
        raise ArtifactError(f"arguments {', '.join(wrong)} must be either in the signature or a constant, and exist")
    return ASTSource(
        fn=build.function,
        signature={name: build.signature.get(name, "constexpr") for name in names},
        constexprs=dict(build.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned},
    )


def _key(build: Build, source: Any, sm: int, options: Mapping[str, Any]) -> str:
    import triton

    parts = [RECORD, triton.__version__, source.hash(), sm, sorted(options.items()), _facts(build)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _facts(build: Build) -> Record:
    """The part of a record that needs no compiler."""
    return {
        "build": build.name,
        "kernel": build.kernel,
        "variant": build.variant,
        "shipped": build.shipped,
        "configuration": build.configuration.name,
        "function": build.function.__name__,
        "constants": dict(build.constants),
        "grid": list(build.grid),
        "warps": build.configuration.warps,
        "stages": build.configuration.stages,
    }


def _compile(build: Build, source: Any, sm: int, options: Mapping[str, Any], base: Path) -> None:
    """Write base.ptx, base.cubin, and last base.json."""
    import triton
    from triton.backends.compiler import GPUTarget

    log = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=dict(options))
    seconds = round(time.perf_counter() - began, 3)
    ptx, metadata = compiled.asm["ptx"], compiled.metadata
    record = {
        **_facts(build),
        **_launch(build, read_ptx(ptx)),
        **resources(log.getvalue()),
        "arch": f"sm_{sm}",
        "warps": metadata.num_warps,
        "shared": metadata.shared,
        "triton": triton.__version__,
        "scratch": {
            "global": [metadata.global_scratch_size, metadata.global_scratch_align],
            "profile": [metadata.profile_scratch_size, metadata.profile_scratch_align],
        },
        "seconds": seconds,
        "files": {},
    }
    base.with_suffix(".ptx").write_text(ptx)
    base.with_suffix(".cubin").write_bytes(compiled.asm["cubin"])
    unfinished = base.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(record))
    unfinished.replace(base.with_suffix(".json"))


def _launch(build: Build, listing: Listing) -> Record:
    """Entry, arguments and loads, from the PTX itself."""
    names = [name for name in build.function.arg_names if name in build.signature]
    if len(listing.parameters) != len(names) + len(HIDDEN):
        raise ArtifactError(f"{listing.entry} takes {len(listing.parameters)} arguments, {len(names)} are ours")
    arguments: list[Record] = []
    loads: dict[str, list[list[int]]] = {}
    for position, (name, kind) in enumerate(zip((*names, *HIDDEN), listing.parameters, strict=True)):
        hidden = position >= len(names)
        triton_type = "*i8" if hidden else build.signature[name]
        aligned = name in build.aligned
        arguments.append({"name": name, "type": triton_type, "ptx": kind, "aligned": aligned, "hidden": hidden})
        if not hidden and triton_type.startswith("*") and listing.of(position):
            loads[name] = [[load.bytes, load.depth, load.direct] for load in listing.of(position)]
    return {
        "entry": listing.entry,
        "arguments": arguments,
        "block": [listing.threads, 1, 1],
        "ptx_version": listing.version,
        "ptx_target": listing.target,
        "loads": loads,
        "matrix": dict(listing.matrix),
    }


def resources(log: str) -> Record:
    """Registers, spills and static shared memory by the log of `ptxas -v`. Raises ArtifactError."""
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    used = re.search(r"Used (\d+) registers", log)
    if frame is None or used is None:
        raise ArtifactError("ptxas did not say what it used")
    static = re.search(r"(\d+) bytes smem", log)
    return {
        "registers": int(used[1]),
        "stack": int(frame[1]),
        "spill_stores": int(frame[2]),
        "spill_loads": int(frame[3]),
        "static_shared": int(static[1]) if static else 0,
    }


# --- readers --------------------------------------------------------------------------------------------------------


def read_builds(folder: Path) -> list[Record]:
    """Records of a folder that `soloist kernels build` wrote. Raises ArtifactError where it is not whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        records: list[Record] = manifest["facts"]["builds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder}: no folder of `soloist kernels build` ({error})") from error
    for record in records:
        for file in record["files"].values():
            path = folder / file["path"]
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
                raise ArtifactError(f"{path}: missing or changed; run `soloist kernels build` again")
    return records


if __name__ == "__main__":
    work()
