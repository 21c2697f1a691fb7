"""Triples (head, relation, tail): read from what a model wrote, written back, and compared.

    (spider, has legs, 8)     ("Paris, Texas", lies in, Texas)     ["km", "is", "1000 m"]     km | is | 1000 m

The reader is tolerant, because models are not strict: lists, bullets, tables, JSON in prose, quotes of all
sorts, commas inside names. Where commas leave more than three parts, names and relations known from
elsewhere decide; without any the part that reads like a relation does. What `str` writes is read back
as it was. Two names are the same if they fold to the same text or stand in one group of aliases: an
equivalence, so it does not matter which of the two is asked about. Left out on purpose: guessing that
similar names are the same.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from soloist.kernels.errors import DataError

_SPECIAL = re.compile(r"[,;|<>()\[\]{}\"“”\t\\]|\A['‘’]")
_BULLET = re.compile(r"\s*(?:[-*•]\s+|\d+[.)]\s+)?")
_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3}){1,6}|\d{1,30})(?:\.\d{1,30})?")
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[+*/^=%$€#]")
_ARTICLE = re.compile(r"\A(?:the|an?) (?=\S)")
_LETTER = re.compile(r"[^\W\d_]")
_MOST_JSON = 64  # places in a text where JSON may begin
_KEYS = (("head", "relation", "tail"), ("subject", "predicate", "object"), ("h", "r", "t"))
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’"}


@dataclass(frozen=True, order=True)
class Triple:
    """One fact. Spacing is folded; no part is empty."""

    head: str
    relation: str
    tail: str

    def __post_init__(self) -> None:
        for part in fields(self):
            text = " ".join(str(getattr(self, part.name)).split())
            if not text:
                raise DataError(f"triple ({self.head}, {self.relation}, {self.tail}): the {part.name} is empty")
            object.__setattr__(self, part.name, text)

    def __str__(self) -> str:
        return f"({', '.join(map(_written, self.parts))})"

    @property
    def parts(self) -> tuple[str, str, str]:
        return self.head, self.relation, self.tail


@dataclass(frozen=True)
class Parsed:
    """The triples of a text, each once, and what looked like one and could not be read."""

    triples: tuple[Triple, ...]
    unread: tuple[str, ...] = ()


def _written(part: str) -> str:
    return json.dumps(part, ensure_ascii=False) if _SPECIAL.search(part) else part


def fold(name: str) -> str:
    """Names that say the same fold to the same text: case, spacing, articles, end marks, thousands of numbers."""
    before = None
    while before != name:  # one rule may open the way for another
        before = name
        name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        name = " ".join(name.replace("_", " ").split()) or name
        bare = name.strip("\"'“”‘’` ").rstrip(" .!?:;")
        name = _ARTICLE.sub("", bare, count=1) or name
        if _NUMBER.fullmatch(name):
            name = str(Fraction(name.replace(",", "").replace("−", "-")))
    return name


def words(text: str) -> tuple[str, ...]:
    """Words, numbers and signs of a text, folded, English plurals as singulars: the key of looking names up in it."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return tuple(_singular(word.replace(",", "")) for word in _WORD.findall(folded))


