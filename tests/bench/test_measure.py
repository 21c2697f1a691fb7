"""Measuring side by side: shares, turns, workers that die, budgets, memory."""

from __future__ import annotations

import json
import signal
from typing import ClassVar

import pytest

from soloist.kernels.errors import ArtifactError, EngineError, MissingExtraError, SoloistError, UsageError
from soloist.toolchain.bench import measure as module
from soloist.toolchain.bench.measure import BenchFacts, Count, measure, share_of
from soloist.toolchain.bench.records import load_measurements
from soloist.toolchain.bench.systems import System, baselines
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.teams.config import AgentConfig, SamplingConfig
from soloist.toolchain.teams.lone import lone
from soloist.toolchain.teams.process import Worker
from soloist.toolchain.traces.store import read_runs

SPLITS = ("held-out", "unseen-wording")


def test_a_share_is_spread_evenly_over_each_split(sums):
    def asking(share):
        return System(id="x", kind="team", team=sums.team("m.gguf"), shares=dict.fromkeys(SPLITS, share))

    asked = [*sums.questions(40, "held-out"), *sums.questions(12, "unseen-wording", 50)]
    kept = share_of(asked, asking(0.25))
    assert [q.id for q in kept] == [
        *(f"held-out-{i}" for i in range(0, 40, 4)),
        *(f"unseen-wording-{i}" for i in (50, 54, 58)),
    ]
    assert share_of(asked, asking(1.0)) == asked
    assert [len(share_of(asked[:n], asking(0.34))) for n in (1, 2, 3, 10)] == [1, 1, 1, 3], "never none"
    assert len({q.id for q in share_of(asked, asking(0.9))}) == 36 + 11, "no question twice"
    files_only = System(id="x", kind="team", team=sums.team("m.gguf"), shares={"unseen-wording": 0.0})
    assert share_of(asked, files_only) == asked[:40], "a split of share 0 is not asked at all"


class FakeWorker:
    """Answers at once, in this process; keeps the order in which systems were asked."""

    asked: ClassVar = []
    opened: ClassVar = []
    dies_at = None

    def __init__(self, name, team):
        self.name, self.peak, self.closed = name, None, False
        FakeWorker.opened.append(self)

    def ask(self, question, seed):
        from soloist.toolchain.traces.schema import Run

        if (self.name, question.id) == FakeWorker.dies_at:
            raise EngineError(f"'{self.name}': its process was killed (SIGKILL); is there enough memory?")
        FakeWorker.asked.append((question.id, self.name))
        self.peak = 100.0 + len(FakeWorker.asked)
        return Run(question=question, team=self.name, answer=question.gold, verdict="correct", wall=0.5, seed=seed)

    def close(self):
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeWorker, "asked", [])
    monkeypatch.setattr(FakeWorker, "opened", [])
    monkeypatch.setattr(FakeWorker, "dies_at", None)
    monkeypatch.setattr(module, "Worker", FakeWorker)
    return FakeWorker


@pytest.fixture
def three(sums, tmp_path):
    return [System(id=name, kind="team", team=sums.team(tmp_path / "m.gguf"), warmup=0) for name in "abc"]


def test_systems_take_turns_and_each_goes_first_as_often(sums, three, fake, tmp_path):
    asked = sums.questions(6, "held-out")
    measure(three, asked, [], tmp_path / "out")
    orders = ["".join(name for id, name in fake.asked if id == question.id) for question in asked]
    assert orders == ["abc", "bca", "cab"] * 2
    assert all(worker.closed for worker in fake.opened)


def test_warmup_questions_are_not_counted(sums, three, fake, tmp_path):
    systems = [system.model_copy(update={"warmup": 2}) for system in three]
    made = measure(systems, sums.questions(2, "held-out"), sums.questions(3, "train", 90), tmp_path / "out")
    assert [id for id, name in fake.asked if name == "a"][:2] == ["train-90", "train-91"]
    assert all(len(one.answers) == 2 for one in load_measurements(made.path / "measurements.json"))


