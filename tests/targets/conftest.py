"""The tiny student and its compiled files, made once for all tests of the targets."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

make = runpy.run_path(str(Path(__file__).with_name("tiny_student.py")))["make"]


@pytest.fixture(scope="session")
def make_student():
    for package in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(package)
    return make


@pytest.fixture(scope="session")
def tiny(make_student, tmp_path_factory) -> Path:
    """A two-layer student as a Hugging Face folder."""
    return make_student(tmp_path_factory.mktemp("tiny") / "student")


@pytest.fixture(scope="session")
def tiny_gguf(tiny, tmp_path_factory):
    """The tiny student as GGUF, F16."""
    pytest.importorskip("gguf")
    from soloist.targets.to_gguf import compile_gguf

    out = tmp_path_factory.mktemp("gguf")
    return out / compile_gguf(tiny, out, "F16", "Tiny")["file"]


@pytest.fixture(scope="session")
def tiny_onnx(tiny, tmp_path_factory):
    """The tiny student as an int8 onnxruntime-genai folder."""
    for package in ("onnxruntime_genai", "onnx_ir"):
        pytest.importorskip(package)
    from soloist.targets.to_onnx import compile_onnx

    out = tmp_path_factory.mktemp("onnx") / "int8"
    compile_onnx(tiny, out, "int8")
    return out
