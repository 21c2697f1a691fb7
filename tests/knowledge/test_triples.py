"""Reading triples from models' texts, and what counts as the same name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.kernels.errors import DataError
from soloist.toolchain.knowledge.triples import Aliases, Triple, fold, parse_triples, words

NAMES = st.text(min_size=1, max_size=20).filter(lambda name: name.strip())
RELATIONS = NAMES.filter(lambda name: any(char.isalpha() for char in name))
TRIPLES = st.builds(Triple, NAMES, RELATIONS, NAMES).filter(
    lambda t: tuple(map(fold, t.parts)) not in {("head", "relation", "tail"), ("h", "r", "t")}
)


def parts(text, **options):
    return [triple.parts for triple in parse_triples(text, **options).triples]


@pytest.mark.parametrize(
    "text",
    [
        "(spider, has legs, 8)",
        "1. (spider, has legs, 8).",
        "- ( spider ,has legs,  8 )",
        "Here they are: (spider, has legs, 8) and nothing else (I think).",
        "<spider; has legs; 8>",
        "spider | has legs | 8",
        "| head | relation | tail |\n|---|---|---|\n| spider | has legs | 8 |",
        "spider\thas legs\t8",
        "[spider, has legs, 8]",
        '[("spider", "has legs", "8")]',
        "[('spider', 'has legs', '8'), ('spider', 'has legs', '8')]",
        "(“spider”, ‘has legs’, 8)",
        '```json\n[["spider", "has legs", 8]]\n```',
        '{"triples": [{"head": "spider", "relation": "has legs", "tail": "8"}]}',
        'Sure! {"entity name": "x", "triplet": [{"subject": "spider", "predicate": "has legs", "object": "8"}]} Ok?',
    ],
)
def test_forms_of_one_triple(text):
    assert parts(text) == [("spider", "has legs", "8")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('("Paris, Texas", lies in, Texas)', ("Paris, Texas", "lies in", "Texas")),
        ("(Paris, Texas, lies in, Texas)", ("Paris, Texas", "lies in", "Texas")),
        ("(Acme, employs, Smith, John)", ("Acme", "employs", "Smith, John")),
        ("(km, is, 1,000 m)", ("km", "is", "1,000 m")),
        (
            "(Washington, D.C., is the capital of, United States, the)",
            ("Washington, D.C.", "is the capital of", "United States, the"),
        ),
        ("(f(1, 2), equals, [3, 4])", ("f(1, 2)", "equals", "[3, 4]")),
        ("(lion's mane, has, 5\" hair)", ("lion's mane", "has", '5" hair')),
        ('("say \\"hi\\", then go", is said by, host)', ('say "hi", then go', "is said by", "host")),
    ],
)
def test_commas_in_names(text, expected):
    assert parts(text) == [expected]


def test_known_names_decide_where_commas_are_doubtful():
    text = "(Smith, John, Doe, Jane)"
    assert parts(text, known=["Smith", "Doe, Jane"]) == [("Smith", "John", "Doe, Jane")]
    assert parts(text, known=["Smith, John", "Jane"]) == [("Smith, John", "Doe", "Jane")]


def test_relations_of_clear_triples_help_with_doubtful_ones():
    text = "(Bob, KNOWS, Ann)\n(Roe, Richard, KNOWS, Poe, Edgar)"
    assert parts(text) == [("Bob", "KNOWS", "Ann"), ("Roe, Richard", "KNOWS", "Poe, Edgar")]


@pytest.mark.parametrize(
    "text", ["", "No facts.", "the point (1, 2, 3)", "(a, b)", "((((", "[" * 500, "{" * 500, "(, , )"]
)
def test_what_is_no_triple(text):
    assert parts(text) == []


def test_what_could_not_be_read_is_told():
    assert parse_triples("(spider, legs)\n(ant, has legs, 6)").unread == ("(spider, legs)",)


def test_whole_lines_leave_prose_alone():
    text = "Then (see, for example, above) we add.\n- (ant, has legs, 6)"
    assert parts(text, whole_lines=True) == [("ant", "has legs", "6")]
    assert len(parts(text)) == 2
    assert parts("Ann has 2; Bob has 3; both have 5.", whole_lines=True) == []
    assert parts("<ant; has legs; 6>\nant | has legs | 6", whole_lines=True) == [("ant", "has legs", "6")]


@settings(deadline=None)
@given(st.lists(TRIPLES, max_size=5, unique=True))
def test_what_is_written_is_read_back(triples):
    text = "\n".join(f"{number}. {triple}" for number, triple in enumerate(triples, 1))
    assert list(parse_triples(text).triples) == triples
    assert list(parse_triples(text, whole_lines=True).triples) == triples


@settings(deadline=None)
@given(st.text(alphabet="ab,;|()[]{}<>\"'“”\\\t\n 1.-", max_size=60))
def test_no_text_breaks_the_reader(text):
    for triple in parse_triples(text).triples:
        assert all(part == " ".join(part.split()) and part for part in triple.parts)


@pytest.mark.parametrize("bad", [("", "is", "b"), ("a", "  ", "b"), ("a", "is", "\n")])
def test_empty_parts_are_refused(bad):
    with pytest.raises(DataError, match="is empty"):
        Triple(*bad)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The Spider", "spider", True),
        ("has_legs", "has  legs", True),
        ("1,000", "1000.0", True),
        ("−5", "-5", True),
        ('"Paris."', "paris", True),
        ("50%", "50", False),
        ("1000 m", "1000", False),
        ("spiders", "spider", False),
        ("a", "the", False),
    ],
)
def test_folding(one, other, same):
    assert (fold(one) == fold(other)) is same


@settings(deadline=None)
@given(st.text(max_size=30))
def test_folding_twice_changes_nothing(name):
    assert fold(fold(name)) == fold(name)


@settings(deadline=None)
@given(NAMES)
def test_no_name_folds_to_nothing(name):
    assert fold(name)


@settings(deadline=None)
@given(st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=3), NAMES, NAMES, NAMES)
def test_alias_matching_is_an_equivalence(groups, a, b, c):
    try:
        aliases = Aliases(groups)
    except DataError:
        return  # a name in two groups: refused, see below
    pool = [a, b, c, *(name for group in groups for name in group)]
    for x in pool:
        assert aliases.same(x, x)
        for y in pool:
            assert aliases.same(x, y) == aliases.same(y, x)
            assert not aliases.same(x, y) or all(aliases.same(x, z) == aliases.same(y, z) for z in pool)
    for group in groups:
        assert all(aliases.same(group[0], name) for name in group)


def test_a_name_in_two_groups_is_refused():
    with pytest.raises(DataError, match="'M' means both 'meter' and 'million'"):
        Aliases([("meter", "m"), ("million", "M")])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Butterflies, bees and 1,000 wasps!", ("butterfly", "bee", "and", "1000", "wasp")),
        ("3*t - 5km", ("3", "*", "t", "5", "km")),
        ("inches boxes glasses bus mantis", ("inch", "box", "glass", "bus", "mantis")),
    ],
)
def test_words(text, found):
    assert words(text) == found
