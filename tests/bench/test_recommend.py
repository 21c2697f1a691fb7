"""Which file is handed over: chosen on both sets, and never on the questions that are reported."""

from soloist.toolchain.bench.recommend import recommend
from soloist.toolchain.bench.records import Answered, Measurement


def measured(system, split, right, n, seconds=0.2, kind="artifact"):
    answers = tuple(
        Answered(question_id=f"{split}-{i}", task="sums", correct=i < right, seconds=seconds) for i in range(n)
    )
    return Measurement(system_id=system, split=split, kind=kind, answers=answers, size_mb=90)


def both(system, known, unseen, seconds):
    return [
        measured(system, "selection", known, 60, seconds),
        measured(system, "selection-wording", unseen, 40, seconds),
    ]


def test_a_fast_file_that_forgets_unseen_wordings_is_not_taken():
    found = recommend([*both("q4_0", 57, 20, 0.16), *both("ours", 57, 23, 0.18), *both("q8_0", 57, 24, 0.23)])
    assert found.system == "ours", "57 of 60 everywhere; 20, 23 and 24 of 40: 72.5, 76.25 and 77.5 % in the mean"
    assert [one.system for one in found.candidates] == ["q8_0", "ours", "q4_0"]
    assert [round(one.score, 4) for one in found.candidates] == [0.775, 0.7625, 0.725]
    assert "2 score within 2 points of the best (q8_0, 77.5 %)" in found.reason


def test_a_file_that_is_better_by_more_than_the_margin_is_taken_though_it_is_slower():
    assert recommend([*both("ours", 57, 21, 0.18), *both("f16", 57, 24, 0.26)]).system == "f16"


def test_reported_questions_and_other_systems_have_no_say():
    reported = [measured("q4_0", "held-out", 100, 100, 0.1), measured("q4_0", "unseen-wording", 90, 90, 0.1)]
    assert recommend(reported) is None
    team = measured("team", "selection", 60, 60, 0.01, kind="team")
    assert recommend([team, *reported, *both("q8_0", 50, 20, 0.2)]).system == "q8_0"
