import json

import pytest

from soloist.toolchain.record.importers.fireact import split_steps
from soloist.toolchain.traces.graph import graph_of

EPISODE = (
    "Thought: I should look it up.\nAction: search[Exampletown river]\nObservation: It lies on the Example River.\n"
    "Thought: I have it.\nAction: finish[Example River]\nObservation: Episode finished, reward = True\n"
)


def alpaca(output, question="Which river flows through Exampletown?"):
    return {"instruction": question, "input": "", "output": output}


def joined(run, reward):
    """An episode put together again from its turns."""
    seen = [turn.tools[0].result for turn in run.turns[:-1]] + [f"Episode finished, reward = {reward}"]
    return "".join(f"{turn.text}\nObservation: {text}\n" for turn, text in zip(run.turns, seen, strict=True))


def test_an_episode_keeps_thought_action_and_observation_apart(write, load, edges):
    imported = load(write("hotpotqa.json", [alpaca(EPISODE)]))
    run = imported.run
    assert imported.format == "fireact"
    assert joined(run, "True") == EPISODE
    first, last = run.turns
    assert first.text == "Thought: I should look it up.\nAction: search[Exampletown river]"
    assert (first.tools[0].name, first.tools[0].call) == ("search", "search[Exampletown river]")
    assert first.tools[0].result == "It lies on the Example River."
    assert last.tools[0].call == "finish[Example River]"
    assert last.tools[0].result == "Example River"
    assert run.path == (0, 1)
    assert edges(run, "continuity") == [(0, 1)]
    assert (run.answer, run.question.gold, run.verdict) == ("Example River", "Example River", "correct")
    assert "reward" not in run.model_dump_json()
    (node,) = graph_of(run).nodes  # one attempt of two calls
    assert [use.name for use in node.uses] == ["search", "finish"]
    assert node.verdict == "correct"
    assert (run.question.split, run.question.benchmark) == ("train", None)


@pytest.mark.parametrize(
    ("reward", "verdict"), [("True", "correct"), ("1", "correct"), ("False", "wrong"), ("0", "wrong"), ("?", "unknown")]
)
def test_the_reward_is_the_verdict(write, load, reward, verdict):
    run = load(write("h.json", [alpaca(EPISODE.replace("True", reward))])).run
    assert run.verdict == verdict
    assert run.turns[-1].verdict == verdict
    assert run.turns[0].verdict == "unknown"
    assert (run.question.gold is not None) == (verdict == "correct")


def test_chat_lines_are_the_same_episode(write, load):
    chat = {
        "messages": [
            {"role": "user", "content": "Which river flows through Exampletown?"},
            {"role": "assistant", "content": "Thought: I should look it up.\nAction: search[Exampletown river]"},
            {"role": "user", "content": "Observation: It lies on the Example River."},
            {"role": "assistant", "content": "Thought: I have it.\nAction: finish[Example River]"},
            {"role": "user", "content": "Observation: Episode finished, reward = True"},
        ]
    }
    chatted = load(write("h.jsonl", [chat], lines=True)).run
    written = load(write("h.json", [alpaca(EPISODE)])).run
    assert chatted.turns == written.turns
    assert chatted.question.question == written.question.question


def test_an_observation_that_quotes_an_action_stays_whole():
    tricky = (
        'Thought: one\nthought goes on\nAction: search[x]\nObservation: It said\n"Action: search[y]"\n'
        "and then Action: finish[z]\nObservation: twice\nThought: two\nAction: finish[a [b]]\nObservation: end\n"
    )
    first, second = split_steps(tricky)
    assert first.text == "Thought: one\nthought goes on\nAction: search[x]"
    assert first.observation == ('It said\n"Action: search[y]"\nand then Action: finish[z]\nObservation: twice')
    assert second.text.endswith("finish[a [b]]")
    assert second.observation == "end"


def test_steps_without_thoughts_and_episodes_without_end(write, load):
    rows = [
        alpaca(
            "Action: search[x]\nObservation: y\nAction: finish[z]\nObservation: Episode finished, reward = 1\n", "q1"
        ),
        alpaca("Thought: t\nAction: search[x]\nObservation: nothing", "q2"),
        alpaca("Thought: t\nAction: search[x]\nObservation: Invalid Action: no\nThought: t\nAction: finish[z]", "q3"),
        alpaca("Thought: I only think about Action: things", "q4"),
        alpaca("Hello\nAction: finish[x]", "q5"),
    ]
    imported = load(write("h.json", rows))
    assert imported.counts.kept == 3
    assert imported.counts.noted == {"steps without a thought": 2, "episodes that end without a reward": 2}
    assert imported.runs[0].verdict == "correct"
    assert imported.runs[1].answer is None
    assert imported.runs[2].turns[0].tools[0].error == "Invalid Action: no"
    assert imported.counts.refused == {
        "a step whose last words are no action name[argument]": 1,
        "an episode begins with neither a thought nor an action": 1,
    }


def test_the_real_file_imports_whole(load, shared_data):
    path = shared_data / "traces" / "fireact" / "hotpotqa.json"
    rows = json.loads(path.read_text())
    imported = load(path)
    assert imported.counts.kept == len(rows) == 500
    assert imported.counts.refused == imported.counts.noted == {}
    assert {run.verdict for run in imported.runs} == {"correct"}
    for run, row in zip(imported.runs, rows, strict=True):
        assert run.question.question == row["instruction"].strip()
        assert joined(run, "True") == row["output"]
    uses = [use.name for run in imported.runs for use in run.trajectory]
    assert (uses.count("search"), uses.count("finish")) == (885, 500)
    assert imported.facts.benchmarks == {}
