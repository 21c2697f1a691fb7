"""Grid expressions: worked out as Python would, and nothing but arithmetic."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import DataError
from soloist.kernels.grid import grid_size, names_in, work_out


def test_arithmetic():
    values = {"N": 100, "M": 3, "BLOCK": 16}
    assert grid_size(("cdiv(N, BLOCK)", "M * 2 + 1", "max(1, min(N // BLOCK - M, 9))"), values) == (7, 7, 3)
    assert grid_size(("cdiv(96, 16)",), {}) == (6,)
    assert names_in("cdiv(N, BLOCK) * max(M, 1)") == {"N", "BLOCK", "M"}


def test_in_the_numbers_of_the_launcher():
    """Sizes that are not known yet: expressions of text instead of integers."""
    functions = {"cdiv": lambda a, b: f"ceil({a}/{b})", "max": lambda a, b: f"[{a}|{b}]"}
    values = {"N": "n", "BLOCK": 16}
    assert work_out("max(cdiv(N, BLOCK), 1) + N", values, str, functions) == "[ceil(n/16)|1]n"
    with pytest.raises(DataError, match=r"grid 'min\(N, 1\)'"):
        work_out("min(N, 1)", values, str, functions)


@pytest.mark.parametrize(
    "expression", ["N", "__import__('os')", "N.real", "cdiv(4, b=2)", "4 ** 2", "4 / 2", "1 if 1 else 2", "4 +", "'4'"]
)
def test_anything_else_is_refused(expression):
    with pytest.raises(DataError, match="grid '"):
        grid_size((expression,), {"M": 3})
