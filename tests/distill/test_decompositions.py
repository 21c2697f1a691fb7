"""Sub-questions: those of calls, and two formats that people wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.distill.decompositions import Decomposed, read_decompositions, sub_question, taken_apart
from soloist.toolchain.traces.schema import ToolUse

STRATEGY = (
    Path(__file__).parents[3] / "shared" / "data" / "strategyqa" / "train.json"
)  # beside the checkout, where it is


def use(name, more=False, **arguments):
    return ToolUse(name=name, arguments=arguments, call=f"{name}(…){' then' if more else ''}", result="1", steps=("s",))


def test_a_call_is_asked_for_without_its_values():
    assert sub_question(use("solve", equation="x = 1"), "tools", first=True) == "Which equation goes to solve?"
    assert sub_question(use("gcd", numbers=[1, 2]), "tools", first=True) == "Which numbers go to gcd?"
    listed = "value, from unit and to"
    convert = use("convert", value=3, from_unit="kg", to="g")
    assert sub_question(convert, "tools", first=False) == f"With that result: which {listed} go to convert?"
    assert sub_question(convert, "cot", first=True) == f"What does convert of the {listed} give?"


def test_calls_lose_the_mark_of_more_and_results_stand_between():
    asked, replies = taken_apart([use("a", more=True, x=1), use("b", y=2)], "9", "tools")
    assert len(asked) == 2
    assert replies == [
        [{"role": "assistant", "content": "a(…)"}, {"role": "tool", "content": "1"}],
        [{"role": "assistant", "content": "b(…)"}],
    ]
    assert taken_apart([use("b", y=2)], "9", "cot")[1] == [[{"role": "assistant", "content": "s\n#### 9"}]]


def test_strategyqa_is_read(tmp_path):
    file = tmp_path / "train.json"
    rows = [
        {"question": " Is it? ", "decomposition": ["What  is it?", "Is #1 so?"], "answer": True},
        {"question": "None?", "decomposition": [], "answer": True},
        {"question": "", "decomposition": ["a"]},
    ]
    file.write_text(json.dumps(rows))
    found, refused = read_decompositions(file)
    assert found == [Decomposed("Is it?", ("What is it?", "Is #1 so?"))]
    assert refused == {"an empty decomposition": 1, "no question": 1}


def test_gsm8k_socratic_is_read(tmp_path):
    file = tmp_path / "socratic.jsonl"
    good = "How many in May? ** She sold 48/2 = <<48/2=24>>24.\nAnd in all? ** 48+24 = <<48+24=72>>72.\n#### 72"
    rows = [good, "She sold 24.\n#### 24", "A? ** 1.\nno sub-question here\n#### 1", "A? ** 1."]
    file.write_text("".join(json.dumps({"question": f"Q{i}", "answer": row}) + "\n" for i, row in enumerate(rows)))
    (found,), refused = read_decompositions(file)
    assert found.sub_questions == ("How many in May?", "And in all?")
    assert found.answers == ("She sold 48/2 = 24.", "48+24 = 72.\n#### 72")
    assert refused == {"no sub-questions": 1, "a line without a sub-question": 1, "no final answer": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "it is empty"),
        ('[{"question": "Q", "answer": true}]', "1 x no sub-questions"),
        ('{"question": "Q"}\nnot json\n', r":2: neither JSON nor JSON lines"),
    ],
)
def test_a_file_of_nothing_usable_is_refused(tmp_path, content, message):
    file = tmp_path / "f.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_decompositions(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_decompositions(tmp_path / "missing")


@pytest.mark.parametrize("name", ["test_socratic.jsonl", "dev.json", "strategyqa-Test.json"])
def test_held_out_questions_are_refused_by_the_name_of_their_file(tmp_path, name):
    rows = [{"question": "Q?", "decomposition": ["a?"]}]
    (tmp_path / name).write_text(json.dumps(rows))
    with pytest.raises(DataError, match="test or dev questions, which are not for training"):
        read_decompositions(tmp_path / name)
    (tmp_path / "latest_devices.json").write_text(json.dumps(rows))
    assert len(read_decompositions(tmp_path / "latest_devices.json")[0]) == 1


def test_real_strategyqa_comes_whole():
    if not STRATEGY.is_file():
        pytest.skip("StrategyQA is not on this machine")
    found, refused = read_decompositions(STRATEGY)
    assert (len(found), refused) == (2061, {})
    assert 2 < sum(len(one.sub_questions) for one in found) / len(found) < 4
