import pytest

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.open import format_of, open_runtime


def test_each_format_is_known_by_its_files(tiny, tiny_gguf, tiny_onnx):
    assert format_of(tiny) == "torch"
    assert format_of(tiny_gguf) == "gguf"
    assert format_of(tiny_onnx) == "onnx"


def test_an_engine_is_known_by_its_sidecar_even_beside_the_graph_it_was_built_of(tmp_path):
    for name in ("portable.json", "engine.json"):
        (tmp_path / name).write_text("{}")
    assert format_of(tmp_path) == "engine"
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        open_runtime(tmp_path)


def test_each_format_opens_in_its_runtime(tiny, tiny_gguf, tiny_onnx):
    pytest.importorskip("xllamacpp")
    opened = [open_runtime(path) for path in (tiny, tiny_gguf, tiny_onnx)]
    assert [type(runtime).__name__ for runtime in opened] == ["TorchRuntime", "GgufRuntime", "OnnxRuntime"]
    ids = {tuple(runtime.tokenize("What is 12 + 30?")) for runtime in opened}
    assert len(ids) == 1
    for runtime in opened:
        runtime.close()


def test_a_provider_is_for_onnx(tiny_gguf, tiny_onnx):
    pytest.importorskip("xllamacpp")
    with pytest.raises(UsageError, match="the provider 'cpu' is of ONNX Runtime, and this is gguf"):
        open_runtime(tiny_gguf, provider="cpu")
    with pytest.raises(UsageError, match="provider 'npu': choose auto, cpu or cuda"):
        open_runtime(tiny_onnx, provider="npu")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no such file or folder"):
        open_runtime(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"not a model; give a \.gguf file"):
        open_runtime(tmp_path)
    with pytest.raises(ArtifactError, match="unknown format 'tflite'"):
        open_runtime(tmp_path, "tflite")
