"""The desk's main job: its recording, and the questions its team is recorded and measured on."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from soloist.kernels.errors import UsageError
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.desk import questions as desk
from soloist.toolchain.desk.job import desk_test, desk_train, questions_for, recorded
from soloist.toolchain.teams.config import load_team
from soloist.toolchain.tools.files import SHIPPED
from soloist.toolchain.tools.tool_list import ToolList
from soloist.toolchain.traces.recording import RECORD, TRACES, TraceFacts, summarize
from soloist.toolchain.traces.store import read_runs

pytest.importorskip("reasoning_gym", reason="the desk's questions come from reasoning-gym")


@pytest.fixture(scope="module")
def team():
    return load_team("desk")


def test_the_recording_that_ships_is_whole_and_of_the_team_that_ships(team):
    recording = Artifact.open(recorded(), stage=RECORD)
    config = recording.manifest["config"]["team"]
    config["engine"]["threads"] = None  # as many as the machine that recorded it was given
    assert config == json.loads(team.model_dump_json())


def test_the_recording_says_what_its_runs_say():
    recording = Artifact.open(recorded(), stage=RECORD, verify=False)
    facts = recording.read(TraceFacts)
    assert facts.tools == ToolList.of([SHIPPED])
    assert facts == summarize(list(read_runs(recording.path / TRACES)), facts.tools)


def test_held_out_questions_come_first_then_unseen_wordings_of_all_families(team):
    families = team.options["families"]
    asked = desk_test(team, 20, len(families))
    splits = Counter(question.split for question in asked)
    assert splits == {"held-out": 20, "unseen-wording": len(families)}
    assert {question.task for question in asked[20:]} == set(families)
    desk.assert_disjoint(desk_train(team, 200), asked)


def test_a_team_without_families_of_its_own_is_asked_of_all(team):
    options = {name: value for name, value in team.options.items() if name != "families"}
    asked = desk_train(team.model_copy(update={"options": options}), len(desk.FAMILIES))
    assert {question.task for question in asked} == set(desk.FAMILIES)


def test_questions_for_a_team_come_from_its_file_or_are_the_desks(team, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(5)))
    assert [question.gold for question in questions_for(team, file, 3)] == ["1", "2", "3"]
    asked = questions_for(team, None, 4)
    assert len({question.task for question in asked}) == 4
    assert {question.split for question in asked} == {"train"}
    for change in ({"topology": "debate"}, {"options": {**team.options, "specialties": "mine.questions"}}):
        with pytest.raises(UsageError, match="needs questions: --questions FILE"):
            questions_for(team.model_copy(update=change), None, 4)
