r"""DyLAN (SALT-NLP/DyLAN, MIT): debates of GPT-3.5 agents on MATH and MMLU *test* questions.

    exp/MATH/{CoT,Complex}/*.json   {few-shot prompt: [contexts, gold, level, subject]}, a context of 3, 5 or 7
                                    messages being 1, 2 or 3 rounds of one agent
    exp/MMLU/**/*.json              JSON lines: [agents][rounds] of text or null; no question, no gold

Only the agents that were still active in the last round are stored in the MATH files. The dropped ones are
left out (they survive as quotes in the prompts), so a verdict of a vote is that of the survivors. The agents
answer one after another: the prompt of agent i in round r quotes what the agents before it said in round r
and what those after it said in round r - 1 (found by comparing the texts; 1 087 of 1 099 quotes of survivors
in five files). So the influence edges are drawn from the turns whose texts were really quoted, not from a
whole round, and some lie within a round. A grid of all agents and rounds would call the dropped agents
absent though they spoke: methods that fill one should take the run's own (`magdi`: grid=run, edges=run).

The MMLU files hold no prompts: there everybody is taken to have read the round before.
They need the user's questions in the same order. The `.txt` beside each begins with one flag per
question (was the final answer right); another number of flags than of lines, or final answers that agree
with fewer than seven tenths of the flags, mean other questions: the file is refused.
"""

from __future__ import annotations

import re
from pathlib import Path

from soloist.kernels.errors import DataError
from soloist.toolchain.record.importers.base import Document, Graph, Importer, Reading, Row, chat, quoted
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.tasks.files import load_questions
from soloist.toolchain.traces.schema import Run

MODEL = "gpt-3.5-turbo"
_PROBLEM = "Problem:"
_END = re.compile(r"\n\s*Answer:\s*\Z")
_AGREEMENT = 0.7


def _is_math(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and isinstance(value[1], list)
        and len(value[1]) == 4
        and _PROBLEM in value[0]
        and bool(_END.search(value[0]))
    )


def _is_mmlu(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_are_rounds, value))


