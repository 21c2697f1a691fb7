r"""Debates after Du et al. (composable-models/llm_multiagent_debate and its forks): GSM8K, MMLU, arithmetic.

    {question: [contexts, gold]}      a context is user, assistant, user, assistant ...: one pair a round
    {person: contexts}                the biographies: no gold, so nothing is graded

Every agent reads all others of the round before, so the graph between two rounds is complete; where a prompt
is found to quote some of them word for word, the edges are those. The gold of GSM8K is a worked solution:
the answer is what follows its `####`. Files named gsm_* or mmlu_*, and golds with `####`, are those
benchmarks' *test* questions. The arithmetic files of the original are pickles and are refused unopened.
"""

from __future__ import annotations

from typing import Any

from soloist.kernels.errors import DataError
from soloist.toolchain.record.importers.base import Document, Graph, Importer, Reading, Row, chat, quoted, scorer_for
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.traces.schema import ChatMessage, Run


def _are_contexts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_context, value))


def _is_context(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(message, dict) and "role" in message for message in value)


def _parts(value: object) -> tuple[Any, Any] | None:
    """Contexts and gold of an entry; None for anything else."""
    if isinstance(value, list) and len(value) == 2 and _are_contexts(value[0]) and not _are_contexts([value[1]]):
        return value[0], value[1]
    return (value, None) if _are_contexts(value) else None


def fits(document: Document) -> int:
    """How many entries hold contexts of messages."""
    return sum(_parts(row.value[1]) is not None for row in document.entries)


def convert(row: Row, reading: Reading) -> Run:
    """One debate."""
    asked, value = row.value
    parts = _parts(value)
    if parts is None:
        raise DataError("not [contexts, gold]")
    stored, given = parts
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int | float)):
        raise DataError("the gold answer is no text")
    gold = None if given is None else str(given).strip()
    benchmark = _benchmark(reading.document.path.name, gold)
    if gold and "####" in gold:
        gold = extract(gold)
    question = reading.question(row, asked, gold or None, scorer=scorer_for(gold), benchmark=benchmark)
    contexts = [_without_system(chat(context)) for context in stored]
    if len({len(context) for context in contexts}) > 1:
        reading.repaired("contexts of unequal length: the shorter ones end earlier")
    graph, before = Graph(question), dict[int, int]()
    for number in range(max(len(context) for context in contexts) // 2):
        now = {}
        for agent, context in enumerate(contexts):
            at = 2 * number + 1
            if at >= len(context) or not context[at].content.strip():
                continue
            shown = context[at - 1].content
            reads = [turn for turn in before.values() if quoted(shown, graph.turns[turn].text)]
            now[agent] = graph.say(
                f"agent-{agent}",
                context[at].content,
                round=number,
                reads=reads or before.values(),
                messages=context[:at],
            )
        before = now or before
    return graph.voted("debate", list(before.values()))


def _without_system(context: list[ChatMessage]) -> list[ChatMessage]:
    return context[1:] if context[0].role == "system" else context


def _benchmark(name: str, gold: str | None) -> str | None:
    if name.startswith("mmlu"):
        return "MMLU"
    return "GSM8K" if name.startswith("gsm") or (gold and "####" in gold) else None


IMPORTER = Importer(
    name="du",
    about="debates after Du et al. (GSM8K, MMLU, biographies); no pickles",
    origin="debate after Du et al., license not stated",
    fits=fits,
    convert=convert,
    rows=lambda document: document.entries,
)
