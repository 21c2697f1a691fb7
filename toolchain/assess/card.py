"""The skill card: what a team knows, written so that one tool-using agent can be run with it.

    system           the system prompt: how a call is written, the tools, what the advice keeps
    demonstrations   worked examples of correct runs, one or more per family of questions, as chat messages
    tools            schema of every tool, how often it was used, how often it failed, how often a run whose
                     answer it made was right
    knowledge        which calls answer which family (counted over correct runs), and the statements that
                     tools' steps repeated from question to question
    items            the team's pipeline, agent by agent, each with its fate under the rule

Text skills have nowhere to go but one agent's prompt, so the card makes one agent; `agent_of` is a team
file of it on the team's own engine. Nothing is written by a model: the card holds what runs and files say.
Held-out questions never become demonstrations. Left out: skills rewritten in words (stage 2, refinement).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from soloist.toolchain.assess.result import Advice, Fate
from soloist.toolchain.core.config import Config
from soloist.toolchain.record.repeats import HAND_ON
from soloist.toolchain.teams.config import AgentConfig, Demonstration, Followup, SamplingConfig, TeamConfig
from soloist.toolchain.teams.lone import BASE_PROMPT, lone
from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.tools.files import load_tools
from soloist.toolchain.traces.schema import Run, ToolUse

_SHOWN = 400  # characters of one text: a card is read by small models
_COUNTS = re.compile(r" \((?:\d+ of \d+ correct runs|[\d.]+ turns)\)")
_LEAST_WORDS = 3  # a step of fewer is a line of working, not a statement
_ACTING = (
    "Answer by calling tools. Write one call and nothing else; its values are separated by ' | '. End the call with "
    "' then' when another one needs its result. The result of the last call is the answer."
)


class ToolCard(Config):
    """One tool. `made_answers` counts its calls on the path of a run's answer, `right` those of correct runs."""

    name: str
    definition: dict[str, Any] | None
    used: int
    failed: int
    made_answers: int
    right: int


class Skill(Config):
    """One worked example, and how many runs of its family were correct."""

    family: str
    example: Demonstration
    correct: int
    runs: int


class Item(Config):
    """A part of the team with its fate; `role` where it is an agent's."""

    kind: str
    name: str
    text: str
    fate: Fate
    role: str = ""


class Card(Config):
    """The whole of skill_card.json."""

    schema_version: int = 1
    team: str
    rule: str
    runs: int
    correct: int
    system: str
    tools: tuple[ToolCard, ...]
    skills: tuple[Skill, ...]
    knowledge: tuple[str, ...]
    items: tuple[Item, ...]

    @property
    def demonstrations(self) -> tuple[Demonstration, ...]:
        return tuple(skill.example for skill in self.skills)


def make_card(
    runs: Sequence[Run], advice: Advice, team: TeamConfig | None = None, *, name: str = "", examples: int = 1
) -> Card:
    """The card of a team from its runs; without `team` tools have no schemas and agents no prompts."""
    toolbox = load_tools(team.tools) if team is not None and team.tools else None
    tools = tuple(_tool_cards(runs, toolbox))
    knowledge = (*_ways(runs), *_statements(runs))
    skills = () if advice.keep["skills"] == "drop" else tuple(_skills(runs, examples))
    items = tuple(_items(runs, advice, team))
    return Card(
        team=team.name if team else name,
        rule=advice.rule,
        runs=len(runs),
        correct=sum(run.verdict == "correct" for run in runs),
        system=_system(tools, toolbox, knowledge, items),
        tools=tools,
        skills=skills,
        knowledge=knowledge,
        items=items,
    )


def _tool_cards(runs: Sequence[Run], toolbox: Toolbox | None) -> list[ToolCard]:
    used, failed, made_answers, right = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for run in runs:
        for turn in run.turns:
            used.update(use.name for use in turn.tools)
            failed.update(use.name for use in turn.tools if use.error is not None)
        made = [use.name for use in run.trajectory]
        made_answers.update(made)
        if run.verdict == "correct":
            right.update(made)
    definitions = {}
    if toolbox:
        definitions = {schema["function"]["name"]: schema["function"] for schema in toolbox.schemas()}
    # a call that could not be read has no name, and a name of no tool is none
    names = definitions if toolbox else [name for name in used if name]
    return [
        ToolCard(
            name=name,
            definition=definitions.get(name),
            used=used[name],
            failed=failed[name],
            made_answers=made_answers[name],
            right=right[name],
        )
        for name in names
    ]


