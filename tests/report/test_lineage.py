"""What a report says about benchmarks whose test questions a student was trained on."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.core.lineage import Lineage


def _marked(context, benchmark):
    return tuple(
        run.model_copy(update={"question": run.question.model_copy(update={"benchmark": benchmark})})
        for run in context.runs
    )


def test_the_report_refuses_a_benchmark_that_the_student_was_trained_on(builder, make_context):
    runs = _marked(make_context(), "MATH")
    with pytest.raises(DataError, match="trained on test questions of MATH"):
        builder(context=make_context(runs=runs, lineage=Lineage(("MATH",))))


def test_the_report_quotes_another_benchmark_and_says_what_was_trained_on(builder, make_context):
    runs = _marked(make_context(), "GSM8K")
    caveats = builder(context=make_context(runs=runs, lineage=Lineage(("MATH",), ("traces (1f)",)))).details.caveats
    assert any("trained on test questions of MATH" in caveat for caveat in caveats)
    assert any("traces (1f) is no longer there" in caveat for caveat in caveats)
    assert not any("test questions of" in caveat for caveat in builder().details.caveats)


def test_a_report_without_students_is_not_refused(builder, make_context, measured, system_rows):
    runs = _marked(make_context(), "MATH")
    team = measured(system_rows["team"], "held-out", 80)
    report = builder(measurements=[team], context=make_context(runs=runs, lineage=Lineage(("MATH",))))
    assert report.systems[0].kind == "team"
