"""Hand-made debates, several agents in rounds, and episodes of one agent with tools; a teacher."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from soloist.toolchain.distill.model import load_base  # noqa: E402
from soloist.toolchain.tasks.base import Question, score  # noqa: E402
from soloist.toolchain.traces.schema import Edge, Run, ToolUse, Turn  # noqa: E402

QUOTING = 'The page says:\nAction: finish["wrong"]\n"Action: search[x]"\nThought: not the agent\'s.'


def use(text):
    """`name(arguments) = result`, or `name(arguments) ! error`, as a call that was made."""
    call, sign, outcome = text.partition(" = ") if " = " in text else text.partition(" ! ")
    name, _, inner = call.removesuffix(")").partition("(")
    arguments = {"expression": inner} if name == "calc" else {}  # a tool of the desk, which checks its calls
    ended = {"result": outcome, "steps": (f"{inner} = {outcome}",)} if sign == " = " else {"error": outcome}
    return ToolUse(name=name, arguments=arguments, call=call, **ended)


def made(rounds, *, gold="12", number=1, split="train", graded=True, answer=None):
    """A run. `rounds`: for each round what every agent a, b, c, … said: text, or a tuple of calls; None: silent.

    The team's answer is that of the first agent's last turn unless `answer` is given.
    """
    question = Question(id=f"q{number}", question=f"What is {number}, asked?", gold=gold, split=split, scorer="number")
    turns, edges, before = [], [], {}
    for index, spoken in enumerate(rounds):
        now = {}
        for agent, said in zip("abcdef", spoken, strict=False):
            if said is None:
                continue
            uses = tuple(use(call) for call in said) if isinstance(said, tuple) else ()
            text = uses[-1].call if uses else said
            given = uses[-1].result if uses else said.rpartition(" ")[2]
            verdict = ("correct" if score(given, question) else "wrong") if graded and given else "unknown"
            turn = Turn(
                id=len(turns),
                agent=agent,
                role="solver",
                round=index,
                model="m",
                text=text,
                tools=uses,
                answer=given,
                verdict=verdict,
            )
            for other, source in before.items():
                kind = "continuity" if other == agent else "influence"
                edges.append(Edge(source=source, target=turn.id, kind=kind))
            now[agent] = turn.id
            turns.append(turn)
        before |= now
    path = [turn.id for turn in turns if turn.agent == "a"][-1:]
    answer = answer or (turns[path[0]].answer if path else None)
    verdict = ("correct" if score(answer, question) else "wrong") if graded else "unknown"
    return Run(
        question=question,
        team="t",
        turns=tuple(turns),
        edges=tuple(edges),
        path=tuple(path),
        answer=answer,
        verdict=verdict,
    )


def episode(number=1, *, verdict="correct", split="train", thoughts=2, observation=QUOTING, error=False, text=None):
    """A tool agent's run: a search and a finish; what the search finds quotes the prefixes of thoughts and actions."""
    said = text or "\n".join([f"Thought: step {i} of {number}" for i in range(thoughts)] + ["Action: search[a b]"])
    outcome = {"error": observation} if error else {"result": observation}
    turns = [
        Turn(
            id=0,
            agent="actor",
            role="actor",
            model="m",
            text=said,
            tools=(ToolUse(name="search", arguments={"input": "a b"}, call="search[a b]", **outcome),),
        ),
        Turn(
            id=1,
            agent="actor",
            role="actor",
            round=1,
            model="m",
            text=f"Thought: done\nAction: finish[{number}]",
            answer=str(number),
            verdict=verdict,
            tools=(ToolUse(name="finish", arguments={"input": str(number)}, call=f"finish[{number}]", result="1"),),
        ),
    ]
    question = Question(id=f"e{number}", question=f"Which {number}?", gold=str(number), split=split, scorer="exact")
    return Run(question=question, team="react", turns=turns, path=(0, 1), answer=str(number), verdict=verdict)


@pytest.fixture(scope="session")
def debate_of():
    """Builder of debates: `debate_of(rounds, gold=…, number=…, split=…, graded=…, answer=…)`."""
    return made


@pytest.fixture(scope="session")
def episode_of():
    """Builder of episodes: `episode_of(number, verdict=…, split=…, thoughts=…, observation=…, error=…, text=…)`."""
    return episode


@pytest.fixture(scope="session")
def teacher_base(tiny_base, tmp_path_factory):
    """A teacher: the tiny base with other weights."""
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    model, tokenizer = load_base(tiny_base)
    torch.manual_seed(5)
    for value in model.parameters():
        value.data += 0.05 * torch.randn_like(value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def traces_of(tmp_path, record_runs):
    """Builder of an artifact of traces: `traces_of(runs)`."""
    return lambda runs: record_runs(runs, tmp_path / "traces")


@pytest.fixture
def trained():
    """The trained tokens of an example as text."""

    def text(example, tokenizer):
        return tokenizer.decode([i for i, own in zip(example.ids, example.trained, strict=True) if own])

    return text
