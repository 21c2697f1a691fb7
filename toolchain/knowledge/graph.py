"""The knowledge graph: what is known, asked for by fact, by name, and by the names in a text.

A node is a name up to its aliases; an edge is a fact, kept with its source. That a fact is not in the graph does
not make its opposite true; only a relation declared single-valued lets the graph contradict anybody. Files of
graphs are read by `files.py`. Plain dictionaries hold it, because a student trained with facts is prompted with
them wherever it runs; `network` hands it to networkx. Left out: reasoning over relations (inverses, transitivity).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from soloist.kernels.errors import DataError
from soloist.targets.base import require
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.knowledge.triples import Aliases, Triple, spelled, words

Match = Literal["exact", "alias"]
FORMATS = (".tsv", ".jsonl", ".json")
_PLAIN = Aliases()


# Never a name in prose: `how much is that in yd` has no inches.
_FUNCTION_WORDS = frozenset(
    words(
        "a an and as at be by do for from go he how i if in is it me my no not of off on or our out so than that the "
        "their then this to up us was we what with you"
    )
)


def is_quantity(node: str) -> bool:
    """`8`, `1000 m`: facts meet there without having anything to do with each other."""
    return node.lstrip("-−.")[:1].isdigit()


class KnowledgeGraph:
    """Facts, each once up to aliases, in the order in which they came."""

    def __init__(
        self, triples: Iterable[Triple] = (), aliases: Aliases | None = None, single_valued: Iterable[str] = ()
    ) -> None:
        self.aliases = aliases or Aliases()
        self.single_valued = tuple(dict.fromkeys(single_valued))
        self._single = {self.aliases.root(relation) for relation in self.single_valued}
        self._facts: dict[tuple[str, str, str], Triple] = {}
        self._sources: dict[tuple[str, str, str], str] = {}
        self._tails: dict[tuple[str, str], dict[str, Triple]] = {}  # of a head and a relation
        self._nodes: set[str] = set()
        self._names: dict[tuple[str, ...], set[str]] = {}
        self._spellings: set[str] = set()
        self._longest = 1
        self._about: dict[str, list[Triple]] | None = None
        for group in self.aliases.groups:
            self._index(group[0])
        for triple in triples:
            self.add(triple)

    def __len__(self) -> int:
        return len(self._facts)

    def __iter__(self) -> Iterator[Triple]:
        return iter(self._facts.values())

    def __contains__(self, triple: object) -> bool:
        return isinstance(triple, Triple) and self.aliases.key(triple) in self._facts

    def add(self, triple: Triple, source: str = "") -> bool:
        """Add a fact; False if it is there already, in whatever words."""
        key = self.aliases.key(triple)
        if key in self._facts:
            return False
        self._facts[key] = triple
        head, relation, tail = key
        self._sources[key] = source
        self._tails.setdefault((head, relation), {})[tail] = triple
        for node, name in ((head, triple.head), (tail, triple.tail)):
            if node not in self._nodes:
                self._nodes.add(node)
                self._index(name)
        self._about = None
        return True

    def _index(self, name: str) -> None:
        if is_quantity(self.aliases.root(name)):
            return  # `1000 m` in a text names the meter
        for alias in (*self.aliases.names(name), name):
            if key := words(alias):
                self._spellings.add(alias.strip())
                self._names.setdefault(key, set()).add(self.aliases.root(name))
                self._longest = max(self._longest, len(key))

    def find(self, triple: Triple) -> tuple[Triple, Match] | None:
        """The fact a triple states, and whether in its own words or by an alias."""
        fact = self._facts.get(self.aliases.key(triple))
        if fact is None:
            return None
        return fact, "exact" if _PLAIN.key(fact) == _PLAIN.key(triple) else "alias"

    def against(self, triple: Triple) -> Triple | None:
        """A fact that contradicts a triple: same head, same single-valued relation, another tail."""
        head, relation, tail = self.aliases.key(triple)
        facts = self._tails.get((head, relation), {}) if relation in self._single else {}
        return None if not facts or tail in facts else next(iter(facts.values()))

    def mentioned(self, text: str, *, prose: bool = False, letters: bool = False) -> dict[str, int]:
        """The names a text mentions, each by its node and the place of the first mention.

        A name of one letter counts only after a number, as a unit does, or if it is the whole text, or where
        `letters` says so. In `prose` a name within a longer name is no mention, and neither is a word like `in`,
        nor one or two letters in another case than the name's, unless after a number: HH:MM is no millimeter.
        """
        folded, written = words(text), spelled(text)
        if len(written) != len(folded):  # folding may split a word of some scripts
            written = folded
        places: dict[str, int] = {}
        start = 0
        while start < len(folded):
            step, before = 1, folded[start - 1] if start else ""
            for end in range(min(len(folded), start + self._longest), start, -1):
                key = folded[start:end]
                if key not in self._names:
                    continue
                if len(key) == 1 and len(folded) > 1:
                    unit = len(key[0]) > 1 or before[:1].isdigit()
                    if not (self._meant(key[0], written[start], before, letters) if prose else unit):
                        continue
                for node in sorted(self._names[key]):
                    places.setdefault(node, start)
                if prose:
                    step = end - start
                    break
            start += step
        return places

    def _meant(self, word: str, written: str, before: str, letters: bool) -> bool:
        """Whether a lone word of prose that could be a name is meant as one."""
        as_named = written in self._spellings
        if word in _FUNCTION_WORDS:
            return as_named and written != word
        if before[:1].isdigit():
            return True
        return (letters or len(word) > 1) and (len(word) > 2 or as_named)

    def entities_of(self, triple: Triple) -> frozenset[str]:
        """What a fact is about: its ends, or the names within them where they are numbers and quantities."""
        nodes: set[str] = set()
        for name in (triple.head, triple.tail):
            nodes |= {self.aliases.root(name), *self.mentioned(name)}
        return frozenset(node for node in nodes if not is_quantity(node))

    def facts_of(self, entity: str) -> tuple[Triple, ...]:
        """The facts about an entity (as a node), in the order in which they came."""
        if self._about is None:
            self._about = {}
            for triple in self:
                for node in self.entities_of(triple):
                    self._about.setdefault(node, []).append(triple)
        return tuple(self._about.get(entity, ()))

    def require_facts(self) -> KnowledgeGraph:
        """The graph itself. Raises DataError if it holds nothing to verify against."""
        if not self._facts:
            raise DataError(
                "the knowledge graph is empty: there is nothing to verify against; "
                "build one from a triples file or documents with `soloist knowledge build`"
            )
        return self

    @property
    def digest(self) -> str:
        """Hash of what the graph says, whatever the order in which it was said."""
        content = {
            "triples": sorted(list(triple.parts) for triple in self),
            "aliases": sorted(map(list, self.aliases.groups)),
            "single_valued": sorted(self.single_valued),
        }
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]

    def records(self) -> list[dict[str, str]]:
        """The facts as plain data."""
        rows = []
        for key, triple in self._facts.items():
            row = {"head": triple.head, "relation": triple.relation, "tail": triple.tail}
            if self._sources[key]:
                row["source"] = self._sources[key]
            rows.append(row)
        return rows

    def network(self) -> Any:
        """A copy as networkx MultiDiGraph: nodes up to aliases, each edge with its `triple` and `source`."""
        made = require("networkx", "train").MultiDiGraph()
        for (head, relation, tail), triple in self._facts.items():
            made.add_edge(head, tail, key=relation, triple=triple, source=self._sources[head, relation, tail])
        return made

    def save(self, path: Path) -> None:
        """Write the graph in the format of the file's suffix. Raises DataError if that format would lose something."""
        if path.suffix not in FORMATS:
            raise DataError(f"{path}: a graph is saved as {', '.join(FORMATS)}")
        if path.suffix != ".json" and (self.aliases.groups or self.single_valued):
            raise DataError(f"{path}: only .json keeps aliases and single-valued relations; save the graph as .json")
        rows = self.records()
        dump = partial(json.dumps, ensure_ascii=False)
        if path.suffix == ".tsv":
            text = "".join("\t".join(triple.parts) + "\n" for triple in self)
        elif path.suffix == ".jsonl":
            text = "".join(dump(row) + "\n" for row in rows)
        else:
            lines, aliases = ",\n  ".join(map(dump, rows)), ",\n  ".join(map(dump, self.aliases.groups))
            single = dump(self.single_valued)
            text = f'{{"triples": [\n  {lines}\n],\n"aliases": [\n  {aliases}\n],\n"single_valued": {single}}}\n'
        write_atomic(path, text)
