"""Accuracy in pairs: the arithmetic here, real files in test_exports.py."""

import pytest

from soloist.kernels.errors import GateError, UsageError
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.core.artifact import stage
from soloist.toolchain.student.student import open_student
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.tools.files import SHIPPED
from soloist.toolchain.tools.tool_list import ToolList
from soloist.toolchain.verify import accuracy
from soloist.toolchain.verify.accuracy import AccuracyCheck, accuracy_check

QUESTIONS = tuple(Question(id=f"q{i}", question=f"What is {i} + 1?", gold=str(i + 1)) for i in range(200))
LIMIT = Tolerance(kl=1, top1=0, points=1.0)


def check(right, monkeypatch, answered):
    monkeypatch.setattr(accuracy, "run_worker", lambda job, out, limit_s, memory_mb: answered(job))
    return AccuracyCheck(QUESTIONS, (), (), tuple(right))


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"), [(2, 0, "pass"), (3, 0, "fail"), (9, 7, "pass"), (0, 5, "pass")]
)
def test_a_file_may_lose_its_points_and_no_more(lost, gained, verdict, monkeypatch, tmp_path):
    student = [1] * 150 + [0] * 50
    file = [0] * lost + [1] * (150 - lost + gained) + [0] * (50 - gained)
    checked = check(student, monkeypatch, lambda job: {"right": file}).run(tmp_path, tmp_path, LIMIT)
    accuracy = checked.accuracy
    assert checked.verdict == verdict and accuracy.points == pytest.approx((gained - lost) / 2)
    assert accuracy.low <= accuracy.points <= accuracy.high
    assert (accuracy.student, accuracy.questions) == (150, 200)
    assert accuracy.lost == tuple(f"q{i}" for i in range(min(lost, 5)))
    if verdict == "fail":
        assert "loses 1.5 points of accuracy (at most 1): 147 of 200 right, the 16-bit student 150" in checked.reason


def test_a_file_that_cannot_be_asked_fails(monkeypatch, tmp_path):
    def dies(job):
        raise GateError("crashed its runtime (SIGSEGV)")

    checked = check([1] * 200, monkeypatch, dies).run(tmp_path, tmp_path, LIMIT)
    assert checked.verdict == "fail" and checked.accuracy is None
    assert checked.reason == "asked the task's questions, it crashed its runtime (SIGSEGV)"


def test_the_students_answers_are_measured_once(monkeypatch, tmp_path, write_card):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def build(made):
        write_card(made, "tools", ["calc"])
        (made / "config.json").write_text("{}")
        ToolList.of([SHIPPED]).subset(["calc"]).write(made)
        return {}

    student = open_student(stage("distill", tmp_path / "student", {}, [], build))
    asked = []

    def answered(job, out, limit_s, memory_mb):
        asked.append(job)
        return {"right": [1, 0]}

    monkeypatch.setattr(accuracy, "run_worker", answered)
    monkeypatch.setattr(accuracy, "_sixteen_bits", lambda student, out: student.path)
    first = accuracy_check(student, QUESTIONS[:2], tmp_path / "scratch")
    assert first.right == (1, 0) and first.tools == ("calc",)
    assert asked[0]["team"]["agents"][0]["tools"] == ["calc"], "the card's tools are honored"
    assert accuracy_check(student, QUESTIONS[:2], tmp_path / "scratch") == first and len(asked) == 1
    accuracy_check(student, QUESTIONS[1:3], tmp_path / "scratch")
    assert len(asked) == 2, "other questions are asked"
    with pytest.raises(UsageError, match="at least one question"):
        accuracy_check(student, (), tmp_path / "scratch")
