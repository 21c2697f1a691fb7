import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError, EngineError
from soloist.targets.base import Sampling
from soloist.targets.run_torch import TorchRuntime

pytest.importorskip("torch")
pytest.importorskip("transformers")

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
FOLLOWUP = [*QUESTION, {"role": "assistant", "content": "42"}, {"role": "user", "content": "Why?"}]


@pytest.fixture
def runtime(tiny):
    opened = TorchRuntime(tiny)
    yield opened
    opened.close()


def test_answers_with_a_cache_are_the_answers_without(runtime, tiny):
    pieces = []
    first = runtime.chat(QUESTION, Sampling(max_tokens=12), on_text=pieces.append)
    assert first.tokens_cached == 0
    assert "".join(pieces) == first.text
    second = runtime.chat(FOLLOWUP, Sampling(max_tokens=12))
    assert 10 < second.tokens_cached < second.tokens_in
    fresh = TorchRuntime(tiny).chat(FOLLOWUP, Sampling(max_tokens=12))
    assert fresh.tokens_cached == 0
    assert fresh.text == second.text
    assert second.start <= second.first_token <= second.end


def test_greedy_tokens_are_those_of_transformers_generate(runtime):
    import torch

    prompt = runtime.tokenize(runtime.render(QUESTION))
    model = runtime._model
    whole = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=12,
    )
    expected = runtime.text(whole[0, len(prompt) :].tolist())
    assert runtime.chat(QUESTION, Sampling(max_tokens=12)).text == expected


def test_logits_row_is_what_the_loop_sees(runtime):
    tokens = runtime.tokenize("What is 12 + 30?")
    rows = runtime.logits(tokens)
    assert rows.dtype == np.float32
    assert rows.shape[0] == len(tokens)
    np.testing.assert_allclose(runtime._feed(tokens, 0), rows[-1], atol=1e-4)
    np.testing.assert_allclose(runtime._feed(tokens[4:], 4), rows[-1], atol=1e-4)


def test_sampling_repeats_with_its_seed(runtime):
    def answer(seed):
        return runtime.chat(QUESTION, Sampling(temperature=1.5, max_tokens=16, seed=seed)).text

    assert answer(1) == answer(1) != answer(2)


def test_bfloat16_is_near_float32(runtime, tiny):
    half = TorchRuntime(tiny, dtype="bfloat16")
    tokens = runtime.tokenize("What is 12 + 30?")
    a, b = runtime.logits(tokens), half.logits(tokens)
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_bad_folders_and_too_long_prompts_are_refused(tiny, tmp_path):
    with pytest.raises(ArtifactError, match="not a model folder"):
        TorchRuntime(tmp_path)
    with pytest.raises(ArtifactError, match="'int4' is not one of float32"):
        TorchRuntime(tiny, dtype="int4")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ArtifactError, match="does not load"):
        TorchRuntime(tmp_path)
    with pytest.raises(EngineError, match="does not fit the context 16"):
        TorchRuntime(tiny, context=16).chat(FOLLOWUP, Sampling())
