"""The knowledge graph of the desk, built from the tables its tools compute with.

    (spider, has legs, 8)   (km, is, 1000 m)   (week, is, 7 day)

The tables are the documents at hand: nothing is written down a second time, so graph and tools cannot
drift apart. Names and relations are the ones the tools' own `facts` read from their working; the words of
questions (plurals, whole names of units, both spellings) are aliases. Every pair of units of a kind is one
fact, larger unit first, as the tool's working says it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from soloist.toolchain.desk import tools_world as world
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.triples import Aliases, Triple
from soloist.toolchain.tools.arithmetic import show

_SINGULARS = {"feet": "foot", "inches": "inch"}


def desk_graph() -> KnowledgeGraph:
    """Legs of animals and ratios of units."""
    graph = KnowledgeGraph(aliases=Aliases(_alias_groups()), single_valued=(world.HAS_LEGS,))
    for animal, legs in world.LEGS.items():
        graph.add(Triple(animal, world.HAS_LEGS, str(legs)), "table of the tool legs")
    for units in world.UNITS.values():
        for small, large in itertools.combinations(sorted(units, key=units.__getitem__), 2):
            ratio = show(units[large] / units[small])
            graph.add(Triple(large, world.IS, f"{ratio} {small}"), "table of the tool convert")
    return graph


def _alias_groups() -> Iterator[tuple[str, ...]]:
    for animal in world.LEGS:
        plural = world.PLURALS.get(animal, f"{animal}s")
        yield tuple(dict.fromkeys((animal, plural, f"{animal}s")))  # generated questions add a bare s to any animal
    for word, unit in world.UNIT_WORDS.items():
        names = [word, _SINGULARS.get(word, word.removesuffix("s"))]
        british = [name.replace("meter", "metre").replace("liter", "litre") for name in names]
        yield tuple(dict.fromkeys([unit, *names, *british]))
