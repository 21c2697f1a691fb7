"""The search for bits: against all combinations by force, and by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")

from soloist.kernels.errors import UsageError
from soloist.toolchain.quantize.search import Option, choose, explain, total

BITS = (4, 5, 8)


def _options(size: int, increases, streamed: int | None = None) -> tuple[Option, ...]:
    """Of a unit of `size` bytes per bit, `streamed` of them for a token."""
    per_bit = size if streamed is None else streamed
    return tuple(Option(bits, size * bits, per_bit * bits, kl) for bits, kl in zip(BITS, increases, strict=True))


def _by_force(options, max_bytes, max_streamed=None):
    best = float("inf")
    for picked in itertools.product(*options.values()):
        fits = sum(option.bytes for option in picked) <= max_bytes
        if max_streamed is not None:
            fits = fits and sum(option.streamed for option in picked) <= max_streamed
        if fits:
            best = min(best, sum(option.kl_increase for option in picked))
    return best


_UNITS = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.floats(0, 1), min_size=3, max_size=3)), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(_UNITS, st.floats(0, 1), st.sampled_from([1.0, 1e-5]))
def test_no_combination_within_the_budget_is_better(made, share, scale):
    options = {
        f"u{i}": _options(size, sorted((scale * kl for kl in increases), reverse=True))
        for i, (size, increases) in enumerate(made)
    }
    least, most = (sum(size * bits for size, _ in made) for bits in (4, 8))
    limit = int(least + share * (most - least))
    found = choose(options, limit)
    assert total(found, "bytes") <= limit
    assert total(found, "kl_increase") == pytest.approx(_by_force(options, limit), rel=1e-6, abs=1e-8 * scale)


@settings(deadline=None, max_examples=40)
@given(_UNITS, st.floats(0, 1), st.floats(0.2, 1))
def test_no_combination_within_two_budgets_is_better(made, share, of_bytes):
    options = {
        f"u{i}": _options(size, sorted(increases, reverse=True), streamed=size if i % 2 else 0)
        for i, (size, increases) in enumerate(made)
    }
    least, most = (sum(of_unit[k].streamed for of_unit in options.values()) for k in (0, 2))
    limit = int(least + share * (most - least))
    smallest = sum(of_unit[0].bytes for of_unit in options.values())
    max_bytes = int(smallest * (1 + of_bytes))
    found = choose(options, max_bytes, limit)
    assert total(found, "streamed") <= limit
    assert total(found, "bytes") <= max_bytes
    assert total(found, "kl_increase") == pytest.approx(_by_force(options, max_bytes, limit), rel=1e-6, abs=1e-8)


def test_bytes_go_where_they_save_most():
    options = {"embedding": _options(28, (0.30, 0.05, 0.01)), "down": _options(10, (0.02, 0.015, 0.014))}
    found = choose(options, 28 * 8 + 10 * 4)
    assert {name: option.bits for name, option in found.items()} == {"embedding": 8, "down": 4}
    bought, more = explain(options, found)
    assert [(step.unit, step.instead_of, step.bits, step.bytes) for step in bought] == [("embedding", 4, 8, 112)]
    assert bought[0].saved == pytest.approx(0.29)
    assert bought[0].per_megabyte == pytest.approx(0.29 / 112e-6)
    assert [(step.unit, step.bits) for step in more] == [("down", 5)]


def test_bytes_that_save_nothing_are_not_spent():
    options = {"a": _options(10, (0.1, 0.1, 0.1)), "b": _options(10, (0.1, 0.1, 0.0))}
    assert {name: option.bits for name, option in choose(options, 10**6).items()} == {"a": 4, "b": 8}


def test_what_is_not_streamed_is_free_of_the_second_budget():
    options = {"embedding": _options(50, (0.5, 0.2, 0.1), streamed=0), "layer": _options(50, (0.5, 0.1, 0.0))}
    plenty = 50 * 8 * 2
    assert {option.bits for option in choose(options, plenty).values()} == {8}
    found = choose(options, plenty, max_streamed=50 * 5)
    assert (found["embedding"].bits, found["layer"].bits) == (8, 5)
    assert total(found, "streamed") <= 250


def test_budgets_that_cannot_be_met_say_the_nearest_that_can():
    options = {"a": _options(10, (1, 0.5, 0)), "b": _options(5, (1, 0.5, 0))}
    with pytest.raises(UsageError, match="59 bytes in the file cannot be met: the smallest options need 60"):
        choose(options, 59)
    with pytest.raises(UsageError, match="10 bytes streamed for a token cannot be met: the smallest options need 60"):
        choose(options, 100, 10)
    assert {option.bits for option in choose(options, 60).values()} == {4}
    apart = {"a": (Option(4, 10, 20, 0.1), Option(5, 20, 10, 0.1))}
    with pytest.raises(UsageError, match="cannot be met together"):
        choose(apart, 15, 15)
