"""The table of builds in kernels/README.md: made from records, and current in what needs no compiler."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("kernel_tables", ROOT / "benchmarks" / "kernel_tables.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["kernel_tables"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["kernel_tables"]


def _record(kernel, variant, arch, **more):
    return {
        "kernel": kernel,
        "variant": variant,
        "configuration": "block_n16-w4-s2",
        "arch": arch,
        "registers": 40,
        "shared": 2048,
        "spill_stores": 0,
        "spill_loads": 0,
        "shipped": True,
        "triton": "3.9.0",
        "files": {"cubin": {"bytes": 5000}},
        **more,
    }


def test_a_table_counts_what_was_built(tables):
    records = [
        _record("b", "fp16", "sm_110", registers=128),
        _record("b", "fp16", "sm_87"),
        _record("b", "bf16", "sm_87"),
        _record("a", "fp16", "sm_87"),
        _record("a", "fp16", "sm_110", shared=65536),
    ]
    made = tables.table(records, "abc")
    assert "| `a` | 1 | 1 | 1 builds, ≤ 40 registers, ≤ 2.0 KB | 1 builds, ≤ 40 registers, ≤ 64.0 KB |" in made
    assert "5 cubins, 0.0 MB, 0 bytes spilled" in made and "commit abc" in made
    read = tables.told(f"x\n<!-- builds:start -->\n{made}\n<!-- builds:end -->\ny")
    assert read == {
        "a": tables.Counts(1, 1, (("sm_87", 1), ("sm_110", 1))),
        "b": tables.Counts(2, 1, (("sm_87", 2), ("sm_110", 1))),
    }


def test_the_readme_counts_the_builds_there_are(tables):
    assert tables.told((ROOT / "kernels" / "README.md").read_text(encoding="utf-8")) == tables.declared()


def test_the_readme_states_the_limits_that_are_enforced():
    from soloist.kernels.aot import LIMITS

    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in (ROOT / "kernels" / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    }
    assert rows["shared memory per program"] == [f"{limit.shared // 1024} KB" for limit in LIMITS.values()]
    assert rows["PTX"] == [f"{limit.ptx / 10}" for limit in LIMITS.values()]


def test_counts_can_be_written_without_a_compiler(tables):
    made = tables.declared_table()
    assert tables.told(f"<!-- builds:start -->\n{made}\n<!-- builds:end -->") == tables.declared()
    assert "not made from a whole build" in made
