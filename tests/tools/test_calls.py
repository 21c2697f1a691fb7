import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.toolchain.desk.tools import desk_tools
from soloist.toolchain.tools.base import Result, Tool, Toolbox, ToolError
from soloist.toolchain.tools.calls import grammar, parse_call, render_call, run_call

TOOLS = desk_tools()
WORDS = st.text("abcdefghij0123456789.+-*/()= :", min_size=1, max_size=20).filter(lambda t: t == t.strip() and t)
NUMBERS = st.one_of(st.integers(-(10**9), 10**9), st.integers(-(10**6), 10**6).map(lambda n: n / 100))


def values(schema):
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"]
    if kind == "array":
        words = kind == "array" and schema["items"]["type"] == "string"
        item = st.tuples(st.integers(0, 99), st.sampled_from(["cat", "sea slug"])).map(lambda p: f"{p[0]} {p[1]}")
        return st.lists(item if words else values(schema["items"]), min_size=2, max_size=5)
    return {"integer": st.integers(-(10**9), 10**9), "number": NUMBERS, "string": WORDS, "boolean": st.booleans()}[kind]


@settings(deadline=None)
@given(st.data())
def test_a_rendered_call_is_parsed_back(data):
    tool = data.draw(st.sampled_from(list(TOOLS)))
    arguments = {name: data.draw(values(schema)) for name, schema in tool.parameters["properties"].items()}
    more = data.draw(st.booleans())
    call = parse_call(render_call(tool.name, arguments, TOOLS, more=more), TOOLS)
    assert (call.name, dict(call.arguments), call.more) == (tool.name, arguments, more)


def test_booleans_and_tools_without_parameters():
    empty = {"type": "object", "properties": {}}
    flag = {"type": "object", "properties": {"on": {"type": "boolean"}}}
    tools = Toolbox.of([Tool("now", "", empty, lambda: "12:00"), Tool("lamp", "", flag, lambda on: Result(str(on)))])
    assert run_call(parse_call("now()", tools), tools).value == "12:00"
    assert run_call(parse_call("lamp(true)", tools), tools).value == "True"
    with pytest.raises(ToolError, match="true or false"):
        parse_call("lamp(yes)", tools)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a call"),
        ("solve 3*x = 6", "not a call"),
        ("evil(1)", "no tool 'evil'"),
        ("gcd(12, x)", "expected integer, got 'x'"),
        ("gcd(1_0, 5)", "expected integer"),
        ("percent(5)", "expected 2 values"),
        ("percent(1e5 | 3)", "expected number"),
        ("percent(nan | 3)", "expected number"),
        ("sort(up | 1, 2)", "not one of asc, desc"),
        ("convert(3 | kg | stone)", "'stone' is not one of"),
        ("legs()", r"^legs\.animals: at least 1 value needed, got 0$"),
        ("legs( )", "at least 1 value needed"),
        ("gcd(12)", r"^gcd\.numbers: at least 2 values needed, got 1$"),
        ("primes(" + "9" * 5000 + " | 3)", "expected integer"),
    ],
)
def test_what_is_not_a_call_is_explained(text, reason):
    with pytest.raises(ToolError, match=reason):
        parse_call(text, TOOLS)


def test_a_list_without_a_least_length_may_be_empty():
    words = {"type": "object", "properties": {"words": {"type": "array", "items": {"type": "string"}}}}
    tools = Toolbox.of([Tool("count", "", words, lambda words: str(len(words)))])
    assert run_call(parse_call("count()", tools), tools).value == "0"


@pytest.mark.parametrize("more", [True, False])
def test_grammar_of_every_tool_compiles(more, base_gguf, open_vocabulary):
    vocabulary = open_vocabulary(base_gguf)
    assert not vocabulary.reads_grammar("root ::= nothing-of-that-name")
    for names in [None, *([tool.name] for tool in TOOLS)]:
        assert vocabulary.reads_grammar(grammar(TOOLS, names, more=more)), names
    vocabulary.close()
