"""Predictions: bytes are those of the layout, floors are arithmetic, predictions come near what others measured."""

from __future__ import annotations

import json

import pytest

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.devices.spec import device, devices
from soloist.targets.predict import PRECISIONS, STUDENTS, Precision, itl_ms, matrix_rows, predict, student

TINY = STUDENTS["smollm2-135m"]
NANO = device("jetson-orin-nano-8gb")


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("smollm2-135m", 134.5),
        ("smollm2-360m", 361.8),
        ("qwen2.5-0.5b", 494.0),
        ("qwen3-0.6b", 596.0),
        ("llama-3.2-1b", 1235.8),
        ("tinyllama-1.1b", 1034.5),
        ("llama-3.1-8b", 7504.9),
    ],
)
def test_weights_are_those_of_the_models(name, millions):
    """Matrices only: published counts less norms, biases, and an untied embedding."""
    assert STUDENTS[name].weights / 1e6 == pytest.approx(millions, rel=0.002)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_bytes_are_those_of_the_layout(group):
    torch = pytest.importorskip("torch")
    from soloist.kernels.layout import Quantized, pack_nibbles

    matrix = TINY.matrices[0]  # 960 x 576: the last group of 128 is short
    scales = torch.zeros(matrix.rows, -(-matrix.columns // group), dtype=torch.float16)
    codes = torch.zeros(matrix.rows, matrix.columns, dtype=torch.int64)
    four, eight = Quantized(pack_nibbles(codes), scales, group), Quantized(codes.to(torch.int8), scales, group)
    assert Precision("", 4, group, 8, 32).bytes_of(matrix) == four.bytes
    assert Precision("", 8, group, 8, 32).bytes_of(matrix) == eight.bytes


def test_the_floor_is_bytes_over_bandwidth_and_nothing_beats_it():
    for place in devices().values():
        for plan in PRECISIONS.values():
            one = predict(TINY, place, plan)
            assert one.floor_ms == pytest.approx((one.weight_bytes + one.kv_bytes) / place.bandwidth_gbs / 1e6)
            assert one.itl_ms > one.floor_ms
            assert one.label == "predicted"
            assert one.tokens_per_second == pytest.approx(1000 / one.itl_ms)
            assert (one.ttft_ms is None) == (place.peak_tflops is None)


def test_by_hand():
    """SmolLM2-135M in fp16 on the Orin Nano: 269 MB of weights, 45 KB of cache a context token."""
    one = predict(TINY, NANO, PRECISIONS["fp16"], context=100, prompt=256)
    assert one.weight_bytes == 2 * 134_479_872
    assert one.kv_bytes == 100 * 2 * 30 * 3 * 64 * 2
    assert one.floor_ms == pytest.approx((268.96 + 2.304) / 102, rel=1e-3)
    assert one.itl_ms == pytest.approx((268.96 + 2.304) / 102 / 0.88 + 30 * 0.17, rel=1e-3)
    operations = 2 * 106_168_320 * 256 + 2 * 28_311_552 + 2 * 256**2 * 576 * 30
    assert one.ttft_ms == pytest.approx(operations / (0.4 * 16.7e9) + 30 * 0.17, rel=1e-3)


def test_an_8_bit_cache_is_half_and_its_scales():
    assert TINY.kv_bytes(10) == 10 * 2 * 30 * 3 * 64 * 2
    assert TINY.kv_bytes(10, bits=8) == 10 * 2 * 30 * 3 * (64 + 2)


def test_a_short_prompt_waits_for_the_weights():
    one, long = (predict(TINY, NANO, PRECISIONS["fp16"], prompt=prompt).ttft_ms for prompt in (1, 2048))
    assert one == pytest.approx(268.96 / 102 / 0.88 + 30 * 0.17, rel=1e-3)
    assert long > 10 * one


@pytest.mark.parametrize("name", [name for name, one in devices().items() if one.published])
def test_predictions_come_near_published_rates(name):
    """What `bandwidth_share` and `layer_ms` were fitted to: within 10 % each, so the model holds over sizes."""
    place = device(name)
    for rate in place.published:
        shape = STUDENTS[rate.student]
        predicted = 1000 / itl_ms(place, shape, shape.weights * rate.bits / 8)
        assert predicted == pytest.approx(rate.tokens_per_second, rel=0.10), rate


def test_what_does_not_fit_is_said():
    big = STUDENTS["llama-3.1-8b"]
    assert not predict(big, NANO, PRECISIONS["w8-g32"]).fits
    assert predict(big, NANO, PRECISIONS["w4-g32"], context=16).fits  # 5.04 GB with its untied embedding, of 5.2
    assert not predict(big, NANO, PRECISIONS["w4-g32"], context=4096).fits  # and 0.5 GB of cache
    assert predict(TINY, NANO, PRECISIONS["fp16"]).fits


def test_matrices_add_up_to_the_token():
    plan = PRECISIONS["w4-g128"]
    rows = list(matrix_rows(TINY, NANO, plan))
    activations = [2 * (row["rows"] + row["columns"]) for row in rows]
    streamed = sum((row["bytes"] - extra) * row["count"] for row, extra in zip(rows, activations, strict=True))
    assert streamed == plan.weight_bytes(TINY)
    assert all(row["streaming_us"] > row["floor_us"] > 0 and row["label"] == "predicted" for row in rows)


def test_a_student_is_a_name_or_a_folder(tmp_path):
    config = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert student(str(tmp_path)).matrices == student("smollm2-135m").matrices
    del config["num_key_value_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": 128}))
    assert (student(str(tmp_path)).kv_heads, student(str(tmp_path)).head_dim) == (9, 128)
    with pytest.raises(UsageError, match="none of smollm2-135m"):
        student("no-such-student")
    for text in ("{}", "[]", "{"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ArtifactError, match="not the config of a decoder"):
            student(str(tmp_path))
