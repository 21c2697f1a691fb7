"""llama.cpp's C interface by ctypes: the same numbers from both packages, and a library of another version refused."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from soloist.kernels.errors import MissingExtraError, ResourceError
from soloist.targets import llama_library
from soloist.targets.run_gguf import GgufRuntime

FILE = Path("libmade-up.so")
PROMPT = [{"role": "user", "content": "Is 17 a prime?"}]


def file_of(package):
    """The library a package carries here, or a skip."""
    spec = find_spec(package)
    for name in llama_library._FILES[package] if spec else ():
        file = Path(spec.submodule_search_locations[0]) / name
        if file.is_file():
            return file
    pytest.skip(f"needs the package '{package}'")


class Function:
    """A function of the made-up library: fills in what its C structure has, in the layout it was compiled with."""

    def __init__(self, layout=None, defaults=()):
        self.layout, self.defaults = layout, dict(defaults)

    def __call__(self, *arguments):
        filled = self.layout(**self.defaults)
        read = self.restype()
        ctypes.memmove(ctypes.byref(read), ctypes.byref(filled), min(ctypes.sizeof(filled), ctypes.sizeof(read)))
        return read


def library(context=None, *, without=()):
    """A library of ours: every function, and default parameters laid out as `context`."""
    functions = {name: Function() for name in (*llama_library._FUNCTIONS, "llama_init_from_model")}
    functions["llama_model_default_params"] = Function(llama_library._ModelParams, llama_library._MODEL_DEFAULTS)
    functions["llama_context_default_params"] = Function(
        context or llama_library._context_params(moe_cache=True), llama_library._CONTEXT_DEFAULTS
    )
    return SimpleNamespace(**{name: made for name, made in functions.items() if name not in without})


def moved(fields, at, *more):
    """The layout with `more` fields put in front of the field `at`."""
    place = [name for name, _ in fields].index(at)
    return type("Moved", (ctypes.Structure,), {"_fields_": [*fields[:place], *more, *fields[place:]]})


@pytest.mark.parametrize("package", ["xllamacpp", "llama_cpp"])
def test_both_libraries_fit_a_layout(package):
    file = file_of(package)
    names = llama_library.bind(ctypes.CDLL(str(file)), file)
    assert names.llama_context_default_params().n_ctx == 512


@pytest.mark.parametrize("moe_cache", [True, False])
def test_the_layout_of_the_library_is_taken(moe_cache):
    context = llama_library._context_params(moe_cache=moe_cache)
    names = llama_library.bind(library(context), FILE)
    assert hasattr(names.llama_context_default_params(), "moe_cache_size") is moe_cache


@pytest.mark.parametrize("at", ["n_batch", "rope_freq_base", "type_k", "embeddings", "op_offload"])
def test_a_layout_with_a_field_more_is_refused(at):
    context = moved(llama_library._context_params(moe_cache=True)._fields_, at, ("new", ctypes.c_size_t))
    with pytest.raises(ResourceError, match=r"libmade-up\.so: its llama\.h is of another version; install"):
        llama_library.bind(library(context), FILE)


def test_what_a_longer_structure_holds_goes_back_as_it_was_filled_in():
    known = llama_library._context_params(moe_cache=True)
    fields = [field for field in known._fields_ if field[0] != "room"]
    longer = type("Longer", (ctypes.Structure,), {"_fields_": [*fields, ("new", ctypes.c_size_t)]})
    made = library()
    made.llama_context_default_params = Function(longer, {**llama_library._CONTEXT_DEFAULTS, "new": 77})
    params = llama_library.bind(made, FILE).llama_context_default_params()
    assert longer.from_buffer_copy(params).new == 77


def test_another_layout_of_the_models_parameters_is_refused():
    made = library()
    fields = moved(llama_library._ModelParams._fields_, "vocab_only", ("new", ctypes.c_bool))
    made.llama_model_default_params = Function(fields, llama_library._MODEL_DEFAULTS)
    with pytest.raises(ResourceError, match="of another version"):
        llama_library.bind(made, FILE)


def test_functions_that_are_missing_are_named():
    with pytest.raises(ResourceError, match=r"libmade-up\.so: has no llama_decode, llama_log_set; install"):
        llama_library.bind(library(without=("llama_decode", "llama_log_set")), FILE)


def test_a_file_that_is_no_library_is_refused(monkeypatch, tmp_path):
    (tmp_path / "broken.so").write_bytes(b"\x7fELF")
    monkeypatch.setattr(llama_library, "library_file", lambda: tmp_path / "broken.so")
    with pytest.raises(ResourceError, match=r"broken\.so: the library cannot be loaded"):
        llama_library.llama.__wrapped__()


def test_no_library_names_the_extra(monkeypatch):
    for package in llama_library._FILES:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"soloist\[gguf\]"):
        llama_library.library_file()


def test_both_libraries_compute_the_same(tiny_smollm2_gguf, monkeypatch):
    files = [file_of(package) for package in ("xllamacpp", "llama_cpp")]
    found = []
    for file in files:
        names = llama_library.bind(ctypes.CDLL(str(file)), file)
        names.llama_log_set(llama_library._SILENT, None)
        names.llama_backend_init()
        monkeypatch.setattr("soloist.targets.run_gguf.llama", lambda names=names: names)
        runtime = GgufRuntime(tiny_smollm2_gguf, slots=2, context=128, threads=1)
        tokens = runtime.tokenize(runtime.render(PROMPT))
        found.append((tokens, runtime.logits(tokens), runtime.embed("Is 17 a prime?")[0]))
        runtime.close()
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_array_equal(found[0][2], found[1][2])


def test_a_model_opens_in_silence_without_either_packages_python(tiny_smollm2_gguf):
    llama_library.library_file()
    code = (
        "import sys\nfrom pathlib import Path\nfrom soloist.targets.run_gguf import GgufRuntime\n"
        f"GgufRuntime(Path({str(tiny_smollm2_gguf)!r}), context=64, threads=1).close()\n"
        "print([name for name in ('llama_cpp', 'xllamacpp') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")
