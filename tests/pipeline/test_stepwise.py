"""By hand, stage by stage from the command line, ends in the report that `soloist run` ends in."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from soloist.toolchain.cli import main
from soloist.toolchain.report.schema import read_report
from soloist.toolchain.tasks.files import save_questions

for package in ("torch", "transformers", "gguf", "xllamacpp"):
    pytest.importorskip(package)

pytestmark = pytest.mark.usefixtures("warm_workers")

# what two measurements of the same systems may differ in: clocks and memory
_MEASURED = {"latency_s", "ttft_s", "peak_mb", "usd_per_1k", "label"}
FORMATS = "gguf-f16,gguf-q8_0"


@pytest.fixture
def soloist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        done = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return call


def same(report):
    """What of a report does not depend on when and how fast it was measured."""
    details = report.details
    systems = [
        {key: value for key, value in json.loads(system.model_dump_json()).items() if key not in _MEASURED}
        for system in report.systems
    ]
    return {
        "task": report.task,
        "systems": sorted(systems, key=lambda system: (system["id"], system["split"])),
        "method": [line.rpartition("(")[0] for line in details.method],
        "files": [(one.format, one.size_mb, one.kl, one.verdict, one.measured) for one in details.parity],
        "families": sorted((one.system, one.split, one.task, one.correct) for one in details.families),
        "chosen on": sorted((one.system, one.score) for one in details.recommended.candidates),
        "losses": [point.loss for point in details.training],
    }


def test_by_hand_and_in_one_the_report_is_the_same(sums, soloist, tiny_smollm2, tiny_smollm2_gguf, tmp_path):
    team = sums.team(tiny_smollm2_gguf)
    (tmp_path / "team.yaml").write_text(yaml.safe_dump(json.loads(team.model_dump_json(exclude_none=True))))
    save_questions(tmp_path / "train.jsonl", sums.questions(24))
    held_out = [*sums.questions(5, "held-out", 100), *sums.questions(2, "unseen-wording", 200)]
    save_questions(tmp_path / "test.jsonl", held_out)

    soloist("record", "team.yaml", "--questions", "train.jsonl", "--seed", 42, "-o", "hand/traces")
    training = ("-m", tiny_smollm2, "--epochs", 3)
    soloist("distill", "hand/traces", "-o", "hand/student", *training)
    soloist("quantize", "hand/student", "-o", "hand/quantized", "--samples", 16)
    for student, formats, folder in (("student", FORMATS, "compiled"), ("quantized", "gguf", "compiled-4bit")):
        command = ("export", f"hand/{student}", "-o", f"hand/{folder}", "--formats", formats, "--name", "Sums")
        soloist(*command, "--prompts", "train.jsonl")
        assert "gguf" in soloist("verify", f"hand/{folder}", "--prompts", "train.jsonl")
    chosen = ("--choose-on", "train.jsonl")
    exports = ("hand/compiled", "hand/compiled-4bit")
    soloist("bench", *exports, "--team", "team.yaml", "--questions", "test.jsonl", *chosen, "-o", "hand/measured")
    assert "GGUF 4-bit" in soloist("report", "hand/measured")

    soloist(
        "run",
        "team.yaml",
        "--train",
        "train.jsonl",
        "--test",
        "test.jsonl",
        "--formats",
        f"{FORMATS},gguf",
        *training,
        "-o",
        "whole",
        "--no-open",
    )
    hand, whole = read_report(tmp_path / "hand/report.json"), read_report(tmp_path / "whole/report.json")
    by_hand, at_once = same(hand), same(whole)
    for part, value in at_once.items():
        assert by_hand[part] == value, part
    assert {system.id for system in whole.systems} >= {"team", "base", "student-torch", "student-4bit-gguf"}


def test_traces_that_are_there_already_are_where_a_run_begins(whole_job, sums, soloist, tmp_path):
    save_questions(tmp_path / "test.jsonl", sums.questions(3, "held-out", 100))
    arguments = ("--traces", whole_job.out / "traces", "--test", "test.jsonl", "-m", whole_job.base, "--epochs", 1)
    soloist("run", *arguments, "--formats", "gguf-f16", "-o", "out", "--no-open")
    report = read_report(tmp_path / "out/report.json")
    assert {system.id for system in report.systems} == {"student-torch", "student-gguf-f16"}
    assert "No team was measured: nothing is compared with one." in report.details.caveats
    assert not (tmp_path / "out/traces").exists()
