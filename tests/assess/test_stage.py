"""The stage: a scripted team run by run, recordings, what is refused, what goes on after a kill."""

from __future__ import annotations

import functools
import json

import pytest

from soloist.kernels.errors import DataError, EngineError, UsageError
from soloist.toolchain.assess import metric_freedom
from soloist.toolchain.assess.result import read_assessment
from soloist.toolchain.assess.stage import AssessConfig, AssessFacts, assess, assessment_of, score_of
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.events import EventLog
from soloist.toolchain.record.repeats import Sampled, varied
from soloist.toolchain.record.team import record
from soloist.toolchain.teams.config import load_team
from soloist.toolchain.traces.store import read_runs, write_runs


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """What the interval holds has tests of its own."""
    monkeypatch.setattr(metric_freedom, "bootstrap", functools.partial(metric_freedom.bootstrap, resamples=50))


def number_of(seed):
    """Which run a seed belongs to."""
    return (seed - 42) // 100_000


def first_of(text):
    return int(text.split()[2])


def rigid(text, seed):
    """Right or wrong by run: whoever says something else scores differently."""
    return f"calc({first_of(text)} + {3 if number_of(seed) % 2 else 4})"


def free(text, seed):
    """Every run says something else, half of each kind of wording is right."""
    n, run = first_of(text), number_of(seed)
    return [
        f"calc({n} + 3)",
        f"calc(3 + {n})",
        f"calc({n} + 1 + 1 + 1)",
        f"calc({n})",
        f"calc(7 - {n} - {n})",
        f"calc({n} * 9)",
    ][run]


@pytest.fixture
def asked(question):
    return [question(n) for n in range(10, 16)]


@pytest.fixture
def assessed(team, script, asked, tmp_path):
    def run(say, config=None, **more):
        made = assess(config or AssessConfig(), team, tmp_path / "assess", questions=asked, engine=script(say), **more)
        return read_assessment(made.path / "assessment.json"), made

    return run


def test_a_rigid_metric_has_f_0(assessed):
    result, made = assessed(rigid)
    output = result.find("output", "verdict")
    assert output.value == pytest.approx(0, abs=1e-9)
    assert output.defined == 6
    # 3 right and 3 wrong of 6: 720 orders fall into 10 splits, so p is 1/10 for one question and far less for six
    assert [question.p for question in output.questions] == pytest.approx([0.1] * 6)
    assert output.p < 0.001
    assert result.find("trace", "verdict").value == pytest.approx(0, abs=1e-9)
    assert (result.advice.side, result.advice.outlook, result.advice.refine) == ("rigid", "likely to help", False)
    assert (result.runs, result.questions, result.mean_score, result.temperature) == (36, 6, 0.5, 0.7)
    assert result.distance == "edits of tokens"
    assert made.read(AssessFacts).metric_freedom == output.value
    assert made.manifest["stage"] == "assess"


def test_a_freer_metric_has_a_larger_f_and_v1_disagrees(assessed, tmp_path):
    loose = assessed(free)[0]
    value = loose.find("output", "verdict").value
    assert value > 0.3
    v1 = assessed(free, AssessConfig(rule="v1"))[0]
    assert v1.find("output", "verdict").value == value
    assert v1.advice.refine is not loose.advice.refine


def test_constant_scores_are_undefined(assessed):
    result, made = assessed(lambda text, seed: f"calc({first_of(text)} + 3)")
    assert result.find("output", "verdict").value is None
    assert made.read(AssessFacts).metric_freedom is None
    assert result.advice.outlook == "cannot say"
    assert result.mean_score == 1
    assert any("every run has the score 1" in line for line in result.warnings)


def test_every_file_is_there_and_the_agent_is_a_team_file(assessed):
    _, made = assessed(rigid)
    assert set(made.manifest["files"]) == {
        "assessment.json",
        "skill_card.md",
        "skill_card.json",
        "skill_agent.yaml",
        "traces.jsonl.gz",
    }
    agent = load_team(str(made.path / "skill_agent.yaml"))
    assert agent.topology == "solo"
    assert agent.agents[0].tools == ("calc",)
    assert agent.agents[0].demonstrations
    runs = list(read_runs(made.path / "traces.jsonl.gz"))
    assert len(runs) == 36
    assert len({run.question.id for run in runs[:6]}) == 1
    assert len({r.seed for r in runs}) == 6


