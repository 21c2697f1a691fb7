"""Grid expressions: worked out as Python would, and nothing but arithmetic."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import DataError
from soloist.kernels.grid import grid_size, names_in


def test_arithmetic():
    values = {"N": 100, "M": 3, "BLOCK": 16}
    assert grid_size(("cdiv(N, BLOCK)", "M * 2 + 1", "max(1, min(N // BLOCK - M, 9))"), values) == (7, 7, 3)
    assert grid_size(("cdiv(96, 16)",), {}) == (6,)
    assert names_in("cdiv(N, BLOCK) * max(M, 1)") == {"N", "BLOCK", "M"}


@pytest.mark.parametrize(
    "expression", ["N", "__import__('os')", "N.real", "cdiv(4, b=2)", "4 ** 2", "4 / 2", "1 if 1 else 2", "4 +", "'4'"]
)
def test_anything_else_is_refused(expression):
    with pytest.raises(DataError, match="grid '"):
        grid_size((expression,), {"M": 3})
