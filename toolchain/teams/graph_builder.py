"""One knowledge graph from sources of all kinds: triples files, the desk's tables, documents that agents read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from soloist.kernels.errors import DataError, UsageError
from soloist.toolchain.knowledge.files import DESK, add_documents, find_graph
from soloist.toolchain.knowledge.graph import FORMATS, KnowledgeGraph
from soloist.toolchain.knowledge.triples import Aliases
from soloist.toolchain.teams.config import load_team
from soloist.toolchain.teams.extraction import T_MAX, AgentExtractor
from soloist.toolchain.teams.team import open_engine


@dataclass(frozen=True)
class Built:
    """A graph, and how the reading of documents went."""

    graph: KnowledgeGraph
    passages: int = 0
    dropped: int = 0


def build_graph(
    sources: Sequence[str],
    aliases: Aliases | None = None,
    single_valued: Iterable[str] = (),
    *,
    team: str | None = None,
    t_max: int = T_MAX,
) -> Built:
    """One graph of triples files, the desk and documents; documents are read by the agents of `team`.

    Raises:
        UsageError: a document, and no team to read it.
        DataError: a source that cannot be read, or no fact in any.
    """
    ready, documents, missing = [], [], []
    for source in sources:
        if source == DESK or Path(source).suffix in FORMATS:
            ready.append(source)
        elif Path(source).is_file():
            documents.append(Path(source))
        else:
            missing.append(source)
    if missing:
        raise DataError(f"{', '.join(missing)}: no such file")
    if documents and team is None:
        raise UsageError(f"{documents[0]}: a document needs agents that read it: --team FILE.yaml")
    parts = [find_graph(source) for source in ready]
    groups = list(aliases.groups) if aliases else []
    single = list(single_valued)
    for part in parts:
        groups += part.aliases.groups
        single += part.single_valued
    graph = KnowledgeGraph(aliases=Aliases(dict.fromkeys(groups)), single_valued=single)
    for part in parts:
        for row, triple in zip(part.records(), part, strict=True):
            graph.add(triple, row.get("source", ""))
    built = _read_documents(graph, documents, team, t_max) if documents and team else Built(graph)
    if not len(built.graph):
        raise DataError(f"{', '.join(sources)}: no fact found; the graph would be empty")
    return built


def _read_documents(graph: KnowledgeGraph, documents: Sequence[Path], team: str, t_max: int) -> Built:
    config = load_team(team)
    engine = open_engine(config)
    try:
        extractor = AgentExtractor(engine, config.agents, t_max=t_max)
        add_documents(graph, documents, extractor)
    finally:
        engine.close()
    return Built(graph, extractor.passages, extractor.dropped)
