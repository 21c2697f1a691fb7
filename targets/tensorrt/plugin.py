"""`w4a16_gemv` inside a TensorRT engine: quick-deployable plugins around kernels compiled ahead of time.

    soloist kernels build --kernel w4a16_gemv --arch sm_87 -o build/kernels     any machine, no GPU
    register(Path("build/kernels"))                                             where the engine is built
    trt.OnnxParser(network, logger).parse(…)                                    nodes written by `nodes`

    y = soloist::w4a16_gemv(x, words, scales; group=[G])    x (…, K), words and scales as in `soloist.kernels.layout`,
        w4a16_gemv_zeros(…, zeros)                          y (…, N) of the type of x, float16 or bfloat16
        w4a16_gemv_bias(…, bias)
        w4a16_gemv_gated(…, up_words, up_scales)            silu(x W^T) * (x Up^T)

A plugin has a fixed number of inputs, hence one for each thing that may be added. Every build that fits is a tactic,
and TensorRT's builder times them. The engine carries the PTX and runs without Python, Triton or Soloist. Rows lie along
the grid's z axis in the one-row builds, so x has at most 65535 rows.

This module can be imported anywhere; `register` needs TensorRT 10.9 or newer. It was written against the Python API of
10.13 and 11.4 and has not been run inside TensorRT, which builds engines only where there is a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import GenericAlias, SimpleNamespace
from typing import Any

import numpy as np

from soloist.kernels.errors import ResourceError, UsageError
from soloist.targets.tensorrt.builds import (
    ACTIVATIONS,
    INPUTS,
    KERNEL,
    NAMESPACE,
    Builds,
    launch_of,
    plugin_name,
    types_of,
)

# A list of one number: TensorRT 10 turns a lone integer into one by int(array), which numpy 2.4 refuses.
_Group = np.ndarray[Any, np.dtype[np.int32]]
_NUMPY = {"FP16": "<f2", "BF16": "<i2", "INT32": "<i4", "INT8": "|u1"}  # bfloat16 has no name there


def register(builds: Path | None = None, *, arch: str | None = None, jit: bool = False) -> tuple[str, ...]:
    """Register the plugins with TensorRT, once in a process; returns their ids, `soloist::w4a16_gemv` …

    Args:
        builds: a folder of `soloist kernels build`; its kernels go into the engine.
        arch: `sm_87` …; that of this machine's GPU if not given.
        jit: call our Python from the engine instead, through torch and Triton; for looking for faults. With `builds`
            as well, TensorRT asks for a preference in the network's flags.

    Raises:
        UsageError: neither builds nor jit, or registered before.
        ResourceError: no TensorRT that has these plugins, or no GPU and no `arch`.
        ArtifactError: no builds for this architecture.
    """
    if builds is None and not jit:
        raise UsageError("a plugin needs a folder of `soloist kernels build`, or jit=True")
    plugin = _tensorrt()
    ready = None if builds is None else Builds.read(builds, arch or gpu_architecture())
    named = []
    for extra in INPUTS:
        if ready is not None and not ready.kinds(extra):
            continue
        if hasattr(getattr(plugin.op, NAMESPACE, None), plugin_name(extra)):
            raise UsageError(f"{NAMESPACE}::{plugin_name(extra)} is registered; TensorRT takes a plugin once a process")
        named.append(_register(plugin, extra, ready, jit))
    return tuple(named)


def _register(plugin: Any, extra: str, builds: Builds | None, jit: bool) -> str:
    """Register one plugin. TensorRT reads names and annotations of a function's arguments, so each gets a signature."""
    name, desc, inputs = f"{NAMESPACE}::{plugin_name(extra)}", plugin.TensorDesc, INPUTS[extra]
    outputs = ("outputs", GenericAlias(tuple, (desc,)))

    def describe(*tensors: Any, group: _Group) -> Any:
        del group
        y = tensors[0].like()
        y.shape_expr[y.ndim - 1] = tensors[1].shape_expr[0]
        return y

    def combinations(*given: Any) -> Any:
        return _combinations(plugin, extra, builds, int(given[len(inputs)][0]))

    def compiled(*given: Any) -> Any:
        assert builds is not None
        *tensors, (group,), _, tactic = given
        if all(tensor.has_shape for tensor in tensors):
            shapes = [tuple(tensor.shape) for tensor in tensors]
            check_shapes(dict(zip(inputs, shapes, strict=True)), int(group))
        record = builds.tactic(extra, _type_name(tensors[0].dtype), int(group), tactic)
        return (record["entry"], builds.ptx(record), *launch_of(record, _sizes(tensors), plugin))

    def run(*given: Any, stream: int) -> None:
        *tensors, (group,), (y,) = given
        _run(dict(zip(inputs, tensors, strict=True)), int(group), y, stream)

    plugin.register(name)(_signed(describe, inputs, desc, [], desc))
    plugin.autotune(name)(_signed(combinations, inputs, desc, [outputs], list[plugin.AutoTuneCombination]))
    if builds is not None:
        back = tuple[str, str, plugin.KernelLaunchParams, plugin.SymIntExprs]
        plugin.aot_impl(name)(_signed(compiled, inputs, desc, [outputs, ("tactic", int)], back))
    if jit:
        data = [("outputs", GenericAlias(tuple, (plugin.Tensor,))), ("stream", int)]
        plugin.impl(name)(_signed(run, inputs, plugin.Tensor, data, None))
    return name


