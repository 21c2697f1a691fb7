r"""AgentArk and MASLab: JSON lines of inference (`response`) or of labels (`solutions`).

    {"query", "gt", "response": "===== Solution 1 =====\n...", "token_stats": {model: {...}}}     batch mode
    {"query", "gt", "response": "Solution 1:\n...", ...}                                     sequential mode
    {"query", "gt", "solutions": [{"id", "text", "is_correct"}], "labels": [...]}

The last solution of a response is the aggregator's, who read the others; these are the agents' last round,
all that the files keep, so nothing here is good for methods that need the rounds before. Solutions quote each
other: a header counts only as a line of its own and in the order 1, 2, 3 ...; where a number stands twice
before the next one, nobody can tell which is the quote, and the record is refused. A response without headers
(plain MASLab) is one turn.

A label is believed where our own grading cannot decide, and only when it is true: the released labeler also
writes false for verdicts it could not read. `token_stats` of batch mode are running totals: their maximum
goes into the counts, never their sum, and never into a turn.
"""

from __future__ import annotations

import re
from typing import Any

from soloist.kernels.errors import DataError
from soloist.toolchain.record.importers.base import (
    UNRECORDED,
    Document,
    Graph,
    Importer,
    Reading,
    Row,
    answer_in,
    gold_of,
    grade,
    mapping,
    scorer_for,
    text_of,
)
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.schema import Run, Verdict

_HEADERS = {
    "batch": re.compile(r"^={3,} Solution (\d+) ={3,}[ \t]*\r?$\n?", re.MULTILINE),
    "sequential": re.compile(r"^Solution (\d+):[ \t]*\r?\n", re.MULTILINE),
}
_TOKENS = "most tokens that token_stats counted"


def fits(document: Document) -> int:
    """How many rows have a query and what became of it."""
    return sum(
        isinstance(row.value, dict)
        and "query" in row.value
        and not {"response", "solutions", "error"}.isdisjoint(row.value)
        for row in document.rows
    )


def convert(row: Row, reading: Reading) -> Run:
    """One record of either kind."""
    record = mapping(row.value)
    if record.get("error") and not record.get("response"):
        raise DataError("the run failed (it has 'error' and no 'response')")
    gold = gold_of(record, "gt")
    question = reading.question(row, text_of(record, "query"), gold, scorer=scorer_for(gold))
    model = _count_tokens(record, reading)
    if "solutions" in record:
        return _labeled(record, question, reading)
    graph = Graph(question, model)
    texts = split_solutions(text_of(record, "response"))
    if len(texts) < 2:
        turn = graph.say("agent-1", texts[0])
        return graph.run("agentark", answer=graph.turns[turn].answer, path=[turn])
    agents = [graph.say(f"agent-{i}", text) for i, text in enumerate(texts[:-1], 1) if text.strip()]
    if len(agents) < len(texts) - 1:
        reading.noted("agents whose solution is empty", len(texts) - 1 - len(agents))
    if not texts[-1].strip():
        reading.repaired("empty aggregate: the agents' majority taken")
        return graph.voted("agentark", agents)
    last = graph.say("aggregator", texts[-1], round=1, role="aggregator", reads=agents)
    return graph.run("agentark", answer=graph.turns[last].answer, path=[last])


def split_solutions(response: str) -> list[str]:
    """The solutions of a response, in order; the whole of it where it has no headers.

    Raises:
        DataError: empty, or headers that may be quotes.
    """
    if not response.strip():
        raise DataError("an empty response")
    for pattern in _HEADERS.values():
        headers = list(pattern.finditer(response))
        if not headers or response[: headers[0].start()].strip():
            continue  # what begins with something else only quotes solutions
        taken = [headers[0]]
        for match in headers[1:]:
            number, expected = int(match[1]), len(taken) + 1
            if number == expected:
                taken.append(match)
            elif number == expected - 1 and number > 1 and _goes_on(headers, match, expected):
                raise DataError(f"the header 'Solution {number}' stands twice: one of the two is a quote")
        if int(headers[0][1]) != 1 or len(taken) < 2:
            continue
        ends = [match.start() for match in taken[1:]] + [len(response)]
        return [response[match.end() : end].strip("\n") for match, end in zip(taken, ends, strict=True)]
    return [response]


def _goes_on(headers: list[re.Match[str]], match: re.Match[str], expected: int) -> bool:
    """Whether a header with the next number still follows: then the repeated one may be the real one."""
    return any(int(other[1]) == expected for other in headers if other.start() > match.start())


def _labeled(record: dict[str, Any], question: Question, reading: Reading) -> Run:
    solutions, labels = record["solutions"], record.get("labels")
    if not isinstance(solutions, list) or not solutions:
        raise DataError("'solutions' is no list, or empty")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(solutions)):
        raise DataError("as many labels as solutions are needed")
    graph, turns = Graph(question, UNRECORDED), []
    for index, item in enumerate(solutions):
        solution = mapping(item, "a solution")
        text = text_of(solution, "text")
        if not text.strip():
            continue
        label = solution.get("is_correct", labels[index] if labels else None)
        answer = answer_in(text, question)
        ours = grade(answer, question)
        if question.scorer == "exact" and ours == "wrong":
            ours = "unknown"  # other words may say the same; a judge read them
        verdict: Verdict = ours if ours != "unknown" else "correct" if label is True else "unknown"
        if ours != "unknown" and isinstance(label, bool) and label != (ours == "correct"):
            reading.repaired("label contradicts the answer and the gold: graded again")
        name = solution.get("id", index + 1)
        turns.append(graph.say(f"agent-{name}", text, answer=answer, verdict=verdict))
    return graph.voted("agentark", turns)


def _count_tokens(record: dict[str, Any], reading: Reading) -> str:
    """Note the largest total of tokens seen, and return the model's name where there is just one."""
    stats = record.get("token_stats")
    if not isinstance(stats, dict) or not stats:
        return UNRECORDED
    total = 0
    for counts in stats.values():
        for key, value in counts.items() if isinstance(counts, dict) else ():
            if key.endswith("_tokens") and isinstance(value, int | float):
                total += int(value)
    reading.tally.noted[_TOKENS] = max(total, reading.tally.noted[_TOKENS])
    return str(next(iter(stats))) if len(stats) == 1 else UNRECORDED


IMPORTER = Importer(
    name="agentark",
    about="AgentArk and MASLab: inference and label JSON lines, batch and sequential headers",
    origin="AgentArk or MASLab output, no license stated",
    fits=fits,
    convert=convert,
)
