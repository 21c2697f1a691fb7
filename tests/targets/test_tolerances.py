import itertools

import pytest

from soloist.kernels.errors import UsageError
from soloist.targets.tolerances import TOLERANCES, tolerance_of


def test_fewer_bits_are_never_held_to_more():
    rows = [TOLERANCES[bits] for bits in sorted(TOLERANCES)]
    for coarse, fine in itertools.pairwise(rows):
        assert coarse.kl > fine.kl
        assert coarse.top1 < fine.top1


def test_a_format_is_held_to_the_bits_it_has_and_never_to_fewer_than_four():
    assert tolerance_of("gguf-f16") == TOLERANCES[16]
    assert tolerance_of("onnx-int8") == tolerance_of("gguf-q8_0") == TOLERANCES[8]
    assert tolerance_of("gguf-q4_k_m") == tolerance_of("gguf-iq2_xxs") == TOLERANCES[4]
    assert tolerance_of("onnx-portable") == TOLERANCES[32]


def test_a_quantized_student_is_held_to_its_narrowest_matrix():
    assert [tolerance_of("gguf", bits) for bits in (4, 5, 6, 8)] == [TOLERANCES[bits] for bits in (4, 5, 6, 8)]
    assert tolerance_of("gguf-q4_0", 8) == TOLERANCES[4]
    assert tolerance_of("onnx-portable-fp16", 6) == TOLERANCES[6]


def test_an_unknown_format_is_refused():
    with pytest.raises(UsageError, match="unknown format 'gguf-q9_k'"):
        tolerance_of("gguf-q9_k")
