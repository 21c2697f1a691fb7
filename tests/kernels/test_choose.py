"""Choosing an implementation: what is automatic falls back and says why, what is asked for works or raises."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from soloist.kernels import choose as module
from soloist.kernels import tuned
from soloist.kernels.choose import ARCHITECTURES, REGISTRY, Impl, choose, choose_config
from soloist.kernels.errors import ArtifactError, MissingExtraError, ResourceError, UsageError
from soloist.kernels.spec import Configuration
from soloist.kernels.tuned import Entry, Table

torch = pytest.importorskip("torch")
OWN, OTHER = Configuration({"ELEMENTS": 64}), Configuration({"ROWS": 8})


@pytest.fixture
def row_dot(monkeypatch):
    """The tests' own kernel, registered."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(REGISTRY, "row_dot", Impl("row_dot", "row_dot"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return Impl("row_dot", "row_dot").load()


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU of a capability, Triton installed, the interpreter off."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def of(capability):
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(module, "_cuda", lambda: True)
        monkeypatch.setattr(module, "_installed", lambda: True)
        monkeypatch.setattr(module, "_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Test GPU")

    return of


def test_every_file_with_a_kernel_is_registered():
    files = Path(module.__file__).parent.glob("*.py")
    there = set()
    for file in files:
        names = re.findall(r"^(KERNEL|W\dA16) = ", file.read_text(encoding="utf-8"), re.MULTILINE)
        there |= {(f"soloist.kernels.{file.stem}", name) for name in names}
    assert there == {(impl.module, impl.attribute) for impl in REGISTRY.values()}


@pytest.mark.parametrize("name", REGISTRY)
def test_a_registered_kernel_loads_under_its_own_name(name):
    kernel = REGISTRY[name].load()
    assert kernel.name == name
    assert callable(kernel.run)
    assert callable(kernel.reference)
    assert kernel.cases
    assert kernel.configurations
    assert kernel.summary
    assert kernel.summary[0].islower()
    assert not kernel.summary.endswith(".")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_auto_takes_the_reference_on_a_cpu_and_says_why(row_dot, device):
    choice = choose("row_dot", device)
    assert (choice.impl, choice.run) == ("reference", row_dot.reference)
    assert choice.reason == "plain torch: Triton needs an NVIDIA GPU"


def test_auto_has_no_triton_for_other_devices(row_dot):
    assert "no Triton for device 'mps'" in choose("row_dot", "mps").reason


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_auto_takes_triton_where_we_build(row_dot, gpu, capability):
    gpu(capability)
    choice = choose("row_dot", "cuda:0")
    assert (choice.impl, choice.run) == ("triton", row_dot.run)
    assert choice.reason == f"Triton, compiled for sm_{capability} (Test GPU)"


def test_auto_falls_back_on_a_gpu_we_do_not_build_for_and_an_explicit_wish_does_not(row_dot, gpu):
    gpu(86)
    choice = choose("row_dot", "cuda")
    assert choice.impl == "reference"
    assert "this GPU is sm_86" in choice.reason
    assert "sm_87" in choice.reason
    assert choose("row_dot", "cuda", "triton").impl == "triton"
    assert choose("row_dot", "cuda", "reference").reason == "plain torch, as asked for"


def test_auto_does_not_fall_into_the_interpreter(row_dot, gpu, monkeypatch):
    gpu(90)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("row_dot", "cuda").impl == "reference"
    assert "TRITON_INTERPRET" in choose("row_dot", "cuda").reason
    assert "interpreter" in choose("row_dot", "cuda", "triton").reason


def test_the_interpreter_is_triton_on_a_cpu_for_who_asks(row_dot, monkeypatch):
    pytest.importorskip("triton")
    choice = choose("row_dot", "cpu", "triton")
    assert choice.impl == "triton"
    assert "interpreter" in choice.reason
    w, x = torch.randn(5, 64).half(), torch.randn(64).half()
    torch.testing.assert_close(choice.run(w, x), row_dot.reference(w, x), atol=1e-2, rtol=1e-2)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="TRITON_INTERPRET=1"):
        choose("row_dot", "cpu", "triton")


