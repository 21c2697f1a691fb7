import math

import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.bench.cost import LocalPrice, Spend
from soloist.toolchain.core.statistics import wilson


def test_systems_stand_in_a_fixed_order(report):
    kinds = [system.kind for system in report.of("held-out")]
    assert kinds[:4] == ["team", "self-consistency", "tool-agent", "base"]
    assert kinds[-1] == "artifact"
    assert [s.id for s in report.of("unseen-wording")] == [s.id for s in report.of("held-out")]


def test_numbers_come_from_the_answers(builder, measured, system_rows):
    team = measured(system_rows["team"], "held-out", 80)
    student = measured(system_rows["artifact"], "held-out", 80)
    price = LocalPrice(usd_per_hour=3.6)
    report = builder(measurements=[student, team], price=price, spend=Spend(1, 1, 1))
    found = report.find(student.system_id, "held-out")
    share = wilson(student.correct, 80)
    assert (found.n, found.correct) == (80, student.correct)
    assert (found.accuracy.low, found.accuracy.high) == (share.low, share.high)
    gain = (student.correct - team.correct) / 80
    assert math.isclose(found.vs_team.difference, gain)
    mean = sum(a.seconds for a in student.answers) / 80
    assert math.isclose(found.usd_per_1k, mean)  # 3.6 dollars an hour = 1 dollar per 1,000 busy seconds
    slower = report.find(team.system_id, "held-out").usd_per_1k
    assert report.break_even_questions == math.ceil(3 / (slower - found.usd_per_1k) * 1000)
    assert report.find(team.system_id, "held-out").vs_team is None


def test_extras_count_against_the_team(report):
    for extra in report.details.extras:
        system = report.find(extra.system, extra.split)
        assert len(extra.latencies) == system.n
        if system.kind != "team":
            assert extra.kept + extra.gained == system.correct
            assert extra.kept + extra.gained + extra.lost + extra.neither == system.n


def test_percentile_interval_is_absent_below_72(builder):
    few, enough = builder(n=71), builder(n=72)
    assert all(extra.p95_interval is None for extra in few.details.extras)
    assert all(extra.p95_interval is not None for extra in enough.details.extras)
    assert any("95th percentiles have no interval" in line for line in few.details.caveats)
    assert not any("95th percentiles have no interval" in line for line in enough.details.caveats)


def test_unpriced_is_null_and_never_zero(builder):
    report = builder(price=LocalPrice(), spend=Spend())
    assert {system.usd_per_1k for system in report.systems} == {None}
    assert report.break_even_questions is None
    assert "not known" in report.details.break_even_reason


def test_api_system_is_priced_by_its_calls_or_not_at_all(builder, measured, system_rows):
    local = measured(system_rows["artifact"], "held-out", 40)
    team = measured(system_rows["team"], "held-out", 40).model_copy(update={"where": "api"})
    priced = team.model_copy(update={"answers": tuple(a.model_copy(update={"usd": 0.002}) for a in team.answers)})
    partly = team.model_copy(update={"answers": (*priced.answers[:-1], team.answers[-1])})
    assert math.isclose(builder(measurements=[priced, local]).find("desk", "held-out").usd_per_1k, 2.0)
    assert builder(measurements=[partly, local]).find("desk", "held-out").usd_per_1k is None
    assert builder(measurements=[team, local]).find("desk", "held-out").usd_per_1k is None


def test_headline_is_the_best_file_and_the_faster_on_a_tie(report):
    best = report.find(report.details.headline, "held-out")
    baselines = [s for s in report.of("held-out") if s.kind == "artifact"]
    assert best.correct == max(s.correct for s in baselines)
    assert best.latency_s.p50 == min(s.latency_s.p50 for s in baselines if s.correct == best.correct)


def test_roles_add_up_to_the_run(report):
    run, roles = report.details.anatomy, report.details.roles
    assert sum(role.tokens_in for role in roles) == run.tokens_in
    assert sum(role.calls for role in roles) == len(run.calls)
    assert "critic" not in {role.role for role in roles}  # no model answered there


def test_a_team_on_a_part_of_the_questions_is_compared_on_that_part(builder, measured, system_rows):
    team = measured(system_rows["team"], "held-out", 20)
    student = measured(system_rows["artifact"], "held-out", 60)
    report = builder(measurements=[team, student], rows=())
    (extra,) = [one for one in report.details.extras if one.system == student.system_id]
    assert extra.kept + extra.gained + extra.lost + extra.neither == 20
    assert report.find(student.system_id, "held-out").n == 60


def test_what_cannot_be_compared_is_refused(builder, measured, system_rows):
    team = measured(system_rows["team"], "held-out", 40)
    student = measured(system_rows["artifact"], "held-out", 40)
    longer = measured(system_rows["artifact"], "held-out", 41)
    other = longer.model_copy(update={"answers": longer.answers[40:]})
    twice = student.model_copy(update={"answers": (*student.answers, student.answers[0])})
    baseline = team.model_copy(update={"system_id": "other"})
    with pytest.raises(DataError, match="nothing to report"):
        builder(measurements=None, rows=())
    for wrong, says in (
        ([team, team], "twice"),
        ([twice], "twice"),
        ([team, other], "no question of held-out in common"),
        ([team, baseline], "2 teams"),
    ):
        with pytest.raises(DataError, match=says):
            builder(measurements=wrong)


def test_a_baseline_on_a_part_of_the_questions_is_compared_on_that_part(builder, measured, system_rows):
    team = measured(system_rows["team"], "held-out", 80)
    part = measured(system_rows["self-consistency"], "held-out", 40)
    report = builder(measurements=[team, part])
    shared = [a.correct for a in team.answers[:40]]
    found = report.find(part.system_id, "held-out")
    assert math.isclose(found.vs_team.difference, (part.correct - sum(shared)) / 40)
    assert any("answered 40 of the 80" in line for line in report.details.caveats)
