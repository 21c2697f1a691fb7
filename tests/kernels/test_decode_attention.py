"""Decoding attention: the table under the interpreter, the reference from its formula, what must not change a bit."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from soloist.kernels.decode_attention import HEAD_DIMS, KERNEL, decode_attention, decode_attention_ref  # noqa: E402
from soloist.kernels.errors import UsageError  # noqa: E402

CASES = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow) for case in KERNEL.cases]


@pytest.mark.parametrize("case", CASES)
def test_kernel_is_its_reference(case):
    outcome = KERNEL.check(case, "cpu", 0)
    assert outcome.passed, outcome


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_kernel_is_its_reference_on_a_gpu(case):
    outcome = KERNEL.check(case, "cuda", 0)
    assert outcome.passed, outcome


def drawn(batch=2, heads=4, shared=2, capacity=70, width=32, dtype=torch.float16):
    torch.manual_seed(0)
    query = torch.randn(batch, heads, width).to(dtype)
    key, value = torch.randn(2, batch, shared, capacity, width).to(dtype)
    return query, key, value, torch.tensor([capacity, 37][:batch], dtype=torch.int32)


def quantized(x):
    scales = (x.float().abs().amax(-1) / 127).half()
    return (x.float() / scales.float()[..., None]).round().clamp(-127, 127).to(torch.int8), scales


def test_the_reference_is_the_formula():
    query, key, value, lengths = drawn(dtype=torch.float64)
    found = decode_attention_ref(query, key, value, lengths, scale=0.3)
    for b in range(2):
        for h in range(4):
            scores = [0.3 * float(query[b, h] @ key[b, h // 2, s]) for s in range(int(lengths[b]))]
            masses = [math.exp(score - max(scores)) for score in scores]
            wanted = sum(mass * value[b, h // 2, s] for s, mass in enumerate(masses)) / sum(masses)
            assert torch.allclose(found[b, h], wanted, rtol=1e-12)


def test_int8_is_attention_over_the_dequantized_cache():
    query, key, value, lengths = drawn()
    (keys, key_scales), (values, value_scales) = quantized(key), quantized(value)
    found = decode_attention(query, keys, values, lengths, key_scales, value_scales)
    wide = [
        (codes.double() * scales.double()[..., None]) for codes, scales in ((keys, key_scales), (values, value_scales))
    ]
    wanted = decode_attention_ref(query.double(), *wide, lengths)
    assert torch.allclose(found.double(), wanted, atol=2e-3)
    exact = decode_attention_ref(query.double(), key.double(), value.double(), lengths)
    assert 0 < float((wanted - exact).abs().max()) < 0.05  # what int8 costs


def test_values_of_very_different_scales_survive_fp16():
    query, key, value, lengths = drawn()
    value[:, :, ::2] *= 1e-3
    values, value_scales = quantized(value)
    keys, key_scales = quantized(key)
    small = value_scales * 0.01  # the largest about 2e-4: p times it would be among fp16's subnormals
    found = decode_attention(query, keys, values, lengths, key_scales, small)
    wanted = decode_attention_ref(query.double(), keys, values, lengths, key_scales, small)
    assert torch.allclose(found.double(), wanted, atol=3e-3 * float(wanted.abs().max()))


def test_the_same_input_gives_the_same_bits_and_beyond_the_length_nothing_counts():
    query, key, value, lengths = drawn()
    once = decode_attention(query, key, value, lengths, splits=3)
    key[1, :, 37:], value[1, :, 37:] = torch.inf, torch.nan
    assert torch.equal(decode_attention(query, key, value, lengths, splits=3), once)


def test_pieces_change_nothing_but_rounding():
    query, key, value, lengths = drawn(capacity=520)
    whole = decode_attention(query, key, value, lengths, splits=1)
    for splits in (2, 4, 100):
        assert torch.allclose(decode_attention(query, key, value, lengths, splits=splits), whole, atol=1e-3)


def test_a_row_of_length_zero_is_zero_and_a_length_past_the_cache_is_the_cache():
    query, key, value, lengths = drawn(capacity=300)
    lengths[:] = torch.tensor([0, 10_000])
    for splits in (1, 2):
        found = decode_attention(query, key, value, lengths, splits=splits)
        assert torch.equal(found[0], torch.zeros_like(found[0]))
        full = decode_attention_ref(query, key, value, torch.tensor([0, 300]))
        assert torch.allclose(found[1], full[1], atol=2e-3)


def test_a_query_far_from_all_keys_does_not_overflow():
    query, key, value, lengths = drawn()
    query *= 300
    found = decode_attention(query, key, value, lengths)
    assert torch.allclose(found, decode_attention_ref(query, key, value, lengths), atol=3e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {**t, "query": t["query"][..., :24].contiguous()}, "heads of 24"),
        (lambda t: {**t, "query": t["query"].float()}, "float32"),
        (lambda t: {**t, "query": t["query"][:, :3].contiguous()}, "H a multiple of Hkv"),
        (lambda t: {**t, "value": t["value"][:, :, :5].contiguous()}, "do not fit a cache"),
        (lambda t: {**t, "key": t["key"].to(torch.int8), "value": t["value"].to(torch.int8)}, "int8 comes with both"),
        (lambda t: {**t, "lengths": t["lengths"].long()}, "lengths must be int32"),
        (lambda t: {**t, "key": t["key"].transpose(2, 3).contiguous().transpose(2, 3)}, "contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    given = dict(zip(("query", "key", "value", "lengths"), drawn(), strict=True))
    with pytest.raises(UsageError, match=said):
        decode_attention(**change(given))


def test_on_a_cpu_without_the_interpreter_it_says_what_to_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="use the reference"):
        decode_attention(*drawn())


def test_every_head_dim_is_built_for_every_cache():
    built = set()
    for build in KERNEL.builds():
        if "QUANTIZED" in build.constants:
            built.add((build.constants["D"], build.constants["QUANTIZED"]))
    assert built == set(itertools.product(HEAD_DIMS, (False, True)))
