"""What users get wrong, and what goes wrong for them: one message, its exit code, nothing half-written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.traces.recording import TraceFacts
from soloist.toolchain.traces.store import read_runs

USAGE, DATA, ARTIFACT, RESOURCE, MISSING = 2, 3, 4, 7, 8


@pytest.fixture
def probe(sums, question_file):
    return question_file(sums.questions(2, "held-out", 100), "probe.jsonl")


def test_a_tampered_student_is_not_exported(refused, whole_job, probe, tmp_path):
    student = shutil.copytree(whole_job.out / "student", tmp_path / "student")
    weights = student / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    message = refused(ARTIFACT, "export", student, "-o", tmp_path / "out", "--prompts", probe)
    assert message == f"{weights}: changed after it was made (hash differs); make the artifact again"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_manifest_that_was_edited_is_refused(refused, whole_job, probe, tmp_path):
    student = shutil.copytree(whole_job.out / "student", tmp_path / "student")
    manifest = json.loads((student / "manifest.json").read_text())
    manifest["config"]["mode"] = "cot"
    (student / "manifest.json").write_text(json.dumps(manifest))
    message = refused(ARTIFACT, "export", student, "-o", tmp_path / "out", "--prompts", probe)
    assert "the manifest was changed after it was written" in message


def test_an_artifact_of_another_stage_and_a_plain_folder_are_refused(refused, whole_job, probe, tmp_path):
    message = refused(ARTIFACT, "export", whole_job.out / "traces", "-o", tmp_path / "out", "--prompts", probe)
    assert message.endswith("this is an artifact of stage 'record', 'distill' or 'quantize' is needed here")
    message = refused(ARTIFACT, "distill", tmp_path, "-o", tmp_path / "out", "-m", whole_job.base)
    assert "not a whole artifact (no manifest.json)" in message


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("content", "reason"), [(None, "no such model file"), (b"PK\x03\x04 something else", "not a GGUF file")]
)
def test_a_missing_and_an_alien_gguf_are_named(
    refused, sums, team_file, question_file, tmp_path, one_thread, jobs, content, reason
):
    pytest.importorskip("xllamacpp")
    model = tmp_path / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    arguments = (
        team_file(sums.team(model)),
        "--questions",
        question_file(sums.questions(2)),
        "-o",
        tmp_path / "traces",
    )
    message = refused(ARTIFACT, "record", *arguments, "--jobs", jobs)
    assert str(model) in message
    assert reason in message
    assert not (tmp_path / "traces").exists()


def test_an_unknown_key_in_a_team_file_is_named_with_its_line(refused, sums, team_file, tmp_path):
    path = team_file(sums.team(tmp_path / "m.gguf"), rounds=3)
    line = 1 + path.read_text().splitlines().index("rounds: 3")
    assert refused(USAGE, "teams", path) == f"{path}:{line}: rounds: unknown key"
    assert refused(USAGE, "record", path, "--questions", "none.jsonl") == f"{path}:{line}: rounds: unknown key"


def test_a_topology_and_options_that_do_not_exist_are_named(refused, soloist, sums, team_file, tmp_path):
    config = sums.team(tmp_path / "m.gguf")
    message = refused(USAGE, "teams", team_file(config, topology="sums_team:Nowhere"))
    assert "topology 'sums_team:Nowhere' cannot be imported" in message
    message = refused(USAGE, "teams", team_file(config, options={"shift": "much"}))
    assert "options.shift" in message
    assert soloist("teams", team_file(config)).exit_code == 0


def test_a_changed_trace_line_is_refused_by_its_hash(refused, whole_job, tmp_path):
    traces = shutil.copytree(whole_job.out / "traces", tmp_path / "traces")
    file = traces / "traces.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    file.write_bytes(gzip.compress(b"".join([*lines[:5], lines[5][:40] + b"\n", *lines[6:]])))
    message = refused(ARTIFACT, "distill", traces, "-o", tmp_path / "student", "-m", whole_job.base)
    assert message == f"{file}: changed after it was made (hash differs); make the artifact again"
    with pytest.raises(DataError, match=r"traces\.jsonl\.gz:6: not JSON"):
        list(read_runs(file))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"schema":1,"question":{"id":"q"', "not JSON"),
        (b'{"messages":[{"role":"user","content":"hi"}]}', "not a Soloist trace"),
        (b'{"schema":9,"question":{}}', "schema: this Soloist reads 1, the line says 9"),
        (
            b'{"schema":1,"question":{"id":"q","question":"?","gold":"1"},"team":"t","mood":"good"}',
            "mood: unknown field",
        ),
    ],
    ids=["torn", "alien", "another version", "unknown field"],
)
def test_torn_and_alien_trace_lines_are_named_by_file_and_line(refused, whole_job, tmp_path, line, reason):
    """With a hash that fits: written this way by another program."""
    good = gzip.decompress((whole_job.out / "traces" / "traces.jsonl.gz").read_bytes()).splitlines()[0]

    def build(folder):
        (folder / "traces.jsonl.gz").write_bytes(gzip.compress(good + b"\n" + line + b"\n"))
        return {}

    traces = stage("record", tmp_path / "traces", {}, [], build)
    message = refused(DATA, "distill", traces.path, "-o", tmp_path / "student", "-m", whole_job.base)
    assert message.startswith(f"{traces.path / 'traces.jsonl.gz'}:2: {reason}")
    assert not (tmp_path / "student").exists()


def test_test_questions_that_occur_in_training_stop_the_job_before_it_begins(
    refused, sums, team_file, question_file, tmp_path
):
    train = question_file(sums.questions(4), "train.jsonl")
    shared = [q.model_copy(update={"question": f"  {q.question.upper()}"}) for q in sums.questions(1, start=2)]
    test = question_file([*sums.questions(2, "held-out", 50), *shared], "test.jsonl")
    arguments = (team_file(sums.team(tmp_path / "m.gguf")), "--train", train, "--test", test, "-o", tmp_path / "out")
    message = refused(DATA, "run", *arguments)
    assert message == "1 of 3 test questions were used for training, the first is 'train-2': take other questions"
    assert not (tmp_path / "out" / "traces").exists()
    assert not (tmp_path / "out" / "traces.partial").exists()


def test_test_questions_that_occur_in_a_recording_stop_the_job(whole_job, sums, tmp_path):
    from dataclasses import replace

    from soloist.toolchain.pipeline.run import run

    test = sums.questions(3, "held-out", 23)
    task = replace(whole_job.job.task, train=(), traces=whole_job.out / "traces", test=test)
    job = replace(whole_job.job, out=tmp_path, task=task)
    with pytest.raises(DataError, match=r"^1 of 3 test questions were used for training, the first is 'held-out-23'"):
        run(job)
    assert not list(tmp_path.iterdir())


def test_all_faults_of_a_question_file_are_told_at_once(refused, sums, team_file, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"question": "1 + 1?", "answer": 2}\n{"question": "", "answer": "x", "hint": "y"}\nnot json\n'
        '{"question": "2 + 2?", "answer": "4", "scorer": "vibes"}\n{"question": "1 + 1?", "answer": 3}\n'
    )
    team = team_file(sums.team(tmp_path / "m.gguf"))
    message = refused(DATA, "record", team, "--questions", path, "-o", tmp_path / "out", lines=5)
    assert [line.split(": ")[0].removeprefix(f"{path}:") for line in message.splitlines()] == ["2", "2", "3", "4", "5"]
    for part in ("question: must not be empty", "hint: unknown field", "not JSON", "'vibes'", "line 1 has the same"):
        assert part in message


def test_a_team_that_never_answers_teaches_nothing(
    refused, soloist, sums, team_file, question_file, tmp_path, whole_job
):
    path = team_file(sums.team(whole_job.gguf))
    asked = question_file(sums.questions(2, words=sums.MUTE))
    done = soloist("record", path, "--questions", asked, "-o", tmp_path / "traces")
    assert done.exit_code == 0
    assert "2 runs, 0 correct" in done.stdout
    assert [(run.answer, run.verdict) for run in read_runs(tmp_path / "traces" / "traces.jsonl.gz")] == [
        (None, "absent")
    ] * 2
    message = refused(DATA, "distill", tmp_path / "traces", "-o", tmp_path / "student", "-m", whole_job.base)
    assert message == "no trace to learn from (2 x no correct answer); record more, or with a stronger team"


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    refused, soloist, sums, team_file, question_file, tmp_path, whole_job, monkeypatch
):
    arguments = (
        "record",
        team_file(sums.team(whole_job.gguf)),
        "--questions",
        question_file(sums.questions(5)),
        "-o",
        tmp_path / "traces",
    )
    sync, count = os.fsync, []

    def fsync(file):
        count.append(file)
        if len(count) == 4:  # the plan, two runs, and then
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    message = refused(RESOURCE, *arguments)
    assert "the disk is full; free some space and run the same command again" in message
    assert not (tmp_path / "traces").exists()
    assert len(count) == 4
    done = soloist(*arguments)
    assert done.exit_code == 0, done.output
    runs = [run.question.id for run in read_runs(tmp_path / "traces" / "traces.jsonl.gz")]
    assert runs == [question.id for question in sums.questions(5)]
    assert Artifact.open(tmp_path / "traces").read(TraceFacts).runs == 5
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.rglob("*.tmp"))


SMALL_DISK = """
import sys
from pathlib import Path
from soloist.kernels.errors import ResourceError
from soloist.toolchain.core.artifact import stage

