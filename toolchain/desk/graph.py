"""The knowledge graph of the desk, built from the tables its tools compute with.

    (spider, has legs, 8)   (km, is, 1000 m)   (week, is, 7 day)

The tables are the documents at hand: nothing is written down a second time, so graph and tools cannot
drift apart. Names are the ones the tools write; the words of questions (plurals, whole names of units,
both spellings) are aliases. Every pair of units of a kind is one fact, larger unit first, as the tool's
working says it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from soloist.toolchain.desk import tools_world as world
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.triples import Aliases, Triple
from soloist.toolchain.tools.arithmetic import show
from soloist.toolchain.traces.schema import ToolUse

LEGS, IS = "has legs", "is"
NAME = "desk"  # what commands and team files call this graph
_LEGS_STEP = re.compile(r"([a-z ]+): \d+ \* (\d+) = \d+")
_UNIT_STEP = re.compile(r"1 ([a-z]+) is ([\d./]+ [a-z]+)")
_PLURALS = {"woodlouse": "woodlice", "praying mantis": "praying mantises", "human": "people"}
_SINGULARS = {"feet": "foot", "inches": "inch"}


def desk_graph() -> KnowledgeGraph:
    """Legs of animals and ratios of units."""
    graph = KnowledgeGraph(aliases=Aliases(_alias_groups()), single_valued=(LEGS,))
    for source, triples in (("legs", _legs()), ("convert", _units())):
        for triple in triples:
            graph.add(triple, f"table of the tool {source}")
    return graph


def _legs() -> Iterator[Triple]:
    for animal, legs in world.LEGS.items():
        yield Triple(animal, LEGS, str(legs))


def _units() -> Iterator[Triple]:
    for units in world.UNITS.values():
        for small, large in itertools.combinations(sorted(units, key=lambda unit: units[unit]), 2):
            yield Triple(large, IS, f"{show(units[large] / units[small])} {small}")


def _alias_groups() -> Iterator[tuple[str, ...]]:
    for animal in world.LEGS:
        yield tuple(dict.fromkeys((animal, _plural(animal), f"{animal}s")))  # generated questions add a bare s
    for word, unit in world.UNIT_WORDS.items():
        names = [word, _SINGULARS.get(word, word.removesuffix("s"))]
        spelled = [name.replace("meter", "metre").replace("liter", "litre") for name in names]
        yield tuple(dict.fromkeys([unit, *names, *spelled]))


def _plural(animal: str) -> str:
    if animal in _PLURALS:
        return _PLURALS[animal]
    return animal[:-1] + "ies" if animal.endswith("y") else animal + ("es" if animal.endswith("ch") else "s")


def used_facts(use: ToolUse) -> Iterator[Triple]:
    """The facts of the tables that the working of a desk call states."""
    if use.name not in ("legs", "convert"):
        return
    for step in use.steps:
        legs, unit = _LEGS_STEP.fullmatch(step), _UNIT_STEP.fullmatch(step)
        if use.name == "legs" and legs:
            yield Triple(legs[1], LEGS, legs[2])
        elif use.name == "convert" and unit and unit[2] != f"1 {unit[1]}":  # that a unit is itself is no fact
            yield Triple(unit[1], IS, unit[2])
