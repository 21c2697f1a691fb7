import json
from collections import Counter

import pytest

from soloist.kernels.errors import DataError

SHOTS = "Problem: 1 + 1?\nAnswer: The answer is 2.\n\nPlease solve the problem below.\n"


def prompt(problem):
    return f"{SHOTS}Problem: {problem}\nAnswer:"


def message(role, content):
    return {"role": role, "content": content}


def quote(*texts):
    return "Others say:" + "".join(f"\n\nOne agent solution: ```{text}```" for text in texts) + "\n\nUpdate."


def context(problem, *rounds):
    """`rounds`: what was asked (None for the first) and what was answered."""
    messages = [message("system", "It's a debate.")]
    for shown, text in rounds:
        messages += [message("user", shown or prompt(problem)), message("assistant", text)]
    return messages


A0, B0, A1, B1 = "I get $\\boxed{27}$.", "The answer is 17.", "Still \\boxed{27}.", "Right, $27$."


@pytest.fixture
def debate():
    """Two rounds of two survivors and a dropped third; in a round the second hears the first one's new answer."""
    first = context("What is 3(4+5)?", (None, A0), (quote(B0, "I was dropped."), A1))
    second = context("What is 3(4+5)?", (None, B0), (quote(A1, "I was dropped."), B1))
    return {prompt("What is 3(4+5)?"): [[first, second], "27", 1, "Prealgebra"]}


def test_a_debate_becomes_a_graph_of_what_was_really_quoted(write, load, edges, debate):
    imported = load(write("algebra_4_3.json", debate))
    run = imported.run
    assert imported.format == "dylan"
    assert run.question.question == "What is 3(4+5)?"
    assert run.question.gold == "27"
    assert [(t.agent, t.round, t.verdict) for t in run.turns] == [
        ("agent-0", 0, "correct"),
        ("agent-1", 0, "wrong"),
        ("agent-0", 1, "correct"),
        ("agent-1", 1, "correct"),
    ]
    assert edges(run, "continuity") == [(0, 2), (1, 3)]
    assert edges(run, "influence") == [(1, 2), (2, 3)]  # agent-1 read the answer of the same round
    assert [turn.text for turn in run.turns] == [A0, B0, A1, B1]
    assert run.turns[3].messages[-1].content == quote(A1, "I was dropped.")
    assert (run.answer, run.verdict, run.path) == ("27", "correct", (2,))
    assert imported.counts.noted == {"quotes of agents that the file does not hold": 2}


def test_its_questions_are_test_questions_with_source_and_licence(write, load, debate):
    question = load(write("algebra_4_3.json", debate)).run.question
    assert (question.split, question.benchmark, question.scorer) == ("test", "MATH", "math")
    assert question.task == "Prealgebra, level 1"
    assert "algebra_4_3.json" in question.source
    assert "MIT" in question.source


def test_a_turn_without_an_answer_is_unknown_and_a_silent_agent_has_no_turn(write, load):
    contexts = [context("p", (None, "I cannot say.")), context("p", (None, "  ")), context("p", (None, "It is 4."))]
    run = load(write("d.json", {prompt("p"): [contexts, "4", 1, "Algebra"]})).run
    assert [(t.agent, t.verdict) for t in run.turns] == [("agent-0", "unknown"), ("agent-2", "correct")]
    assert run.answer == "4"


def test_bad_entries_are_refused_with_their_reason_and_the_rest_is_kept(write, load, debate):
    ask = message("user", prompt("q"))
    bad = {
        prompt("q1"): [[[ask, ask, message("assistant", "1")]], "1", 1, "Algebra"],
        prompt("q2"): [[], "1", 1, "Algebra"],
        prompt("q3"): [[context("q3", (None, "1"))], "1"],
        "no problem here": [[context("q4", (None, "1"))], "1", 1, "Algebra"],
        prompt("q5"): [[context("q5", (None, " "))], "1", 1, "Algebra"],
        prompt(" "): [[context("q6", (None, "1"))], "1", 1, "Algebra"],
    }
    imported = load(write("d.json", bad | debate))
    assert imported.counts.kept == 1
    assert imported.counts.refused == {
        "a context is not user and assistant in turn": 1,
        "no contexts, or no gold answer": 1,
        "not [contexts, gold, level, subject]": 1,
        "the prompt holds no 'Problem: ...' before its final 'Answer:'": 1,
        "nobody spoke": 1,
        "an empty question": 1,
    }
    assert any("d.json: entry 2: no contexts" in place for place in imported.facts.refused_at)


# ---------------------------------------------------------------- MMLU


ROWS = [
    [["The answer is (B).", None, None], ["I pick (B) because.", None, None], [None, None, None], ["(C)", "(B)", None]],
    [["(A)", None, None], ["(A)", None, None], [None, None, None], [None, None, None]],
    [["(D) it is", None, None], ["(C)", None, None], ["(D)", None, None], [None, None, None]],
]


