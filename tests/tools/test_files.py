import sys
import types

import pytest

from soloist.kernels.errors import UsageError
from soloist.toolchain.desk.tools import desk_tools
from soloist.toolchain.tools.base import Tool, Toolbox
from soloist.toolchain.tools.calls import parse_call, run_call
from soloist.toolchain.tools.files import load_tools

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.fixture
def mine(monkeypatch):
    module = types.ModuleType("my_tools_for_a_test")
    module.shout = Tool("shout", "Capital letters.", SCHEMA, lambda text: text.upper())
    module.box = Toolbox.of([Tool("mirror", "Backwards.", SCHEMA, lambda text: text[::-1])])
    module.several = [Tool("one", "", SCHEMA, len), Tool("two", "", SCHEMA, len)]
    module.make = lambda: module.box
    module.number = 5
    module.bad = Tool("not a name", "", {"type": "object", "properties": {"x": {"type": "date"}}}, len)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_tools_come_from_a_tool_a_toolbox_a_list_or_a_function(mine):
    tools = load_tools([f"{mine}:shout", f"{mine}:make", f"{mine}:several"], desk_tools())
    assert {"shout", "mirror", "one", "two", "solve"} <= set(tools.tools)
    assert run_call(parse_call("shout(hello there)", tools), tools).value == "HELLO THERE"


def test_all_faults_are_reported_at_once(mine):
    with pytest.raises(UsageError) as caught:
        load_tools(
            [f"{mine}:number", f"{mine}:bad", f"{mine}:absent", "no_such_module:x", f"{mine}:box", f"{mine}:make"]
        )
    text = str(caught.value)
    for part in (
        "is int",
        "must be an identifier",
        "property 'x'",
        "absent",
        "no_such_module",
        "'mirror' is there already",
    ):
        assert part in text
