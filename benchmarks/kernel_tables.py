"""Writes the table of builds of kernels/README.md from a folder of `soloist kernels build`; `--check` only compares.

    soloist kernels build -o build/kernels && python benchmarks/kernel_tables.py build/kernels
    python benchmarks/kernel_tables.py --declared        counts alone, where nothing was compiled

The counts of the table follow from the kernels' own declarations and are checked without compiling (`--check`, and a
test); registers and shared memory come from the compiler and are as old as the commit named below the table.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "kernels" / "README.md"
MARKS = re.compile(r"<!-- builds:start -->\n(.*?)<!-- builds:end -->", re.DOTALL)


@dataclass(frozen=True)
class Counts:
    """Of one kernel: variants, configurations, and builds by architecture."""

    variants: int
    configurations: int
    builds: tuple[tuple[str, int], ...]


def declared() -> dict[str, Counts]:
    """What the kernels say of themselves."""
    from soloist.kernels.choose import ARCHITECTURES, REGISTRY

    found = {}
    for name, impl in REGISTRY.items():
        builds = [
            (build.variant, build.configuration.name, f"sm_{sm}")
            for build in impl.load().builds()
            for sm in build.architectures or ARCHITECTURES
        ]
        found[name] = count(builds)
    return found


def count(builds: Iterable[tuple[str, str, str]]) -> Counts:
    """Of (variant, configuration, architecture)."""
    builds = list(builds)
    by_arch: dict[str, int] = {}
    for _, _, arch in builds:
        by_arch[arch] = by_arch.get(arch, 0) + 1
    ordered = tuple(sorted(by_arch.items(), key=lambda item: int(item[0][3:])))
    return Counts(len({v for v, _, _ in builds}), len({c for _, c, _ in builds}), ordered)


def declared_table() -> str:
    """The table without a compiler: counts."""
    counts = declared()
    archs = sorted({arch for found in counts.values() for arch, _ in found.builds}, key=lambda arch: int(arch[3:]))
    rows = [
        f"| `{name}` | {found.variants} | {found.configurations} | "
        + " | ".join(f"{dict(found.builds).get(arch, 0)} builds" for arch in archs)
        + " |"
        for name, found in sorted(counts.items())
    ]
    return "\n".join([*head(archs), *rows, "", "Counts as declared; this table was not made from a whole build."])


def head(archs: list[str]) -> list[str]:
    """The first two lines of the table."""
    return [
        "| kernel | variants | configurations | " + " | ".join(archs) + " |",
        "|---|---:|---:|" + "---|" * len(archs),
    ]


def table(records: list[dict], commit: str | None) -> str:
    """The table from the records of a build."""
    archs = sorted({record["arch"] for record in records}, key=lambda arch: int(arch[3:]))
    lines = head(archs)
    for kernel in dict.fromkeys(record["kernel"] for record in sorted(records, key=lambda r: r["kernel"])):
        mine = [record for record in records if record["kernel"] == kernel]
        found = count((r["variant"], r["configuration"], r["arch"]) for r in mine)
        cells = []
        for arch in archs:
            of = [record for record in mine if record["arch"] == arch]
            most, shared = (max((r[key] for r in of), default=0) for key in ("registers", "shared"))
            cells.append(f"{len(of)} builds, ≤ {most} registers, ≤ {shared / 1024:.1f} KB")
        lines.append(f"| `{kernel}` | {found.variants} | {found.configurations} | " + " | ".join(cells) + " |")
    spilled = sum(r["spill_stores"] + r["spill_loads"] for r in records if r["shipped"])
    size = sum(record["files"]["cubin"]["bytes"] for record in records)
    return "\n".join(
        [
            *lines,
            "",
            f"{len(records)} cubins, {size / 1e6:.1f} MB, {spilled} bytes spilled in what ships; Triton "
            f"{records[0]['triton']}, commit {commit}. KB are of shared memory per program. Compiled, not run.",
        ]
    )


def told(text: str) -> dict[str, Counts]:
    """What a table says, read back."""
    block = MARKS.search(text)
    assert block, f"{README} has no markers for the builds"
    lines = [line.strip("| ").split(" | ") for line in block[1].splitlines() if line.startswith("|")]
    if not lines:
        return {}
    (_, _, _, *archs), _, *rows = lines
    found = {}
    for name, variants, configurations, *cells in rows:
        numbers = [(arch, int(cell.split()[0])) for arch, cell in zip(archs, cells, strict=True)]
        builds = tuple((arch, number) for arch, number in numbers if number)
        found[name.strip("`")] = Counts(int(variants), int(configurations), builds)
    return found


def compiled_table(folder: Path) -> str:
    """The table of a folder that `soloist kernels build` wrote."""
    from soloist.kernels.aot import read_builds

    commit = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["commit"]
    return table(read_builds(folder), commit)


def main(arguments: list[str]) -> int:
    text = README.read_text(encoding="utf-8")
    if arguments == ["--check"]:
        if told(text) != declared():
            print("kernels/README.md does not count the builds there are: run benchmarks/kernel_tables.py on new ones")
            return 1
        return 0
    if len(arguments) != 1:
        print(__doc__)
        return 2
    made = declared_table() if arguments == ["--declared"] else compiled_table(Path(arguments[0]))
    README.write_text(MARKS.sub(f"<!-- builds:start -->\n{made}\n<!-- builds:end -->", text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
