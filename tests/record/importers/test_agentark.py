import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.record.importers.agentark import split_solutions

BATCH = (
    "===== Solution 1 =====\n6*7=42. The answer is 42.\n"
    "===== Solution 2 =====\n\\boxed{41}\n===== Solution 3 =====\nFinal Answer: 42"
)


def stats(tokens):
    return {"model-x": {"num_llm_calls": 3, "prompt_tokens": tokens, "completion_tokens": 10}}


def test_batch_headers_make_agents_and_an_aggregator(write, load, edges):
    row = {"query": "6*7?", "gt": "42", "tag": None, "source": None, "response": BATCH, "token_stats": stats(90)}
    imported = load(write("math_infer.jsonl", [row], lines=True))
    run = imported.run
    assert imported.format == "agentark"
    assert [(t.agent, t.role, t.round, t.verdict) for t in run.turns] == [
        ("agent-1", "solver", 0, "correct"),
        ("agent-2", "solver", 0, "wrong"),
        ("aggregator", "aggregator", 1, "correct"),
    ]
    assert run.turns[0].text == "6*7=42. The answer is 42."
    assert run.turns[0].model == "model-x"
    assert edges(run, "influence") == [(0, 2), (1, 2)]
    assert run.path == (2,)
    assert run.verdict == "correct"
    assert run.tokens_in == 0  # running totals are nobody's tokens


def test_sequential_headers(write, load):
    response = BATCH.replace("===== Solution 1 =====", "Solution 1:").replace("===== Solution 2 =====", "Solution 2:")
    response = response.replace("===== Solution 3 =====", "Solution 3:")
    run = load(write("s.jsonl", [{"query": "6*7?", "gt": "42", "response": response}], lines=True)).run
    assert [t.agent for t in run.turns] == ["agent-1", "agent-2", "aggregator"]


@pytest.mark.parametrize(
    ("response", "texts"),
    [
        ("The answer is 42.", ["The answer is 42."]),
        ("As in Solution 1:\nx", ["As in Solution 1:\nx"]),
        ("I compare:\nSolution 1:\nx\nSolution 2:\ny", ["I compare:\nSolution 1:\nx\nSolution 2:\ny"]),
        ("Solution 1:\nSolution 2: is wrong\nSolution 2:\nb", ["Solution 2: is wrong", "b"]),
        ("Solution 1:\na\nSolution 2:\nsee\nSolution 1:\nhere", ["a", "see\nSolution 1:\nhere"]),
        ("Solution 1:\na\nSolution 3:\nb\nSolution 2:\nc", ["a\nSolution 3:\nb", "c"]),
        ("Solution 2:\na\nSolution 3:\nb", ["Solution 2:\na\nSolution 3:\nb"]),
        ("Solution 1:\r\na\r\nSolution 2:\r\nb", ["a\r", "b"]),
    ],
)
def test_split_solutions(response, texts):
    assert split_solutions(response) == texts


def test_a_header_that_may_be_a_quote_is_refused():
    with pytest.raises(DataError, match="'Solution 2' stands twice"):
        split_solutions("Solution 1:\nquote\nSolution 2:\nx\nSolution 2:\nreal\nSolution 3:\nend")


def test_failed_and_broken_records_are_counted_with_their_place(write, load):
    rows = [
        {"query": "q1", "gt": "1", "error": "timeout"},
        {"query": "q2", "gt": "2", "response": " "},
        {"query": "q3", "gt": "3", "response": "The answer is 3.", "token_stats": stats(500)},
        {"query": "q4", "gt": [4], "response": "4"},
        {"query": "q5", "gt": "5", "response": "5", "token_stats": stats(900)},
        {"query": "Q5 ", "gt": "5", "response": "5"},
    ]
    path = write("i.jsonl", rows, lines=True)
    path.write_text(path.read_text() + '{"query": "torn')
    imported = load(path)
    assert imported.counts.kept == 2
    assert imported.counts.refused == {
        "not JSON (Unterminated string starting at)": 1,
        "the run failed (it has 'error' and no 'response')": 1,
        "an empty response": 1,
        "'gt' is no answer": 1,
        "the same question stands before": 1,
    }
    assert f"{path}: line 2: an empty response" in imported.facts.refused_at
    assert imported.counts.noted == {"most tokens that token_stats counted": 910}  # the maximum, not the sum


def label(*texts, gold, flags):
    solutions = [{"id": i + 1, "text": t, "is_correct": f} for i, (t, f) in enumerate(zip(texts, flags, strict=True))]
    return {"query": f"q {gold}", "gt": gold, "solutions": solutions, "labels": list(flags), "tag": None}


def test_labels_are_believed_only_where_our_grading_cannot_decide(write, load):
    rows = [
        label("The answer is 3.5", "The answer is 5", gold="3.5", flags=(False, True)),
        label("in the north of it", "in the south", gold="the northern part of the whole country", flags=(True, False)),
        label("I think", "no idea", gold="7", flags=(None, None)),
    ]
    imported = load(write("l.jsonl", rows, lines=True))
    verdicts = [[t.verdict for t in run.turns] for run in imported.runs]
    assert verdicts == [["correct", "wrong"], ["correct", "unknown"], ["unknown", "unknown"]]
    assert imported.counts.repaired == {"label contradicts the answer and the gold: graded again": 2}