def test_a_worker_that_dies_is_named_and_the_rest_is_not_asked_again(sums, three, fake, tmp_path):
    asked = sums.questions(4, "held-out")
    fake.dies_at = ("b", "held-out-2")
    with pytest.raises(EngineError, match=r"^'b': its process was killed"):
        measure(three, asked, [], tmp_path / "out")
    assert all(worker.closed for worker in fake.opened), "the others are told to end"
    assert not (tmp_path / "out").exists()
    before = list(fake.asked)
    fake.dies_at = None
    events = []
    made = measure(three, asked, [], tmp_path / "out", events=EventLog(None, (events.append,)))
    assert len(fake.asked) == len(set(fake.asked)) == 12
    done = [event["done"] for event in events if event["event"] == "progress"]
    assert done == list(range(len(before) + 1, 13))
    for one in load_measurements(made.path / "measurements.json"):
        assert [answer.question_id for answer in one.answers] == [question.id for question in asked]
    assert not list(tmp_path.glob("*.partial")) and not (made.path / "peaks.json").exists()


def test_peak_memory_survives_a_restart(sums, three, fake, tmp_path):
    asked = sums.questions(3, "held-out")
    fake.dies_at = ("c", "held-out-2")
    with pytest.raises(EngineError):
        measure(three, asked, [], tmp_path / "out")
    peaks = json.loads((tmp_path / "out.partial" / "peaks.json").read_text())
    assert set(peaks) == {"a", "b", "c"}
    fake.asked.clear()  # the second process needs less memory
    fake.dies_at = None
    made = measure(three, asked, [], tmp_path / "out")
    for one in load_measurements(made.path / "measurements.json"):
        assert one.peak_mb >= peaks[one.system_id]


def test_moving_a_student_changes_no_measurement(sums, fake, tmp_path):
    from soloist.toolchain.student.ask import student_team

    def system(folder):
        return System(id="s", kind="artifact", team=student_team(tmp_path / folder / "s.gguf"), warmup=0)

    asked = sums.questions(1, "held-out")
    first = measure([system("here")], asked, [], tmp_path / "out")
    assert measure([system("there")], asked, [], tmp_path / "out").digest == first.digest
    assert len(fake.asked) == 1


def test_a_real_worker_answers_counts_its_memory_and_ends(sums, one_thread, tiny_smollm2_gguf, tmp_path):
    team = sums.team(tiny_smollm2_gguf)
    questions = [
        *sums.questions(1, "held-out"),
        *sums.questions(1, "held-out", 1, sums.BROKEN),
        *sums.questions(1, "unseen-wording", 2),
    ]
    made = measure([System(id="team", kind="team", team=team)], questions, [], tmp_path / "out")
    held, unseen = load_measurements(made.path / "measurements.json")
    assert (held.split, unseen.split) == ("held-out", "unseen-wording")
    assert 10 < held.peak_mb == unseen.peak_mb < 4000
    right, broken = held.answers
    assert right.correct and right.calls == 1 and right.tokens_in > 5 and right.error is None
    assert not broken.correct and "cannot be reached" in broken.error, "an engine's failure is counted as wrong"
    assert made.read(BenchFacts).counts == {
        "team/held-out": Count(n=2, correct=1),
        "team/unseen-wording": Count(n=1, correct=1),
    }


def test_a_process_that_dies_names_the_system_and_the_question_is_asked_again(
    sums, one_thread, tiny_smollm2_gguf, tmp_path
):
    systems = [System(id="team", kind="team", team=sums.team(tiny_smollm2_gguf), warmup=0)]
    questions = [*sums.questions(1, "held-out"), *sums.questions(1, "held-out", 1, sums.DEAD)]
    with pytest.raises(EngineError, match=r"^'team': its process ended with code 3$"):
        measure(systems, questions, [], tmp_path / "out")
    kept = list(read_runs(tmp_path / "out.partial" / "team.jsonl"))
    assert [run.question.id for run in kept] == ["held-out-0"]


