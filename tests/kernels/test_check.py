"""Running cases in a process of their own."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from soloist.kernels.check import run_cases
from soloist.kernels.choose import Impl
from soloist.kernels.errors import MissingExtraError, ResourceError

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")
ROW_DOT = [Impl("row_dot", "row_dot")]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """`row_dot`, importable in the checking process."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def test_cases_pass_in_the_interpreter_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    short, long = run_cases(ROW_DOT, "cpu", seed=3, slow=True)
    assert short.passed
    assert long.passed
    assert (short.kernel, short.case, short.total) == ("row_dot", "N19-K128-float16", 2)
    assert 0 < short.worst <= 1
    assert 0 < short.absolute < 0.1


def test_a_wrong_kernel_fails(monkeypatch):
    monkeypatch.setenv("ROW_DOT", "wrong")
    (result,) = run_cases(ROW_DOT, "cpu", seed=0, slow=False)
    assert not result.passed
    assert result.worst > 10
    assert result.error == ""
    assert (result.case, result.total) == ("N19-K128-float16", 1)  # and not the slow one


def test_a_case_that_breaks_off_says_why_and_fails():
    (result,) = run_cases(ROW_DOT, "cpu", seed=-(2**70), slow=False)  # no seed of torch's
    assert not result.passed
    assert math.isinf(result.worst)
    assert result.error


def test_a_process_that_dies_is_told():
    with pytest.raises(
        ResourceError, match=r"the checking process ended with code 1: .*No module named 'no_such_module'"
    ):
        list(run_cases([Impl("ghost", "no_such_module")], "cpu", seed=0, slow=False))


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="--torch-device cpu"):
        list(run_cases(ROW_DOT, "cuda", seed=0, slow=False))


def test_no_triton_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"soloist\[kernels\]"):
        list(run_cases(ROW_DOT, "cpu", seed=0, slow=False))
