"""Triples files, strictly; documents, tolerantly.

    facts.tsv      head <tab> relation <tab> tail                              one a line, `#` begins a comment
    facts.jsonl    {"head": "...", "relation": "...", "tail": "...", "source": "..."}       `source` may be left out
    facts.json     {"triples": [...], "aliases": [["km", "kilometer"], ...], "single_valued": ["has legs", ...]}
    aliases.tsv    name <tab> alias <tab> alias ...                            one group a line

A triples file is what the user vouches for, so every line that does not fit is a fault, and all are reported
at once with file and line. A document is cut into passages and an extractor makes of them what it can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from soloist.kernels.errors import DataError
from soloist.toolchain.core.config import shortened
from soloist.toolchain.core.entry_points import resolve_entry_point
from soloist.toolchain.knowledge.graph import FORMATS, KnowledgeGraph
from soloist.toolchain.knowledge.triples import Aliases, Triple

DESK = "desk"  # the graph that ships with Soloist, as commands and team files call it
_DESK_GRAPH = "soloist.toolchain.desk.graph:desk_graph"
Extractor = Callable[[str], Sequence[Triple]]
_PASSAGE = 1500  # characters of a document shown to an extractor at once


def load_graph(path: Path, aliases: Aliases | None = None, single_valued: Iterable[str] = ()) -> KnowledgeGraph:
    """Read a triples file; aliases and single-valued relations given here add to the file's own.

    Raises:
        DataError: no such file, another format, or lines that do not fit: all of them, each with file and line.
    """
    rows, groups, single = _read(path)
    try:
        everything = Aliases([*groups, *(aliases.groups if aliases else ())])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    graph = KnowledgeGraph(aliases=everything, single_valued=[*single, *single_valued])
    for triple, source in rows:
        graph.add(triple, source)
    return graph


def _read(path: Path) -> tuple[list[tuple[Triple, str]], list[list[str]], list[str]]:
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: not a triples file; known are {', '.join(FORMATS)}")
    text = _text_of(path)
    groups: list[list[str]] = []
    single: list[str] = []
    if path.suffix == ".json":
        triples, groups, single = _whole(_json_of(text, str(path)), path)
        items: list[tuple[str, Any]] = [(f"{path}: triples[{index}]", item) for index, item in enumerate(triples)]
    else:
        items = list(_lines(text, path))
    read = _row_of_line if path.suffix == ".tsv" else _row_of_json
    rows, faults = [], []
    for where, item in items:
        try:
            value = _json_of(item, where) if path.suffix == ".jsonl" else item
            rows.append(read(value, where))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(shortened(faults)))
    return rows, groups, single


def _lines(text: str, path: Path) -> Iterator[tuple[str, str]]:
    """The lines that say something, each with its place in the file."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}:{number}", line.rstrip("\r")


def _whole(body: object, path: Path) -> tuple[list[Any], list[list[str]], list[str]]:
    """The three lists of a .json graph. Raises DataError."""
    names = ("triples", "aliases", "single_valued")
    unknown = sorted(set(body) - set(names)) if isinstance(body, dict) else []
    if not isinstance(body, dict) or "triples" not in body or unknown:
        more = f"; unknown: {', '.join(unknown)}" if unknown else ""
        raise DataError(f"{path}: must be an object with 'triples', and 'aliases' and 'single_valued' if wanted{more}")
    triples, groups, single = (body.get(name, []) for name in names)
    if not all(isinstance(value, list) for value in (triples, groups, single)):
        raise DataError(f"{path}: 'triples', 'aliases' and 'single_valued' must be lists")
    if not all(isinstance(group, list) and all(isinstance(name, str) for name in group) for group in groups):
        raise DataError(f"{path}: each of 'aliases' must be a list of names")
    if not all(isinstance(relation, str) and relation.strip() for relation in single):
        raise DataError(f"{path}: each of 'single_valued' must be a relation")
    return triples, groups, single


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a text file that can be read ({error})") from error


def _json_of(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error


def _row_of_line(line: str, where: str) -> tuple[Triple, str]:
    parts = line.split("\t")
    if len(parts) != 3 or not all(map(str.strip, parts)):
        raise DataError(f"{where}: needs head, relation and tail, separated by two tabs; has {len(parts)} part(s)")
    return Triple(*parts), ""


def _row_of_json(row: object, where: str) -> tuple[Triple, str]:
    fields = ("head", "relation", "tail")
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object with {', '.join(fields)}")
    faults = []
    for name in fields:
        if not isinstance(row.get(name), str) or not row[name].strip():
            faults.append(f"{name}: a text is needed")
    for name in sorted(row.keys() - {*fields, "source"}):
        faults.append(f"{name}: unknown field")
    if not isinstance(row.get("source", ""), str):
        faults.append("source: must be a text")
    if faults:
        raise DataError(f"{where}: {'; '.join(faults)}")
    return Triple(row["head"], row["relation"], row["tail"]), row.get("source", "")


def load_aliases(path: Path) -> Aliases:
    """Groups of names: one group a line, names separated by tabs, `#` begins a comment. Raises DataError."""
    groups = []
    for where, line in _lines(_text_of(path), path):
        names = line.split("\t")
        if len(names) < 2 or not all(map(str.strip, names)):
            raise DataError(f"{where}: a name and its aliases are needed, separated by tabs")
        groups.append(names)
    try:
        return Aliases(groups)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def passages(text: str) -> list[str]:
    """A document in pieces an extractor can be shown: paragraphs, long ones cut at the end of a sentence or a word."""
    pieces: list[str] = []
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        rest = paragraph.strip()
        while len(rest) > _PASSAGE:
            cut = max(rest.rfind(". ", 0, _PASSAGE) + 1, 0) or rest.rfind(" ", 0, _PASSAGE)
            cut = cut if cut > 0 else _PASSAGE
            pieces.append(rest[:cut].strip())
            rest = rest[cut:].strip()
        if rest:
            pieces.append(rest)
    return pieces


def add_documents(graph: KnowledgeGraph, documents: Sequence[Path], extractor: Extractor) -> int:
    """Add what an extractor finds in documents, each fact with its document and passage; returns how many were new."""
    added = 0
    for path in documents:
        for number, passage in enumerate(passages(_text_of(path)), 1):
            for triple in extractor(passage):
                added += graph.add(triple, f"{path.name}, passage {number}")
    return added


def find_graph(name: str) -> KnowledgeGraph:
    """The desk's graph by its name, or that of a file. Raises DataError."""
    if name != DESK:
        return load_graph(Path(name))
    graph: KnowledgeGraph = resolve_entry_point(_DESK_GRAPH, "graph", DESK)()
    return graph
