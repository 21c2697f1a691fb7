"""Accuracy in pairs: the arithmetic here, real files in test_exports.py."""

import pytest

from soloist.kernels.errors import GateError, UsageError
from soloist.targets.tolerances import Tolerance
from soloist.toolchain.core.artifact import stage
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.verify import accuracy
from soloist.toolchain.verify.accuracy import Exam, exam_of

QUESTIONS = tuple(Question(id=f"q{i}", question=f"What is {i} + 1?", gold=str(i + 1)) for i in range(200))
LIMIT = Tolerance(kl=1, top1=0, points=1.0)


def exam(right, monkeypatch, answered):
    monkeypatch.setattr(accuracy, "run_worker", lambda job, out, limit_s, memory_mb: answered(job))
    return Exam(QUESTIONS, (), (), tuple(right))


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"), [(2, 0, "pass"), (3, 0, "fail"), (9, 7, "pass"), (0, 5, "pass")]
)
def test_a_file_may_lose_its_points_and_no_more(lost, gained, verdict, monkeypatch, tmp_path):
    student = [1] * 150 + [0] * 50
    file = [0] * lost + [1] * (150 - lost + gained) + [0] * (50 - gained)
    facts = exam(student, monkeypatch, lambda job: {"right": file}).sit(tmp_path, tmp_path, LIMIT)
    found = facts["accuracy"]
    assert facts["verdict"] == verdict and found["points"] == pytest.approx((gained - lost) / 2)
    assert found["low"] <= found["points"] <= found["high"] and (found["student"], found["questions"]) == (150, 200)
    assert found["lost"] == [f"q{i}" for i in range(min(lost, 5))]
    if verdict == "fail":
        assert "loses 1.5 points of accuracy (at most 1): 147 of 200 right, the 16-bit student 150" in facts["reason"]


def test_a_file_that_cannot_be_asked_fails(monkeypatch, tmp_path):
    def dies(job):
        raise GateError("crashed its runtime (SIGSEGV)")

    facts = exam([1] * 200, monkeypatch, dies).sit(tmp_path, tmp_path, LIMIT)
    assert facts == {"verdict": "fail", "reason": "asked the task's questions, it crashed its runtime (SIGSEGV)"}


def test_the_students_answers_are_measured_once(monkeypatch, tmp_path, write_card):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def build(made):
        write_card(made, "tools", ["calc"])
        return {}

    student = stage("distill", tmp_path / "student", {}, [], build)
    asked = []

    def answered(job, out, limit_s, memory_mb):
        asked.append(job)
        return {"right": [1, 0]}

    monkeypatch.setattr(accuracy, "run_worker", answered)
    monkeypatch.setattr(accuracy, "_whole", lambda student, out: student.path)
    first = exam_of(student, QUESTIONS[:2], tmp_path / "scratch")
    assert first.right == (1, 0) and first.tools == ("calc",)
    assert asked[0]["team"]["agents"][0]["tools"] == ["calc"], "the card's tools are honored"
    assert exam_of(student, QUESTIONS[:2], tmp_path / "scratch") == first and len(asked) == 1
    exam_of(student, QUESTIONS[1:3], tmp_path / "scratch")
    assert len(asked) == 2, "other questions are asked"
    with pytest.raises(UsageError, match="at least one question"):
        exam_of(student, (), tmp_path / "scratch")
