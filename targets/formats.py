"""The formats a student is exported to, by name: a target, and the precision it is to be rounded to.

    gguf                          as the student is: the integers of a quantized one, else F16
    gguf-f16 … gguf-q4_0          rounded by ourselves
    gguf-q4_k_m, gguf-iq4_nl …    any mix of llama.cpp's own quantizer
    onnx                          onnxruntime-genai package: the integers of a quantized student, else fp32
    onnx-int8, onnx-int4          rounded by that package's builder
    onnx-cuda, onnx-cuda-int4 …   the same three for NVIDIA GPUs, computing in fp16
    onnx-portable                 standard operators, for ONNX Runtime on a CPU
    onnx-portable-fp16            the same for GPUs
    tensorrt-rtx                  engine for RTX laptops, made of that graph
    tensorrt, tensorrt-7.2        that graph and what builds its engine on a Jetson of a JetPack (6.2 if not named)

Left out: whether what a format needs is installed, which its compiler says.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

from soloist.kernels.errors import UsageError
from soloist.targets.tensorrt.versions import release

_LLAMA = re.compile(r"b?f(16)|[it]?q([1-8])_\w+|(?:mx|nv)fp(4)\w*")
_OWN = ("f16", "q8_0", "q5_0", "q4_0")
# what holds the weights of a float student where no precision is named
_WHOLE = {"gguf": 16, "onnx": 32, "onnx-cuda": 16, "onnx-portable": 32, "tensorrt-rtx": 16, "tensorrt": 16}
ENGINES = ("tensorrt-rtx", "tensorrt")
JETPACK = "6.2"
DEVICES = {"onnx": "cpu", "onnx-cuda": "cuda"}  # what a package of onnxruntime-genai is made for
_ONNX = {"int8": 8, "int4": 4}
EXAMPLES = (
    "gguf",
    *(f"gguf-{kind}" for kind in _OWN),
    "gguf-<type of llama.cpp>",
    "onnx",
    *(f"onnx-{kind}" for kind in _ONNX),
    "onnx-cuda",
    "onnx-portable",
    "onnx-portable-fp16",
    *ENGINES,
    "tensorrt-<JetPack>",
)


@dataclass(frozen=True)
class Format:
    """`precision` is None where the student's own numbers are kept; `bits` of a weight, then those of floats."""

    name: str
    target: str
    precision: str | None
    bits: int

    @property
    def mix(self) -> bool:
        """Whether llama.cpp's own quantizer writes it (llama_quantize.py)."""
        return self.target == "gguf" and self.precision not in (None, *_OWN)


def parse(name: str) -> Format:
    """A format by its name. Raises UsageError for one there is not."""
    target = max((known for known in _WHOLE if f"{name}-".startswith(f"{known}-")), key=len, default="")
    precision = name[len(target) + 1 :]
    if name in _WHOLE:
        return Format(name, target, None, _WHOLE[target])
    if target in DEVICES and precision in _ONNX:
        return Format(name, target, precision, _ONNX[precision])
    if target == "onnx-portable" and precision == "fp16":
        return Format(name, target, precision, 16)
    if target == "tensorrt":
        release(jetpack=precision)  # raises where there is none
        return Format(name, target, precision, 16)
    mix = _LLAMA.fullmatch(precision) if target == "gguf" else None
    if mix is None or not _known(precision):
        raise UsageError(f"unknown format '{name}': use one of {', '.join(EXAMPLES)}")
    return Format(name, target, precision, int(next(filter(None, mix.groups()))))


def _known(precision: str) -> bool:
    """Whether llama.cpp has a mix of that name; without the package that lists them its compiler will say so."""
    if precision in _OWN or importlib.util.find_spec("gguf") is None:
        return True
    from soloist.targets.llama_quantize import types

    return precision.upper() in types()
