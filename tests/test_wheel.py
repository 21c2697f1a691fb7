"""What the wheel holds, seen from wherever Soloist is installed: data files, typing marks, no heavy needs."""

from __future__ import annotations

import importlib.metadata
from importlib.resources import files

import pytest


def test_data_files_are_shipped():
    assert files("soloist.toolchain.desk").joinpath("team.yaml").is_file()
    assert files("soloist.toolchain.desk").joinpath("unseen.jsonl").is_file()
    assert files("soloist.toolchain.report").joinpath("page.css").is_file()


def test_three_typing_marks():
    recorded = importlib.metadata.files("soloist") or []
    marks = [str(path) for path in recorded if path.name == "py.typed" and str(path).startswith("soloist/")]
    if not marks:
        pytest.skip("an editable installation records no files")
    assert sorted(marks) == [f"soloist/{layer}/py.typed" for layer in ("kernels", "targets", "toolchain")]


def test_running_a_student_needs_neither_torch_nor_transformers():
    needs = importlib.metadata.requires("soloist") or []
    for extra in ("gguf", "onnx"):
        wanted = [need for need in needs if f'extra == "{extra}"' in need or "extra ==" not in need]
        assert not [need for need in wanted if need.startswith(("torch", "transformers"))]


def test_entry_point():
    (script,) = [e for e in importlib.metadata.entry_points(group="console_scripts") if e.name == "soloist"]
    assert script.value == "soloist.toolchain.cli:main"
