import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from soloist.kernels.errors import UsageError  # noqa: E402
from soloist.kernels.layout import Quantized, dequantize, pack_nibbles, per_column, unpack_nibbles  # noqa: E402


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def test_a_block_worked_out_by_hand():
    """Column c holds c % 16: word j has the nibbles j, j + 4, j + 8, j + 12 twice, the first lowest."""
    codes = (torch.arange(32) % 16).reshape(1, 32)
    words = pack_nibbles(codes)
    assert words.dtype == torch.int32
    assert words.tolist() == [[_signed(w) for w in (0xC840C840, 0xD951D951, 0xEA62EA62, 0xFB73FB73)]]
    assert torch.equal(unpack_nibbles(words), codes.to(torch.uint8))


@pytest.mark.parametrize("column", [0, 1, 4, 27, 28, 31, 32, 63])
def test_each_column_has_the_nibble_the_docstring_names(column):
    codes = torch.zeros(2, 64, dtype=torch.uint8)
    codes[1, column] = 15
    words = pack_nibbles(codes)
    block, inside = divmod(column, 32)
    wanted = torch.zeros(2, 8, dtype=torch.int64)
    wanted[1, 4 * block + inside % 4] = _signed(15 << 4 * (inside // 4))
    assert words.tolist() == wanted.tolist()


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_packing_comes_back(rows, blocks, seed):
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, 32 * blocks), generator=random, dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


def test_values_of_each_kind_of_codes():
    four = pack_nibbles((torch.arange(64) % 16).reshape(1, 64))
    scales = torch.tensor([[0.5, -2.0]], dtype=torch.float16)
    u = (torch.arange(64) % 16).double()
    s = torch.tensor([0.5] * 32 + [-2.0] * 32).double()
    exact = torch.float64
    assert torch.equal(dequantize(Quantized(four, scales, 32), exact)[0], (u - 8) * s)
    z = torch.tensor([[3, 15]], dtype=torch.uint8)
    assert torch.equal(
        dequantize(Quantized(four, scales, 32, z), exact)[0], (u - torch.tensor([3.0] * 32 + [15.0] * 32)) * s
    )
    eight = torch.arange(-32, 32, dtype=torch.int8).reshape(1, 64)
    assert torch.equal(dequantize(Quantized(eight, scales, 32), exact)[0], torch.arange(-32, 32).double() * s)


def test_a_short_last_group_has_its_own_scale():
    scales = torch.tensor([[1.0, 2.0]], dtype=torch.float16)
    assert per_column(scales, 64, 96)[0].tolist() == [1.0] * 64 + [2.0] * 32
    found = Quantized(torch.ones(1, 96, dtype=torch.int8), scales, 64)
    assert found.shape == (1, 96)
    assert found.bits == found.stored_bits == 8
    assert found.bytes == 96 + 4
    assert dequantize(found)[0, 63:65].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("codes", "scales", "group", "zeros", "said"),
    [
        (torch.zeros(2, 4, dtype=torch.int32), torch.ones(2, 1).half(), 16, None, "group size 16"),
        (torch.zeros(2, 32, dtype=torch.int64), torch.ones(2, 1).half(), 32, None, "int32 words"),
        (torch.zeros(2, 40, dtype=torch.int8), torch.ones(2, 2).half(), 32, None, "multiples of 32"),
        (torch.zeros(2, 4, dtype=torch.int32), torch.ones(2, 2).half(), 32, None, "scales must be"),
        (torch.zeros(2, 4, dtype=torch.int32), torch.ones(2, 1), 32, None, "scales must be"),
        (torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 1).half(), 32, torch.ones(2, 1).byte(), "zero points"),
    ],
)
def test_what_is_no_layout_is_refused(codes, scales, group, zeros, said):
    with pytest.raises(UsageError, match=said):
        Quantized(codes, scales, group, zeros)
