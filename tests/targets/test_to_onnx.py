import json
import shutil

import pytest

from soloist.kernels.errors import ArtifactError, ResourceError
from soloist.targets.to_onnx import compile_onnx

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("onnx_ir")
pytest.importorskip("torch")


def test_the_folder_has_what_the_runtime_needs(tiny, tiny_onnx):
    names = {path.name for path in tiny_onnx.iterdir()}
    wanted = {"model.onnx", "genai_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert wanted <= names
    assert "cache" not in names
    assert (tiny_onnx / "chat_template.jinja").read_text() == (tiny / "chat_template.jinja").read_text()
    assert json.loads((tiny_onnx / "genai_config.json").read_text())["model"]["eos_token_id"] == 2
    assert not list(tiny_onnx.parent.glob("*.tmp"))


def test_a_builder_that_fails_leaves_its_reason_and_no_folder(tiny, tmp_path):
    student = shutil.copytree(tiny, tmp_path / "student")
    file = student / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["NoSuchForCausalLM"]}))
    with pytest.raises(ArtifactError, match="the ONNX builder failed"):
        compile_onnx(student, tmp_path / "out", "int4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]


def test_a_builder_that_hangs_is_ended(tiny, tmp_path):
    with pytest.raises(ResourceError, match="longer than 0"):
        compile_onnx(tiny, tmp_path / "out", "int4", limit_s=0)
    assert not list(tmp_path.iterdir())


def test_unknown_precision_and_missing_student_are_refused(tiny, tmp_path):
    with pytest.raises(ArtifactError, match="'int2' is not one of int8"):
        compile_onnx(tiny, tmp_path / "out", "int2")
    with pytest.raises(ArtifactError, match="not a student"):
        compile_onnx(tmp_path, tmp_path / "out", "int4")
