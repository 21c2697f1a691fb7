"""Two models as one: a decomposer asks sub-questions, a solver answers them one after the other.

    question               ──► decomposer   q_1 .. q_m, one a line
    question, q_1          ──► solver       a_1
    .. q_1, a_1, .. q_j    ──► solver       a_j; the answer is the last one

The solver never sees a later sub-question or answer. With tools each a_j is a call, whose result the next
sub-question may build on; without, its words. A decomposer that writes nothing leaves the question as it is
(m = 1). Agents of role decomposer and solver; their models are the parts of one student, or any two. The
form of the solver's conversation is here, once for serving and training (`distill/methods/smagdi.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from soloist.targets.base import Message
from soloist.toolchain.core.config import Config
from soloist.toolchain.tasks.base import extract
from soloist.toolchain.teams.session import Say, Session, messages_for
from soloist.toolchain.tools.calls import grammar
from soloist.toolchain.traces.schema import Run


class Options(Config):
    """`max_steps` bounds the sub-questions: more of them give no answer; `grammar` keeps calls well formed."""

    max_steps: int = Field(default=8, ge=1)
    grammar: bool = True


def posed(question: str, asked: str) -> str:
    """How the first sub-question is put to the solver; one that is the question itself is not repeated."""
    question, asked = question.strip(), asked.strip()
    return question if asked.split() in ([], question.split()) else f"{question}\n{asked}"


def sub_questions(text: str) -> list[str]:
    """What a decomposer wrote: a sub-question a line."""
    return list(filter(None, map(str.strip, text.splitlines())))


def dialogue(question: str, asked: Sequence[str], replies: Sequence[Sequence[Message]]) -> list[Message]:
    """The solver's conversation: every sub-question, then its replies (the call and the tool's result, or words)."""
    messages: list[Message] = []
    for number, (text, own) in enumerate(zip(asked, replies, strict=True)):
        messages.append({"role": "user", "content": text.strip() if number else posed(question, text)})
        messages += own
    return messages


def run(session: Session, options: Options) -> Run:
    decomposer, solver = session.agent("decomposer"), session.agent("solver")
    question = session.question.question
    (plan,) = session.say([Say(decomposer, messages_for(decomposer, question.strip()))])
    asked = sub_questions(session.turns[plan]["text"]) or [question]
    rules = grammar(session.tools, solver.tools, more=False) if solver.tools and options.grammar else None
    history: list[Message] = []
    turns: list[int] = []
    answer: str | None = None
    for number, text in enumerate(asked[: options.max_steps]):
        if number:
            history.append({"role": "user", "content": text})
        messages = messages_for(solver, posed(question, asked[0]), history=history)
        before = {"continues": turns[-1]} if turns else {"after": [plan]}
        (turn,) = session.say([Say(solver, messages, grammar=rules, **before)])
        turns.append(turn)
        answer, replies = _heard(session, turn, acts=bool(solver.tools))
        session.answer(turn, answer)
        history += replies
        if answer is None:
            break
    if len(asked) > options.max_steps:
        answer = None  # what was answered last is an intermediate result
    return session.finish(answer, [plan, *turns])


def _heard(session: Session, turn: int, *, acts: bool) -> tuple[str | None, list[Message]]:
    """What a reply of the solver's answers, and what it adds to the conversation."""
    text = session.turns[turn]["text"].strip()
    replies: list[Message] = [{"role": "assistant", "content": text}]
    if not acts:
        return extract(text), replies
    result = session.run_tool(turn, text).result
    if result is not None:
        replies.append({"role": "tool", "content": result})
    return result, replies