def test_agents_are_warmed_but_for_those_who_hand_on(team, script, asked, tmp_path):
    engine = script(rigid)
    assess(
        AssessConfig(temperature=0.9, approaches=("Add.", "Subtract.")),
        team,
        tmp_path / "g",
        questions=asked,
        engine=engine,
    )
    assert {ask.sampling.temperature for ask in engine.asks} == {0.9}
    assert len({ask.sampling.seed for ask in engine.asks}) == 6
    assert {ask.messages[0]["content"] for ask in engine.asks} == {"Only add.\nAdd.", "Only add.\nSubtract."}
    assert not engine.closed, "whoever opened the engine closes it"
    warm = varied(team, Sampled(), 0)
    assert [agent.sampling.temperature for agent in warm.agents] == [0.7, 0]
    assert [agent.prompt for agent in warm.agents] == ["Only add.", ""]


def test_a_killed_recording_goes_on(team, script, asked, tmp_path):
    def dies(text, seed):
        if number_of(seed) == 2 and first_of(text) == 12:
            raise KeyboardInterrupt
        return rigid(text, seed)

    with pytest.raises(KeyboardInterrupt):
        assess(AssessConfig(), team, tmp_path / "assess", questions=asked, engine=script(dies))
    second = script(rigid)
    made = assess(AssessConfig(), team, tmp_path / "assess", questions=asked, engine=second)
    assert len(second.asks) == 36 - 14, "two rounds of six and two questions were there"
    assert read_assessment(made.path / "assessment.json").runs == 36
    third = script(rigid)
    assess(AssessConfig(), team, tmp_path / "assess", questions=asked, engine=third)
    assert third.asks == []


def test_runs_the_engine_failed_on_are_left_out(assessed):
    def fails(text, seed):
        if number_of(seed) == 0 or (first_of(text) == 10 and number_of(seed) < 4):
            raise EngineError("no server")
        return rigid(text, seed)

    seen = []
    result, _ = assessed(fails, events=EventLog(None, (seen.append,)))
    assert (result.questions, result.runs) == (5, 25)
    assert "1 of 6 questions left out: fewer than 3 judged runs" in result.warnings
    assert any("fewer than 6 runs (down to 5)" in line for line in result.warnings)
    assert sum(e["event"] == "warning" and e["text"] == "no server" for e in seen) == 9


def test_recordings_with_other_seeds_are_read_and_bring_their_team(team, script, asked, tmp_path, monkeypatch):
    monkeypatch.setattr("soloist.toolchain.teams.team.open_engine", lambda config: script(rigid))
    seeds = [42 + 100_000 * n for n in range(6)]
    folders = [record(team, asked, tmp_path / f"t{n}", seed=seed).path for n, seed in enumerate(seeds)]
    made = assess(AssessConfig(), None, tmp_path / "assess", recordings=folders)
    result = read_assessment(made.path / "assessment.json")
    assert result.find("output", "verdict").value == pytest.approx(0, abs=1e-9)
    assert (result.team, result.temperature, result.seconds) == ("adder", None, 0)
    assert (made.path / "skill_agent.yaml").is_file()
    again = assess(AssessConfig(), None, tmp_path / "again", recordings=[made.path])
    assert read_assessment(again.path / "assessment.json").freedom == result.freedom, (
        "its own traces are a recording too"
    )
    with pytest.raises(DataError, match=r"one run per question: .* at least 3 \(6 are advised\) runs of the same"):
        assess(AssessConfig(), None, tmp_path / "one", recordings=folders[:1])
    with pytest.raises(DataError, match="at most 2 runs per question"):
        assess(AssessConfig(), None, tmp_path / "two", recordings=folders[:2])


def test_a_run_in_two_recordings_counts_once(assessed, tmp_path):
    alone, made = assessed(free)
    kept = made.path / "traces.jsonl.gz"
    write_runs([*read_runs(kept)][:5], tmp_path / "part.jsonl.gz")
    for number, files in enumerate(([kept, kept], [tmp_path / "part.jsonl.gz", made.path])):
        again = assess(AssessConfig(), None, tmp_path / f"again{number}", recordings=files)
        result = read_assessment(again.path / "assessment.json")
        assert result.freedom == alone.freedom
        assert result.runs == 36
        assert f"{[36, 5][number]} runs stand in more than one of the recordings; each counts once" in result.warnings


def test_known_traces_add_to_the_card_alone(assessed, run_of, tmp_path):
    more = tmp_path / "more.jsonl.gz"
    write_runs([run_of([("gcd(4, 6)", "2")], number=77, task="divisors")], more)
    alone, with_more = assessed(rigid)[0], assessed(rigid, known=[more])
    assert with_more[0].freedom == alone.freedom
    card = json.loads((with_more[1].path / "skill_card.json").read_text())
    assert card["runs"] == 37
    assert "divisors" in [skill["family"] for skill in card["skills"]]


