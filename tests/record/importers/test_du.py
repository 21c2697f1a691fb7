import pytest

from soloist.kernels.errors import DataError


def talk(*texts, asked="Can you solve it?"):
    messages = []
    for text in texts:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
        asked = "These are others."
    return messages


GSM = {
    "A shelf holds 4 rows of 6 jars. How many jars?": [
        [
            talk("4*6 = 24. \\boxed{24}", "\\boxed{24}"),
            talk("It is 10.", "It is 24."),
            talk("\\boxed{20}", "\\boxed{20}"),
        ],
        "4*6 = <<4*6=24>>24 jars.\n#### 24",
    ]
}


def test_a_gsm_debate_is_a_complete_graph_between_rounds(write, load, edges):
    imported = load(write("gsm_3_2.json", GSM))
    run = imported.run
    assert imported.format == "du"
    assert run.question.gold == "24"
    assert (run.question.split, run.question.benchmark) == ("test", "GSM8K")
    assert [t.verdict for t in run.turns] == ["correct", "wrong", "wrong", "correct", "correct", "wrong"]
    assert edges(run, "continuity") == [(0, 3), (1, 4), (2, 5)]
    assert sorted(edges(run, "influence")) == [(0, 4), (0, 5), (1, 3), (1, 5), (2, 3), (2, 4)]
    assert (run.answer, run.verdict, run.path) == ("24", "correct", (3,))


def test_edges_follow_the_quotes_where_there_are_any(write, load, edges):
    contexts = [talk("It is 1.", "It is 2."), talk("It is 3.", "It is 4."), talk("It is 5.", "It is 6.")]
    contexts[0][2]["content"] = "One agent solution: ```It is 5.```"
    run = load(write("x.json", {"q": [contexts, "2"]})).run
    assert [e for e in edges(run, "influence") if e[1] == 3] == [(2, 3)]


def test_mmlu_letters_and_biographies(write, load):
    mmlu = {"Which: A) x, B) y?": [[talk("so (A)", "I now say (B)."), talk("(B)", "The answer is B")], "B"]}
    imported = load(write("mmlu_2_2.json", mmlu))
    assert [t.verdict for t in imported.run.turns] == ["wrong", "correct", "correct", "correct"]
    assert imported.run.question.benchmark == "MMLU"
    assert imported.run.question.scorer == "choice"
    biography = load(write("biography.json", {"Ada Example": [talk("born in 1815"), talk("born in 1816")]}))
    assert {t.verdict for t in biography.run.turns} == {"unknown"}
    assert biography.run.verdict == "unknown"
    assert biography.run.question.gold is None


def test_numbers_as_gold_and_a_named_benchmark(write, load):
    imported = load(write("math_2_1.json", {"What is 3+4?": [[talk("7"), talk("8")], 7]}), benchmark="Sums")
    assert imported.run.question.gold == "7"
    assert imported.facts.benchmarks == {"Sums": "test"}
    assert load(write("math_3_1.json", {"What is 3+5?": [[talk("7"), talk("8")], 8]})).facts.benchmarks == {}


@pytest.mark.parametrize(("name", "content"), [("math.p", b"anything"), ("math.json", b"\x80\x04\x95abc")])
def test_pickles_are_refused_unopened(write, load, name, content):
    path = write(name, content)
    with pytest.raises(DataError, match=f"{name}: a pickle, which Soloist never opens"):
        load(path)


def test_a_folder_with_a_pickle_says_so(write, load):
    write("gsm_3_2.json", GSM)
    folder = write("math_3_2.p", b"x").parent
    with pytest.raises(DataError, match=r"math_3_2\.p: a pickle"):
        load(folder)


def test_bad_entries_are_counted(write, load):
    bad = {"a": [[talk("1")], True], "b": "text", "c": [[[{"role": "assistant", "content": "1"}]], "1"]}
    imported = load(write("gsm_1.json", GSM | bad))
    assert imported.counts.kept == 1
    assert sum(imported.counts.refused.values()) == 3
