def output(reasoning, answer):
    return {"reasoning": reasoning, "answer": answer}


MAG = {
    "question": "A train has 5 cars with 12 seats. How many seats?",
    "gold_answer": "60",
    "claude_output_0": output("5 times 12.", "60"),
    "gpt4_output_0": output("5 times 12 again.", "60"),
    "bard_output_0": output("5 plus 12.", "17"),
    "bard_output_1": output("I disagree with my first try.", "60"),
    "claude_output_1": output("I agree.", "60"),
    "gpt4_output_1": {},
    "claude_output_2": None,
    "debate_prompt_1": "...",
    "vote_0": "60",
}


def test_outputs_become_turns_and_absent_ones_do_not(write, load, edges):
    imported = load(write("mag.json", [MAG]))
    run = imported.run
    assert imported.format == "magdi"
    assert [(t.agent, t.round, t.verdict) for t in run.turns] == [
        ("bard", 0, "wrong"),
        ("claude", 0, "correct"),
        ("gpt4", 0, "correct"),
        ("bard", 1, "correct"),
        ("claude", 1, "correct"),
    ]
    assert run.turns[0].text == "5 plus 12.\nThe answer is 17."
    assert run.turns[0].answer == "17"
    assert edges(run, "continuity") == [(0, 3), (1, 4)]
    assert sorted(edges(run, "influence")) == [(0, 4), (1, 3), (2, 3), (2, 4)]
    assert run.verdict == "correct"
    assert imported.counts.noted == {"outputs of agents that were absent": 2}


def test_a_full_grid_has_27_forward_edges(write, load):
    full = {f"{a}_output_{r}": output(f"{a} {r}", "1") for a in ("gpt4", "claude", "bard") for r in range(4)}
    run = load(write("mag.json", [{"question": "q", "gold_answer": "1", **full}])).run
    assert len(run.turns) == 12
    assert len(run.edges) == 27  # 9 of continuity, 18 across
    assert all(run.turns[e.source].round + 1 == run.turns[e.target].round for e in run.edges)


def test_any_agent_any_gold(write, load):
    rows = [
        {"question": "q1", "gold_answer": "yes", "my_own_agent_output_0": output("It is so.", "Yes")},
        {"question": "q2", "gold_answer": "B", "x_output_0": output("", "(B)"), "y_output_0": output("So A.", "A")},
        {"question": "q3", "x_output_0": output("Maybe 3.", 3)},
        {"question": "q4", "gold_answer": "4", "x_output_0": "just text"},
        {"question": "q5", "gold_answer": "5", "x_output_0": output("", "")},
    ]
    imported = load(write("mag.json", rows), benchmark="StrategyQA")
    assert [[t.verdict for t in run.turns] for run in imported.runs] == [["correct"], ["correct", "wrong"], ["unknown"]]
    assert imported.runs[0].turns[0].agent == "my_own_agent"
    assert imported.counts.refused == {"'x_output_0' is no object": 1, "nobody spoke": 1}
    assert {run.question.benchmark for run in imported.runs} == {"StrategyQA"}
