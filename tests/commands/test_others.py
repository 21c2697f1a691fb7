"""`soloist teams`, `doctor`, `report`, `bench` and the steps of the pipeline one by one."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from soloist.kernels.errors import UsageError
from soloist.toolchain.cli import main
from soloist.toolchain.core.artifact import Artifact

ROOT = Path(__file__).parents[2]


def test_teams_lists_what_ships(soloist):
    shown = soloist("teams").stdout
    assert "desk" in shown.splitlines()[0]
    for topology in ("solo", "self-consistency", "debate", "planner-solver-critic"):
        assert topology in shown.splitlines()[1]


def test_teams_shows_the_desk_with_its_agents(soloist):
    shown = soloist("teams", "desk").stdout
    assert shown.startswith("desk: topology soloist.toolchain.desk:topology, engine gguf (smollm2-135m)")
    for agent in ("router", "reader-a", "critic", "scribe"):
        assert f"\n  {agent} " in shown


def test_doctor_tells_the_machine_and_every_extra(soloist, monkeypatch):
    from soloist.toolchain.commands import doctor

    shown = soloist("doctor").stdout
    for line in ("machine ", "gpu ", "commit ", *doctor.EXTRAS):
        assert f"\n{line}" in f"\n{shown}"
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert set(doctor.EXTRAS) == declared - {"onnx-gpu", "test", "bench", "all"}
    monkeypatch.setattr(doctor, "EXTRAS", {"made-up": ("do nothing", ("json", "no_such_package_here"))})
    missing = "made-up  do nothing  missing no_such_package_here: pip install 'soloist[made-up]'"
    assert missing in soloist("doctor").stdout


def test_doctor_says_what_is_installed_alone_in_the_versions_that_are_pinned(soloist, monkeypatch):
    from soloist.toolchain.commands import doctor

    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(doctor, "EXTRAS", {"desk": ("ask", ("no_such_package_here",))})
    alone = doctor.ALONE["desk"]
    assert f"pip install 'soloist[desk]', then pip install --no-deps {alone}" in soloist("doctor").stdout
    pinned = (ROOT / "constraints.txt").read_text().replace("_", "-").split()
    assert set(alone.split()) <= set(pinned)
    assert alone in (ROOT / "Makefile").read_text()


def test_report_writes_the_page_again_from_the_json(soloist, whole_job, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # in a narrow terminal names are broken over lines
    folder = tmp_path / "job"
    folder.mkdir()
    shutil.copy(whole_job.out / "report.json", folder)
    result = soloist("report", folder)
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").read_text() == (whole_job.out / "report.html").read_text()
    assert (folder / "report.md").read_text() == (whole_job.out / "report.md").read_text()
    assert json.loads((folder / "report.json").read_text()) == json.loads((whole_job.out / "report.json").read_text())
    assert "GGUF F16" in result.stdout
    assert str(folder / "report.html") in result.stderr


def test_report_without_a_measurement_is_refused(refused, tmp_path):
    message = refused(3, "report", tmp_path)
    assert message.startswith(f"{tmp_path / 'report.json'}: cannot be read")
    (tmp_path / "report.json").write_text('{"schema": 1}')
    assert "not a report of schema 1" in refused(3, "report", tmp_path)


def test_the_steps_one_by_one_make_what_run_makes(
    soloist, whole_job, warm_workers, sums, team_file, question_file, tmp_path
):
    """The same traces and student as the whole job; the questions come from files, so ids and digests differ."""
    asked = question_file(sums.questions(24))
    recorded = soloist("record", team_file(whole_job.job.task.team), "--questions", asked, "-o", tmp_path / "traces")
    assert recorded.exit_code == 0
    assert "24 runs, 24 correct" in recorded.stdout
    assert "record the team: 24 of 24" in recorded.stderr, "progress is lines where there is no terminal"
    distill = soloist("distill", tmp_path / "traces", "-o", tmp_path / "student", "-m", whole_job.base, "--epochs", 3)
    assert distill.exit_code == 0
    assert "24 trajectories learned" in distill.stdout
    weights = Artifact.open(tmp_path / "student").manifest["files"]["model.safetensors"]
    assert weights == Artifact.open(whole_job.out / "student").manifest["files"]["model.safetensors"]
    probe = question_file(sums.questions(2, "held-out", 100), "probe.jsonl")
    export = soloist(
        "export", tmp_path / "student", "-o", tmp_path / "files", "--prompts", probe, "--formats", "gguf-f16"
    )
    assert export.exit_code == 0
    assert "gguf-f16" in export.stdout
    assert "KL 0.0" in export.stdout
    (model,) = (tmp_path / "files").rglob("*.gguf")
    verify = soloist("verify", model, "--student", tmp_path / "student", "--format", "gguf-f16", "--prompts", probe)
    assert verify.exit_code == 0
    assert f"{model}: passes." in verify.stdout
    bench = soloist(
        "bench", model, "--questions", probe, "--tools", "soloist.toolchain.desk.tools:desk_tools", "-o", tmp_path / "m"
    )
    assert bench.exit_code == 0, bench.output
    assert model.stem in bench.stdout
    assert "p50" in bench.stdout
    assert Artifact.open(tmp_path / "m", stage="bench").manifest["config"]["count"] == 2


def test_a_job_starts_from_the_base_and_the_options_it_was_told(tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym", reason="the desk's questions come from reasoning-gym")
    from soloist.toolchain.pipeline import run as pipeline

    seen = []

    def run(job, _events):
        seen.append(job)
        raise UsageError("that is enough")

    monkeypatch.setattr(pipeline, "run", run)
    told = ["-m", "mine", "--method", "da", "--set", "k_max=2", "--count", "15", "--unseen", "15"]
    result = CliRunner().invoke(main, ["run", "-o", str(tmp_path / "out"), *told])
    assert result.exit_code == UsageError.exit_code, result.output
    (job,) = seen
    assert (job.base, job.method, job.options) == ("mine", "da", {"k_max": 2})
    assert {
        split: len({q.task for q in job.task.test if q.split == split}) for split in ("held-out", "unseen-wording")
    } == {
        "held-out": 15,
        "unseen-wording": 15,
    }