@pytest.fixture
def asked(tmp_path):
    def put(golds="BAC", name="questions.jsonl"):
        rows = [
            {"question": f"Which one, number {i}?", "answer": gold, "scorer": "choice", "choices": list("wxyz")}
            for i, gold in enumerate(golds)
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return put


def test_mmlu_lines_meet_their_questions_by_order(write, load, edges, asked):
    imported = load(write("anatomy_test_43.json", ROWS, lines=True), questions=asked())
    assert [run.verdict for run in imported.runs] == ["correct", "correct", "wrong"]
    first = imported.run
    assert [(t.agent, t.round) for t in first.turns] == [
        ("agent-0", 0),
        ("agent-1", 0),
        ("agent-3", 0),
        ("agent-3", 1),
    ]
    assert edges(first, "influence") == [(0, 3), (1, 3)]
    assert edges(first, "continuity") == [(2, 3)]
    assert first.question.benchmark == "MMLU"
    assert first.question.choices == tuple("wxyz")
    assert "not checked" in next(iter(imported.counts.noted))


def test_mmlu_flags_beside_the_file_are_believed(write, load, asked):
    path = write("anatomy_test_43.json", ROWS, lines=True)
    path.with_suffix(".txt").write_text("[True, True, False] 0.67\n9 3.0\n[[0.5]]\n")
    assert load(path, questions=asked()).counts.noted == {}


@pytest.mark.parametrize(
    ("golds", "flags", "why"),
    [
        ("BAC", "[True, True] 1.0\n", "3 lines, but 2 flags"),
        ("BA", None, "3 lines, but 2 questions"),
        ("CDA", "[True, True, False]\n", "only 1 of 3 final answers agree"),
        ("BAC", "nothing\n", "does not begin with a list of True and False"),
    ],
)
def test_mmlu_files_that_do_not_fit_their_questions_are_refused(write, load, asked, golds, flags, why):
    path = write("anatomy_test_43.json", ROWS, lines=True)
    if flags:
        path.with_suffix(".txt").write_text(flags)
    with pytest.raises(DataError, match=why):
        load(path, questions=asked(golds))


def test_mmlu_without_questions_and_with_a_broken_line_is_refused(write, load, asked):
    path = write("anatomy_test_43.json", ROWS, lines=True)
    with pytest.raises(DataError, match="give them, in its order, by --questions"):
        load(path)
    broken = write("broken_test_43.json", path.read_text().replace('[["(A)"', '[["(A)', 1))
    with pytest.raises(DataError, match=r"broken_test_43\.json: line 2: .* the order would be lost"):
        load(broken, questions=asked())


def test_mmlu_questions_may_lie_in_a_folder_by_subject(write, load, asked, tmp_path):
    (tmp_path / "q").mkdir()
    asked(name="q/anatomy.jsonl")
    assert len(load(write("anatomy_test_43.json", ROWS, lines=True), questions=tmp_path / "q").runs) == 3


# ---------------------------------------------------------------- the real files


def test_the_real_files_import_whole(load, shared_data):
    folder = shared_data / "traces" / "dylan_math"
    imported = load(folder)
    entries = [v for file in sorted(folder.glob("*.json")) for v in json.loads(file.read_text()).values()]
    texts = [m["content"] for contexts, *_ in entries for c in contexts for m in c if m["role"] == "assistant"]
    assert imported.counts.kept == len(imported.runs) == len(entries) == 500
    assert imported.counts.refused == imported.counts.repaired == {}
    assert sorted(t.text for run in imported.runs for t in run.turns) == sorted(text for text in texts if text.strip())
    assert [run.question.gold for run in imported.runs] == [v[1] for v in entries]
    assert Counter(max(t.round for t in run.turns) + 1 for run in imported.runs) == Counter(
        (len(v[0][0]) - 1) // 2 for v in entries
    )
    assert imported.facts.benchmarks == {"MATH": "test"}
    assert all(r.question.split == "test" for r in imported.runs)


def test_the_real_graphs_are_graded_and_connected(load, shared_data):
    runs = load(shared_data / "traces" / "dylan_math").runs
    verdicts = Counter(turn.verdict for run in runs for turn in run.turns)
    share = verdicts["correct"] / verdicts.total()
    assert 0.28 < share < 0.36  # 30.3 % of all CoT files by a regular expression, which counts a little low
    assert verdicts["unknown"] < 0.01 * verdicts.total()
    mixed = sum({"correct", "wrong"} <= {t.verdict for t in run.turns} for run in runs)
    assert mixed > 100
    heard = [turn for run in runs for turn in run.turns if turn.round]
    read = {(id(run), e.target) for run in runs for e in run.edges if e.kind == "influence"}
    several = [(id(run), t.id) for run in runs if len({t.agent for t in run.turns}) > 2 for t in run.turns if t.round]
    assert len(heard) > 1000
    assert set(several) <= read  # nobody in a group of three or more heard none of the others
