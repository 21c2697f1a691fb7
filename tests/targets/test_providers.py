"""What computes an ONNX model: really on the CPU, and with a CUDA that is listed and does not start.

Without a GPU, what stands for one is faked where onnxruntime is asked what it has, and nowhere else.
"""

from __future__ import annotations

import json
import shutil

import pytest

from soloist.kernels.errors import ArtifactError, MissingExtraError, ResourceError, UsageError
from soloist.targets.base import Sampling, require
from soloist.targets.providers import NAMES, open_on

onnxruntime = pytest.importorskip("onnxruntime")
QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
SHORT = Sampling(max_tokens=6)
if NAMES["cuda"] in onnxruntime.get_available_providers():
    pytest.skip("onnxruntime has CUDA here: these tests are of one that has not", allow_module_level=True)


@pytest.fixture
def listed(monkeypatch):
    """An onnxruntime that lists CUDA, as its package does with or without a driver."""
    there = [NAMES["cuda"], *onnxruntime.get_available_providers()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)


@pytest.fixture
def portable(tiny_portable):
    from soloist.targets.portable.run import PortableRuntime

    return lambda **options: PortableRuntime(tiny_portable, threads=1, **options)


@pytest.fixture(scope="module")
def for_cuda(tiny_onnx, tmp_path_factory):
    """The package, saying that it was made for CUDA."""
    folder = shutil.copytree(tiny_onnx, tmp_path_factory.mktemp("cuda") / "package")
    file = folder / "genai_config.json"
    config = json.loads(file.read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {}}]
    file.write_text(json.dumps(config))
    return folder


@pytest.fixture
def package(tiny_onnx, for_cuda):
    from soloist.targets.run_onnx import OnnxRuntime

    return lambda cuda=False, **options: OnnxRuntime(for_cuda if cuda else tiny_onnx, threads=1, **options)


# --- the rule ---


class Machine:
    """Opens "models" on devices that work, fail, or are exchanged in silence."""

    def __init__(self, cuda):
        self.cuda, self.started = cuda, []

    def start(self, device):
        self.started.append(device)
        if device == "cuda" and self.cuda == "fails":
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected\nin a file")
        return "cpu" if self.cuda == "silent" else device

    def open(self, provider):
        return open_on(provider, self.cuda != "absent", self.start, lambda model: model == "cuda")


@pytest.mark.parametrize(
    ("provider", "cuda", "device", "started"),
    [
        ("auto", "absent", "cpu", ["cpu"]),
        ("auto", "works", "cuda", ["cuda"]),
        ("auto", "fails", "cpu", ["cuda", "cpu"]),
        ("auto", "silent", "cpu", ["cuda", "cpu"]),
        ("cpu", "works", "cpu", ["cpu"]),
        ("cuda", "works", "cuda", ["cuda"]),
    ],
)
def test_a_provider_is_chosen(provider, cuda, device, started):
    machine = Machine(cuda)
    opened = machine.open(provider)
    assert (opened.model, opened.device, machine.started) == (device, device, started)
    assert bool(opened.note) is ("cuda" in started), "nothing is said where there was no choice"
    assert opened.note.startswith("computed on the GPU" if device == "cuda" else ("computed on the CPU", ""))


@pytest.mark.parametrize(
    ("cuda", "message"),
    [
        ("absent", r"no provider 'cuda' here: pip uninstall .*pip install 'soloist\[onnx-gpu\]'; or take"),
        ("fails", r"\(CUDA failure 100: no CUDA-capable device is detected\): it needs NVIDIA's driver"),
        ("silent", r"\(onnxruntime went on on the CPU\): it needs"),
    ],
)
def test_cuda_that_was_asked_for_works_or_is_one_line(cuda, message):
    machine = Machine(cuda)
    with pytest.raises(ResourceError, match=message) as caught:
        machine.open("cuda")
    assert "\n" not in str(caught.value)
    assert "cpu" not in machine.started
    with pytest.raises(UsageError, match="provider 'npu': choose auto, cpu or cuda"):
        machine.open("npu")