def _correct(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.verdict == "correct"]


def _ways(runs: Sequence[Run]) -> list[str]:
    """Which calls, in order, correct runs of a family made; the most frequent way of each."""
    families: dict[str, Counter[tuple[str, ...]]] = {}
    for run in _correct(runs):
        if run.trajectory:
            ways = families.setdefault(run.question.task or "questions", Counter())
            ways[tuple(use.name for use in run.trajectory)] += 1
    lines = []
    for family, ways in families.items():
        way, count = ways.most_common(1)[0]
        lines.append(f"{family}: {', then '.join(way)} ({count} of {ways.total()} correct runs)")
    return lines


def _statements(runs: Sequence[Run]) -> list[str]:
    """Steps that are statements (words, no equation) and stand in correct runs of at least two questions."""
    seen: dict[str, set[str]] = {}
    for run in _correct(runs):
        for use in run.trajectory:
            for step in use.steps:
                words = [word for word in step.split() if re.search(r"[^\W\d_]", word)]
                if "=" not in step and len(words) >= _LEAST_WORDS:
                    seen.setdefault(step, set()).add(run.question.question)
    return [step[:_SHOWN] for step, questions in seen.items() if len(questions) > 1]


def _skills(runs: Sequence[Run], examples: int) -> list[Skill]:
    """Of each family the correct runs of most usual length, on different questions that may be shown."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        families.setdefault(run.question.task, []).append(run)
    skills = []
    for family, own in families.items():
        correct = _correct(own)
        shown: dict[str, Demonstration] = {}
        usual = median(map(_length, correct)) if correct else 0.0
        may = [run for run in correct if run.question.split == "train"]
        for run in sorted(may, key=lambda run: abs(_length(run) - usual)):
            example = _demonstration(run)
            if example is not None and len(shown) < examples:
                shown.setdefault(run.question.question, example)
        skills += [Skill(family=family, example=one, correct=len(correct), runs=len(own)) for one in shown.values()]
    return skills


def _length(run: Run) -> int:
    return len(run.question.question) + sum(len(use.call) for use in run.trajectory)


def _demonstration(run: Run) -> Demonstration | None:
    """A correct run as chat messages: its calls where it has any, else the text of its last turn on the path."""
    uses: tuple[ToolUse, ...] = run.trajectory
    asked = run.question.question
    if not uses:
        text = run.turns[run.path[-1]].text.strip() if run.path else ""
        return Demonstration(question=asked, reply=text) if text else None
    replies = [use.call for use in uses]
    results = [use.result for use in uses[:-1]]
    if any(result is None for result in results):
        return None
    then = tuple(Followup(result=str(result), reply=reply) for result, reply in zip(results, replies[1:], strict=True))
    return Demonstration(question=asked, reply=replies[0], then=then)


def _items(runs: Sequence[Run], advice: Advice, team: TeamConfig | None) -> list[Item]:
    roles: Counter[str] = Counter()
    for run in runs:
        roles.update(turn.role for turn in run.turns)
    pipeline = " → ".join(f"{role} ({count / len(runs):.1f} turns)" for role, count in roles.items()) or "no turns"
    parts = [("structure", team.topology if team else "pipeline", pipeline, "")]
    for agent in team.agents if team else ():
        shown = agent.demonstrations
        count = len(shown) if isinstance(shown, tuple) else shown.count
        parts.append(("structure", agent.name, f"{agent.role}, {count} demonstrations", agent.role))
        if agent.prompt:
            parts.append(("instructions", agent.name, agent.prompt, agent.role))
    parts += [
        ("skills", "worked examples", "one or more per family", ""),
        ("tools", "all tools", "with their schemas", ""),
        ("knowledge", "ways and statements", "from correct runs", ""),
    ]
    return [
        Item(kind=kind, name=name, text=text, fate=advice.keep[kind], role=role) for kind, name, text, role in parts
    ]


def _signature(tool: ToolCard) -> str:
    if tool.definition is None:
        return tool.name
    values = " | ".join(tool.definition["parameters"].get("properties", {}))
    return f"{tool.name}({values}): {tool.definition['description']}"


def _system(tools: Sequence[ToolCard], toolbox: Toolbox | None, knowledge: Sequence[str], items: Sequence[Item]) -> str:
    """The prompt of the one agent, without counts. A tool that no run used is left out of it, not out of the card,
    and so are the instructions of a scribe where the agent acts: it may write nothing but calls."""
    used = [tool for tool in tools if tool.used]
    parts = [_ACTING if used else BASE_PROMPT]
    if used:
        parts.append("Tools:\n" + "\n".join(f"- {_signature(tool)}" for tool in used))
    if knowledge:
        parts.append("What is known:\n" + "\n".join(f"- {_COUNTS.sub('', line)}" for line in knowledge))
    kept = [item for item in items if item.fate == "keep"]
    steps = [item for item in kept if item.kind == "structure"]
    if steps:
        parts.append("Work as the team did: " + _COUNTS.sub("", steps[0].text) + ".")
    rules = [item for item in kept if item.kind == "instructions" and not (used and item.role in HAND_ON)]
    if rules:
        parts.append("\n".join(f"As {item.name}: {item.text[:_SHOWN]}" for item in rules))
    return "\n\n".join(parts)


def agent_of(card: Card, team: TeamConfig) -> TeamConfig:
    """The one agent of the card on the team's engine: a team file that `record`, `assess` and `run` take."""
    tools = [tool.name for tool in card.tools if tool.used]
    longest = max(agent.sampling.max_tokens for agent in team.agents)
    agent = AgentConfig(
        name="agent",
        role="solver",
        prompt=card.system,
        tools=tuple(tools),
        demonstrations=card.demonstrations,
        sampling=SamplingConfig(max_tokens=longest),
    )
    return lone(f"{card.team}-card", team, agent)


