import pytest

from soloist.toolchain.bench.cost import LocalPrice
from soloist.toolchain.report.format import find, names, outcome, percent, points, seconds, significant, times, usd
from soloist.toolchain.report.schema import Difference


def pair(builder, measured, system_rows, student, team, *, pace=0.3):
    """A report of a team and one file with these accuracies, sharing the questions they get wrong."""
    n = 200

    def fixed(row, share, median):
        made = measured(row, "held-out", n, median=median)
        answers = [a.model_copy(update={"correct": i < round(share * n)}) for i, a in enumerate(made.answers)]
        return made.model_copy(update={"answers": tuple(answers)})

    return builder(measurements=[fixed(system_rows["team"], team, 3.0), fixed(system_rows["artifact"], student, pace)])


def test_sentence_when_the_student_wins(builder, measured, system_rows):
    found = find(pair(builder, measured, system_rows, 0.97, 0.85))
    assert found.outcome == "better"
    assert found.sentence.startswith(
        "The student answers 97% of the held-out questions against the team's 85%, better than the team and "
    )
    assert found.sentence.endswith("× faster.")


def test_sentence_when_the_student_loses(builder, measured, system_rows):
    found = find(pair(builder, measured, system_rows, 0.70, 0.93))
    assert found.outcome == "worse"
    assert "70% of the held-out questions against the team's 93%, worse than the team although" in found.sentence
    assert "faster" in found.sentence


def test_sentence_when_the_student_loses_and_is_slow(builder, measured, system_rows):
    found = find(pair(builder, measured, system_rows, 0.70, 0.93, pace=9.0))
    assert "worse than the team and" in found.sentence
    assert found.sentence.endswith("× slower.")


def test_sentence_when_nothing_can_be_said(builder, measured, system_rows):
    found = find(pair(builder, measured, system_rows, 0.93, 0.935))
    assert found.outcome == "within chance"
    assert "a difference within chance, and is" in found.sentence


def test_sentence_when_better_but_slower(builder, measured, system_rows):
    found = find(pair(builder, measured, system_rows, 0.97, 0.85, pace=9.0))
    assert "better than the team but" in found.sentence


def test_sentence_without_team_or_student(builder, system_rows):
    alone = find(builder([system_rows["artifact"]]))
    assert alone.outcome == "none"
    assert "no team was measured" in alone.sentence
    teams = find(builder([system_rows["team"]]))
    assert "No student was measured" in teams.sentence
    assert "desk answers" in teams.sentence


def test_rest_names_the_interval_the_unseen_wordings_and_the_break_even(report):
    rest = " ".join(find(report).rest)
    assert "95% interval, n = 120" in rest
    assert "On wordings it never saw" in rest
    assert f"{report.break_even_questions:,} questions" in rest


def test_rest_says_what_was_not_measured_now(builder, measured, system_rows):
    team = measured(system_rows["team"], "held-out", 80).model_copy(update={"label": "recorded"})
    student = measured(system_rows["artifact"], "held-out", 80)
    assert "recorded" in " ".join(find(builder(measurements=[team, student])).rest)


def test_rest_does_not_invent_a_break_even(builder):
    assert "Break-even: not known" in " ".join(find(builder(price=LocalPrice(), spend=None)).rest)


def test_outcome_needs_the_whole_interval():
    assert outcome(Difference(difference=0.1, low=0.0, high=0.2)) == "within chance"
    assert outcome(Difference(difference=0.1, low=0.01, high=0.2)) == "better"
    assert outcome(Difference(difference=-0.1, low=-0.2, high=-0.01)) == "worse"
    assert outcome(None) == "none"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (0.001, "0.1%"), (0.999, "99.9%"), (1.0, "100%"), (0.934, "93%")],
)
def test_percent_never_rounds_to_all_or_nothing(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (0.0042, "4.2 ms"),
        (0.0616, "62 ms"),
        (0.0999, "0.10 s"),
        (0.3, "0.30 s"),
        (9.96, "10 s"),
        (2.84, "2.8 s"),
        (119.6, "2 min"),
        (7300, "2 h"),
    ],
)
def test_seconds_reads_well(value, text):
    assert seconds(value) == text


def test_small_numbers_keep_their_digits():
    assert significant(0.000039712) == "0.00004"
    assert significant(12345.6) == "12,000"
    assert significant(0) == "0"
    assert (usd(None), usd(0.0035), usd(0.1), usd(1234.5)) == ("n/a", "$0.0035", "$0.10", "$1,234.50")
    assert (times(1.44), times(9.1), times(11.7)) == ("1.4×", "9.1×", "12×")
    assert (points(0.04), points(-0.081), points(0.001)) == ("+4", "−8", "0")


def test_names_tell_systems_apart(report):
    systems = report.of("held-out")
    short = names(systems)
    assert len(set(short.values())) == len(systems)
    twins = [s.model_copy(update={"id": f"x{i}"}) for i, s in enumerate([systems[-1]] * 2)]
    assert set(names(twins).values()) == {f"{systems[-1].format} · x0", f"{systems[-1].format} · x1"}
