"""The facts that belong to a question: by the names in its text, then hop by hop.

    hops 0    facts about nothing but what the question names     (spider, has legs, 8), (km, is, 1000 m)
    hops 1    then facts that lead from there to something else
    hops 2    then the facts about that, and so on

Only facts of the graph ever come out of here, so what a student is shown before a question is verified by
construction, and needs neither the question's answer nor its trace: the same facts are found again when
the student is asked. (Triples of a trace are no such thing: a tool call with its result gives the answer
away.) A fact that leads elsewhere is left out where another says more about the same: of thirteen facts
about kilometers or meters, a question about both needs the one that ties them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.triples import Triple

LIMIT = 8


def entities_in(question: str, graph: KnowledgeGraph) -> dict[str, int]:
    """What a question names, as nodes, with the place where.

    A single letter is a name where a fact ties it to one that was named: `97000 mg in g`, but not `solve for g`.
    """
    named = graph.mentioned(question, prose=True)
    for node, place in graph.mentioned(question, prose=True, letters=True).items():
        if node not in named and any(graph.entities_of(fact) & named.keys() for fact in graph.facts_of(node)):
            named[node] = place
    return named


def triples_for(question: str, graph: KnowledgeGraph, limit: int = LIMIT, *, hops: int = 1) -> tuple[Triple, ...]:
    """The facts of the graph that belong to a question, the closest first, at most `limit`."""
    anchors = entities_in(question, graph)
    named: dict[Triple, frozenset[str]] = {}  # what a fact about an anchor shares with the question
    whole: list[Triple] = []  # facts about nothing else
    for node in anchors:
        for triple in graph.facts_of(node):
            if triple not in named:
                entities = graph.entities_of(triple)
                named[triple] = entities & anchors.keys()
                if entities <= anchors.keys():
                    whole.append(triple)
    leading = [triple for triple in named if triple not in whole and not _outdone(triple, named, whole)]

    def closeness(triple: Triple) -> tuple[int, int]:
        return min(anchors[node] for node in named[triple]), -len(named[triple])

    leading.sort(key=closeness)
    kept = dict.fromkeys([*sorted(whole, key=closeness), *(leading if hops else [])])
    seen, border = set(anchors), leading
    for _ in range(hops - 1):
        ends: dict[str, None] = {}
        for triple in border:
            ends |= dict.fromkeys(sorted(graph.entities_of(triple) - seen))
        seen |= ends.keys()
        border = []
        for node in ends:
            border += [triple for triple in graph.facts_of(node) if triple not in named]
        kept |= dict.fromkeys(border)
    return tuple(kept)[:limit]


def _outdone(triple: Triple, named: Mapping[Triple, frozenset[str]], whole: Sequence[Triple]) -> bool:
    """Whether another fact says as much about what the question names and leads nowhere, or says more about it."""
    own = named[triple]
    return any(own <= named[other] for other in whole) or any(own < shared for shared in named.values())


def facts_text(triples: Iterable[Triple]) -> str:
    """Facts as they stand before a question; empty without any."""
    lines = "\n".join(map(str, triples))
    return f"Facts:\n{lines}" if lines else ""