def test_without_triton_auto_falls_back_and_an_explicit_wish_names_the_extra(row_dot, gpu, monkeypatch):
    gpu(90)
    monkeypatch.setattr(module, "_installed", lambda: False)
    assert choose("row_dot", "cuda").reason == "plain torch: Triton is not installed (pip install 'soloist[kernels]')"
    with pytest.raises(MissingExtraError, match=r"soloist\[kernels\]"):
        choose("row_dot", "cuda", "triton")


def test_off_linux_the_reason_is_the_system(row_dot, gpu, monkeypatch):
    gpu(90)
    monkeypatch.setattr(sys, "platform", "win32")
    assert "this is win32" in choose("row_dot", "cuda").reason
    with pytest.raises(ResourceError, match="this is win32"):
        choose("row_dot", "cuda", "triton")


@pytest.mark.parametrize("want", ["auto", "triton", "reference"])
def test_a_device_that_is_not_there_is_refused(row_dot, monkeypatch, want):
    monkeypatch.setattr(module, "_cuda", lambda: False)
    with pytest.raises(ResourceError, match="no CUDA device"):
        choose("row_dot", "cuda:1", want)


def test_triton_on_a_foreign_device_is_refused(row_dot):
    pytest.importorskip("triton")
    with pytest.raises(ResourceError, match="does not run on device 'mps'"):
        choose("row_dot", "mps", "triton")


def test_unknown_names_and_wishes_are_refused(row_dot):
    with pytest.raises(UsageError, match="w4a16_gemv"):
        choose("w3a16", "cpu")
    with pytest.raises(UsageError, match="auto, triton or reference"):
        choose("row_dot", "cpu", "fast")


def test_records_are_frozen(row_dot):
    for record, field in ((choose("row_dot", "cpu"), "reason"), (REGISTRY["row_dot"], "module")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field, "else")


@pytest.fixture
def table(monkeypatch):
    """Tensors on the CPU count as on a GPU whose table says this configuration, of `pack` at 64 x 64."""
    module._tuned_config.cache_clear()
    monkeypatch.setattr(module, "_tuned_for", lambda device: "Test GPU")

    def of(configuration, kernel="pack", sizes=None, options=None):
        entry = Entry(sizes or {"N": 64, "K": 64}, {"group": 32} if options is None else options, configuration, 1.0)
        monkeypatch.setattr(tuned, "tables", lambda: {"Test GPU": Table("Test GPU", 90, {}, {kernel: (entry,)})})

    yield of
    module._tuned_config.cache_clear()


def _config(sizes=None, options=None, given=None):
    sizes, options = sizes or {"N": 64, "K": 64}, options or {"group": 32}
    return choose_config("pack", sizes, options, torch.device("cpu"), OWN, given)


def test_a_configuration_is_the_given_one_else_the_tuned_one_else_the_kernels_own(table):
    (best,) = REGISTRY["pack"].load().configurations
    table(best)
    assert _config() == best
    assert _config(given=OTHER) == OTHER
    assert _config(sizes={"N": 96, "K": 64}) == best  # the nearest within a factor of two
    assert _config(sizes={"N": 640, "K": 64}) == OWN
    assert _config(options={"group": 64}) == OWN


def test_a_tuned_configuration_that_the_kernel_does_not_have_is_refused(table):
    table(OTHER)
    with pytest.raises(ArtifactError, match=r"table of Test GPU: pack has no configuration rows8-w4-s2; it has ele"):
        _config()
    assert _config(given=OTHER) == OTHER


