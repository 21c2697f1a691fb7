import shutil

import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError, EngineError
from soloist.targets.base import Sampling
from soloist.targets.tokenizer_cases import TOKENIZER_CASES

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("torch")

QUESTION = [{"role": "user", "content": 'What is 12 + 30? "quoted" naïve 🙂'}]
FOLLOWUP = [*QUESTION, {"role": "assistant", "content": "42"}, {"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def runtime(tiny_onnx):
    from soloist.targets.run_onnx import OnnxRuntime

    opened = OnnxRuntime(tiny_onnx, threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference(tiny):
    from soloist.targets.run_torch import TorchRuntime

    return TorchRuntime(tiny)


def test_logits_template_and_tokens_are_the_students(runtime, reference):
    text = reference.render(QUESTION)
    assert runtime.render(QUESTION) == text
    tokens = reference.tokenize(text)
    assert runtime.tokenize(text) == tokens
    for text in TOKENIZER_CASES:
        assert runtime.tokenize(text) == reference.tokenize(text), text
    from soloist.toolchain.verify.differences import divergence

    kl = divergence(reference.logits(tokens), runtime.logits(tokens))
    assert 0 < kl.mean() < 2e-3


def test_the_shared_prefix_is_computed_once(runtime, tiny_onnx):
    from soloist.targets.run_onnx import OnnxRuntime

    pieces = []
    first = runtime.chat(QUESTION, Sampling(max_tokens=12), on_text=pieces.append)
    assert "".join(pieces) == first.text
    second = runtime.chat(FOLLOWUP, Sampling(max_tokens=12))
    assert 20 < second.tokens_cached < second.tokens_in
    fresh = OnnxRuntime(tiny_onnx, threads=1).chat(FOLLOWUP, Sampling(max_tokens=12))
    assert fresh.tokens_cached == 0
    assert fresh.text == second.text


def test_logits_row_is_what_the_loop_sees(runtime):
    tokens = runtime.tokenize("What is 12 + 30?")
    rows = runtime.logits(tokens)
    runtime._held = list(tokens)
    np.testing.assert_allclose(runtime._feed(tokens[4:], 4), rows[-1], atol=1e-4)
    runtime._held = []


def test_bad_folders_are_refused(tiny_onnx, tmp_path):
    from soloist.targets.run_onnx import OnnxRuntime

    with pytest.raises(ArtifactError, match=r"no genai_config\.json"):
        OnnxRuntime(tmp_path)
    broken = shutil.copytree(tiny_onnx, tmp_path / "broken")
    graph = broken / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:2000])
    with pytest.raises(ArtifactError, match="cannot load this model"):
        OnnxRuntime(broken)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        OnnxRuntime(broken)
    (broken / "genai_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a configuration"):
        OnnxRuntime(broken)


def test_too_long_texts_are_refused(tiny_onnx):
    from soloist.targets.run_onnx import OnnxRuntime

    small = OnnxRuntime(tiny_onnx, context=16, threads=1)
    with pytest.raises(EngineError, match="does not fit the context 16"):
        small.chat(FOLLOWUP, Sampling())
    with pytest.raises(EngineError, match="17 tokens do not fit"):
        small.logits([5] * 17)
