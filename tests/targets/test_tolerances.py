import pytest

from soloist.kernels.errors import UsageError
from soloist.targets import to_gguf, to_onnx
from soloist.targets.tolerances import TOLERANCES, tolerance_of


def test_every_precision_we_compile_has_a_tolerance_and_no_other():
    gguf = {f"gguf-{precision.lower()}" for precision in to_gguf.PRECISIONS}
    onnx = {f"onnx-{precision}" for precision in to_onnx.PRECISIONS}
    assert set(TOLERANCES) == gguf | onnx


def test_fewer_bits_are_never_held_to_more():
    for coarse, fine in (("gguf-q8_0", "gguf-f16"), ("gguf-q5_0", "gguf-q8_0"), ("gguf-q4_0", "gguf-q5_0")):
        assert TOLERANCES[coarse].kl > TOLERANCES[fine].kl and TOLERANCES[coarse].top1 < TOLERANCES[fine].top1


def test_an_unknown_format_is_refused():
    with pytest.raises(UsageError, match="unknown format 'gguf-q2_k'"):
        tolerance_of("gguf-q2_k")
