"""`soloist assess` on recordings and on a team that is run, and `soloist run --assess` up to the report."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from soloist.toolchain.assess.result import read_assessment, sentence
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.traces.schema import Run, Turn
from soloist.toolchain.traces.store import write_runs


@pytest.fixture
def recording(sums, tmp_path):
    """Six runs of six questions; whoever says something else is wrong."""

    def write(runs=6, name="runs.jsonl.gz"):
        made = []
        for question in sums.questions(6):
            for seed in range(runs):
                right = seed % 2 == 0
                answer = question.gold if right else "7"
                verdict = "correct" if right else "wrong"
                turn = Turn(
                    id=0, agent="ann", role="solver", text=f"#### {answer}", model="m", answer=answer, verdict=verdict
                )
                made.append(
                    Run(
                        question=question,
                        team="sums",
                        turns=(turn,),
                        path=(0,),
                        answer=answer,
                        verdict=verdict,
                        seed=seed,
                    )
                )
        path = tmp_path / name
        write_runs(made, path)
        return path

    return write


def test_recorded_runs_give_a_verdict_and_a_card(soloist, recording, tmp_path):
    result = soloist("assess", recording(), "-o", tmp_path / "assess")
    assert result.exit_code == 0, result.output
    sure = "Metric Freedom 0.00, rigid, which so few runs cannot make certain: rule v3 says distilling is 'likely to"
    assert result.stdout.startswith(sure)
    assert "There is no interval" in result.stdout
    assert "keep: structure, instructions, skills, tools, knowledge" in result.stdout
    assert "pairs of runs tie in score" in result.stdout
    assert str(tmp_path / "assess" / "skill_card.md") in result.stderr
    other = soloist("assess", recording(), "--rule", "v1", "-o", tmp_path / "v1")
    assert "rule v1" in other.stdout
    assert "rule v1 says distilling is 'likely to help', refine." in other.stdout
    assert "# Skill card: sums" in (tmp_path / "assess" / "skill_card.md").read_text()


def test_one_run_per_question_is_refused_in_one_line(refused, recording, tmp_path):
    message = refused(3, "assess", recording(runs=1), "-o", tmp_path / "assess")
    assert message.startswith("one run per question: Metric Freedom compares at least 3")
    assert not (tmp_path / "assess").exists()


def test_sources_that_cannot_be(refused, recording, question_file, sums, team_file, tmp_path):
    asked = question_file(sums.questions(2))
    assert "recordings are not asked questions" in refused(2, "assess", recording(), "--questions", asked)
    assert "recordings are not asked questions" in refused(2, "assess", recording(), "desk")
    assert refused(2, "assess", recording(), "--runs", 9, "--approach", "Think.").startswith(
        "runs, approaches: for a team"
    )
    assert "one team at a time, got desk, other" in refused(2, "assess", "desk", "other")
    assert "no such file; teams that ship" in refused(2, "assess", "no-such-team")
    team = team_file(sums.team(tmp_path / "never-opened.gguf"))
    assert "--questions FILE.jsonl" in refused(2, "assess", team)


def test_a_team_is_run_and_its_card_is_a_team(
    soloist, sums, one_thread, tiny_smollm2_gguf, team_file, question_file, tmp_path
):
    team, asked = team_file(sums.team(tiny_smollm2_gguf)), question_file(sums.questions(8))
    result = soloist("assess", team, "--questions", asked, "--count", 3, "--runs", 4, "-o", tmp_path / "assess")
    assert result.exit_code == 0, result.output
    assessment = read_assessment(tmp_path / "assess" / "assessment.json")
    assert (assessment.runs, assessment.questions, assessment.team) == (12, 3, "sums")
    assert assessment.distance == "1 - cosine of hidden states"
    assert sentence(assessment) in result.stdout
    assert "every run has the score 1" in result.stdout, "an exact tool computes: there is nothing to tell apart"
    assert "3 of 3 questions have fewer than 6 runs (down to 4)" in result.stdout
    shown = soloist("teams", tmp_path / "assess" / "skill_agent.yaml")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("sums-card: topology solo")


def test_a_job_asks_first_and_reports_what_was_said(whole_job, tmp_path):
    from soloist.toolchain.pipeline.run import run

    out = shutil.copytree(whole_job.out, tmp_path / "job")
    job, seen = dataclasses.replace(whole_job.job, out=out, assess=True), []
    report = run(job, EventLog(None, (seen.append,)))
    assessment = read_assessment(Artifact.open(out / "assess", stage="assess").path / "assessment.json")
    assert report.details.assessment == assessment
    assert (assessment.runs, assessment.questions) == (36, 6)
    ended = [event["stage"] for event in seen if event["event"] == "end"]
    assert ended.index("assess") == ended.index("record") + 1 < ended.index("distill")
    assert sentence(assessment) in (out / "report.md").read_text()
    assert 'id="assessment"' in (out / "report.html").read_text()
    card = json.loads((out / "assess" / "skill_card.json").read_text())
    assert card["runs"] == 36 + 24, "the recording adds to the card"
    assert {question.question for question in assessment.freedom[0].questions} <= {q.id for q in job.task.train}


def test_an_assessment_with_nothing_to_compare_does_not_stop_the_job(whole_job, tmp_path, monkeypatch):
    from soloist.kernels.errors import DataError
    from soloist.toolchain.pipeline import run as pipeline

    def refuses(*_, **__):
        raise DataError("no run ended with a verdict")

    monkeypatch.setattr(pipeline, "assess", refuses)
    out = shutil.copytree(whole_job.out, tmp_path / "job")
    seen = []
    report = pipeline.run(dataclasses.replace(whole_job.job, out=out, assess=True), EventLog(None, (seen.append,)))
    assert report.details.assessment is None
    warnings = [event["text"] for event in seen if event["event"] == "warning" and event["stage"] == "assess"]
    assert warnings == ["no advice before training: no run ended with a verdict"]
