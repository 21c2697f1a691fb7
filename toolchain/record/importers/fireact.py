r"""FireAct (anchen1011/FireAct, MIT): GPT-4 ReAct episodes, as Alpaca JSON or as chat JSON lines.

    {"instruction", "input": "", "output": "Thought: ...\nAction: search[...]\nObservation: ...\nThought: ..."}
    {"messages": [{"role": "user"}, {"role": "assistant", "content": "Thought: ...\nAction: ..."}, ...]}

An episode is one attempt, so all its turns are of one round. One step is one turn: its text is the thought and
the action exactly as they stand there (a few steps have no thought), and its one tool use holds the action as
`call` and the observation as `result`, so that the spans of reasoning, acting and observing stay apart for
whoever masks them. A line opens a span only if it *begins*
with `Thought:` or `Action: name[` after an observation, or with `Observation:` after an action; anything
else goes on with the span before, so an observation that quotes "Action:" stays whole.

The last observation only tells the reward. It becomes the verdict and is not stored: the result of `finish`
is the answer it was given, which is also the gold answer where the reward says that it was right. Right
means right by the reward: FireAct gives no gold for the others. FireAct drew its questions from training sets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from soloist.kernels.errors import DataError
from soloist.toolchain.record.importers.base import Document, Graph, Importer, Reading, Row, mapping, text_of
from soloist.toolchain.traces.schema import ChatMessage, Run, ToolUse, Verdict

MODEL = "gpt-4"
_THOUGHT, _ACTION, _SEEN = "Thought:", re.compile(r"Action:\s*(\w+)\["), "Observation:"
_CALL = re.compile(r"Action:[ \t]*((\w+)\[(.*)\])\s*\Z", re.DOTALL)
_REWARD = re.compile(r"Episode finished, reward = (\w+)")
_REWARDS: dict[str, Verdict] = {"True": "correct", "1": "correct", "False": "wrong", "0": "wrong"}


@dataclass(frozen=True)
class Step:
    """One step as it stands in the file: what the agent wrote, and what it was shown then."""

    text: str
    observation: str


def fits(document: Document) -> int:
    """How many rows are an episode of either form."""
    return sum(isinstance(row.value, dict) and (_is_alpaca(row.value) or _is_chat(row.value)) for row in document.rows)


def _is_alpaca(record: dict[str, Any]) -> bool:
    output = record.get("output")
    return "instruction" in record and isinstance(output, str) and "Action:" in output


def _is_chat(record: dict[str, Any]) -> bool:
    messages = record.get("messages")
    return isinstance(messages, list) and any(
        isinstance(m, dict) and m.get("role") == "assistant" and "Action:" in str(m.get("content")) for m in messages
    )


def convert(row: Row, reading: Reading) -> Run:
    """One episode."""
    record = mapping(row.value)
    if "messages" in record:
        asked, steps = _chat_steps(record)
    else:
        asked, steps = text_of(record, "instruction"), split_steps(text_of(record, "output"))
        if record.get("input"):
            asked = f"{asked}\n{text_of(record, 'input')}"
            reading.repaired("'input' put after the instruction")
    uses = [_use(step) for step in steps]
    finished = uses[-1].name == "finish"
    answer = str(uses[-1].arguments["input"]).strip() if finished else None
    verdict = _verdict(steps[-1].observation)
    if verdict == "unknown":
        reading.noted("episodes that end without a reward")
    gold = answer if verdict == "correct" else None
    graph = Graph(reading.question(row, asked, gold, scorer="exact"), MODEL)
    for index, (step, use) in enumerate(zip(steps, uses, strict=True)):
        last = index + 1 == len(steps)
        if not step.text.startswith(_THOUGHT):
            reading.noted("steps without a thought")
        graph.say(
            "actor",
            step.text,
            role="actor",
            tools=(use,),
            answer=answer if last else None,
            verdict=verdict if last else "unknown",
            messages=[ChatMessage(role="user", content=asked)][: index == 0],
        )
    return graph.run("react", answer=answer, verdict=verdict, path=range(len(steps)))


def split_steps(output: str) -> list[Step]:
    """An episode's text to its steps. Raises DataError where actions and observations do not alternate."""
    spans: list[tuple[str, list[str]]] = []
    for line in output.rstrip("\n").split("\n"):
        kind = _kind(line, spans[-1][0] if spans else "")
        if kind:
            spans.append((kind, [line]))
        elif spans:
            spans[-1][1].append(line)
        elif line.strip():
            raise DataError("an episode begins with neither a thought nor an action")
    steps, written = [], list[str]()
    for kind, lines in spans:
        if kind != "observation":
            written += lines
            continue
        seen = "\n".join(lines).removeprefix(_SEEN)
        steps.append(Step("\n".join(written), seen.removeprefix(" ")))
        written = []
    if written:
        steps.append(Step("\n".join(written), ""))
    if not steps:
        raise DataError("an episode without a step")
    return steps


def _kind(line: str, before: str) -> str | None:
    """The span that a line opens, given the one it would end; None where it goes on with that."""
    if before == "action":
        return "observation" if line.startswith(_SEEN) else None
    if _ACTION.match(line):
        return "action"
    return "thought" if line.startswith(_THOUGHT) and before != "thought" else None


def _chat_steps(record: dict[str, Any]) -> tuple[str, list[Step]]:
    messages = [(text_of(mapping(m, "a message"), "role"), text_of(m, "content")) for m in record["messages"]]
    spoken = [message for message in messages if message[0] != "system"]
    if len(spoken) < 2 or any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(spoken)):
        raise DataError("the messages are not user and assistant in turn")
    shown = [content.removeprefix(_SEEN).removeprefix(" ") for _, content in spoken[2::2]]
    written = [content for _, content in spoken[1::2]]
    return spoken[0][1], [Step(text, seen) for text, seen in zip(written, [*shown, ""], strict=False)]


def _use(step: Step) -> ToolUse:
    """The tool use of a step."""
    match = _CALL.search(step.text)
    if match is None:
        raise DataError("a step whose last words are no action name[argument]")
    call, name, argument = match.groups()
    if name == "finish":
        return ToolUse(name=name, arguments={"input": argument}, call=call, result=argument)
    if step.observation.startswith("Invalid Action"):
        return ToolUse(name=name, arguments={"input": argument}, call=call, error=step.observation)
    return ToolUse(name=name, arguments={"input": argument}, call=call, result=step.observation)


def _verdict(observation: str) -> Verdict:
    reward = _REWARD.search(observation)
    return _REWARDS.get(reward[1], "unknown") if reward else "unknown"


IMPORTER = Importer(
    name="fireact",
    about="FireAct ReAct episodes: Alpaca JSON and chat JSON lines",
    origin="anchen1011/FireAct, MIT",
    fits=fits,
    convert=convert,
)
