"""Several processes train what one trains: losses, weights, checkpoints, phases, and the command under a launcher."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

from safetensors.torch import load_file  # noqa: E402

from soloist.kernels.errors import UsageError  # noqa: E402
from soloist.toolchain.__main__ import several  # noqa: E402
from soloist.toolchain.core.artifact import Artifact  # noqa: E402
from soloist.toolchain.core.events import EventLog  # noqa: E402
from soloist.toolchain.distill.distributed import ALONE, Processes, follows, launched  # noqa: E402
from soloist.toolchain.distill.optimizer import shares  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig  # noqa: E402
from soloist.toolchain.student.artifact import StudentFacts  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.traces.schema import Edge, Run, Turn  # noqa: E402

TOLERANCE = 1e-5
LAUNCH = (
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--main_process_port",
    "0",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "-m",
)


def debate(number):
    """Two agents, two rounds: one is right from the start, the other once it has seen that. Every third has no pair."""
    right = number + 3
    said = [[right, right + 1 + number % 2], [right, right]] if number % 3 else [[right, right], [right, right]]
    turns, edges = [], []
    for column, answers in enumerate(said):
        for agent, answer in enumerate(answers):
            verdict = "correct" if answer == right else "wrong"
            text = f"{number} and 3 make {answer}." + " I looked again." * (number * (agent + column) % 4)
            turns.append(
                Turn(
                    id=len(turns),
                    agent=f"agent-{agent}",
                    role="solver",
                    round=column,
                    text=text,
                    model="m",
                    answer=str(answer),
                    verdict=verdict,
                )
            )
            edges += [Edge(source=i, target=turns[-1].id, kind="influence") for i in range(2) if column]
    question = Question(
        id=f"q{number}", question=f"What is {number} plus 3?", gold=str(right), split="train", scorer="number"
    )
    return Run(
        question=question,
        team="debate",
        turns=tuple(turns),
        edges=tuple(edges),
        path=(2,),
        answer=str(right),
        verdict="correct",
    )


@pytest.fixture(scope="module")
def traces(tmp_path_factory, record_runs):
    runs = [debate(number) for number in range(7)]
    folder = tmp_path_factory.mktemp("recorded") / "traces"
    return record_runs(runs, folder).path


@pytest.fixture(scope="module")
def job():
    """The module `process_job`, to do in this process what the others do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("process_job")
        sys.modules.pop("process_job", None)


def environment(**more):
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    return {**os.environ, **hidden, **more}


