import pytest


def test_small_samples_are_one_line_however_many_sets_and_systems(builder, measured, system_rows):
    rows = [system_rows[kind] for kind in ("team", "base", "student", "artifact")]
    sizes = (("held-out", 25), ("unseen-wording", 4))
    few = builder(measurements=[measured(row, split, n) for row in rows for split, n in sizes])
    lines = [line for line in few.details.caveats if "questions" in line]
    assert lines == [
        "An accuracy is known to about ±15 points with 25 held-out questions and ±33 points with 4 unseen-wording "
        "questions only; below 72 questions the 95th percentiles have no interval."
    ]


def test_systems_that_failed_or_answered_a_part_share_a_line(builder, measured, system_rows):
    team = measured(system_rows["team"], "held-out", 120)
    part = [measured(system_rows[kind], "held-out", 80) for kind in ("base", "tool-agent")]
    broken = part[0].answers[0].model_copy(update={"error": "timeout", "correct": False})
    part[0] = part[0].model_copy(update={"answers": (broken, *part[0].answers[1:])})
    caveats = builder(measurements=[team, *part]).details.caveats
    assert "desk-tool-agent answered 80, smollm2-135m answered 80 of the 120 held-out questions." in caveats
    assert sum("ended in an error" in line for line in caveats) == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [({"simulated": True}, "simulated"), ({"overlap": 3}, "3 test questions"), ({"overlap": None}, "Nobody checked")],
)
def test_caveats_follow_the_facts(builder, make_context, more, says):
    said = builder(context=make_context(**more)).details.caveats
    assert any(says in line for line in said)
    assert not any(says in line for line in builder().details.caveats)


def test_recorded_and_failed_answers_become_caveats(builder, measured, system_rows):
    team = measured(system_rows["team"], "held-out", 80).model_copy(update={"label": "recorded"})
    student = measured(system_rows["artifact"], "held-out", 80)
    broken = student.answers[0].model_copy(update={"error": "timeout", "correct": False})
    student = student.model_copy(update={"answers": (broken, *student.answers[1:])})
    said = "\n".join(builder(measurements=[team, student]).details.caveats)
    assert "desk comes from an earlier run" in said
    assert f"Questions that ended in an error: 1 of {student.system_id};" in said
    assert "No wording outside" in said