def test_a_worker_explains_why_it_ended(sums, one_thread, tiny_smollm2_gguf, tmp_path):
    team = sums.team(tiny_smollm2_gguf)
    with pytest.raises(ArtifactError, match=r"^'x': .*nowhere\.gguf: no such model file$"):
        Worker("x", sums.team(tmp_path / "nowhere.gguf"))
    alien = team.model_copy(update={"agents": (team.agents[0].model_copy(update={"model": "gpt"}), team.agents[1])})
    worker = Worker("x", alien)
    with pytest.raises(UsageError, match=r"^'x': the gguf engine runs one model .* an agent asks for 'gpt'$"):
        worker.ask(sums.questions(1)[0], 0)
    worker.close()
    worker = Worker("x", team)
    worker.child.process.send_signal(signal.SIGKILL)
    worker.child.process.wait()
    with pytest.raises(EngineError, match=r"^'x': its process was killed \(SIGKILL\); is there enough memory\?$"):
        worker.ask(sums.questions(1)[0], 0)
    worker.close()
    worker.close()
    worker = Worker("x", team)
    with pytest.raises(EngineError, match=r"^'x': its process ended with code 1: .*unpack"):
        worker.ask(sums.questions(1)[0].model_copy(update={"question": "no numbers here"}), 0)
    worker.close()


def every_kind(kind=SoloistError):
    return [kind, *(below for each in kind.__subclasses__() for below in every_kind(each))]


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_an_error_of_a_worker_ends_this_process_with_the_same_code(kind):
    from soloist.toolchain.teams.process import _error

    raised = kind("torch", "train") if kind is MissingExtraError else kind("no such thing; make it")
    found = _error(raised.exit_code, f"'x': {raised}")
    assert isinstance(raised, type(found)) and found.exit_code == raised.exit_code
    assert str(found) == f"'x': {raised}"


def test_baselines_are_on_the_teams_model_and_within_its_budget(sums, one_thread, tiny_smollm2_gguf, tmp_path):
    team = sums.team(tiny_smollm2_gguf)
    base, drawn, acting = baselines(team, [], ["calc"], budget=200)
    assert [s.kind for s in (base, drawn, acting)] == ["base", "self-consistency", "tool-agent"]
    assert {s.team.engine.model for s in (base, drawn, acting)} == {str(tiny_smollm2_gguf)}
    assert (base.team.tools, drawn.team.tools, acting.team.tools) == ((), (), team.tools)
    assert len(baselines(team, [], [], budget=200)) == 2, "a student without tools has no baseline with them"
    with Worker("self-consistency", drawn.team) as worker:
        run = worker.ask(sums.questions(1)[0], 0)
    spent = [turn.tokens_in + turn.tokens_out for turn in run.calls]
    mean = sum(spent) / len(spent)
    assert len(spent) > 2 and abs(sum(spent) - 200) <= mean, "the budget is used, within a sample's size"


def test_a_lone_model_gets_few_slots_and_a_long_context(sums, tmp_path):
    alone = lone("x", sums.team(tmp_path / "m.gguf"), AgentConfig(name="x", role="solver", sampling=SamplingConfig()))
    assert (alone.engine.slots, alone.engine.context, alone.topology) == (4, 4096, "solo")


def test_a_finished_measurement_is_reused(sums, three, fake, tmp_path):
    asked = sums.questions(2, "held-out")
    made = measure(three, asked, [], tmp_path / "out")
    assert measure(three, asked, [], tmp_path / "out").digest == made.digest
    assert len(fake.asked) == 6
    measure(three, asked[:1], [], tmp_path / "out")
    assert len(fake.asked) == 9, "other questions are another measurement"
    assert Artifact.open(tmp_path / "out").read(BenchFacts).counts["a/held-out"] == Count(n=1, correct=1)
