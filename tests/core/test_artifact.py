"""Artifacts: made once, made again when they must be, and never half there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from soloist.kernels.errors import ArtifactError, ResourceError
from soloist.toolchain.core import artifact
from soloist.toolchain.core.artifact import MANIFEST, Artifact, Facts, stage
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.core.files import write_atomic


def make(out, config=None, parents=(), *, text="weights", **options):
    """A stage that writes two files and counts how often it was built."""
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "student.gguf").write_text(text)
        (folder / "log.txt").write_text("ok")
        return {"loss": 0.5}

    made = stage("distill", out, config or {"steps": 3}, parents, build, **options)
    return made, len(calls)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "runs" / "student"


def test_manifest_says_what_the_artifact_is(out):
    parent, _ = make(out.with_name("traces"))
    made, _ = make(out, {"steps": 3, "lr": 1e-4}, [parent])
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["stage"] == "distill"
    assert manifest["config"] == {"steps": 3, "lr": 1e-4}
    assert manifest["parents"] == [{"path": "traces", "digest": parent.digest}]
    assert set(manifest["files"]) == {"sub/student.gguf", "log.txt"}
    assert manifest["files"]["log.txt"]["bytes"] == 2
    assert manifest["versions"]["python"]
    assert manifest["device"]["cores"] == os.cpu_count()
    assert {"commit", "seconds"} <= set(manifest)
    assert made.facts == {"loss": 0.5}
    assert Artifact.open(out, stage="distill").digest == made.digest
    assert sorted(p.name for p in out.parent.iterdir()) == ["student", "traces"]


def test_digest_covers_the_work_and_not_the_place_or_the_time(tmp_path, monkeypatch):
    first, _ = make(tmp_path / "a")
    monkeypatch.setattr(artifact.time, "time", lambda: 2e9)
    again, _ = make(tmp_path / "b" / "elsewhere")
    other, _ = make(tmp_path / "c", text="other weights")
    assert first.digest == again.digest != other.digest


def test_stage_is_reused_when_config_and_parents_are_the_same(out, tmp_path):
    parent, _ = make(tmp_path / "traces")
    seen = []
    with EventLog(listeners=(seen.append,)) as events:
        first, built = make(out, {"steps": 3}, [parent], events=events)
        again, rebuilt = make(out, {"steps": 3}, [parent], events=events)
    assert (built, rebuilt) == (1, 0)
    assert first.digest == again.digest
    assert [(e["event"], e.get("reused")) for e in seen] == [("start", None), ("end", False), ("end", True)]


@pytest.mark.parametrize("change", ["config", "parents"])
def test_stage_is_built_again_when_its_plan_changes(out, tmp_path, change):
    old, _ = make(tmp_path / "old")
    new, _ = make(tmp_path / "new", text="other traces")
    first, _ = make(out, {"steps": 3}, [old])
    config, parents = ({"steps": 4}, [old]) if change == "config" else ({"steps": 3}, [new])
    second, built = make(out, config, parents)
    assert built == 1
    assert second.digest != first.digest
    assert Artifact.open(out).digest == second.digest
    assert not [p for p in out.parent.glob("*student*") if p != out]


def crash_after_checkpoint(folder):
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "step-1").write_text("1")
    raise KeyboardInterrupt


def resume(folder):
    step = folder / "checkpoint" / "step-1"
    (folder / "student.gguf").write_text("from step " + (step.read_text() if step.exists() else "0"))
    return {}


def test_partial_work_survives_a_crash_and_is_picked_up(out):
    with pytest.raises(KeyboardInterrupt):
        stage("distill", out, {"steps": 3}, [], crash_after_checkpoint, scratch=("checkpoint",))
    assert not out.exists()
    made = stage("distill", out, {"steps": 3}, [], resume, scratch=("checkpoint",))
    assert (out / "student.gguf").read_text() == "from step 1"
    assert set(made.manifest["files"]) == {"student.gguf"}
    assert not (out / "checkpoint").exists()


def test_partial_work_of_another_config_is_discarded(out):
    with pytest.raises(KeyboardInterrupt):
        stage("distill", out, {"steps": 3}, [], crash_after_checkpoint)
    stage("distill", out, {"steps": 4}, [], resume)
    assert (out / "student.gguf").read_text() == "from step 0"


def tamper_weights(out):
    (out / "sub" / "student.gguf").write_text("WEIGHTS")  # same length, so only the hash can tell


def append_to_file(out):
    (out / "log.txt").write_text("ok, and more")


def remove_file(out):
    (out / "sub" / "student.gguf").unlink()


def edit_manifest(out):
    file = out / MANIFEST
    file.write_text(file.read_text().replace('"steps": 3', '"steps": 30'))


def break_manifest(out):
    (out / MANIFEST).write_text("{")


def foreign_manifest(out):
    (out / MANIFEST).write_text('{"name": "a web app"}')


def remove_manifest(out):
    (out / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("damage", "named", "reason"),
    [
        (tamper_weights, "sub/student.gguf", "hash differs"),
        (append_to_file, "log.txt", "hash differs"),
        (remove_file, "sub/student.gguf", "missing"),
        (edit_manifest, MANIFEST, "changed after it was written"),
        (break_manifest, MANIFEST, "not a manifest of ours"),
        (foreign_manifest, MANIFEST, "not a manifest of ours"),
        (remove_manifest, "student", f"no {MANIFEST}"),
    ],
)
@pytest.mark.parametrize("way", ["open", "stage"])
def test_damaged_artifact_is_refused_by_name(out, damage, named, reason, way):
    make(out)
    damage(out)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(out) if way == "open" else make(out)
    message = str(caught.value)
    assert named in message.split(": ", maxsplit=1)[0]
    assert reason in message
    assert "\n" not in message


def test_artifact_of_another_stage_is_refused(out):
    make(out)
    with pytest.raises(ArtifactError, match="stage 'distill', 'export' is needed"):
        Artifact.open(out, stage="export")


def test_stage_never_replaces_a_folder_that_is_no_artifact(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(ArtifactError, match="no artifact of ours"):
        make(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"


def test_two_at_once_do_not_meet_in_one_folder(out):
    def build(folder):
        (folder / "weights").write_text("first")
        for config in ({"n": 1}, {"n": 2}):  # the same work, and other work that would clear the folder
            with pytest.raises(ArtifactError, match=r"student\.partial: another process is at work here; wait for it"):
                stage("distill", out, config, [], lambda _: {})
        return {}

    made = stage("distill", out, {"n": 1}, [], build)
    assert (made.path / "weights").read_text() == "first"
    assert list(made.manifest["files"]) == ["weights"]
    assert stage("distill", out, {"n": 2}, [], lambda _: {}).digest != made.digest  # whoever was first has let go


HOLD = """
import sys, time
from pathlib import Path
from soloist.toolchain.core.artifact import stage