def spelled(text: str) -> tuple[str, ...]:
    """The same words as they are written."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text)))


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "xes", "ches", "shes")) else word[:-1]


class Aliases:
    """Groups of names that mean the same; the first of a group is the one we write.

    Raises DataError if a name stands in two groups: they would silently become one.
    """

    def __init__(self, groups: Iterable[Sequence[str]] = ()) -> None:
        self.groups = tuple(tuple(dict.fromkeys(group)) for group in groups)
        self._root: dict[str, str] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        for group in self.groups:
            if not group or not all(map(str.strip, group)):
                raise DataError(f"aliases: an empty name in the group {', '.join(group) or '(empty)'}")
            root = fold(group[0])
            for name in group:
                if self._root.setdefault(fold(name), root) != root:
                    raise DataError(f"aliases: '{name}' means both '{self._root[fold(name)]}' and '{root}'")
            self._names[root] = group

    def root(self, name: str) -> str:
        """The folded name that stands for all of its group."""
        folded = fold(name)
        return self._root.get(folded, folded)

    def same(self, one: str, other: str) -> bool:
        """Whether two names mean the same."""
        return self.root(one) == self.root(other)

    def names(self, name: str) -> tuple[str, ...]:
        """All names of the group of a name, itself if it has none."""
        return self._names.get(self.root(name), (name,))

    def key(self, triple: Triple) -> tuple[str, str, str]:
        """Triples that say the same have the same key."""
        return self.root(triple.head), self.root(triple.relation), self.root(triple.tail)


def parse_triples(text: str, *, known: Iterable[str] = (), whole_lines: bool = False) -> Parsed:
    """Read the triples out of a model's text.

    Args:
        known: names and relations that help where commas leave more than three parts.
        whole_lines: take only lines that are nothing but triples: prose may hold `(1, 2, 3)`, and two semicolons,
            for other reasons.
    """
    triples: dict[Triple, None] = {}
    rest = text
    for start, end, read in _json_triples(text):
        triples |= dict.fromkeys(read)
        rest = rest[:start] + re.sub(r"[^\n]", " ", rest[start:end]) + rest[end:]
    split: list[tuple[str, list[str]]] = []
    unread: list[tuple[str, list[str]]] = []
    for line in rest.splitlines():
        for group in _candidates(line, whole_lines):
            parts = _split(group)
            (split if len(parts) >= 3 else unread).append((group, parts))
    names = set(map(fold, known))
    for _, parts in split:
        if len(parts) == 3 and (triple := _triple(*parts)):
            names.add(fold(triple.relation))
    for group, parts in split:
        triple = _triple(*parts) if len(parts) == 3 else _regroup(group, parts, names)
        if triple is not None:
            triples[triple] = None
        else:
            unread.append((group, parts))
    doubtful = []
    for group, parts in unread:
        if len(parts) > 1 and tuple(map(fold, parts)) not in _KEYS:
            doubtful.append(f"({group.strip()})")
    return Parsed(tuple(triples), tuple(doubtful))


def _triple(head: str, relation: str, tail: str) -> Triple | None:
    """A triple of three parts that may be one: none empty, a relation in words, not the head of a table."""
    parts = tuple(map(_bare, (head, relation, tail)))
    if not all(map(str.strip, parts)) or not _LETTER.search(parts[1]):
        return None
    return None if tuple(map(fold, parts)) in _KEYS else Triple(*parts)


def _bare(part: str) -> str:
    """A part without its quotes."""
    part = part.strip()
    if part.startswith('"'):
        try:
            value = json.loads(part)
        except ValueError:
            value = None
        if isinstance(value, str):
            return value
    if len(part) > 1 and _QUOTES.get(part[0]) == part[-1]:
        return part[1:-1]
    return part


def _json_triples(text: str) -> Iterator[tuple[int, int, list[Triple]]]:
    """Where JSON that holds triples begins and ends, and the triples."""
    decoder, at = json.JSONDecoder(), 0
    for _ in range(_MOST_JSON):
        match = re.compile(r"[\[{]").search(text, at)
        if match is None:
            return
        try:
            value, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            at = match.end()
            continue
        triples = list(_in_json(value))
        if triples:
            yield match.start(), end, triples
        at = end if triples else match.end()


def _in_json(value: object) -> Iterator[Triple]:
    """Triples anywhere in a JSON value: lists of three, or objects with the names people use."""
    if isinstance(value, Mapping):
        for names in _KEYS:
            triple = _of_json([value.get(name) for name in names])
            if triple is not None:
                yield triple
                return
        for inner in value.values():
            yield from _in_json(inner)
    elif isinstance(value, list):
        if len(value) == 3 and (triple := _of_json(value)):
            yield triple
        else:
            for inner in value:
                yield from _in_json(inner)


def _of_json(values: Sequence[Any]) -> Triple | None:
    parts = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        parts.append(" ".join(str(value).split()))
    if not isinstance(values[1], str) or not _LETTER.search(parts[1]):
        return None
    return Triple(*parts) if all(parts) else None


def _candidates(line: str, whole: bool) -> Iterator[str]:
    """What may be a triple in a line: its parentheses, or the line itself where other signs separate three parts."""
    match = _BULLET.match(line)
    assert match is not None
    body = line[match.end() :].strip()
    groups = list(_parentheses(body))
    if groups:
        between, last = "", 0
        for start, end in groups:
            between += body[last:start]
            last = end
        if not whole or not (between + body[last:]).strip(" ,;.[]`"):
            for start, end in groups:
                yield body[start + 1 : end - 1]
        return
    inner = body.rstrip(" ,.;")
    if inner[:1] + inner[-1:] in ("<>", "[]"):
        yield inner[1:-1]
    elif len(parts := _pieces(inner.strip("| "), "|\t" if whole else "|\t;")) == 3 and _LETTER.search(parts[1]):
        yield inner.strip("| ")


def _parentheses(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of the outermost parentheses that close; quoted text is passed over."""
    start, depth, at = 0, 0, 0
    while at < len(text):
        sign = text[at]
        if depth and sign in "\"“'‘" and (end := _quoted(text, at)):
            at = end
            continue
        if sign == "(":
            start, depth = (at if depth == 0 else start), depth + 1
        elif sign == ")" and depth:
            depth -= 1
            if depth == 0:
                yield start, at + 1
        at += 1