# --- both runtimes ---


def test_a_cpu_answers_where_no_more_is_installed(portable, package):
    for make in (portable, package):
        runtimes = [make(provider=provider) for provider in ("auto", "cpu")]
        texts = {runtime.chat(QUESTION, SHORT).text for runtime in runtimes}
        assert len(texts) == 1
        assert texts != {""}
        assert [runtime.note for runtime in runtimes] == ["", ""]
        for runtime in runtimes:
            runtime.close()
    with pytest.raises(ResourceError, match="no provider 'cuda' here"):
        portable(provider="cuda")


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider':UserWarning")
def test_onnxruntime_that_goes_on_on_the_cpu_is_found_out(portable, listed, capsys):
    runtime = portable()
    assert runtime.note.endswith("(onnxruntime went on on the CPU)")
    assert runtime.chat(QUESTION, SHORT).text == portable(provider="cpu").chat(QUESTION, SHORT).text
    with pytest.raises(ResourceError, match=r"onnxruntime has CUDA and does not open this model with it \("):
        portable(provider="cuda")
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider':UserWarning")
def test_a_graph_that_is_none_is_no_matter_of_providers(tiny_portable, tmp_path, listed):
    from soloist.targets.portable.facts import GRAPH
    from soloist.targets.portable.run import PortableRuntime

    broken = shutil.copytree(tiny_portable, tmp_path / "broken")
    (broken / GRAPH).write_bytes(b"\xff" * (broken / GRAPH).stat().st_size)
    with pytest.raises(ArtifactError, match="onnxruntime cannot load this graph"):
        PortableRuntime(broken)


def test_a_package_for_the_cpu_stays_there(package, monkeypatch):
    genai = pytest.importorskip("onnxruntime_genai")
    monkeypatch.setattr(genai, "is_cuda_available", lambda: True)
    with pytest.raises(UsageError, match=r"made for the CPU; export onnx-cuda for a GPU"):
        package(provider="cuda")
    assert package().note == ""


def test_a_package_for_cuda_needs_it_or_goes_to_the_cpu(package, monkeypatch):
    genai = pytest.importorskip("onnxruntime_genai")
    with pytest.raises(ResourceError, match="no provider 'cuda' here"):
        package(cuda=True, provider="cuda")
    wanted = package().chat(QUESTION, SHORT).text
    assert package(cuda=True, provider="cpu").chat(QUESTION, SHORT).text == wanted
    monkeypatch.setattr(genai, "is_cuda_available", lambda: True)
    with pytest.raises(ResourceError, match=r"does not open this model with it \(.*\): it needs NVIDIA's driver"):
        package(cuda=True, provider="cuda")
    runtime = package(cuda=True)
    assert runtime.note.startswith("computed on the CPU: ")
    assert runtime.chat(QUESTION, SHORT).text == wanted


# --- two packages in one folder ---


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Packages that pip would list, beside those that are there."""

    def install(*names):
        for name in names:
            folder = tmp_path / f"{name.replace('-', '_')}-1.31.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.0\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.mark.parametrize("pair", [("onnxruntime", "onnxruntime-gpu"), ("onnxruntime-genai", "onnxruntime-genai-cuda")])
def test_packages_that_overwrite_each_other_are_named_at_once(pair, installed, portable, tiny, tmp_path):
    from soloist.targets.to_onnx import compile_onnx

    installed(*pair)
    both = rf"{pair[0]} and {pair[1]} are both installed, .*'soloist\[onnx\]' for the CPU or 'soloist\[onnx-gpu\]'"
    for package in ("onnxruntime", "onnxruntime.quantization", "onnxruntime_genai"):
        with pytest.raises(ResourceError, match=both):
            require(package, "onnx")
    with pytest.raises(ResourceError, match=both):
        portable()
    with pytest.raises(ResourceError, match=both):
        compile_onnx(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert require("json", "onnx") is json
    with pytest.raises(MissingExtraError):
        require("no_such_package", "onnx")
