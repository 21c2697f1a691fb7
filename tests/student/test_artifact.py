"""A student's card: written whole, read strictly, the same model as the facts of its manifest."""

from __future__ import annotations

import json

import pytest

from soloist.kernels.errors import ArtifactError
from soloist.toolchain.core.artifact import stage
from soloist.toolchain.student.artifact import (
    CARD,
    DataFacts,
    StudentCard,
    StudentFacts,
    TrainingFacts,
    base_digest,
    read_card,
)

DATA = DataFacts(kept=2, rejected={"no correct answer": 1}, tokens=30, trained_tokens=12, conversations=2)
PASS = TrainingFacts(steps=3, processes=1, tokens=90, trained_tokens=36, computed_tokens=96, seconds=1.5)


def facts_of(**changes):
    made = {"method": "sft", "mode": "tools", "tuning": "full", "base": "tiny", "base_digest": "ab"}
    made |= {"tools": ("add",), "options": {"agent": None}, "precision": "float32", "data": DATA, "training": PASS}
    return StudentFacts(**{**made, **changes})


def test_the_card_is_the_facts_without_the_training(tmp_path):
    facts = facts_of()

    def build(folder):
        facts.write(folder)
        return facts

    made = stage("distill", tmp_path / "student", {}, [], build)
    assert made.read(StudentFacts) == facts
    card = read_card(made.path)
    assert StudentFacts(**dict(card), training=PASS) == facts
    assert "training" not in json.loads((made.path / CARD).read_text()), "its seconds would change the digest"
    assert card.options == {"agent": None}, "an option that is off is still told"


@pytest.mark.parametrize(("mode", "tools"), [("tools", ("add",)), ("cot", ())])
def test_only_a_student_that_calls_tools_is_given_them(mode, tools):
    assert facts_of(mode=mode).called_tools == tools


def test_the_passes_are_the_last_one_and_its_phases():
    first = PASS.model_copy(update={"steps": 1})
    training = PASS.model_copy(update={"phases": {"sft": first}})
    assert [one.steps for one in training.passes] == [3, 1]


def test_a_folder_without_a_card_is_no_student(tmp_path):
    with pytest.raises(ArtifactError, match=f"no student of ours .it has no {CARD}"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("[]", "record: Input should be an object"), ("{", "record: Invalid JSON"), ("{}", "method: Field required")],
)
def test_a_card_of_something_else_is_refused_in_one_line(tmp_path, text, fault):
    (tmp_path / CARD).write_text(text)
    with pytest.raises(ArtifactError, match=f"not a student's card of this version .{fault}") as caught:
        read_card(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["acts", "internalise"])
def test_a_card_with_the_mode_of_an_older_version_is_refused(tmp_path, mode):
    facts_of().write(tmp_path)
    told = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({**told, "mode": mode}))
    with pytest.raises(ArtifactError, match=r"mode: Input should be 'tools' or 'cot'\); distill the student again"):
        read_card(tmp_path)


def test_a_field_of_a_later_version_is_passed_over(tmp_path):
    facts_of().write(tmp_path)
    told = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({**told, "new": 1}))
    assert isinstance(read_card(tmp_path), StudentCard)


def test_a_model_is_its_weights_and_settings_and_not_its_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "two" / "README.md").write_text("not part of it")
    assert base_digest(tmp_path / "one") == base_digest(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").write_bytes(b"others")
    assert base_digest(tmp_path / "one") != base_digest(tmp_path / "two")
    assert base_digest(tmp_path / "one" / "config.json") in base_digest(tmp_path / "one")