def render(card: Card, advice: Advice, finding: str) -> str:
    """The card as Markdown."""
    lines = [f"# Skill card: {card.team}", "", finding, "", *[f"- {reason}" for reason in advice.reasons], ""]
    lines += [
        f"From {card.runs} runs, {card.correct} correct. Rule {card.rule}. The agent's files lie beside this "
        "one: `skill_card.json`, and `skill_agent.yaml` where the team file was at hand.",
        "",
    ]
    lines += ["## What to keep", "", "| part | name | fate | what it is |", "|---|---|---|---|"]
    lines += [f"| {i.kind} | {_cell(i.name)} | {i.fate} | {_cell(i.text)} |" for i in card.items]
    lines += [
        "",
        "## Tools",
        "",
        "| tool | used | failed | made answers | of them right |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {t.name} | {t.used} | {t.failed} | {t.made_answers} | {t.right} |" for t in card.tools]
    lines += ["", "## Knowledge", "", *([f"- {_cell(line)}" for line in card.knowledge] or ["None found."])]
    lines += ["", "## System prompt", "", *_fenced(card.system), "", "## Worked examples", ""]
    if not card.skills:
        lines.append("None: dropped by the rule, or no correct run may be shown.")
    for skill in card.skills:
        one = skill.example
        chat = [f"user: {one.question}", f"assistant: {one.reply}"]
        for more in one.then:
            chat += [f"tool: {more.result}", f"assistant: {more.reply}"]
        lines += [
            f"**{_cell(skill.family or 'questions')}** ({skill.correct} of {skill.runs} runs correct)",
            "",
            *_fenced("\n".join(chat)),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _fenced(text: str) -> list[str]:
    """A code block that no backticks inside can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, text, fence]


def _cell(text: str) -> str:
    short = " ".join(text.split())
    short = short if len(short) <= _SHOWN else short[:_SHOWN] + " …"
    for character in "\\`*_[]|":
        short = short.replace(character, "\\" + character)
    return short.replace("<", "&lt;")
