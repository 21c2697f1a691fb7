import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.bench.records import Answered, Measurement, load_measurements, save_measurements

ONE = Measurement(
    system_id="desk",
    split="held-out",
    kind="team",
    answers=(Answered(question_id="q1", task="sums", correct=True, seconds=1.5, ttft=1.2, error="timeout"),),
)


def test_measurements_round_trip(tmp_path):
    save_measurements(tmp_path / "m.json", [ONE, ONE])
    assert load_measurements(tmp_path / "m.json") == (ONE, ONE)


@pytest.mark.parametrize(
    ("text", "names"),
    [("[{}]", "system_id"), ("{", "JSON"), ("{}", "array")],
)
def test_alien_measurements_are_refused_by_field(tmp_path, text, names):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match="not measurements of ours") as caught:
        load_measurements(tmp_path / "m.json")
    assert "m.json" in str(caught.value)
    assert names in str(caught.value)


def test_all_faults_of_measurements_are_told_at_once(tmp_path):
    (tmp_path / "m.json").write_text(
        '[{"system_id": "desk", "split": "train", "kind": "team", "mood": 1, "answers": []}]'
    )
    with pytest.raises(DataError) as caught:
        load_measurements(tmp_path / "m.json")
    said = str(caught.value)
    for part in ("0.split: Input should be", "0.answers: Tuple should have at least 1 item", "0.mood: unknown field"):
        assert part in said
    assert said.count("; ") == 2 and "\n" not in said


def test_missing_measurements_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="measure first"):
        load_measurements(tmp_path / "none.json")