def _quoted(text: str, at: int) -> int | None:
    """The end of a quoted part that begins here; None if it is an apostrophe, an inch sign or never closed."""
    if text[:at].rstrip()[-1:] not in ("", "(", ",", "|", ";", "[", "<"):
        return None
    close, end = _QUOTES[text[at]], at + 1
    while end < len(text):
        if text[end] == "\\":
            end += 1
        elif text[end] == close and text[end + 1 :].lstrip()[:1] in ("", ")", ",", "|", ";", "]", ">"):
            return end + 1
        end += 1
    return None


def _pieces(text: str, separators: str, *, nested: bool = True) -> list[str]:
    """Split at separators outside of quotes and, if `nested`, outside of brackets."""
    pieces: list[str] = []
    open_: list[str] = []
    start = at = 0
    while at < len(text):
        sign = text[at]
        if sign in _QUOTES and (end := _quoted(text, at)):
            at = end
            continue
        if nested and sign in _PAIRS:
            open_.append(_PAIRS[sign])
        elif open_ and sign == open_[-1]:
            open_.pop()
        elif sign in separators and not open_:
            pieces.append(text[start:at])
            start = at + 1
        at += 1
    return [*pieces, text[start:]]


def _split(group: str) -> list[str]:
    """The parts of a group: three where a sign gives three, else as many as its commas leave."""
    for separator in ("|", "\t", ";"):
        if len(parts := _pieces(group, separator)) == 3:
            return parts
    for nested in (True, False):
        parts = _pieces(group, ",", nested=nested)
        spaced = _spaced(parts)
        if len(spaced) >= 3 or len(parts) >= 3:
            return spaced if len(spaced) >= 3 else parts
    return parts


def _spaced(parts: Sequence[str]) -> list[str]:
    """The parts again, split only where a space follows the comma: `1,000 m` is one name."""
    joined = [parts[0]]
    for part in parts[1:]:
        if part[:1].isspace():
            joined.append(part)
        else:
            joined[-1] += "," + part
    return joined


def _regroup(group: str, parts: Sequence[str], known: set[str]) -> Triple | None:
    """More than three parts: the cut with most known names, then with a relation of one lower-case part."""
    best: tuple[tuple[int, bool, bool, int, int], Triple] | None = None
    spots = [0]
    for part in parts:
        spots.append(spots[-1] + len(part) + 1)
    for i in range(1, len(parts) - 1):
        for j in range(i + 1, len(parts)):
            cut = [group[spots[a] : spots[b] - 1] for a, b in ((0, i), (i, j), (j, len(parts)))]
            triple = _triple(*cut)
            if triple is None:
                continue
            hits = sum(fold(part) in known for part in triple.parts)
            rank = (-hits, j - i > 1, not triple.relation[0].islower(), i, j)
            if best is None or rank < best[0]:
                best = rank, triple
    return best[1] if best else None
