"""`soloist run` with a user's own team: three debaters behind a real OpenAI-compatible server, to the report.

The server answers with SmolLM2-135M, which knows some capitals, so that there is something to learn from. The
student starts from a model of two layers: the way is under test here, not what comes out at its end.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.report.schema import read_report
from soloist.toolchain.student.artifact import StudentFacts
from soloist.toolchain.traces.store import read_runs

for package in ("torch", "transformers", "gguf"):
    pytest.importorskip(package)
SERVER = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "llama_server.py")))

TRAIN = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}
TEST = {"Egypt": "Cairo", "Greece": "Athens"}
TEAM = """
name: capitals
topology: debate
engine:
  {{kind: openai, base_url: "{url}", model: local, stream: false, concurrency: 1}}
options: {{rounds: 2}}
agents:
  - {{name: ann, role: debater, prompt: Answer in one short sentence., sampling: {{max_tokens: 12}}}}
  - {{name: bob, role: debater, prompt: You know geography. Answer with one sentence., sampling: {{max_tokens: 12}}}}
  - {{name: cleo, role: debater, prompt: Answer in one sentence., sampling: {{max_tokens: 12}}}}
"""


def write_questions(path, capitals):
    choices = [*TRAIN.values(), *TEST.values()]
    rows = [
        {"question": f"What is the capital of {country}?", "answer": city, "scorer": "choice", "choices": choices}
        for country, city in capitals.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_debate_behind_a_real_server_becomes_a_report(soloist, base_gguf, tiny_smollm2, warm_workers, tmp_path):
    if SERVER.missing():
        pytest.skip(f"llama.cpp's server needs {', '.join(SERVER.missing())}")
    out = tmp_path / "out"
    train, test = write_questions(tmp_path / "train.jsonl", TRAIN), write_questions(tmp_path / "test.jsonl", TEST)
    with SERVER.serve(base_gguf, tmp_path / "server.log") as url:
        (tmp_path / "team.yaml").write_text(TEAM.format(url=url))
        command = [
            "run",
            tmp_path / "team.yaml",
            "--train",
            train,
            "--test",
            test,
            "-o",
            out,
            "-m",
            tiny_smollm2,
            "--formats",
            "gguf-f16",
            "--epochs",
            1,
            "--api-price",
            "2,10",
            "--no-open",
            "--json",
        ]
        result = soloist(*command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == json.loads((out / "report.json").read_text())
    assert told["task"] == "capitals"
    check_traces(out)
    check_systems(read_report(out / "report.json"))
    assert "capitals" in (out / "report.html").read_text()
    again = soloist(*command)  # the server is gone: nothing is asked twice
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["systems"] == told["systems"]


def check_traces(out):
    runs = list(read_runs(out / "traces" / "traces.jsonl.gz"))
    assert [run.question.gold for run in runs] == list(TRAIN.values())
    assert all(run.error is None and run.wall > 0 for run in runs)
    for run in runs:
        assert [turn.agent for turn in run.turns] == ["ann", "bob", "cleo"] * (len(run.turns) // 3)
        graded = [edge for edge in run.edges if edge.kind in ("agrees", "disputes")]
        assert len(graded) == len(run.turns), "each of a round stands to each other"
        assert all(turn.model == "local" and turn.tokens_in > 20 and turn.text for turn in run.turns)
    correct = [run for run in runs if run.verdict == "correct"]
    assert correct, [run.answer for run in runs]
    kept = Artifact.open(out / "student").read(StudentFacts).data.kept
    assert kept == len(correct), "the student learns from what the team got right"


def check_systems(report):
    systems = {system.id: system for system in report.systems}
    assert {system.kind for system in systems.values()} == {"team", "base", "self-consistency", "student", "artifact"}
    assert set(systems) == {"team", "base", "self-consistency", "student-torch", "student-gguf-f16"}
    assert {(system.split, system.label) for system in systems.values()} == {("held-out", "measured")}
    team = systems["team"]
    assert (team.n, systems["student-gguf-f16"].n) == (2, 2)
    assert team.correct > 0
    assert team.calls in (3, 4.5, 6)
    assert team.vs_team is None
    assert systems["base"].vs_team is not None
    for name in ("team", "base", "self-consistency"):  # what the server answered has the price that was given
        one = systems[name]
        assert one.usd_per_1k == pytest.approx((2 * one.tokens_in + 10 * one.tokens_out) / 1000, rel=1e-6), name
    assert systems["student-gguf-f16"].usd_per_1k > 0
    assert "assumed" in report.details.prices[0], "no price was given for this machine"
    assert systems["student-gguf-f16"].calls == 1
    assert systems["student-gguf-f16"].peak_mb > 10
    assert {turn.agent for turn in report.details.anatomy.turns} == {"ann", "bob", "cleo"}