def build(folder):
    (folder / "half").write_text("kept")
    print("at work", flush=True)
    time.sleep(600)

stage("distill", Path(sys.argv[1]), {}, [], build)
"""


def test_another_process_is_told_until_the_first_is_killed(out):
    command = [sys.executable, "-P", "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "at work\n"
        with pytest.raises(ArtifactError, match="another process is at work here") as caught:
            stage("distill", out, {}, [], lambda _: {})
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
        first.kill()
    made = stage("distill", out, {}, [], lambda folder: {"half": (folder / "half").read_text()})
    assert made.facts == {"half": "kept"}
    assert [path.name for path in out.parent.iterdir()] == ["student"]


def test_a_disk_without_locks_is_worked_on_without(out, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(artifact.FileLock, "acquire", refuse)
    made, built = make(out)
    assert built == 1
    assert made.path == out


def write_to_full_disk(folder):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (folder / "half").write_text("kept")
    Path("/dev/full").write_text("x" * 10)


def test_full_disk_is_one_line_and_keeps_the_partial_work(out):
    with pytest.raises(ResourceError) as caught:
        stage("distill", out, {}, [], write_to_full_disk)
    assert str(out) in str(caught.value)
    assert "disk is full" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 7
    assert (out.with_name("student.partial") / "half").read_text() == "kept"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = sys.platform == "linux" and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_stage_goes_on_once_the_full_disk_has_room(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(56 * 1024))
    with pytest.raises(ResourceError, match="disk is full"):
        make(small_disk / "student", text="w" * 12_000)
    ballast.unlink()
    made, _ = make(small_disk / "student", text="w" * 12_000)
    assert made.digest == Artifact.open(small_disk / "student").digest


def test_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError, match=r"student.*: not writable; choose another folder"):
        make(tmp_path / "student")


def test_atomic_write_leaves_the_old_text_when_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "report.json"
    write_atomic(file, "old")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact.os, "fsync", fail)
    with pytest.raises(ResourceError):
        write_atomic(file, "new")
    assert file.read_text() == "old"


STEPS = """
    import os, pathlib, signal, sys
    from soloist.toolchain.core import artifact
    out, kill_at = pathlib.Path(sys.argv[1]), sys.argv[2]

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def build(folder):
        for step in range(4):
            if not (folder / f"step-{step}").exists():
                with open(out.parent / "work.log", "a") as log:
                    log.write(f"{step}\\n")
                artifact.write_atomic(folder / f"step-{step}", f"result {step}")
            if kill_at == f"step-{step}":
                die()
        return {}

    def die_before(method, name):
        real = getattr(pathlib.Path, method)
        def rename(self, target):
            if pathlib.Path(target).name == name:
                die()
            return real(self, target)
        setattr(pathlib.Path, method, rename)

    if kill_at == "hashing":
        artifact._files = die
    if kill_at == "manifest.json":
        die_before("replace", kill_at)
    if kill_at == "swap":
        artifact._take_place = die
    if kill_at in (".student.replaced", "student"):
        die_before("rename", kill_at)
    if kill_at == "cleaning":
        real = artifact.shutil.rmtree
        artifact.shutil.rmtree = lambda path, **k: die() if path.exists() else real(path, **k)
    print(artifact.stage("distill", out, {"v": 2}, [], build).digest)
