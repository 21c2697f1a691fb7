import pytest

from soloist.kernels.errors import UsageError
from soloist.targets import to_gguf, to_onnx
from soloist.targets.formats import EXAMPLES, Format, parse


def test_every_precision_we_compile_is_a_format():
    for precision in to_gguf.PRECISIONS:
        assert parse(f"gguf-{precision.lower()}").target == "gguf"
    for precision in to_onnx.PRECISIONS:
        assert parse(f"onnx-{precision}").target == "onnx"


def test_every_mix_of_llama_cpp_is_a_format():
    pytest.importorskip("gguf")
    from soloist.targets.llama_quantize import types

    bits = {name: parse(f"gguf-{name.lower()}").bits for name in types()}
    assert (bits["IQ4_NL"], bits["Q5_K_M"], bits["Q6_K"], bits["BF16"], bits["TQ1_0"]) == (4, 5, 6, 16, 1)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("gguf", Format("gguf", "gguf", None, 16)),
        ("onnx", Format("onnx", "onnx", None, 32)),
        ("onnx-cuda", Format("onnx-cuda", "onnx-cuda", None, 16)),
        ("onnx-cuda-int4", Format("onnx-cuda-int4", "onnx-cuda", "int4", 4)),
        ("onnx-portable", Format("onnx-portable", "onnx-portable", None, 32)),
        ("onnx-portable-fp16", Format("onnx-portable-fp16", "onnx-portable", "fp16", 16)),
        ("gguf-q4_k_m", Format("gguf-q4_k_m", "gguf", "q4_k_m", 4)),
    ],
)
def test_a_name_is_a_target_and_a_precision(name, format):
    assert parse(name) == format


@pytest.mark.parametrize(
    "name", ["", "q4_0", "gguf-", "gguf-q9_0", "gguf-q4_zzz", "onnx-int5", "onnx-cuda-fp16", "onnx-portable-int4"]
)
def test_any_other_name_is_refused_with_those_there_are(name):
    if "zzz" in name:
        pytest.importorskip("gguf")
    with pytest.raises(UsageError, match=f"unknown format '{name}': use one of {EXAMPLES[0]}"):
        parse(name)
