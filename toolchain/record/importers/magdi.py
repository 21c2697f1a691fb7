"""MAGDi interaction graphs (dinobby/MAGDi): a list of questions with `<agent>_output_<round>` beside each.

    {"question", "gold_answer", "claude_output_0": {"reasoning", "answer"}, "gpt4_output_0": ..., ...}

Any agent prefix and any number of rounds. A missing or empty output is an agent that was absent in that
round: it gets no turn, so no stale answer of it can leak in (the released code kept the previous one's). Edges
run from every turn of a round to every turn of the next; the released code's nine backward ones are not
reproduced here. The text of a turn is its reasoning and then its answer. `confidence_level`, votes and
debate prompts (ReConcile) are not read. The files do not say which benchmark they hold: say `--benchmark`.
"""

from __future__ import annotations

import re

from soloist.kernels.errors import DataError
from soloist.toolchain.record.importers.base import (
    Document,
    Graph,
    Importer,
    Reading,
    Row,
    gold_of,
    grade,
    mapping,
    scorer_for,
    text_of,
)
from soloist.toolchain.traces.schema import Run

_OUTPUT = re.compile(r"(.+)_output_(\d{1,2})")


def fits(document: Document) -> int:
    """How many rows have a question and an agent's output of a round."""
    return sum(
        isinstance(row.value, dict) and "question" in row.value and any(_OUTPUT.fullmatch(key) for key in row.value)
        for row in document.rows
    )


def convert(row: Row, reading: Reading) -> Run:
    """One question with its whole graph."""
    record = mapping(row.value)
    gold = gold_of(record, "gold_answer")
    question = reading.question(row, text_of(record, "question"), gold, scorer=scorer_for(gold))
    spoken: dict[int, list[tuple[str, str, str | None]]] = {}
    absent = 0
    for key, value in record.items():
        match = _OUTPUT.fullmatch(key)
        if match is None:
            continue
        output = _output(value, key)
        if output is None:
            absent += 1
        else:
            spoken.setdefault(int(match[2]), []).append((match[1], *output))
    reading.noted("outputs of agents that were absent", absent)
    graph, before = Graph(question), list[int]()
    for number in sorted(spoken):
        before = [
            graph.say(
                agent,
                text,
                round=number,
                reads=before,
                answer=answer,
                verdict=grade(answer, question) if answer is not None else None,
            )
            for agent, text, answer in sorted(spoken[number])
        ]
    return graph.voted("magdi", before)


def _output(value: object, key: str) -> tuple[str, str | None] | None:
    """Text and answer of an output; None where the agent was absent."""
    if value is None or value in ("", {}):
        return None
    output = mapping(value, f"'{key}'")
    reasoning, answer = output.get("reasoning") or "", output.get("answer")
    if not isinstance(reasoning, str) or isinstance(answer, dict | list | bool):
        raise DataError(f"'{key}': reasoning and answer must be texts")
    final = "" if answer is None else str(answer).strip()
    if not reasoning.strip() and not final:
        return None
    closing = f"The answer is {final}." if final else ""
    return "\n".join(filter(None, (reasoning.strip("\n"), closing))), final or None


IMPORTER = Importer(
    name="magdi",
    about="MAGDi interaction graphs: <agent>_output_<round>, any agents",
    origin="MAGDi or ReConcile output; their code is MIT",
    fits=fits,
    convert=convert,
)