def test_tables_count_on_a_gpu_alone_and_its_driver_names_it_once(gpu, monkeypatch):
    gpu(90)
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: asked.append(device) or "Test GPU")
    module._tuned_for.cache_clear()
    found = [module._tuned_for(torch.device(name)) for name in ("cuda:0", "cuda:0", "cuda:1", "cpu")]
    assert found == ["Test GPU"] * 3 + [None]
    assert len(asked) == 2
    module._tuned_for.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert module._tuned_for(torch.device("cuda:0")) is None
    module._tuned_for.cache_clear()


LAUNCHES = {  # kernel: its function, how a table names the call, the call
    "pack": (
        "_pack_kernel",
        {"N": 8, "K": 64},
        {"bits": 4, "group": 64, "zeros": False, "search": True},
        lambda run: run(torch.randn(8, 64), group=64, search=True),
    ),
    "decode_attention": (
        "_decode_attention_kernel",
        {"B": 1, "H": 4, "HKV": 2, "S": 32, "D": 64},
        {"int8": False},
        lambda run: run(
            torch.randn(1, 4, 64).half(), *torch.randn(2, 1, 2, 32, 64).half(), torch.tensor([9], dtype=torch.int32)
        ),
    ),
    "append_int8": (
        "_append_int8_kernel",
        {"B": 1, "HKV": 2, "D": 32},
        {},
        lambda run: run(
            *torch.randn(2, 1, 2, 32).half(),
            *torch.zeros(2, 1, 2, 9, 32, dtype=torch.int8),
            *torch.zeros(2, 1, 2, 9).half(),
            torch.tensor([3], dtype=torch.int32),
        ),
    ),
    "linear_kl": (
        "_statistics_kernel",
        {"T": 3, "C": 48},
        {"kind": "reverse"},
        lambda run: run(torch.randn(3, 8), torch.randn(40, 8), torch.randn(3, 40), kind="reverse"),
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_what_is_launched_is_the_tuned_configuration(name, table, monkeypatch):
    pytest.importorskip("triton")
    function, sizes, options, call = LAUNCHES[name]
    home = importlib.import_module(REGISTRY[name].module)
    best = dataclasses.replace(home.KERNEL.configurations[0], warps=2, stages=5, registers=200)
    real, seen = getattr(home, function), []

    class Spy:
        def __getitem__(self, grid):
            return lambda *given, **how: seen.append(how) or real[grid](*given, **how)

    monkeypatch.setattr(home, function, Spy())
    monkeypatch.setattr(home, "KERNEL", dataclasses.replace(home.KERNEL, configurations=(best,)))
    table(best, name, sizes, options)
    call(home.KERNEL.run)
    fused = name not in ("pack", "append_int8")
    assert best.launch_options(fused=fused).items() <= seen[0].items()
    assert best.constants.items() <= seen[0].items()
    table(dataclasses.replace(best, warps=16), name, sizes, options)
    module._tuned_config.cache_clear()
    with pytest.raises(ArtifactError, match=f"{name} has no configuration .*w16-s5-r200; it has .*w2-s5-r200"):
        call(home.KERNEL.run)


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_choosing_imports_nothing_before_it_is_asked():
    said = _python("import sys, soloist.kernels.choose\nprint([m for m in ('torch', 'triton') if m in sys.modules])")
    assert said.strip() == "[]"


def test_references_are_there_without_triton():
    """As on a Mac: every reference can be had, and running a kernel names the extra."""
    said = _python(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "from soloist.kernels.choose import REGISTRY, choose\n"
        "print(all(choose(name, 'cpu').impl == 'reference' for name in REGISTRY))\n"
        "from soloist.kernels.errors import MissingExtraError\n"
        "from soloist.kernels.jit import tl, triton\n"
        "@triton.jit\n"
        "def kernel(x: tl.constexpr): pass\n"
        "try: kernel[(1,)](3)\n"
        "except MissingExtraError as error: print(error)\n"
    )
    assert said.splitlines() == ["True", "this needs the package 'triton': pip install 'soloist[kernels]'"]