@pytest.fixture(scope="module")
def two(job, warm_python, traces, tiny_base, tmp_path_factory):
    """What two processes left behind, and how they ended: (folder, exit codes, what the main one said last)."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [warm_python, job.__file__, str(tiny_base), str(traces), str(out)]
    started = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment(**place, **meet), **pipes))
    said = [process.communicate(timeout=300) for process in started]
    codes = [process.returncode for process in started]
    assert codes[1] == 3, f"{said[0][1]}\n{said[1][1]}"
    return out, codes, said[0][0]


def log_of(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def near(one, other):
    """Two logs with the same steps, and the same numbers within the tolerance (logs round to 6 digits)."""
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        assert set(mine) == set(theirs)
        for name in set(mine) - {"computed_tokens", "gradient_norm"}:
            assert mine[name] == pytest.approx(theirs[name], abs=TOLERANCE), (mine["step"], name)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("method", ["sft", "magdi"])
def test_two_processes_train_what_one_trains(job, two, traces, tiny_base, tmp_path, method):
    alone = job.fitted(method, traces, tiny_base, tmp_path / method)
    near(log_of(tmp_path / method), log_of(two[0] / method))
    assert alone.trained.steps[-1]["loss"] < alone.trained.steps[0]["loss"]
    exact = load_file(two[0] / f"{method}-end.safetensors")
    assert set(exact) == set(alone.optimizer.master)
    assert method == "sft" or any(name.startswith("objective.network") for name in exact)
    for name, value in alone.optimizer.master.items():
        assert torch.allclose(value, exact[name], atol=TOLERANCE, rtol=0), name


def test_each_process_keeps_its_share_of_the_state(job, two, traces, tiny_base, tmp_path):
    for name in ("sft", "magdi", "bf16"):
        facts = json.loads((two[0] / f"{name}-end.json").read_text())
        whole = sum(value.numel() for value in load_file(two[0] / f"{name}-end.safetensors").values())
        assert sum(facts["held"]) == whole
        assert max(facts["held"]) < 0.6 * whole
        assert facts["weights_are_the_exact_ones_rounded"]
    assert log_of(two[0] / "bf16")[-1]["loss"] == pytest.approx(log_of(two[0] / "sft")[-1]["loss"], rel=0.02)


def test_shares_are_even_and_lose_nothing():
    sizes = {"table": 100, "a": 40, "b": 30, "c": 30, "d": 1}
    assert shares(sizes, 1) == dict.fromkeys(sizes, 0)
    owners = shares(sizes, 2)
    assert sorted(owners) == sorted(sizes)
    assert [sum(size for name, size in sizes.items() if owners[name] == rank) for rank in (0, 1)] == [101, 100]


def test_a_run_of_two_processes_goes_on_as_if_never_stopped(two):
    whole, cut = (load_file(two[0] / f"{name}-end.safetensors") for name in ("sft", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert log_of(two[0] / "cut") == log_of(two[0] / "sft")


def test_a_run_of_two_processes_goes_on_in_one(job, two, traces, tiny_base, tmp_path):
    shutil.copytree(two[0] / "cut-for-one", tmp_path / "cut")
    seen = []
    trainer = job.fitted("sft", traces, tiny_base, tmp_path / "cut", events=EventLog(listeners=(seen.append,)))
    assert trainer.trained.resumed_at == job.STOPPED_AFTER - 1
    assert [event["text"] for event in seen if event["event"] == "note"] == [
        "resumed after step 3 of 9",
        "2 processes before, 1 now: the same steps, other rounding",
    ]
    near(log_of(tmp_path / "cut"), log_of(two[0] / "sft"))


def test_phases_are_made_together_and_written_once(job, two, traces, tiny_base, tmp_path):
    made = Artifact.open(two[0] / "tdpo", stage="distill")
    facts = made.read(StudentFacts)
    assert facts.training.processes == facts.training.phases["sft"].processes == 2
    for rank in (0, 1):  # both saw the same artifact, and again when there was nothing left to do
        assert json.loads((two[0] / f"seen-{rank}.json").read_text()) == [made.digest] * 2
    alone = distill(job.config_of("tdpo"), Artifact.open(traces), tiny_base, tmp_path / "tdpo")
    assert set(made.manifest["files"]) == set(alone.manifest["files"])
    assert made.manifest["config"] == alone.manifest["config"]
    assert (made.path / "student.json").read_bytes() == (alone.path / "student.json").read_bytes()
    for mine, theirs in zip(log_of(made.path), log_of(alone.path), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-2)  # phase 2 reads bf16 weights
    assert not (two[0] / "tdpo.partial").exists()


def test_who_waits_for_a_process_that_ended_says_so(two):
    _, codes, said = two
    assert codes == [7, 3]
    assert said.strip().startswith("process 0 of 2: another process has ended or cannot be reached")


def test_the_command_runs_under_a_launcher(traces, tiny_base, tmp_path):
    arguments = ["distill", str(traces), "-o", str(tmp_path / "student"), "-m", str(tiny_base), "--epochs", "2"]
    command = [sys.executable, *LAUNCH, "soloist.toolchain", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    made = Artifact.open(tmp_path / "student", stage="distill")
    assert done.stdout.splitlines() == [f"{tmp_path}/student: student {made.digest}, 7 trajectories learned"]
    assert made.read(StudentFacts).training.processes == 2
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["done"] for event in events if event["event"] == "progress"] == [1, 2]
    config = DistillConfig(mode="cot", train=TrainConfig(seed=42, epochs=2))  # its traces call no tools
    alone = distill(config, Artifact.open(traces), tiny_base, tmp_path / "alone")
    assert made.manifest["config"] == alone.manifest["config"]
    if alone.read(StudentFacts).precision == "float32":
        near(log_of(made.path), log_of(alone.path))
    assert {p.name for p in tmp_path.iterdir()} == {"student", "alone", "events.jsonl"}


def test_one_process_is_what_no_launcher_starts(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    assert launched(cpu=True) == ALONE
    assert not follows()
    value = {"any": ["thing"]}
    assert ALONE.share(value) is value
    monkeypatch.setenv("RANK", "1")
    assert follows()


def test_a_launcher_that_starts_one_process_for_two_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match="starts one process, whatever --num_processes says; write --multi_gpu"):
        launched(cpu=False)


def test_pad_is_refused_at_once_in_several_processes():
    pad = importlib.import_module("soloist.toolchain.distill.methods.pad")
    with pytest.raises(UsageError, match="method pad: its policy phase runs in one process"):
        pad.train(SimpleNamespace(processes=Processes(count=2)))


def test_only_distill_is_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert several(["distill", "traces", "-o", "out"]) is None
    assert several(["--help"]) is None
    assert "run runs in one process" in several(["run", "desk"])
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert several(["run", "desk"]) is None
