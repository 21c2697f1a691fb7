"""Every method of the catalog goes the whole way: recorded desk traces, one command, the same export, an answer."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from click.testing import CliRunner

from soloist.targets.compile import compile_format
from soloist.toolchain.cli import main
from soloist.toolchain.desk.job import recorded
from soloist.toolchain.distill.methods.catalog import CATALOG
from soloist.toolchain.student.ask import student_team
from soloist.toolchain.student.student import open_student
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import load_team
from soloist.toolchain.teams.team import Team
from soloist.toolchain.traces.graph import graph_of
from soloist.toolchain.traces.store import read_runs

FEW = {
    "pad": ("generations=2", "questions=2", "steps=1", "rollouts=1", "new_tokens=4", "head_epochs=1"),
    "kg-masd": ("graph=desk",),
    "gkd": ("lmbda=0", "max_new_tokens=4"),
}
QUESTION = Question(id="q", question="What is 21 + 34?", gold="55", split="held-out", scorer="number")


@pytest.fixture(scope="module")
def traces(tmp_path_factory, record_runs):
    """A dozen recorded runs; half of them of readers who disagreed, so that there is something to prefer."""
    if recorded() is None:
        pytest.skip("this installation has no recording of the desk")
    runs = list(read_runs(recorded() / "traces.jsonl.gz"))
    mixed, agreed = [], []
    for run in runs:
        verdicts = {node.verdict for node in graph_of(run).nodes}
        if run.verdict == "correct" and {"correct", "wrong"} <= verdicts:
            mixed.append(run)
        elif run.verdict == "correct" and verdicts == {"correct"}:
            agreed.append(run)
    chosen = [*mixed[:6], *agreed[:6]]
    return record_runs(chosen, tmp_path_factory.mktemp("desk") / "traces")


@pytest.mark.parametrize("name", CATALOG)
def test_a_method_trains_by_one_command_and_its_student_is_compiled_and_answers(
    name, traces, tiny, one_thread, tmp_path
):
    if name == "pad":
        pytest.importorskip("trl", reason="GRPO is TRL's: install 'soloist[rl]'")
    options = [*FEW.get(name, ()), *([f"teacher={tiny}"] if name == "gkd" else [])]
    folder = tmp_path / "student"
    command = ["distill", str(traces.path), "-o", str(folder), "-m", str(tiny), "--method", name]
    for option in options:
        command += ["--set", option]
    ended = CliRunner().invoke(main, command, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    student = open_student(folder)
    assert student.card.method == name
    assert student.card.data.kept > 0
    compiled = compile_format(student.models, tmp_path, "gguf-f16", "student", graphs=tmp_path / "graphs")
    student.write_sidecars(tmp_path / "gguf-f16")
    system = student_team(tmp_path / compiled.path, student.called_tools, load_team("desk").tools)
    with Team(system) as team:
        run = team.answer(QUESTION)
    assert run.calls
    assert run.error is None
