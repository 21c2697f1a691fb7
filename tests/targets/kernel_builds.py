"""Writes a folder of kernels as far as no compiler is needed: declared builds, PTX that is only copied.

Loaded by path (`runpy`), since tests are no package.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any


def record(build: Any, arch: str, folder: Path | None = None) -> dict[str, Any]:
    """What a manifest says of a declared build; with a folder its PTX is written there."""
    from soloist.kernels.aot import HIDDEN

    named = [(name, kind, False) for name, kind in build.signature.items()] + [(name, "*i8", True) for name in HIDDEN]
    files = {"ptx": {"path": "none.ptx", "sha256": ""}}
    if folder is not None:
        for kind in ("ptx", "cubin"):
            file = folder / arch / f"{build.name}.{kind}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"// {kind} of {build.name} for {arch}\n")
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            files[kind] = {"path": f"{arch}/{file.name}", "sha256": digest}
    return {
        "build": build.name,
        "kernel": build.kernel,
        "arch": arch,
        "constants": dict(build.constants),
        "grid": list(build.grid),
        "block": [32 * build.configuration.warps, 1, 1],
        "shared": 0,
        "entry": "kernel",
        "arguments": [{"name": name, "type": kind, "hidden": hidden} for name, kind, hidden in named],
        "scratch": {"global": [0, 1], "profile": [0, 1]},
        "files": files,
    }


def write(folder: Path, architectures: tuple[str, ...], group: int = 32) -> list[dict[str, Any]]:
    """Builds of `w4a16_gemv` for groups of one size; their records, which are the facts of its manifest."""
    from soloist.kernels.gemv import W4A16 as KERNEL

    declared = [build for build in KERNEL.builds() if build.constants.get("GROUP") == group]
    records = [record(build, arch, folder) for arch, build in itertools.product(architectures, declared)]
    (folder / "manifest.json").write_text(json.dumps({"facts": {"builds": records}}))
    return records