def _signed(
    function: Callable[..., Any], inputs: Sequence[str], kind: type, rest: Sequence[tuple[str, Any]], back: object
) -> Callable[..., Any]:
    """The function with a signature of the inputs, the group and the rest."""
    parameters = []
    for name, annotation in (*dict.fromkeys(inputs, kind).items(), ("group", _Group), *rest):
        parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation))
    vars(function)["__signature__"] = inspect.Signature(parameters, return_annotation=back)
    return function


def _combinations(plugin: Any, extra: str, builds: Builds | None, group: int) -> list[Any]:
    """Types that go together, all of them row by row, each with its tactics. Raises UsageError where there are none."""
    combinations = []
    for activations in ACTIVATIONS:
        tactics = () if builds is None else builds.tactics(extra, activations, group)
        if builds is None or tactics:
            types = ", ".join(types_of(extra, activations).values())
            numbers = {} if builds is None else {"tactics": list(range(1, len(tactics) + 1))}
            combinations.append(plugin.AutoTuneCombination(types, "LINEAR", **numbers))
    if builds is not None and not combinations:
        raise builds.missing(extra, group)
    return combinations


def check_shapes(shapes: Mapping[str, tuple[int, ...]], group: int) -> None:
    """Refuse a matrix that is not as wide as x: the kernel would read past its end.

    Args:
        shapes: of the inputs by name; -1 stands for a size that is not known yet.

    Raises:
        UsageError: what does not fit.
    """
    k, n = shapes["x"][-1], shapes["words"][0]
    if len(shapes["x"]) < 2:
        raise UsageError(f"{KERNEL}: x is {shapes['x']}; its rows lie along the dimensions before the last")
    if k < 0:
        return
    if k % 32:
        raise UsageError(f"{KERNEL}: x has {k} columns, and its weights come in blocks of 32")
    words, groups = (n, k // 8), (n, -(-k // group))
    wanted = {"words": words, "up_words": words, "bias": (n,), "scales": groups, "zeros": groups, "up_scales": groups}
    for name, shape in shapes.items():
        if name != "x" and shape != wanted[name]:
            raise UsageError(f"{KERNEL}: {name} is {shape}; {n} x {k} in groups of {group} takes {wanted[name]}")


def _sizes(tensors: Sequence[Any]) -> dict[str, Any]:
    """M, N and K of x (…, K) and words (N, K / 8) as expressions."""
    x, words = tensors[0].shape_expr, tensors[1].shape_expr
    rows = x[0]
    for place in range(1, len(x) - 1):
        rows = rows * x[place]
    return {"M": rows, "N": words[0], "K": x[len(x) - 1]}


def _type_name(dtype: Any) -> str:
    """As AutoTuneCombination spells it."""
    return {"HALF": "FP16"}.get(dtype.name, str(dtype.name))


# --- in Python, for looking for faults ------------------------------------------------------------------------------


def _run(tensors: Mapping[str, Any], group: int, y: Any, stream: int) -> None:
    """y of the tensors on TensorRT's stream, by the implementation that `choose` picks."""
    from soloist.kernels.choose import choose
    from soloist.kernels.gemv import MAX_ROWS
    from soloist.kernels.layout import Quantized

    with _on_stream(stream):
        given, out = {name: _as_torch(tensor) for name, tensor in tensors.items()}, _as_torch(y)
        x = given["x"].flatten(0, -2)
        weight = Quantized(given["words"], given["scales"], group, given.get("zeros"))
        up = Quantized(given["up_words"], given["up_scales"], group) if "up_words" in given else None
        product = choose(KERNEL if len(x) <= MAX_ROWS else "w4a16_gemm", x.device)
        out.copy_(product.run(x, weight, up=up, bias=given.get("bias")).view_as(out))


def _on_stream(stream: int) -> contextlib.AbstractContextManager[Any]:
    import torch

    context: contextlib.AbstractContextManager[Any] = torch.cuda.stream(torch.cuda.ExternalStream(stream))
    return context


def _as_torch(tensor: Any) -> Any:
    """The same memory. TensorRT's own array interface refuses bfloat16."""
    import torch

    kind = _type_name(tensor.dtype)
    interface = SimpleNamespace(
        __cuda_array_interface__={
            "shape": tuple(tensor.shape),
            "typestr": _NUMPY[kind],
            "data": (tensor.data_ptr, False),
            "strides": None,
            "version": 3,
        }
    )
    shared = torch.as_tensor(interface, device="cuda")
    return shared.view(torch.bfloat16) if kind == "BF16" else shared


# --- this machine ---------------------------------------------------------------------------------------------------


def _tensorrt() -> Any:
    try:
        plugin = importlib.import_module("tensorrt.plugin")
    except ImportError as error:
        raise ResourceError(
            f"no TensorRT with quick-deployable plugins here ({error}): it takes 10.9 or newer, which is in JetPack 7, "
            "or tensorrt from NVIDIA's package index"
        ) from error
    if not hasattr(plugin, "aot_impl"):
        raise ResourceError("this TensorRT has no plugins compiled ahead of time: it takes 10.9 or newer")
    return plugin


def gpu_architecture() -> str:
    """`sm_87` of the current GPU, asked of the driver: who builds an engine may have no torch. Raises ResourceError."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ResourceError("no NVIDIA driver here: say for which GPU, arch='sm_87'") from error
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = driver.cuInit(0)
    if not failed and driver.cuCtxGetDevice(ctypes.byref(device)):  # nobody chose one yet
        failed = driver.cuDeviceGet(ctypes.byref(device), 0)
    for place, attribute in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(place), attribute, device)
    if failed:
        raise ResourceError(f"the NVIDIA driver shows no GPU (error {failed}): say for which one, arch='sm_87'")
    return f"sm_{major.value}{minor.value}"
