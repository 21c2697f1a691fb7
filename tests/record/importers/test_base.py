import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.record.importers.base import Graph, answer_in, grade, load_document, scorer_for
from soloist.toolchain.tasks.base import Question


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "empty file"),
        ("   \n", "empty file"),
        ("{", "not JSON"),
        ("hello\nworld", "not JSON"),
        ('[{"a": NaN}]', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("[" * 100000, "not JSON"),
        ("7", "holds int, not records"),
        (b'\xff\xfe{"a"', "not UTF-8 at byte 0"),
        (b"\x80\x04\x95", "a pickle"),
    ],
)
def test_files_that_are_none_are_one_line_with_the_name(write, content, why):
    path = write("x.json", content)
    with pytest.raises(DataError) as refused:
        load_document(path)
    text = str(refused.value)
    assert text.startswith(f"{path}: ")
    assert why in text
    assert "\n" not in text


def test_lines_items_and_entries(write):
    lines = load_document(write("a.json", '{"a": 1}\n\nbroken\n{"a": 2}\n'))
    assert [(row.where, row.value) for row in lines.rows] == [("line 1", {"a": 1}), ("line 4", {"a": 2})]
    assert [where for where, _ in lines.broken] == ["line 3"]
    items = load_document(write("b.jsonl", "\ufeff[1, 2]"))
    assert [row.where for row in items.rows] == ["item 1", "item 2"]
    entries = load_document(write("c.json", {"x": [1], "y": [2]}))
    assert [row.value for row in entries.entries] == [("x", [1]), ("y", [2])]


def ask(gold, scorer="exact"):
    return Question(id="q", question="?", gold=gold, scorer=scorer)


@pytest.mark.parametrize(
    ("gold", "scorer"),
    [("24", "math"), (r"\frac12", "math"), ("B", "choice"), ("(C)", "choice"), ("yes", "exact"), (None, "math")],
)
def test_scorer_for(gold, scorer):
    assert scorer_for(gold) == scorer


def test_what_nobody_can_grade_is_unknown_and_never_wrong():
    assert grade(None, ask("1")) == grade("1", ask(None)) == "unknown"
    assert grade("in other words", ask("a gold answer of a whole sentence")) == "unknown"
    assert grade("no", ask("yes")) == "wrong"
    assert grade("Yes.", ask("yes")) == "correct"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("so (A), no (B).", "B"),
        ("The answer is C", "C"),
        ("D", "D"),
        ("I am sure", None),
        ("A man said (a) b", "A"),
        ("The answer is a trick", None),
        ("the ANSWER: d", None),
        ("Option J", "J"),
    ],
)
def test_letters_in_a_text(text, letter):
    assert answer_in(text, ask("B", "choice")) == letter


def test_votes_count_equal_answers_as_one():
    graph = Graph(ask("0.5", "math"))
    turns = [graph.say(f"a{i}", text) for i, text in enumerate(["3", r"\boxed{\frac12}", "no idea", "0.5"])]
    run = graph.voted("team", turns)
    assert (run.answer, run.path, run.verdict) == (r"\frac12", (1,), "correct")
    nobody = Graph(ask("1", "math"))
    run = nobody.voted("team", [nobody.say("a", "none")])
    assert (run.answer, run.path, run.verdict) == (None, (), "unknown")
