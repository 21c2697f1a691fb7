"""Names of configurations, and what a case comes to."""

from __future__ import annotations

import pytest

from soloist.kernels.spec import Configuration, Outcome

torch = pytest.importorskip("torch")


def test_a_configuration_is_named_by_what_it_sets():
    assert Configuration({"BLOCK_N": 16, "SPLITS": 4}, warps=8, stages=3).name == "block_n16-splits4-w8-s3"
    assert Configuration({}, registers=168).name == "w4-s2-r168"


def test_an_outcome_is_that_of_the_worst_element():
    exact = torch.tensor([1.0, -10.0, 0.0], dtype=torch.float64)
    outcome = Outcome.of(torch.tensor([1.0, -10.5, 0.25]), exact, atol=0.5, rtol=0.05)
    assert outcome.absolute == 0.5
    assert outcome.worst == 0.5  # the last: 0.25 of 0.5; of the second 1.0 is allowed
    assert outcome.passed


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 2.0])
def test_a_wrong_element_does_not_pass(wrong):
    exact = torch.ones(3, dtype=torch.float64)
    outcome = Outcome.of(torch.tensor([1.0, wrong, 1.0]), exact, atol=0.5, rtol=0.0)
    assert not outcome.passed
