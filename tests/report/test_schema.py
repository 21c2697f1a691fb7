import json

import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.report.schema import Report, read_report

TOP = {"schema", "commit", "device", "versions", "task", "systems", "break_even_questions", "details"}
SYSTEM = {
    "id",
    "split",
    "kind",
    "format",
    "size_mb",
    "n",
    "correct",
    "accuracy",
    "vs_team",
    "latency_s",
    "ttft_s",
    "calls",
    "tokens_in",
    "tokens_out",
    "peak_mb",
    "usd_per_1k",
    "label",
}


def test_keys_are_the_contract(report):
    data = json.loads(report.to_json())
    assert set(data) == TOP
    assert data["schema"] == 1
    for system in data["systems"]:
        assert set(system) == SYSTEM
        assert set(system["accuracy"]) == {"value", "low", "high"}
        assert set(system["latency_s"]) == {"p50", "p95"}
        assert system["vs_team"] is None or set(system["vs_team"]) == {"difference", "low", "high"}


def test_report_round_trips(report, tmp_path):
    (tmp_path / "report.json").write_text(report.to_json())
    assert read_report(tmp_path / "report.json") == report


def test_contract_is_readable_without_details(report):
    data = json.loads(report.to_json())
    del data["details"]
    assert Report.model_validate(data).details is None


@pytest.mark.parametrize(
    ("bend", "names"),
    [
        (lambda d: d.update(schema=2), "schema"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["systems"][0].pop("label"), "systems.0.label"),
        (lambda d: d["systems"][0].update(kind="wizard"), "systems.0.kind"),
        (lambda d: d["systems"][1]["accuracy"].update(value=1.2), "systems.1.accuracy.value"),
        (lambda d: d.update(systems=[]), "systems"),
        (lambda d: d.pop("break_even_questions"), "break_even_questions"),
    ],
)
def test_alien_reports_are_refused_by_field(report, tmp_path, bend, names):
    data = json.loads(report.to_json())
    bend(data)
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="not a report of schema 1") as caught:
        read_report(tmp_path / "report.json")
    assert names in str(caught.value)


def test_all_faults_of_a_report_are_told_at_once(report, tmp_path):
    data = json.loads(report.to_json())
    data["mood"] = "good"
    del data["systems"][0]["label"]
    data["systems"][1]["n"] = 0
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(DataError) as caught:
        read_report(tmp_path / "report.json")
    said = str(caught.value)
    for part in ("systems.0.label: Field required", "systems.1.n: Input should be", "mood: unknown field"):
        assert part in said
    assert said.count("; ") == 2 and "\n" not in said


def test_missing_report_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="make it with"):
        read_report(tmp_path / "report.json")
