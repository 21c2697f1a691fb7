"""The search for widths: against all combinations by force, and by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.kernels.errors import UsageError
from soloist.toolchain.quantize.search import Option, Unit, choose, explain, total

BITS = (4, 5, 8)


def _unit(name: str, size: int, damages, streamed: int | None = None) -> Unit:
    bytes_of = {4: size * 4, 5: size * 5, 8: size * 8}
    return Unit(
        name,
        (name,),
        tuple(
            Option(bits, bytes_of[bits], bytes_of[bits] if streamed is None else streamed * bits, damage)
            for bits, damage in zip(BITS, damages, strict=True)
        ),
    )


def _by_force(units, most_bytes, most_streamed=None):
    best = float("inf")
    for picked in itertools.product(*(unit.options for unit in units)):
        streamed = sum(option.streamed for option in picked)
        if sum(option.bytes for option in picked) <= most_bytes and (
            most_streamed is None or streamed <= most_streamed
        ):
            best = min(best, sum(option.damage for option in picked))
    return best


_UNITS = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.floats(0, 1), min_size=3, max_size=3)), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(_UNITS, st.floats(0, 1))
def test_no_combination_within_the_budget_is_better(made, share):
    units = [_unit(f"u{i}", size, sorted(damages, reverse=True)) for i, (size, damages) in enumerate(made)]
    least, most = (sum(size * bits for size, _ in made) for bits in (4, 8))
    limit = int(least + share * (most - least))
    found = choose(units, limit)
    assert total(found, "bytes") <= limit
    assert total(found, "damage") == pytest.approx(_by_force(units, limit))  # few bytes: every step is exact


def test_bytes_go_where_they_save_most():
    units = [_unit("embedding", 28, (0.30, 0.05, 0.01)), _unit("down", 10, (0.02, 0.015, 0.014))]
    found = choose(units, 28 * 8 + 10 * 4)
    assert {name: option.bits for name, option in found.items()} == {"embedding": 8, "down": 4}
    bought, more = explain(units, found)
    assert [(step.unit, step.instead_of, step.bits, step.bytes) for step in bought] == [("embedding", 4, 8, 112)]
    assert bought[0].saved == pytest.approx(0.29) and bought[0].per_megabyte == pytest.approx(0.29 / 112e-6)
    assert [(step.unit, step.bits) for step in more] == [("down", 5)]


def test_what_is_not_streamed_is_free_of_the_second_budget():
    units = [_unit("embedding", 50, (0.5, 0.2, 0.1), streamed=0), _unit("layer", 50, (0.5, 0.1, 0.0))]
    plenty = 50 * 8 * 2
    assert {option.bits for option in choose(units, plenty).values()} == {8}
    found = choose(units, plenty, most_streamed=50 * 5)
    assert (found["embedding"].bits, found["layer"].bits) == (8, 5)
    assert total(found, "streamed") <= 250


@settings(deadline=None, max_examples=40)
@given(_UNITS, st.floats(0, 1))
def test_both_budgets_hold(made, share):
    units = [
        _unit(f"u{i}", size, sorted(damages, reverse=True), streamed=size if i % 2 else 0)
        for i, (size, damages) in enumerate(made)
    ]
    least, most = (sum(u.options[k].streamed for u in units) for k in (0, 2))
    limit = int(least + share * (most - least))
    found = choose(units, 10**6, limit)
    assert total(found, "streamed") <= limit
    assert total(found, "damage") >= _by_force(units, 10**6, limit) - 1e-9


def test_budgets_that_cannot_be_met_say_the_nearest_that_can():
    units = [_unit("a", 10, (1, 0.5, 0)), _unit("b", 5, (1, 0.5, 0))]
    with pytest.raises(UsageError, match="59 bytes in the file cannot be met: the smallest widths need 60"):
        choose(units, 59)
    with pytest.raises(UsageError, match="10 bytes streamed for a token cannot be met: the smallest widths need 60"):
        choose(units, 100, 10)
    assert {option.bits for option in choose(units, 60).values()} == {4}
