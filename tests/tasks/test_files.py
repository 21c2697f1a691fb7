import json

import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.tasks.base import score
from soloist.toolchain.tasks.files import load_questions


def write(path, *rows):
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8"
    )
    return path


def test_questions_of_every_scorer_are_read_and_scored(tmp_path):
    rows = [
        {"question": "Capital of France?", "answer": "Paris"},
        {"question": "2 + 2?", "answer": 4, "scorer": "number", "id": "sum", "task": "sums"},
        {"question": "Sky?", "answer": "B", "scorer": "choice", "choices": ["red", "blue"]},
        {"question": "A year?", "scorer": "regex", "pattern": "[0-9]{4}"},
        {"question": "Shout?", "answer": "hey", "scorer": "soloist.toolchain.tasks.base:score_exact"},
    ]
    loaded = load_questions(write(tmp_path / "mine.jsonl", *rows, ""))
    questions = loaded.questions
    assert [q.id for q in questions] == ["mine-00001", "sum", "mine-00003", "mine-00004", "mine-00005"]
    assert [score(a, q) for a, q in zip(["paris", "4.0", "blue", "1999", "HEY"], questions, strict=True)] == [True] * 5
    assert (questions[1].task, questions[0].split, questions[0].source) == ("sums", "test", "mine.jsonl")
    assert loaded.duplicates == 0


def test_the_same_text_again_is_dropped_and_counted(tmp_path):
    row = {"question": "Capital of France?", "answer": "Paris"}
    loaded = load_questions(write(tmp_path / "q.jsonl", row, {**row, "question": "capital  of france?"}, row))
    assert (len(loaded.questions), loaded.duplicates) == (1, 2)


def test_every_fault_is_reported_with_line_and_field(tmp_path):
    path = write(
        tmp_path / "bad.jsonl",
        {"question": "a?", "answer": "1", "colour": "red"},
        {"question": "b?"},
        '{"question": "c?", ',
        "[1, 2]",
        {"question": 5, "answer": ["x"]},
        {"question": "d?", "answer": " "},
        {"question": "e?", "answer": "A", "scorer": "choice"},
        {"question": "f?", "answer": "A", "choices": "ab"},
        {"question": "g?", "answer": "(", "scorer": "regex"},
        {"question": "h?", "answer": "1", "scorer": "fuzzy"},
        {"question": "i?", "answer": "1", "id": "same"},
        {"question": "j?", "answer": "1", "id": "same"},
        {"question": "i?", "answer": "2"},
        {"question": "k?", "answer": True},
    )
    with pytest.raises(DataError) as caught:
        load_questions(path)
    lines = str(caught.value).splitlines()
    expected = [
        (1, "colour: unknown field"),
        (2, "answer: missing"),
        (3, "not JSON"),
        (4, "must be a JSON object, is list"),
        (5, "question: must be a text, is int"),
        (5, "answer: must be a text, is list"),
        (6, "answer: must not be empty"),
        (7, "choices: scorer 'choice' needs at least two"),
        (8, "choices: must be a list of texts"),
        (9, "answer: not a regular expression"),
        (10, "scorer: unknown scorer 'fuzzy'"),
        (12, "id: 'same' is that of line 11"),
        (13, "answer: line 11 has the same question with another answer"),
        (14, "answer: must be a text, is bool"),
    ]
    for number, fault in expected:
        assert any(line.startswith(f"{path}:{number}: {fault}") for line in lines), fault
    assert len(lines) == len(expected)


def test_many_faults_are_cut_short_with_a_count(tmp_path):
    with pytest.raises(DataError, match=r"and 10 more"):
        load_questions(write(tmp_path / "q.jsonl", *["nonsense"] * 30))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_questions(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no questions"):
        load_questions(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9?"}')
    with pytest.raises(DataError, match="not UTF-8"):
        load_questions(tmp_path / "latin.jsonl")
