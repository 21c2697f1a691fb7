"""The TensorRT plugin up to the call: signatures, types, tactics, launches and PTX against a manifest really built."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from soloist.kernels.aot import build_kernels, resources  # noqa: E402
from soloist.kernels.choose import ARCHITECTURES, REGISTRY  # noqa: E402
from soloist.kernels.errors import ArtifactError, ResourceError, UsageError  # noqa: E402
from soloist.kernels.gemv import W4A16 as KERNEL  # noqa: E402
from soloist.kernels.grid import grid_size  # noqa: E402
from soloist.kernels.layout import Quantized, pack_nibbles  # noqa: E402
from soloist.kernels.listing import read_ptx  # noqa: E402
from soloist.targets.tensorrt import builds as tensorrt_builds  # noqa: E402
from soloist.targets.tensorrt import plugin as tensorrt_plugin  # noqa: E402
from soloist.targets.tensorrt.builds import INPUTS, Builds, call_order, plugin_name  # noqa: E402

double = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tensorrt_double.py"))))
folders = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("kernel_builds.py"))))
HALF, BF16, INT32, INT8 = (double.DataType[name] for name in ("HALF", "BF16", "INT32", "INT8"))
GROUP = np.array([32], np.int32)
DECLARED = [build for build in KERNEL.builds() if "GROUP" in build.constants]


def _first(tile):
    return next(b for b in DECLARED if b.variant == "fp16-g32" and _whole(b) and ("BLOCK_M" in b.constants) == tile)


def _whole(build):
    return build.constants["SPLITS"] == 1


BUILT = {build.name: build for build in (_first(tile=False), _first(tile=True))}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder as `soloist kernels build` leaves it, with one build of each kind for two architectures."""
    folder = tmp_path_factory.mktemp("kernels")
    records = build_kernels([REGISTRY["w4a16_gemv"]], (87, 120), folder, folder / "cache", only=list(BUILT))
    (folder / "manifest.json").write_text(json.dumps({"facts": {"builds": records}}))
    return folder


@pytest.fixture
def plugin(monkeypatch):
    """`tensorrt.plugin`, or what stands for it."""
    tensorrt, module = double.modules()
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", module)
    return module


def _record(build, arch="sm_87", **changes):
    """What a manifest says of a declared build, as far as no compiler is needed."""
    return folders.record(build, arch) | changes


def _declared(records, monkeypatch, arch="sm_87"):
    monkeypatch.setattr(tensorrt_builds, "read_builds", lambda folder: records)
    return Builds.read(Path("nowhere"), arch)