def test_what_cannot_be_compared_is_refused_in_one_line(team, script, asked, run_of, tmp_path):
    with pytest.raises(DataError, match="nothing to look at"):
        assess(AssessConfig(), team, tmp_path / "g")
    with pytest.raises(DataError, match="no traces here"):
        assess(AssessConfig(), None, tmp_path / "g", recordings=[tmp_path])
    with pytest.raises(UsageError, match="engine of team 'adder' shows no hidden states"):
        assess(AssessConfig(distance="embedding"), team, tmp_path / "g", questions=asked, engine=script(rigid))
    unjudged = [run_of([("calc(2 + 3)", "5")]).model_copy(update={"verdict": "unknown"}) for _ in range(6)]
    write_runs(unjudged, tmp_path / "u.jsonl.gz")
    with pytest.raises(DataError, match="no run ended with a verdict"):
        assess(AssessConfig(), None, tmp_path / "g", recordings=[tmp_path / "u.jsonl.gz"])
    with pytest.raises(UsageError, match="recorded runs have no engine"):
        assess(AssessConfig(distance="embedding"), None, tmp_path / "g", recordings=[tmp_path / "u.jsonl.gz"])


def test_runs_of_several_teams_are_refused(run_of, tmp_path):
    runs = [run_of([(f"calc({n} + 3)", str(n + 3))], seed=n) for n in range(6)]
    others = [run.model_copy(update={"team": "other"}) for run in runs]
    for name, made in (("one", runs), ("other", others)):
        write_runs(made, tmp_path / f"{name}.jsonl.gz")
    with pytest.raises(DataError, match=rf"runs of several teams \(({runs[0].team}, other|other, {runs[0].team})\)"):
        assess(
            AssessConfig(), None, tmp_path / "g", recordings=[tmp_path / "one.jsonl.gz", tmp_path / "other.jsonl.gz"]
        )


def test_hidden_states_are_used_where_the_engine_shows_them(team, script, asked, tmp_path):
    class Shows(script):
        def embed(self, text):
            import numpy as np

            return np.array([len(text), text.count("3"), 1.0], np.float32), 1

    made = assess(AssessConfig(), team, tmp_path / "assess", questions=asked, engine=Shows(rigid))
    result = read_assessment(made.path / "assessment.json")
    assert result.distance == "1 - cosine of hidden states"
    assert result.find("output", "verdict").value == pytest.approx(0, abs=1e-9)
    edits = assess(AssessConfig(distance="edit"), team, tmp_path / "edit", questions=asked, engine=Shows(rigid))
    assert read_assessment(edits.path / "assessment.json").distance == "edits of tokens"


def test_the_score_of_turns_is_the_share_of_judged_turns(run_of):
    run = run_of([("calc(2 + 3) then", "5"), ("calc(5)", "5"), ("calc(", None)])
    turns = (run.turns[0].model_copy(update={"verdict": "wrong"}), *run.turns[1:])
    mixed = run.model_copy(update={"turns": turns})
    assert (score_of(mixed, "turns"), score_of(mixed, "verdict")) == (0.5, 0)
    assert score_of(run_of([("calc(", None)]), "turns") is None


def test_advice_by_turns_needs_judged_turns(run_of, tmp_path):
    write_runs([run_of([("calc(", None)], seed=n) for n in range(6)], tmp_path / "mute.jsonl.gz")
    with pytest.raises(DataError, match="no run has a judged turn"):
        assess(AssessConfig(score="turns"), None, tmp_path / "g", recordings=[tmp_path / "mute.jsonl.gz"])


def test_a_job_shows_only_the_assessment_of_its_own_team(assessed, tmp_path):
    assert assessment_of(tmp_path, "adder") is None
    result, _ = assessed(rigid)
    assert assessment_of(tmp_path, "adder") == result
    assert assessment_of(tmp_path, "desk") is None


def test_a_damaged_result_is_named(tmp_path):
    with pytest.raises(DataError, match="make it with 'soloist assess'"):
        read_assessment(tmp_path / "assessment.json")
    (tmp_path / "assessment.json").write_text('{"team": 3}')
    with pytest.raises(DataError, match="not an assessment: team: "):
        read_assessment(tmp_path / "assessment.json")


def test_the_artifact_verifies(assessed):
    _, made = assessed(rigid)
    assert Artifact.open(made.path, stage="assess").digest == made.digest
