"""A token into an int8 cache: the reference's bits, half a step of error, and attention over what was appended."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from soloist.kernels.append_int8 import KERNEL, append_int8, append_int8_ref  # noqa: E402
from soloist.kernels.decode_attention import decode_attention, decode_attention_ref  # noqa: E402
from soloist.kernels.errors import UsageError  # noqa: E402


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in KERNEL.cases])
def test_kernel_has_the_bits_of_its_reference(case):
    outcome = KERNEL.check(case, "cpu", 0)
    assert outcome.passed, outcome


def caches(batch=2, heads=2, capacity=6, width=32):
    codes = [torch.zeros(batch, heads, capacity, width, dtype=torch.int8) for _ in range(2)]
    return codes + [torch.zeros(batch, heads, capacity, dtype=torch.float16) for _ in range(2)]


@pytest.mark.parametrize("function", [append_int8, append_int8_ref])
def test_a_code_is_within_half_a_step_and_a_tie_goes_to_even(function):
    key = torch.randn(2, 2, 32).half()
    key[0, 0] = 0
    key[0, 0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])
    made = caches()
    function(key, key * 2, *made, torch.tensor([3, 0], dtype=torch.int32))
    assert made[0][0, 0, 3, :4].tolist() == [127, 0, 2, -2]
    for row, place in ((0, 3), (1, 0)):
        scales = made[2][row, :, place, None].double()
        assert ((made[0][row, :, place] * scales - key[row].double()).abs() <= 0.5001 * scales).all()
    assert not made[0][0, :, :3].any()


def test_a_full_cache_is_left_alone():
    made = caches()
    append_int8(
        torch.ones(2, 2, 32).half(), torch.ones(2, 2, 32).half(), *made, torch.tensor([6, -1], dtype=torch.int32)
    )
    assert not any(each.any() for each in made)


def test_attention_over_tokens_appended_one_by_one():
    torch.manual_seed(0)
    made = caches(capacity=9)
    keys, values = torch.randn(2, 9, 2, 2, 32).half()  # by token
    for place in range(9):
        append_int8(keys[place], values[place], *made, torch.tensor([place, place], dtype=torch.int32))
    query, lengths = torch.randn(2, 4, 32).half(), torch.tensor([9, 4], dtype=torch.int32)
    found = decode_attention(query, *made[:2], lengths, *made[2:])
    exact = [x.permute(1, 2, 0, 3).double() for x in (keys, values)]
    assert torch.allclose(found.double(), decode_attention_ref(query.double(), *exact, lengths), atol=0.03)


def test_what_does_not_fit_is_refused():
    made, token, place = caches(), torch.ones(2, 2, 32).half(), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(UsageError, match="does not fit a cache"):
        append_int8(token[:, :1].contiguous(), token[:, :1].contiguous(), *made, place)
    with pytest.raises(UsageError, match="int8 caches"):
        append_int8(token, token, made[0].half(), made[1].half(), *made[2:], place)
    with pytest.raises(UsageError, match="contiguous"):
        append_int8(token.transpose(0, 1), token.transpose(0, 1), *made, place)


def test_on_a_cpu_without_the_interpreter_it_says_what_to_do(monkeypatch):
    made, token, place = caches(), torch.ones(2, 2, 32).half(), torch.zeros(2, dtype=torch.int32)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="use the reference"):
        append_int8(token, token, *made, place)