def _inputs(extra, lead, n, k, group=32, dtype=HALF):
    groups = (n, -(-k // group))
    known = {
        "x": (dtype, (*lead, k)),
        "words": (INT32, (n, k // 8)),
        "scales": (HALF, groups),
        "zeros": (INT8, groups),
        "bias": (dtype, (n,)),
        "up_words": (INT32, (n, k // 8)),
        "up_scales": (HALF, groups),
    }
    return {name: known[name] for name in INPUTS[extra]}


# --- a manifest really built ----------------------------------------------------------------------------------------


def _at_run_time(build, m, n, k, monkeypatch):
    """Grid, warps and arguments with which Python launches the same configuration."""
    seen = []

    def recorded(function, grid):
        return lambda *given, **named: seen.append((function, grid, given, named))

    monkeypatch.setattr(type(build.function), "__getitem__", recorded)
    weight = Quantized(torch.zeros(n, k // 8, dtype=torch.int32), torch.ones(n, -(-k // 32)).half(), 32)
    KERNEL.run(torch.zeros(m, k).half(), weight, configuration=build.configuration)
    ((function, grid, given, named),) = seen
    assert function is build.function
    signature = inspect.signature(build.function.fn)
    ours = {name: value for name, value in named.items() if name in signature.parameters}
    return grid, named["num_warps"], signature.bind_partial(*given, **ours).arguments


@pytest.mark.parametrize("arch", ["sm_87", "sm_120"])
@pytest.mark.parametrize(("lead", "n", "k"), [((1,), 576, 1536), ((1, 5), 191, 352), ((16,), 4864, 896)])
def test_a_launch_is_what_the_manifest_says_and_python_does(built, plugin, monkeypatch, arch, lead, n, k):
    assert tensorrt_plugin.register(built, arch=arch) == ("soloist::w4a16_gemv",)
    stages = double.Stages(plugin, "soloist::w4a16_gemv", _inputs("", ("tokens", *lead[1:]), n, k), group=GROUP)
    sizes, rows = {"tokens": lead[0]}, int(np.prod(lead))
    assert stages.output(sizes) == (HALF, (*lead, n))
    assert stages.combinations() == [(["HALF", "INT32", "HALF", "HALF"], [1, 2])]
    tactics = Builds.read(built, arch).tactics("", "FP16", 32)
    assert {record["build"] for record in tactics} == set(BUILT)
    for number, record in enumerate(tactics, 1):
        name, ptx, launch, scalars = stages.launch(number, sizes)
        grid, warps, arguments = _at_run_time(BUILT[record["build"]], rows, n, k, monkeypatch)
        assert name == record["entry"] == read_ptx(ptx).entry
        assert read_ptx(ptx).target == record["ptx_target"]
        assert (launch["grid_x"], launch["grid_y"], launch["grid_z"]) == tuple(grid)
        assert (launch["block_x"], launch["block_y"], launch["block_z"]) == (32 * warps, 1, 1)
        assert [launch["block_x"], 1, 1] == record["block"]
        assert read_ptx(ptx).threads == launch["block_x"]
        assert launch["shared_mem"] == record["shared"]
        assert scalars == [arguments[name] for name in ("M", "N", "K")] == [rows, n, k]
        assert {key: record["constants"][key] for key in arguments if key.isupper() and key not in "MNK"} == {
            key: value for key, value in arguments.items() if key.isupper() and key not in "MNK"
        }


def test_the_entry_takes_inputs_then_sizes_then_y(built):
    for record in Builds.read(built, "sm_87").records:
        before = (built / record["files"]["ptx"]["path"]).read_text()
        after = Builds.read(built, "sm_87").ptx(record)
        assert call_order(record) == ["x_ptr", "words_ptr", "scales_ptr", "M", "N", "K", "y_ptr"]
        assert read_ptx(before).parameters == ("u64",) * 4 + ("u32",) * 3 + ("u64",) * 2
        assert read_ptx(after).parameters == ("u64",) * 3 + ("u32",) * 3 + ("u64",)
        places = [after[: after.index("{")].index(f"{record['entry']}_param_{i}") for i in (0, 1, 2, 4, 5, 6, 3)]
        assert places == sorted(places)
        assert after[after.index("{") :] == before[before.index("{") :]  # y is still the parameter it was


@pytest.mark.parametrize("arch", ["sm_87", "sm_120"])
def test_the_assembler_takes_the_ptx(built, tmp_path, arch):
    from triton import knobs

    builds = Builds.read(built, arch)
    for record in builds.records:
        file = tmp_path / "kernel.ptx"
        file.write_text(builds.ptx(record))
        command = [knobs.nvidia.ptxas.path, f"-arch={record['ptx_target']}", "-v", str(file), "-o", f"{file}.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert resources(done.stderr)["spill_stores"] == resources(done.stderr)["spill_loads"] == 0


@pytest.mark.gpu
def test_the_ptx_computes_y_when_launched_as_tensorrt_does(tmp_path):
    """Through the driver alone: inputs, sizes, y. What a plugin does in an engine, without the engine."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    arch = tensorrt_plugin.gpu_architecture()
    if arch not in {f"sm_{sm}" for sm in ARCHITECTURES}:
        pytest.skip(f"nothing is built for {arch}")
    targets = (int(arch.removeprefix("sm_")),)
    records = build_kernels([REGISTRY["w4a16_gemv"]], targets, tmp_path, tmp_path / "cache", only=list(BUILT))
    driver, (m, n, k) = ctypes.CDLL("libcuda.so.1"), (3, 191, 352)
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    weight = Quantized(pack_nibbles(codes), torch.rand(n, k // 32).half(), 32)
    x = torch.randn(m, k, dtype=torch.float16)
    for record in records:
        on_gpu = [tensor.cuda() for tensor in (x, weight.codes, weight.scales, torch.full((m, n), torch.nan).half())]
        builds = Builds(tmp_path, arch, (record,))
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        assert driver.cuModuleLoadData(ctypes.byref(module), builds.ptx(record).encode()) == 0
        assert driver.cuModuleGetFunction(ctypes.byref(function), module, record["entry"].encode()) == 0
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in on_gpu]
        values = [*pointers[:3], *map(ctypes.c_int32, (m, n, k)), pointers[3]]
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        grid = grid_size(record["grid"], {**record["constants"], "M": m, "N": n, "K": k})
        torch.cuda.synchronize()
        assert driver.cuLaunchKernel(function, *grid, *record["block"], record["shared"], None, addresses, None) == 0
        torch.cuda.synchronize()
        wanted = KERNEL.reference(x, weight, inside=torch.float64)
        assert torch.allclose(on_gpu[3].cpu().double(), wanted, atol=2e-2, rtol=1e-2)


# --- every declared build -------------------------------------------------------------------------------------------


def test_every_declared_build_that_needs_no_second_kernel_is_a_tactic(monkeypatch):
    builds = _declared([_record(build) for build in KERNEL.builds()], monkeypatch)
    tactics = []
    for extra in INPUTS:
        for kind in builds.kinds(extra):
            tactics += [tactic["build"] for tactic in builds.tactics(extra, *kind)]
    assert sorted(tactics) == sorted(build.name for build in DECLARED if _whole(build))
    for extra in INPUTS:
        assert builds.kinds(extra), f"nothing is built for {plugin_name(extra)}"


def test_the_four_plugins_say_their_types(monkeypatch, plugin):
    records = [_record(build) for build in KERNEL.builds()]
    monkeypatch.setattr(tensorrt_builds, "read_builds", lambda folder: records)
    assert [name.split("::")[1] for name in tensorrt_plugin.register(Path("nowhere"), arch="sm_87")] == [
        "w4a16_gemv",
        "w4a16_gemv_zeros",
        "w4a16_gemv_bias",
        "w4a16_gemv_gated",
    ]
    expected = {
        "": ["HALF", "INT32", "HALF", "HALF"],
        "zeros": ["HALF", "INT32", "HALF", "INT8", "HALF"],
        "bias": ["HALF", "INT32", "HALF", "HALF", "HALF"],
        "gated": ["HALF", "INT32", "HALF", "INT32", "HALF", "HALF"],
    }
    for extra, types in expected.items():
        stages = double.Stages(plugin, f"soloist::{plugin_name(extra)}", _inputs(extra, (1,), 64, 96), group=GROUP)
        combinations = stages.combinations()
        count = sum(b.variant == "-".join(filter(None, ("fp16-g32", extra))) and _whole(b) for b in DECLARED)
        assert combinations[0] == (types, list(range(1, count + 1)))
        assert count > 0
        brain = [["BF16" if i in (0, len(types) - 1) else kind for i, kind in enumerate(types)]]
        assert [one[0] for one in combinations[1:]] == (brain if extra == "" else [])
        assert stages.output({}) == (HALF, (1, 64))


def test_builds_that_a_plugin_cannot_launch_are_left_out(monkeypatch):
    build = _first(tile=True)
    good = _record(build)
    bad = [
        {**good, "constants": {**good["constants"], "SPLITS": 4}},
        {**good, "shared": 48 * 1024 + 1},
        {**good, "scratch": {"global": [128, 16], "profile": [0, 1]}},
        {**good, "kernel": "w8a16_gemv"},
        {**good, "arch": "sm_90"},
    ]
    assert _declared([*bad, good], monkeypatch).records == (good,)
    with pytest.raises(ArtifactError, match=r"no builds of w4a16_gemv for sm_87, but sm_90; .* sm_87, sm_89, sm_90"):
        _declared([bad[-1]], monkeypatch)
    with pytest.raises(ArtifactError, match="but none at all"):
        _declared([bad[-2]], monkeypatch)


# --- what cannot be -------------------------------------------------------------------------------------------------


def test_what_is_not_built_is_said(built, plugin):
    with pytest.raises(ArtifactError, match=r"no builds of w4a16_gemv for sm_86, but sm_120, sm_87"):
        tensorrt_plugin.register(built, arch="sm_86")
    tensorrt_plugin.register(built, arch="sm_87")
    with pytest.raises(UsageError, match="is registered; TensorRT takes a plugin once"):
        tensorrt_plugin.register(built, arch="sm_120")
    inputs = _inputs("", (1,), 64, 96, group=128)
    with pytest.raises(UsageError, match="groups of 128 was not built for sm_87; there are FP16 in groups of 32"):
        double.Stages(plugin, "soloist::w4a16_gemv", inputs, group=np.array([128], np.int32)).combinations()
    stages = double.Stages(plugin, "soloist::w4a16_gemv", _inputs("", (1,), 64, 96), group=GROUP)
    for number in (0, 3):
        with pytest.raises(UsageError, match=rf"tactic {number} of w4a16_gemv, FP16, .* there are 2"):
            stages.launch(number, {})
    narrow = {**_inputs("", (1,), 64, 96), "words": (INT32, (64, 8))}
    with pytest.raises(UsageError, match=r"words is \(64, 8\); 64 x 96 in groups of 32 takes \(64, 12\)"):
        double.Stages(plugin, "soloist::w4a16_gemv", narrow, group=GROUP).launch(1, {})


@pytest.mark.parametrize(
    ("name", "shape"),
    [("scales", (64, 2)), ("zeros", (64, 4)), ("bias", (65,)), ("up_words", (63, 12)), ("up_scales", (3, 64))],
)
def test_shapes_that_would_be_read_past_their_end_are_refused(name, shape):
    shapes = {}
    for extra in INPUTS:
        for key, (_, size) in _inputs(extra, (-1,), 64, 96).items():
            shapes[key] = size
    tensorrt_plugin.check_shapes(shapes, 32)
    with pytest.raises(UsageError, match=f"{name} is"):
        tensorrt_plugin.check_shapes({**shapes, name: shape}, 32)
    with pytest.raises(UsageError, match="x has 100 columns"):
        tensorrt_plugin.check_shapes({**shapes, "x": (1, 100)}, 32)
    with pytest.raises(UsageError, match=r"x is \(96,\); its rows"):
        tensorrt_plugin.check_shapes({**shapes, "x": (96,)}, 32)
    tensorrt_plugin.check_shapes({**shapes, "x": (1, -1), name: shape}, 32)  # not known yet


def test_nothing_to_register_and_nothing_to_register_with(built, monkeypatch):
    with pytest.raises(UsageError, match="jit=True"):
        tensorrt_plugin.register()
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)
    with pytest.raises(ResourceError, match=r"no TensorRT with quick-deployable plugins here .* 10\.9 or newer"):
        tensorrt_plugin.register(built, arch="sm_87")
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", SimpleNamespace(register=print))
    with pytest.raises(ResourceError, match="has no plugins compiled ahead of time"):
        tensorrt_plugin.register(built, arch="sm_87")


def test_importing_needs_neither_tensorrt_nor_torch():
    code = (
        "import sys, soloist.targets.tensorrt.plugin, soloist.targets.tensorrt.nodes\n"
        "print({'tensorrt', 'torch', 'triton', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


class _Driver:
    """libcuda of a machine with one GPU of compute capability 8.7, or of none."""

    def __init__(self, error=0):
        self.error = error
        self.cuCtxGetDevice = lambda device: 201  # no context
        self.cuInit = lambda flags: error

    def cuDeviceGet(self, device, ordinal):
        assert ordinal == 0
        return self.error

    def cuDeviceGetAttribute(self, place, attribute, device):
        place._obj.value = {75: 8, 76: 7}[attribute]
        return self.error


def test_the_gpu_of_this_machine_is_asked_for(built, plugin, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _Driver())
    assert tensorrt_plugin.gpu_architecture() == "sm_87"
    tensorrt_plugin.register(built)
    assert hasattr(plugin.op.soloist, "w4a16_gemv")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _Driver(error=100))
    with pytest.raises(ResourceError, match=r"shows no GPU \(error 100\)"):
        tensorrt_plugin.gpu_architecture()

    def none(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", none)
    with pytest.raises(ResourceError, match="no NVIDIA driver here"):
        tensorrt_plugin.gpu_architecture()


# --- the implementation in Python -----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", INPUTS)
@pytest.mark.parametrize("lead", [(1,), (2, 3), (20,)])
def test_the_python_implementation_computes_y(plugin, monkeypatch, extra, lead):
    streams = []
    monkeypatch.setattr(tensorrt_plugin, "_as_torch", lambda tensor: tensor.array)
    monkeypatch.setattr(
        tensorrt_plugin, "_on_stream", lambda stream: streams.append(stream) or contextlib.nullcontext()
    )
    tensorrt_plugin.register(jit=True)
    entry = plugin.registry.plugins[f"soloist::{plugin_name(extra)}"]
    stages = double.Stages(plugin, f"soloist::{plugin_name(extra)}", _inputs(extra, lead, 43, 96), group=GROUP)
    assert [tactics for _, tactics in stages.combinations()] == [None, None]
    draw = torch.Generator().manual_seed(len(extra))
    weights = {
        name: Quantized(
            pack_nibbles(torch.randint(0, 16, (43, 96), dtype=torch.uint8, generator=draw)),
            torch.randn(43, 3, generator=draw).mul(0.05).half(),
            32,
            torch.randint(0, 16, (43, 3), dtype=torch.uint8, generator=draw) if extra == "zeros" else None,
        )
        for name in ("weight", "up")
    }
    weight, up = weights["weight"], weights["up"]
    x, bias = torch.randn(*lead, 96, generator=draw).half(), torch.randn(43, generator=draw).half()
    arrays = {
        "x": x,
        "words": weight.codes,
        "scales": weight.scales,
        "zeros": weight.zeros,
        "bias": bias,
        "up_words": up.codes,
        "up_scales": up.scales,
    }
    y = torch.full((*lead, 43), torch.nan).half()
    given = [double.Tensor(arrays[name], kind) for name, (kind, _) in stages.inputs.items()]
    assert entry.impl(*given, GROUP, (double.Tensor(y, HALF),), stream=7) is None
    added = {"bias": bias if extra == "bias" else None, "up": up if extra == "gated" else None}
    wanted = KERNEL.reference(x.reshape(-1, 96), weight, inside=torch.float64, **added).view(*lead, 43)
    assert streams == [7]
    assert wanted.abs().max() > 1
    assert torch.allclose(y.double(), wanted, atol=3e-2, rtol=1e-2)


def test_the_real_tensorrt_takes_the_plugins(built):
    plugin = pytest.importorskip("tensorrt.plugin", reason="TensorRT is not installed", exc_type=ImportError)
    for name in tensorrt_plugin.register(built, arch="sm_87", jit=True):
        assert hasattr(plugin.op.soloist, name.split("::")[1])
