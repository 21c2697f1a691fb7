"""Who&When (ag2ai/Agents_Failure_Attribution, MIT): failed runs with the agent and step that went wrong.

Two dialects. Algorithm-Generated: `is_correct`, a `name` per message, `system_prompt` by agent; the terminal
that ran the code is an agent in name only. Hand-Crafted: `is_corrected`, no names, the agent stands in `role`
as "Orchestrator (thought)" or "Orchestrator (-> WebSurfer)".

One file is one run. `mistake_step` is a text, a 0-based index into `history`. Steps before it are correct,
the step itself is wrong, what follows is unknown (our choice: after a mistake nobody judged). A step that
does not say the agent named as mistaken is kept and counted; one outside the history leaves the run without
labels. The run is wrong, so `sft` learns nothing from it: this is input for step rewards and first-error work.
Everybody sees every message, but each answers the one before: edges go from step to step, and along each
agent. The prose of `mistake_reason` is not kept. The questions are GAIA's (an id with dashes) and
AssistantBench's *test* questions.
"""

from __future__ import annotations

import re
from typing import Any

from soloist.kernels.errors import DataError
from soloist.toolchain.record.importers.base import Document, Graph, Importer, Reading, Row, gold_of, mapping, text_of
from soloist.toolchain.traces.schema import ChatMessage, Run, Verdict

_TERMINAL = "Computer_terminal"
_HUMAN = "human"
_ROLE = re.compile(r"(.+?)\s*\((.+)\)")
_GAIA = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def fits(document: Document) -> int:
    """How many rows have a history and a mistake in it."""
    return sum(
        isinstance(row.value, dict) and {"history", "mistake_step", "mistake_agent"} <= set(row.value)
        for row in document.rows
    )


def convert(row: Row, reading: Reading) -> Run:
    """One failed run."""
    record = mapping(row.value)
    history = record.get("history")
    if not isinstance(history, list) or not history:
        raise DataError("'history' is no list, or empty")
    benchmark = "GAIA" if _GAIA.fullmatch(str(record.get("question_ID", ""))) else "AssistantBench"
    question = reading.question(
        row, text_of(record, "question"), gold_of(record, "ground_truth"), scorer="exact", benchmark=benchmark
    )
    steps = [_speaker(mapping(item, "a message")) for item in history]
    mistake = _mistake(record, [agent for agent, _, _ in steps], reading)
    prompts = record.get("system_prompt")
    graph = Graph(question)
    for index, (agent, role, text) in enumerate(steps):
        by_model = agent not in (_TERMINAL, _HUMAN)
        prompt = prompts.get(agent) if isinstance(prompts, dict) else None
        shown = (ChatMessage(role="system", content=prompt),) if isinstance(prompt, str) else ()
        graph.say(
            agent,
            text,
            round=index,
            role=role,
            reads=[index - 1] if index else (),
            messages=shown,
            by_model=by_model,
            verdict="unknown" if agent == _HUMAN else _label(index, mistake),
        )
    solved = record.get("is_correct", record.get("is_corrected"))
    verdict: Verdict = "unknown" if not isinstance(solved, bool) else "correct" if solved else "wrong"
    return graph.run("who-and-when", answer=None, verdict=verdict)


def _speaker(message: dict[str, Any]) -> tuple[str, str, str]:
    """Agent, role and text of a message in either dialect."""
    role, text = text_of(message, "role"), text_of(message, "content")
    if isinstance(message.get("name"), str):
        name = str(message["name"])
        return name, "tool" if name == _TERMINAL else "agent", text
    match = _ROLE.fullmatch(role)
    return (match[1], match[2], text) if match else (role, "user" if role == _HUMAN else "agent", text)


def _mistake(record: dict[str, Any], agents: list[str], reading: Reading) -> int | None:
    """The index of the wrong step; None where the file names none of its history."""
    try:
        step = int(record["mistake_step"])
    except (TypeError, ValueError):
        step = -1
    if not 0 <= step < len(agents):
        reading.repaired("mistake_step outside the history: kept without step labels")
        return None
    if agents[step] != record["mistake_agent"]:
        reading.repaired("mistake_step is not a step of mistake_agent: the step was believed")
    return step


def _label(index: int, mistake: int | None) -> Verdict:
    if mistake is None or index > mistake:
        return "unknown"
    return "wrong" if index == mistake else "correct"


IMPORTER = Importer(
    name="who-and-when",
    about="Who&When: failed runs labeled with the wrong agent and step, both dialects",
    origin="ag2ai/Agents_Failure_Attribution, MIT",
    fits=fits,
    convert=convert,
)
