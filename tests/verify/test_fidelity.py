import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError, DataError, GateError
from soloist.targets.tolerances import Tolerance, tolerance_of
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.verify.differences import compare, divergence
from soloist.toolchain.verify.fidelity import judge, runs_here
from soloist.toolchain.verify.process import Allowed, Prompts, observe, prompts_of
from soloist.toolchain.verify.verdict import Token

for package in ("torch", "transformers", "gguf", "xllamacpp"):
    pytest.importorskip(package)

PROMPTS = Prompts(
    prompts=[[{"role": "user", "content": text}] for text in ("What is 12 + 30?", "Solve x + 5 = 20.")],
    references=["The sum of 12 and 30 is 42.", "x is 15."],
)
LOOSE = Tolerance(kl=1.0, top1=0.5)  # random weights quantize worse than trained ones


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the subprocesses


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """One scratch folder for the module: the student's record is taken once."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def q8(tiny, tmp_path_factory) -> Path:
    from soloist.targets.to_gguf import compile_gguf

    out = tmp_path_factory.mktemp("q8")
    return out / compile_gguf(tiny, out, "Q8_0", "Tiny")["file"]


def test_a_faithful_file_passes_with_its_numbers(tiny, q8, scratch):
    verdict = judge(tiny, q8, PROMPTS, scratch, tolerance_of("gguf-q8_0"))
    drift = verdict.drift
    assert verdict.verdict == "pass" and verdict.reason is None and drift.prompts == 2
    assert 0 < drift.kl_mean <= drift.kl_p99 < 0.02 and drift.top1 > 0.95
    assert verdict.load_s > 0 and (verdict.peak_mb is None or verdict.peak_mb > 10)
    record = json.loads((scratch / "student" / "record.json").read_text())
    assert drift.tokens == sum(len(ids) + 1 for ids in record["answer_ids"])  # + 1: whether it stops


def _change_tensor(file: Path, name: str, change) -> None:
    import gguf

    reader = gguf.GGUFReader(file, "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == name)
    tensor.data[:] = change(tensor.data)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("blk.0.attn_output.weight", np.zeros_like),
        ("blk.0.ffn_down.weight", lambda data: data[::-1].copy()),
    ],
    ids=["zeroed", "shuffled"],
)
def test_a_file_with_one_broken_tensor_is_refused_with_numbers(tiny, q8, scratch, tmp_path, name, change):
    file = Path(shutil.copy(q8, tmp_path / "broken.gguf"))
    _change_tensor(file, name, change)
    verdict = judge(tiny, file, PROMPTS, scratch, tolerance_of("gguf-q8_0"))
    assert verdict.verdict == "fail" and re.search(
        r"drifted from the student: mean KL .* \(at most 0\.02\)", verdict.reason
    )


def test_weights_that_are_no_numbers_are_refused(tiny, q8, scratch, tmp_path):
    file = Path(shutil.copy(q8, tmp_path / "nan.gguf"))
    _change_tensor(file, "output_norm.weight", lambda data: np.full_like(data, np.nan))
    verdict = judge(tiny, file, PROMPTS, scratch, LOOSE)
    assert verdict.verdict == "fail" and re.search("not numbers", verdict.reason)


def test_a_cut_off_file_is_refused(tiny, q8, scratch, tmp_path):
    file = tmp_path / "cut.gguf"
    file.write_bytes(q8.read_bytes()[:-4096])
    verdict = judge(tiny, file, PROMPTS, scratch, LOOSE)
    assert verdict.verdict == "fail" and re.search(r"does not run: .*cannot load", verdict.reason)


def test_another_tokenizer_and_another_template_are_refused(tiny, q8, scratch, tmp_path):
    from soloist.targets.to_gguf import compile_gguf

    other = shutil.copytree(tiny, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]  # digits are no longer cut apart
    (other / "tokenizer.json").write_text(json.dumps(content))
    file = tmp_path / compile_gguf(other, tmp_path, "Q8_0", "Digits")["file"]
    verdict = judge(tiny, file, PROMPTS, scratch, LOOSE)
    assert verdict.verdict == "fail" and re.search("into other tokens", verdict.reason)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "bot"))
    file = tmp_path / compile_gguf(other, tmp_path, "Q8_0", "Template")["file"]
    verdict = judge(tiny, file, PROMPTS, scratch, LOOSE)
    assert verdict.verdict == "fail" and re.search("another chat template", verdict.reason)


def test_a_crash_and_a_hang_are_reasons(q8, tmp_path, monkeypatch):
    with pytest.raises(GateError, match=r"did not finish within 0\.05 s"):
        observe(q8, PROMPTS, tmp_path / "hang", allowed=Allowed(seconds=0.05))
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(hook), prepend=os.pathsep)
    with pytest.raises(GateError, match="SIGSEGV"):
        observe(q8, PROMPTS, tmp_path / "crash")


def test_the_students_record_is_taken_once_and_anew_when_it_changed(tiny, tmp_path, monkeypatch):
    student = shutil.copytree(tiny, tmp_path / "student")
    runs = []

    def worker(job, limit_s, memory_mb):
        runs.append(job)
        (job.parent / "record.json").write_text("{}")

    monkeypatch.setattr("soloist.toolchain.verify.process._start", worker)
    observe(student, PROMPTS, tmp_path / "record")
    observe(student, PROMPTS, tmp_path / "record")
    assert len(runs) == 1
    (student / "model.safetensors").touch()
    observe(student, PROMPTS, tmp_path / "record")
    assert len(runs) == 2


def test_a_broken_student_is_no_verdict_on_the_file(q8, tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(ArtifactError, match="the student cannot be run"):
        judge(tmp_path / "student", q8, PROMPTS, tmp_path / "scratch", LOOSE)


def test_a_probe_without_answers_is_refused():
    with pytest.raises(DataError, match="one reference answer for each prompt, has 0 for 1"):
        Prompts(PROMPTS.prompts[:1], [])


def test_divergence_is_that_of_the_formula():
    a, b = np.log(np.array([[0.5, 0.5]], dtype=np.float32)), np.log(np.array([[0.25, 0.75]], dtype=np.float32))
    assert divergence(a + 3, b - 7)[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-5)
    assert divergence(a, a)[0] == 0


def test_another_vocabulary_is_refused(tmp_path):
    record = {"rendered": ["x"], "prompt_ids": [[1]], "answer_ids": [[2]], "case_ids": [], "answers": ["y"]}
    for name, size in (("a", 5), ("b", 6)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "logits-0.npy", np.zeros((2, size), dtype=np.float32))
    with pytest.raises(GateError, match="6 tokens instead of 5"):
        compare(record, record, tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("memory_mb", [150, 200, 250])  # each runs out somewhere else
def test_a_model_that_takes_too_much_memory_is_refused(memory_mb, tiny, tmp_path):
    if sys.platform != "linux":
        pytest.skip("other systems do not count what libraries map")
    with pytest.raises(GateError, match=f"needs more than the {memory_mb} MB of memory it may use"):
        observe(tiny, PROMPTS, tmp_path / "small", allowed=Allowed(memory_mb=memory_mb))


@pytest.mark.parametrize("compiled", ["tiny_onnx", "tiny_portable"])
def test_a_cut_off_graph_is_refused(request, compiled, tiny, scratch, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(compiled), tmp_path / compiled)
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4096])
    verdict = judge(tiny, folder, PROMPTS, scratch, LOOSE)
    assert verdict.verdict == "fail"
    assert verdict.reason.startswith("does not run: ") and compiled in verdict.reason


def test_the_worst_token_and_what_was_expected_are_named(tmp_path):
    record = {"rendered": ["x"], "prompt_ids": [[1]], "answer_ids": [[2, 3]], "case_ids": [], "answers": ["y"]}
    sure = np.log(np.array([[0.9, 0.05, 0.05]] * 3, dtype=np.float32))
    other = sure.copy()
    other[1] = np.log([0.1, 0.8, 0.1])
    for name, rows in (("a", sure), ("b", other)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "logits-0.npy", rows)
    drift = compare(record, record, tmp_path / "a", tmp_path / "b")
    assert drift.top1 == pytest.approx(2 / 3) and drift.kl_first == 0 and drift.top1_first == 1
    worst = drift.worst
    assert (worst.prompt, worst.position) == (0, 1) and worst.kl == pytest.approx(3 * drift.kl_mean)
    assert worst.expected == Token(token=0, student=0.9, file=0.1)
    assert worst.got == Token(token=1, student=0.05, file=0.8)


@pytest.mark.parametrize(
    ("capability", "runs"), [(None, False), ("8.9", True), ("9.0", False)], ids=["no GPU", "RTX 4060", "H100"]
)
def test_an_engine_runs_where_a_gpu_it_was_built_for_is(capability, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("soloist.toolchain.verify.fidelity.capability", lambda: capability)
    assert not runs_here(tmp_path), "no engine was built"
    (tmp_path / "engine.json").write_text('{"target": {"capabilities": ["8.6", "8.9"]}}')
    assert runs_here(tmp_path) == runs


def test_without_a_reference_the_students_own_answer_is_what_is_compared(tiny, q8, tmp_path):
    asked = prompts_of([Question(id="sum", question="What is 12 + 30?", gold="42")])
    verdict = judge(tiny, q8, asked, tmp_path, LOOSE)
    record = json.loads((tmp_path / "student" / "record.json").read_text())
    assert record["references"] == ["The sum of 12 and 30 is 42."]
    assert verdict.verdict == "pass"
    assert verdict.drift.tokens == len(record["answer_ids"][0]) + 1
