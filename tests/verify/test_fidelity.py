import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError, DataError, GateError
from soloist.targets.tolerances import Tolerance, tolerance_of
from soloist.toolchain.verify import Probe, compare, divergence, judge, observe, verify
from soloist.toolchain.verify.fidelity import runs_here

for package in ("torch", "transformers", "gguf", "llama_cpp"):
    pytest.importorskip(package)

PROBE = Probe(
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
    facts = verify(tiny, q8, PROBE, scratch, tolerance_of("gguf-q8_0"))
    assert facts["verdict"] == "pass" and facts["prompts"] == 2
    assert 0 < facts["kl_mean"] <= facts["kl_p99"] < 0.02 and facts["top1"] > 0.95
    assert facts["load_s"] > 0 and (facts["peak_mb"] is None or facts["peak_mb"] > 10)
    record = json.loads((scratch / "student" / "record.json").read_text())
    assert facts["tokens"] == sum(len(ids) + 1 for ids in record["answer_ids"])  # + 1: whether it stops


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
    with pytest.raises(GateError, match=r"broken\.gguf: drifted from the student: mean KL .* \(at most 0\.02\)"):
        verify(tiny, file, PROBE, scratch, tolerance_of("gguf-q8_0"))


def test_weights_that_are_no_numbers_are_refused(tiny, q8, scratch, tmp_path):
    file = Path(shutil.copy(q8, tmp_path / "nan.gguf"))
    _change_tensor(file, "output_norm.weight", lambda data: np.full_like(data, np.nan))
    with pytest.raises(GateError, match="not numbers"):
        verify(tiny, file, PROBE, scratch, LOOSE)


def test_a_cut_off_file_is_refused(tiny, q8, scratch, tmp_path):
    file = tmp_path / "cut.gguf"
    file.write_bytes(q8.read_bytes()[:-4096])
    with pytest.raises(GateError, match=r"does not run: .*cannot load"):
        verify(tiny, file, PROBE, scratch, LOOSE)


def test_another_tokenizer_and_another_template_are_refused(tiny, q8, scratch, tmp_path):
    from soloist.targets.to_gguf import compile_gguf

    other = shutil.copytree(tiny, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]  # digits are no longer cut apart
    (other / "tokenizer.json").write_text(json.dumps(content))
    file = tmp_path / compile_gguf(other, tmp_path, "Q8_0", "Digits")["file"]
    with pytest.raises(GateError, match="into other tokens"):
        verify(tiny, file, PROBE, scratch, LOOSE)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "bot"))
    file = tmp_path / compile_gguf(other, tmp_path, "Q8_0", "Template")["file"]
    with pytest.raises(GateError, match="another chat template"):
        verify(tiny, file, PROBE, scratch, LOOSE)


def test_a_crash_and_a_hang_are_reasons(q8, tmp_path, monkeypatch):
    with pytest.raises(GateError, match=r"did not finish within 0\.05 s"):
        observe(q8, PROBE, tmp_path / "hang", limit_s=0.05)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(hook), prepend=os.pathsep)
    with pytest.raises(GateError, match="SIGSEGV"):
        observe(q8, PROBE, tmp_path / "crash")


def test_the_students_record_is_taken_once_and_anew_when_it_changed(tiny, tmp_path, monkeypatch):
    student = shutil.copytree(tiny, tmp_path / "student")
    runs = []

    def worker(job, limit_s, memory_mb):
        runs.append(job)
        (job.parent / "record.json").write_text("{}")

    monkeypatch.setattr("soloist.toolchain.verify.process._start", worker)
    observe(student, PROBE, tmp_path / "record")
    observe(student, PROBE, tmp_path / "record")
    assert len(runs) == 1
    (student / "model.safetensors").touch()
    observe(student, PROBE, tmp_path / "record")
    assert len(runs) == 2


def test_a_broken_student_is_no_verdict_on_the_file(q8, tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(ArtifactError, match="the student cannot be run"):
        judge(tmp_path / "student", q8, PROBE, tmp_path / "scratch", LOOSE)


def test_a_probe_without_answers_is_refused():
    with pytest.raises(DataError, match="one reference answer for each prompt, has 0 for 1"):
        Probe(PROBE.prompts[:1], [])


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
        observe(tiny, PROBE, tmp_path / "small", memory_mb=memory_mb)


@pytest.mark.parametrize("compiled", ["tiny_onnx", "tiny_portable"])
def test_a_cut_off_graph_is_refused(request, compiled, tiny, scratch, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(compiled), tmp_path / compiled)
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4096])
    facts = judge(tiny, folder, PROBE, scratch, LOOSE)
    assert facts["verdict"] == "fail" and facts["reason"].startswith("does not run: ") and compiled in facts["reason"]


def test_the_worst_token_and_what_was_expected_are_named(tmp_path):
    record = {"rendered": ["x"], "prompt_ids": [[1]], "answer_ids": [[2, 3]], "case_ids": [], "answers": ["y"]}
    sure = np.log(np.array([[0.9, 0.05, 0.05]] * 3, dtype=np.float32))
    other = sure.copy()
    other[1] = np.log([0.1, 0.8, 0.1])
    for name, rows in (("a", sure), ("b", other)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "logits-0.npy", rows)
    numbers = compare(record, record, tmp_path / "a", tmp_path / "b")
    assert numbers["top1"] == pytest.approx(2 / 3) and numbers["kl_first"] == 0 and numbers["top1_first"] == 1
    worst = numbers["worst"]
    assert (worst["prompt"], worst["position"]) == (0, 1) and worst["kl"] == pytest.approx(3 * numbers["kl_mean"])
    assert worst["expected"] == {"token": 0, "student": 0.9, "file": 0.1}
    assert worst["got"] == {"token": 1, "student": 0.05, "file": 0.8}


@pytest.mark.parametrize(
    ("capability", "runs"), [(None, False), ("8.9", True), ("9.0", False)], ids=["no GPU", "RTX 4060", "H100"]
)
def test_an_engine_runs_where_a_gpu_it_was_built_for_is(capability, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("soloist.toolchain.verify.fidelity.capability", lambda: capability)
    assert not runs_here(tmp_path), "no engine was built"
    (tmp_path / "engine.json").write_text('{"target": {"capabilities": ["8.6", "8.9"]}}')
    assert runs_here(tmp_path) == runs
