"""Tuned tables: written, read back, and asked for the nearest sizes."""

from __future__ import annotations

import json

import pytest

from soloist.kernels import tuned as module
from soloist.kernels.choose import REGISTRY
from soloist.kernels.errors import ArtifactError
from soloist.kernels.spec import Configuration
from soloist.kernels.tuned import Entry, Table, read_table, tables, tuned, write_table

NARROW, WIDE = Configuration({"BLOCK_N": 16}, 4, 2, registers=128), Configuration({"BLOCK_N": 64}, 8, 3)
GROUPS = {"group": 128}
TABLE = Table(
    "Test GPU",
    90,
    {"commit": "abc"},
    {
        "w4a16_gemv": (
            Entry({"M": 1, "N": 4096, "K": 4096}, GROUPS, WIDE, 9.0),
            Entry({"M": 1, "N": 1024, "K": 4096}, GROUPS, NARROW, 4.0),
        )
    },
)


@pytest.fixture
def shipped(monkeypatch):
    monkeypatch.setattr(module, "tables", lambda: {TABLE.device: TABLE})


def test_a_table_comes_back_as_it_was_written(tmp_path):
    write_table(tmp_path / "t.json", TABLE)
    again = read_table((tmp_path / "t.json").read_text(), "t.json")
    assert sorted(again.kernels["w4a16_gemv"], key=lambda e: -e.microseconds) == list(TABLE.kernels["w4a16_gemv"])
    write_table(tmp_path / "u.json", again)
    assert (tmp_path / "u.json").read_bytes() == (tmp_path / "t.json").read_bytes()
    assert again.device == "Test GPU"
    assert again.architecture == 90
    assert again.measured == {"commit": "abc"}


def test_the_nearest_sizes_decide(shipped):
    assert tuned("w4a16_gemv", "Test GPU", {"M": 1, "N": 4096, "K": 4096}, GROUPS) == WIDE
    assert tuned("w4a16_gemv", "Test GPU", {"M": 1, "N": 1536, "K": 4096}, GROUPS) == NARROW
    assert tuned("w4a16_gemv", "Test GPU", {"M": 1, "N": 2896, "K": 4096}, GROUPS) == WIDE


@pytest.mark.parametrize(
    ("kernel", "device", "sizes", "options"),
    [
        ("w4a16_gemv", "Other GPU", {"M": 1, "N": 4096, "K": 4096}, GROUPS),
        ("w8a16_gemv", "Test GPU", {"M": 1, "N": 4096, "K": 4096}, GROUPS),
        ("w4a16_gemv", "Test GPU", {"M": 1, "N": 4096, "K": 4096}, {"group": 32}),
        ("w4a16_gemv", "Test GPU", {"M": 1, "N": 4096, "K": 4096}, None),
        ("w4a16_gemv", "Test GPU", {"M": 3, "N": 4096, "K": 4096}, GROUPS),
        ("w4a16_gemv", "Test GPU", {"N": 4096, "K": 4096}, GROUPS),
    ],
)
def test_what_was_not_measured_is_left_to_the_kernel(shipped, kernel, device, sizes, options):
    assert tuned(kernel, device, sizes, options) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps({"device": "x", "architecture": 90, "measured": {}, "kernels": {"a": [1]}})]
)
def test_a_file_that_is_no_table_is_refused(text):
    with pytest.raises(ArtifactError, match=r"bad\.json: not a table"):
        read_table(text, "bad.json")


def test_shipped_tables_name_configurations_that_exist():
    for table in tables().values():
        assert table.measured
        assert set(table.kernels) <= set(REGISTRY)
        for name, entries in table.kernels.items():
            known = REGISTRY[name].load().configurations
            assert all(entry.configuration in known and entry.microseconds > 0 for entry in entries), (
                table.device,
                name,
            )
