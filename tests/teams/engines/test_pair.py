"""Two models as one engine: each agent is answered by its part, a part that does not open leaves nothing open."""

from __future__ import annotations

import time

import pytest

from soloist.kernels.errors import ArtifactError, EngineError
from soloist.targets import open as opening
from soloist.targets.base import Reply, Sampling
from soloist.toolchain.bench.systems import student_team
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import StudentEngineConfig
from soloist.toolchain.teams.engines.base import Ask
from soloist.toolchain.teams.engines.pair import PairEngine, open_student
from soloist.toolchain.teams.engines.student import StudentEngine
from soloist.toolchain.teams.team import Team


class Echo:
    """A runtime that says which model it is; the decomposer asks two questions."""

    opened = ()

    def __init__(self, path):
        self.name = path.stem if path.suffix else path.name
        self.closed = False
        Echo.opened = (*Echo.opened, self)

    def chat(self, messages, sampling, *, grammar=None, on_text=None):
        text = "one?\ntwo?" if "decomposer" in self.name else f"#### {len(messages)}"
        if on_text is not None:
            on_text(text)
        now = time.perf_counter()
        return Reply(text, 1, 0, 1, now, now, now, "stop")

    def close(self):
        self.closed = True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    Echo.opened = ()
    monkeypatch.setattr(opening, "open_runtime", lambda path, format=None, **_: Echo(path))
    for part in opening.PARTS:
        (tmp_path / "gguf-q8_0" / part).mkdir(parents=True)
        (tmp_path / "gguf-q8_0" / part / f"Tiny-{part}.gguf").touch()
    return tmp_path / "gguf-q8_0"


def test_one_question_is_one_call_from_outside(folder):
    heard = []
    team = student_team(folder, (), ())
    assert [(agent.role, agent.model) for agent in team.agents] == [("decomposer",) * 2, ("solver",) * 2]
    with Team(team) as opened:
        run = opened.answer(Question(id="q", question="x?", gold="3", scorer="number"))
    assert (run.verdict, [turn.model for turn in run.turns]) == ("correct", ["decomposer", "solver", "solver"])
    assert all(runtime.closed for runtime in Echo.opened)
    engine = open_student(StudentEngineConfig(kind="student", path=str(folder)), heard.append)
    assert isinstance(engine, PairEngine)
    assert engine.model == "gguf-q8_0"
    engine.ask([Ask([], Sampling(), model="solver")])
    assert heard == ["#### 0", "\n"]


def test_an_agent_must_name_its_part(folder):
    engine = open_student(StudentEngineConfig(kind="student", path=str(folder)))
    with pytest.raises(EngineError, match=r"made of decomposer and solver; .* names none"):
        engine.ask([Ask([], Sampling())])
    with pytest.raises(EngineError, match="names 'critic'"):
        engine.ask([Ask([], Sampling(), model="critic")])


def test_a_single_model_stays_a_single_model(folder):
    (file,) = (folder / "solver").glob("*.gguf")
    engine = open_student(StudentEngineConfig(kind="student", path=str(file)))
    assert isinstance(engine, StudentEngine)
    assert student_team(file, (), ()).topology == "solo"
    (folder / "decomposer" / "Tiny-decomposer.gguf").unlink()
    with pytest.raises(ArtifactError, match="decomposer: not a model"):
        student_team(folder, (), ())


def test_a_part_that_does_not_open_closes_the_other(folder, monkeypatch):
    def failing(path, format=None, **_):
        if "solver" in path.name:
            raise ArtifactError(f"{path}: broken")
        return Echo(path)

    monkeypatch.setattr(opening, "open_runtime", failing)
    with pytest.raises(ArtifactError, match="broken"):
        open_student(StudentEngineConfig(kind="student", path=str(folder)))
    assert [runtime.closed for runtime in Echo.opened] == [True]