"""


KILLS = ["step-0", "step-2", "hashing", "manifest.json", "swap", ".student.replaced", "student", "cleaning"]


@pytest.mark.parametrize("kill_at", KILLS)
def test_sigkill_anywhere_loses_nothing_and_ends_with_the_same_artifact(out, kill_at):
    stage("distill", out, {"v": 1}, [], lambda folder: {"old": bool((folder / "old").write_text("old"))})
    script = out.parent / "steps.py"
    script.write_text(textwrap.dedent(STEPS))

    def run(where):
        return subprocess.run(
            [sys.executable, str(script), str(out), where], capture_output=True, text=True, check=False
        )

    killed = run(kill_at)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run("never")
    assert again.returncode == 0, again.stderr
    work = (out.parent / "work.log").read_text().split()
    assert work == ["0", "1", "2", "3"], "a step was done twice or lost"
    assert {p.name for p in out.iterdir()} == {MANIFEST, *(f"step-{i}" for i in range(4))}

    fresh = stage(
        "distill",
        out.with_name("fresh"),
        {"v": 2},
        [],
        lambda folder: {"n": sum((folder / f"step-{i}").write_text(f"result {i}") for i in range(4))},
    )
    assert again.stdout.strip() == Artifact.open(out).digest == fresh.digest
    assert not [p for p in out.parent.glob("*student*") if p != out]


class Counted(Facts):
    runs: int
    note: str | None = None


def test_facts_are_written_by_one_stage_and_read_by_the_next_as_one_model(tmp_path):
    made = stage("count", tmp_path / "out", {}, [], lambda folder: Counted(runs=3))
    assert made.manifest["facts"] == {"runs": 3}, "what is unknown is not written"
    assert Artifact.open(tmp_path / "out").read(Counted) == Counted(runs=3)
    later = stage("count", tmp_path / "later", {}, [], lambda folder: {"runs": 3, "of_a_later_version": 1})
    assert later.read(Counted) == Counted(runs=3)


def test_facts_of_another_kind_are_refused_with_all_their_faults(tmp_path):
    made = stage("count", tmp_path / "out", {}, [], lambda folder: {"runs": "many", "note": 5})
    with pytest.raises(ArtifactError) as caught:
        made.read(Counted)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'out' / MANIFEST}: facts.runs: ")
    assert "; facts.note: " in message
    assert "\n" not in message
