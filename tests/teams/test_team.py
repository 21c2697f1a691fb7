"""A team on a question: failures of the engine, seeds, users' own topologies."""

from __future__ import annotations

import sys
import textwrap

import pytest

from soloist.kernels.errors import EngineError
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.teams.team import Team, topology_names

QUESTION = Question(id="q1", question="What is 2 + 3?", gold="5", scorer="number")


class BrokenEngine:
    """Answers once, then never again."""

    model = "broken"

    def __init__(self, play_first):
        self.first = play_first

    def ask(self, asks):
        if self.first:
            return self.first.pop(0).ask(asks)
        raise EngineError("http://nowhere cannot be reached (2 retries): is the server running?")

    def close(self):
        pass


def config(topology="solo", roles=("solver",), **more):
    agents = [{"name": f"a{i}", "role": role} for i, role in enumerate(roles)]
    engine = {"kind": "gguf", "model": "never-opened"}
    return TeamConfig.model_validate({"name": "t", "topology": topology, "agents": agents, "engine": engine} | more)


def test_engine_failure_raises_or_becomes_a_run_that_says_why(queue):
    broken = BrokenEngine([queue(["Add them."])])
    team = Team(config("planner-solver-critic", ("planner", "solver", "critic")), engine=broken)
    run = team.try_answer(QUESTION)
    assert (run.answer, run.verdict) == (None, "absent")
    assert "cannot be reached" in run.error
    assert [turn.text for turn in run.turns] == ["Add them."], "what was said before is kept"
    with pytest.raises(EngineError, match="cannot be reached"):
        team.answer(QUESTION)


def test_users_own_topology_is_an_entry_point(tmp_path, monkeypatch, queue):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        from soloist.toolchain.core.config import Config
        from soloist.toolchain.teams.session import Say

        class Echo:
            class Options(Config):
                times: int = 1

            @staticmethod
            def run(session, options):
                agent = session.team.agents[0]
                turns = session.say([Say(agent, [{"role": "user", "content": "again"}])] * options.times)
                return session.finish(session.turns[turns[-1]]["text"], turns)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    team = Team(config("mine:Echo", options={"times": 2}), engine=queue(["4", "5"]))
    run = team.answer(QUESTION)
    sys.modules.pop("mine")
    assert (run.answer, run.verdict, run.path) == ("5", "correct", (0, 1))


def test_every_topology_of_ours_has_a_test(request):
    folder = request.path.parent / "topologies"
    tested = {path.stem.removeprefix("test_").replace("_", "-") for path in folder.glob("test_*.py")}
    assert set(topology_names()) <= tested