def build(folder):
    (folder / "big").write_bytes(b"x" * 3_000_000)
    return {}

try:
    stage("record", Path(sys.argv[1]) / "out", {}, [], build)
except ResourceError as error:
    print(error)
"""


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of one megabyte, where the machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    script = f"mount -t tmpfs -o size=1m none {disk} && {sys.executable} -P -c '{SMALL_DISK}' {disk}; ls -A {disk}"
    try:
        done = subprocess.run([*command, script], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if "mount:" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no file system may be mounted here ({done.stderr.strip().splitlines()[-1]})")
    message, *left = done.stdout.splitlines()
    assert "the disk is full" in message, done.stderr
    assert left == ["out.partial"]


@pytest.mark.parametrize(
    ("option", "value", "code", "reason"),
    [
        ("--base", "llama-9", ARTIFACT, "unknown base model 'llama-9'"),
        ("--method", "magic", USAGE, "method: unknown 'magic'; there are: sft"),
        ("--formats", "gguf-q9", USAGE, "unknown format 'gguf-q9': use one of gguf, "),
        ("--usd-per-hour", "-1", USAGE, "usd_per_hour is -1.0: a number from 0 upward is needed"),
        ("--watts", "nan", USAGE, "watts is nan: a number from 0 upward is needed"),
    ],
)
def test_what_cannot_work_is_refused_before_the_team_is_recorded(
    refused, sums, team_file, question_file, tmp_path, option, value, code, reason
):
    arguments = [
        "run",
        team_file(sums.team(tmp_path / "m.gguf")),
        "--train",
        question_file(sums.questions(2), "train.jsonl"),
        "--test",
        question_file(sums.questions(2, start=50), "test.jsonl"),
        "-o",
        tmp_path / "out",
    ]
    message = refused(code, *arguments, option, value)
    assert reason in message
    assert not (tmp_path / "out" / "traces.partial").exists()


@pytest.fixture
def own_team(sums, team_file, question_file, tmp_path):
    """`run` with a team of one's own that was never recorded, and any more arguments."""

    def arguments(*more, train=(), test=()):
        return [
            "run",
            team_file(sums.team(tmp_path / "m.gguf")),
            "--train",
            question_file([*sums.questions(2), *train], "train.jsonl"),
            "--test",
            question_file([*sums.questions(2, start=50), *test], "test.jsonl"),
            "-o",
            tmp_path / "out",
            *more,
        ]

    return arguments


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--method", "gkd"), "it learns from a teacher's logits"),
        (("--method", "gkd", "--set", "teacher=/nowhere"), "method gkd: teacher: /nowhere: no such file or folder"),
        (("--method", "da", "--set", "k_max=0"), "method da: k_max: Input should be greater than or equal to 1"),
        (("--method", "da", "--set", "k_max"), "--set k_max: expected KEY=VALUE"),
        (("--fresh",), "--fresh and --record are for the desk's own questions"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_method_that_cannot_work_is_refused_before_the_team_is_recorded(refused, own_team, base_gguf, more, reason):
    pytest.importorskip("torch")
    message = refused(USAGE, *own_team(*more))
    assert reason in message


def test_a_base_that_cannot_be_trained_is_refused_before_the_team_is_recorded(refused, own_team, base_gguf, tmp_path):
    pytest.importorskip("transformers")
    assert "(no config.json)" in refused(ARTIFACT, *own_team("-m", tmp_path))
    (tmp_path / "alien.gguf").write_bytes(b"PK")
    assert "not a GGUF file" in refused(ARTIFACT, *own_team("-m", tmp_path / "alien.gguf"))
    assert not (tmp_path / "out" / "traces.partial").exists()


def test_a_missing_package_is_named_before_the_team_is_recorded(refused, own_team, base_gguf, tmp_path, monkeypatch):
    for package, extra in (("torch", "train"), ("onnx_ir", "compile"), ("xllamacpp", "gguf")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.setitem(sys.modules, "llama_cpp", None)  # the other package with llama.cpp's library
            message = refused(MISSING, *own_team())
        assert message == f"this needs the package '{package}': pip install 'soloist[{extra}]'"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        for arguments in (("distill", "traces", "-o", "out"), ("methods", "da")):
            assert "pip install 'soloist[train]'" in refused(MISSING, *arguments)


def test_test_questions_of_a_benchmark_that_was_trained_on_stop_the_job(refused, own_team, sums, tmp_path):
    known, other = ([sums.questions(1, start=start)[0].model_copy(update={"benchmark": "gsm8k"})] for start in (80, 90))
    assert "trained on test questions of gsm8k" in refused(DATA, *own_team(train=known, test=other))


def test_how_much_is_read_is_said_once(refused):
    pytest.importorskip("torch")
    both = ("--epochs", 2, "--max-train-tokens", 100)
    assert "give one of them" in refused(USAGE, "distill", "traces", "-o", "out", *both)
    assert "learning_rate" in refused(USAGE, "distill", "traces", "-o", "out", "--learning-rate", "nan")


def test_options_of_a_fresh_recording_and_of_own_teams_are_not_passed_over(refused):
    assert "give --fresh" in refused(USAGE, "run", "--record", 5)
    assert "--test FILE.jsonl" in refused(USAGE, "run", "desk", "--train", "x.jsonl")
    assert "of a file all are recorded" in refused(USAGE, "record", "desk", "--questions", "x.jsonl", "--count", 5)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--epochs", 0),
        ("run", "--count", 0),
        ("run", "--unseen", 97),
        ("run", "--record", 0),
        ("record", "--jobs", 0),
        ("record", "--threads", 0),
        ("record", "--count", 0),
        ("distill", "traces", "-o", "out", "--epochs", 0),
        ("distill", "traces", "-o", "out", "--limit", 0),
        ("distill", "traces", "-o", "out", "--learning-rate", 0),
        ("distill", "traces", "-o", "out", "--max-train-tokens", 0),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_numbers_out_of_range_are_refused_by_the_option(soloist, arguments):
    result = soloist(*arguments)
    assert result.exit_code == USAGE
    assert "Invalid value" in result.stderr
    assert f"'{arguments[-2]}'" in result.stderr


def test_a_team_of_ones_own_needs_questions(refused, sums, team_file, question_file, tmp_path):
    path, test = team_file(sums.team(tmp_path / "m.gguf")), question_file(sums.questions(1))
    assert "--test FILE.jsonl" in refused(USAGE, "run", path, "-o", tmp_path / "out")
    assert "--train FILE.jsonl" in refused(USAGE, "run", path, "--test", test, "-o", tmp_path / "out")
    assert "--questions FILE.jsonl" in refused(USAGE, "record", path, "-o", tmp_path / "out")
    assert refused(DATA, "run", path, "--test", tmp_path / "none.jsonl", "--train", test, "-o", tmp_path / "out") == (
        f"{tmp_path / 'none.jsonl'}: cannot be read (No such file or directory)"
    )
