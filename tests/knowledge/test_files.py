"""Triples files are read strictly, documents are cut into passages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.kernels.errors import DataError
from soloist.toolchain.knowledge.files import add_documents, load_aliases, load_graph, passages
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.triples import Aliases, Triple, parse_triples


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_comments_and_empty_lines_are_passed_over(tmp_path):
    path = write(tmp_path / "f.tsv", "# facts\nspider\thas legs\t8\n\nParis, Texas\tlies in\tTexas\r\n")
    assert [t.parts for t in load_graph(path)] == [("spider", "has legs", "8"), ("Paris, Texas", "lies in", "Texas")]


def test_aliases_and_single_valued_relations_add_up(tmp_path):
    path = write(
        tmp_path / "f.json",
        '{"triples": [{"head": "km", "relation": "is", "tail": "1000 m"}], '
        '"aliases": [["km", "kilometer"]], "single_valued": ["is"]}',
    )
    graph = load_graph(path, Aliases([("m", "meter")]), ["has"])
    assert graph.aliases.groups == (("km", "kilometer"), ("m", "meter"))
    assert graph.single_valued == ("is", "has")
    with pytest.raises(DataError, match=r"f.json: aliases: 'km' means both"):
        load_graph(path, Aliases([("kilo", "km")]))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("f.tsv", "a\tis\tb\na\tis\n\tis\tb\n", r"f.tsv:2: needs head, relation and tail.*\n.*f.tsv:3: "),
        (
            "f.jsonl",
            '{"head": "a", "relation": "is", "tail": "b"}\n{"head": 1}\n',
            "f.jsonl:2: head: a text is needed; ",
        ),
        ("f.jsonl", '{"head": "a", "relation": "is", "tail": "b", "x": 1}\n', "f.jsonl:1: x: unknown field"),
        ("f.jsonl", '{"head": "a", "relation": "is", "tail": "b", "source": 1}\n', "f.jsonl:1: source: must be a text"),
        ("f.jsonl", "[1]\n{", r"f.jsonl:1: must be an object.*\n.*f.jsonl:2: not JSON"),
        ("f.json", "[]", "f.json: must be an object with 'triples'"),
        ("f.json", '{"triples": [], "more": 1}', "unknown: more"),
        ("f.json", '{"triples": {}}', "must be lists"),
        ("f.json", '{"triples": [], "aliases": [["a", 1]]}', "'aliases' must be a list of names"),
        ("f.json", '{"triples": [], "single_valued": [" "]}', "'single_valued' must be a relation"),
        ("f.json", '{"triples": [{"head": "a"}]}', r"f.json: triples\[0\]: relation: a text is needed"),
        ("f.csv", "a,b,c", "f.csv: not a triples file; known are .tsv, .jsonl, .json"),
    ],
)
def test_every_fault_has_its_place(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        load_graph(write(tmp_path / name, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"none.tsv: not a text file that can be read"):
        load_graph(tmp_path / "none.tsv")
    (tmp_path / "bytes.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bytes.tsv: not a text file"):
        load_graph(tmp_path / "bytes.tsv")


def test_many_faults_are_cut(tmp_path):
    with pytest.raises(DataError, match="and 10 more"):
        load_graph(write(tmp_path / "f.tsv", "x\n" * 30))


def test_alias_files(tmp_path):
    aliases = load_aliases(write(tmp_path / "a.tsv", "# units\nkm\tkilometer\tkilometre\n\nm\tmeter\n"))
    assert aliases.same("KILOMETRE", "kilometer")
    assert not aliases.same("m", "km")
    with pytest.raises(DataError, match=r"a.tsv:2: a name and its aliases are needed"):
        load_aliases(write(tmp_path / "a.tsv", "km\tkilometer\nm\n"))
    with pytest.raises(DataError, match=r"a.tsv: aliases: 'm' means both"):
        load_aliases(write(tmp_path / "a.tsv", "meter\tm\nmillion\tm\n"))


@settings(deadline=None)
@given(st.text(alphabet="ab. \n", max_size=5000))
def test_passages_lose_nothing_but_space(text):
    found = passages(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(passage) <= 1500 for passage in found)


def test_documents_are_read_passage_by_passage_with_their_source(tmp_path):
    document = write(
        tmp_path / "zoo.txt", "A (spider, has legs, 8) here.\n\nAgain (spider, has legs, 8).\n\n(ant, has legs, 6)"
    )
    graph = KnowledgeGraph()
    assert add_documents(graph, [document], lambda text: parse_triples(text).triples) == 2
    assert [row["source"] for row in graph.records()] == ["zoo.txt, passage 1", "zoo.txt, passage 3"]
    assert Triple("ant", "has legs", "6") in graph