def _are_rounds(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(text is None or isinstance(text, str) for text in value)


def _mmlu_rows(document: Document) -> list[Row]:
    """The rows of an MMLU file; a file of a single line looks like the list of its agents."""
    if document.rows and all(row.where.startswith("item") for row in document.rows):
        whole = [row.value for row in document.rows]
        return [Row(1, "line 1", whole)] if _is_mmlu(whole) else list(document.rows)
    return list(document.rows)


def fits(document: Document) -> int:
    """How many records are of one of DyLAN's two kinds."""
    if document.entries:
        return sum(_is_math(row.value) for row in document.entries)
    return sum(_is_mmlu(row.value) for row in _mmlu_rows(document))


def rows(document: Document) -> list[Row]:
    """Entries of a MATH file, lines of an MMLU file."""
    return list(document.entries) if document.entries else _mmlu_rows(document)


def check(reading: Reading) -> None:
    """An MMLU file needs as many questions, and flags where they lie beside it, as it has lines."""
    document = reading.document
    if document.entries or not document.rows:
        return
    if reading.questions is None:
        raise DataError(f"{document.path}: holds neither questions nor gold: give them, in its order, by --questions")
    if document.broken:
        raise DataError(f"{document.path}: {document.broken[0][0]}: {document.broken[0][1]}; the order would be lost")
    count, asked = len(_mmlu_rows(document)), _questions(reading)
    if len(asked) != count:
        raise DataError(f"{document.path}: {count} lines, but {len(asked)} questions in {reading.questions}")
    flags = _flags(document.path)
    if flags is None:
        reading.noted("MMLU files without flags beside them: the order of the questions was not checked")
        return
    if len(flags) != count:
        raise DataError(f"{document.path}: {count} lines, but {len(flags)} flags in the .txt beside it; leave it out")
    verdicts = [_mmlu_run(row, reading).verdict for row in _mmlu_rows(document) if _is_mmlu(row.value)]
    agree = sum((verdict == "correct") == flag for verdict, flag in zip(verdicts, flags, strict=False))
    if agree < _AGREEMENT * len(flags):
        raise DataError(
            f"{document.path}: graded with {reading.questions}, only {agree} of {len(flags)} final answers agree with "
            "the flags beside it; these are other questions, or in another order"
        )


def convert(row: Row, reading: Reading) -> Run:
    """One question of either kind."""
    if isinstance(row.value, tuple):
        return _math_run(row, reading)
    if not _is_mmlu(row.value):
        raise DataError("not a list of agents with their rounds")
    return _mmlu_run(row, reading)


# ---------------------------------------------------------------- MATH


def _math_run(row: Row, reading: Reading) -> Run:
    prompt, value = row.value
    if not isinstance(value, list) or len(value) != 4:
        raise DataError("not [contexts, gold, level, subject]")
    stored, gold, level, subject = value
    if _PROBLEM not in prompt or not _END.search(prompt):
        raise DataError("the prompt holds no 'Problem: ...' before its final 'Answer:'")
    if not isinstance(stored, list) or not stored or not isinstance(gold, str) or not gold.strip():
        raise DataError("no contexts, or no gold answer")
    text = _END.sub("", prompt).rpartition(_PROBLEM)[2]
    task = f"{subject}, level {level}" if isinstance(subject, str) else ""
    question = reading.question(row, text, gold.strip(), scorer="math", task=task, benchmark="MATH")
    contexts = [chat(context) for context in stored]
    if len({len(context) for context in contexts}) > 1:
        reading.repaired("contexts of unequal length: the shorter ones end earlier")
    offset = contexts[0][0].role == "system"
    rounds = max(len(context) - offset for context in contexts) // 2
    graph = Graph(question, MODEL)
    spoken: dict[tuple[int, int], int] = {}
    for number in range(rounds):
        for agent, context in enumerate(contexts):
            at = offset + 2 * number + 1
            if at >= len(context) or not context[at].content.strip():
                continue
            reads = _quoted_turns(context[at - 1].content, agent, number, len(contexts), graph, spoken)
            if number:
                dropped = context[at - 1].content.count("One agent solution:") - len(reads)
                reading.noted("quotes of agents that the file does not hold", max(0, dropped))
            spoken[agent, number] = graph.say(
                f"agent-{agent}", context[at].content, round=number, reads=reads, messages=context[:at]
            )
    return graph.voted("dylan", [spoken[a, rounds - 1] for a in range(len(contexts)) if (a, rounds - 1) in spoken])


def _quoted_turns(
    shown: str, agent: int, number: int, agents: int, graph: Graph, spoken: dict[tuple[int, int], int]
) -> list[int]:
    """The turns that a prompt quotes: of the agents before this one in this round, of the others in the last."""
    turns = []
    for other in range(agents):
        if other == agent:
            continue
        for round_ in (number, number - 1) if other < agent else (number - 1,):
            turn = spoken.get((other, round_))
            if turn is not None and quoted(shown, graph.turns[turn].text):
                turns.append(turn)
                break
    return turns


# ---------------------------------------------------------------- MMLU


def _mmlu_run(row: Row, reading: Reading) -> Run:
    position = [other.number for other in _mmlu_rows(reading.document)].index(row.number)
    given = _questions(reading)[position]
    question = reading.question(
        row, given.question, given.gold, scorer="choice", task=given.task, benchmark="MMLU", choices=given.choices
    )
    graph = Graph(question, MODEL)
    before: list[int] = []
    last: list[int] = []
    for number in range(max(len(agent) for agent in row.value)):
        now = [
            graph.say(f"agent-{i}", agent[number], round=number, reads=before)
            for i, agent in enumerate(row.value)
            if number < len(agent) and (agent[number] or "").strip()
        ]
        before = now
        last = now or last
    return graph.voted("dylan", last)


def _questions(reading: Reading) -> list[Question]:
    """The user's questions: a file, or a folder of one file per subject."""
    path = reading.questions
    if path is None:
        raise DataError("no questions were given (--questions)")
    if path.is_dir():
        path = path / f"{reading.document.path.stem.split('_test')[0]}.jsonl"
    if not reading.asked:
        loaded = load_questions(path)
        if loaded.duplicates:
            raise DataError(f"{path}: the same question stands twice, so the order of the lines would be lost")
        reading.asked.extend(loaded.questions)
    return reading.asked


def _flags(path: Path) -> list[bool] | None:
    """The flags of the `.txt` beside a file; None where there is none."""
    file = path.with_suffix(".txt")
    if not file.is_file():
        return None
    first = re.match(r"\s*\[([^\]]*)\]", file.read_text(encoding="utf-8", errors="replace"))
    words = first[1].replace(",", " ").split() if first else []
    if not words or set(words) - {"True", "False"}:
        raise DataError(f"{file}: does not begin with a list of True and False")
    return [word == "True" for word in words]


IMPORTER = Importer(
    name="dylan",
    about="DyLAN debates on MATH (JSON) and MMLU (JSON lines; needs --questions)",
    origin="SALT-NLP/DyLAN, MIT",
    fits=fits,
    convert=convert,
    rows=rows,
    check=check,
)
