"""Every method of the catalog goes the whole way: recorded desk traces, one command, the same export, an answer."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from click.testing import CliRunner

from soloist.toolchain.bench.systems import student_team, student_tools
from soloist.toolchain.cli import main
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.desk.job import recorded
from soloist.toolchain.distill.methods.catalog import CATALOG
from soloist.toolchain.export.stage import compile_format, knowledge, model_folders
from soloist.toolchain.student.artifact import read_card
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import load_team
from soloist.toolchain.teams.team import Team
from soloist.toolchain.traces.graph import graph_of
from soloist.toolchain.traces.store import read_runs, write_runs

FEW = {
    "pad": ("generations=2", "questions=2", "steps=1", "rollouts=1", "new_tokens=4", "head_epochs=1"),
    "kg-masd": ("graph=desk",),
    "gkd": ("lmbda=0", "max_new_tokens=4"),
}
QUESTION = Question(id="q", question="What is 21 + 34?", gold="55", split="held-out", scorer="number")


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """A dozen recorded runs; half of them of readers who disagreed, so that there is something to prefer."""
    if recorded() is None:
        pytest.skip("this installation has no recording of the desk")
    runs = list(read_runs(recorded() / "traces.jsonl.gz"))
    verdicts = [{node.verdict for node in graph_of(run).nodes} for run in runs]
    mixed = [run for run, seen in zip(runs, verdicts, strict=True) if {"correct", "wrong"} <= seen]
    agreed = [run for run, seen in zip(runs, verdicts, strict=True) if seen == {"correct"}]
    chosen = [run for pair in zip(mixed, agreed, strict=False) for run in pair if run.verdict == "correct"][:12]
    folder = tmp_path_factory.mktemp("desk") / "traces"
    return stage("record", folder, {}, [], lambda out: {"runs": write_runs(chosen, out / "traces.jsonl.gz")})


@pytest.mark.parametrize("name", CATALOG)
def test_a_method_trains_by_one_command_and_its_student_is_compiled_and_answers(
    name, traces, tiny, one_thread, tmp_path
):
    if name == "pad":
        pytest.importorskip("trl", reason="GRPO is TRL's: install 'soloist[rl]'")
    options = [*FEW.get(name, ()), *([f"teacher={tiny}"] if name == "gkd" else [])]
    student = tmp_path / "student"
    command = ["distill", str(traces.path), "-o", str(student), "-m", str(tiny), "--method", name]
    command += [word for option in options for word in ("--set", option)]
    ended = CliRunner().invoke(main, command, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    card = read_card(student)
    assert card.method == name
    assert card.data.kept > 0
    artifact = Artifact.open(student, stage="distill")
    made = compile_format(model_folders(artifact), tmp_path, "gguf-f16", "student", knowledge(student))
    system = student_team(tmp_path / made["path"], student_tools(artifact), load_team("desk").tools)
    with Team(system) as team:
        run = team.answer(QUESTION)
    assert run.calls
    assert run.error is None
