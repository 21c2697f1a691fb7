"""The compiled files of the tiny student, made once for all tests of the targets."""

from __future__ import annotations

import pytest


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


@pytest.fixture(scope="session")
def tiny_portable(tiny, tmp_path_factory):
    """The tiny student as a portable ONNX folder, float32."""
    for package in ("onnxruntime", "onnxscript", "onnx_ir", "optimum"):
        pytest.importorskip(package)
    from soloist.targets.portable.export import compile_portable

    out = tmp_path_factory.mktemp("portable") / "portable"
    compile_portable(tiny, out)
    return out
