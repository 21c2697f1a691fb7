"""How a tool call is written: `name(value | value)`, one line, short because small models pay by the token.

    solve(3*x + 4 = 19)            a call
    convert(3 | kg | g) then       a call that is not the last one: its result comes back, the next follows

Values stand in the order of the schema's properties: numbers bare, arrays as `a, b, c`, strings bare.
The same schema gives the GBNF grammar under which a reader proposes a call and under which a compiled
student runs. JSON calls of OpenAI-compatible servers never pass through here: engines map them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soloist.toolchain.tools.base import Result, Toolbox, ToolError

MORE = " then"
_CALL = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\((.*)\)( then)?\s*\Z", re.DOTALL)
_WHOLE = re.compile(r"-?[0-9]{1,40}")
_DECIMAL = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,15})?")
# Fragments that x-grammars are written with; `copied` replaces them by what a text offers.
DIGITS = "[0-9]+"
DECIMAL = '[0-9]+ ("." [0-9]+)?'
CLOCK = '[0-2]? [0-9] ":" [0-5] [0-9]'
_INTEGER = f'"-"? {DIGITS}'
_NUMBER = f'"-"? {DECIMAL}'
_CLOCKS_IN = re.compile(r"\b\d{1,2}:\d{2}\b")
_NUMBERS_IN = re.compile(r"\d+(?:\.\d+)?")
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_STRING = r"[^|\n\r]+"


@dataclass(frozen=True)
class Call:
    """A parsed call. `more` says that another call follows."""

    name: str
    arguments: Mapping[str, Any]
    more: bool = False


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
    return properties


def _write(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_write, value))
    return value if isinstance(value, str) else json.dumps(value)


def _read(text: str, schema: Mapping[str, Any], where: str) -> object:
    text = text.strip()
    kind = schema.get("type", "string")
    if "enum" in schema and text not in map(str, schema["enum"]):
        raise ToolError(f"{where}: '{text}' is not one of {', '.join(map(str, schema['enum']))}")
    if kind == "array":
        parts = text.split(",") if text else []
        least = int(schema.get("minItems", 0))
        if len(parts) < least:
            raise ToolError(f"{where}: at least {least} value{'s' if least > 1 else ''} needed, got {len(parts)}")
        return [_read(part, schema.get("items", {}), where) for part in parts]
    if kind in ("integer", "number"):
        if not (_WHOLE if kind == "integer" else _DECIMAL).fullmatch(text):
            raise ToolError(f"{where}: expected {kind}, got '{text[:40]}'")
        return float(text) if "." in text else int(text)
    if kind == "boolean" and text not in ("true", "false"):
        raise ToolError(f"{where}: expected true or false, got '{text}'")
    return text == "true" if kind == "boolean" else text


def render_call(name: str, arguments: Mapping[str, Any], tools: Toolbox, *, more: bool = False) -> str:
    """Write a call in its one-line form."""
    order = _properties(tools[name].parameters)
    return f"{name}({' | '.join(_write(arguments[key]) for key in order)}){MORE if more else ''}"


def parse_call(text: str, tools: Toolbox) -> Call:
    """Read a call back. Raises ToolError naming what does not fit."""
    match = _CALL.match(text)
    if match is None:
        raise ToolError(f"not a call: '{text.strip()[:80]}'")
    name, body, more = match.groups()
    properties = _properties(tools[name].parameters)
    parts = body.split("|") if properties else []
    if len(parts) != len(properties):
        raise ToolError(f"{name}: expected {len(properties)} values ({', '.join(properties)}), got {len(parts)}")
    arguments = {}
    for part, (key, schema) in zip(parts, properties.items(), strict=True):
        arguments[key] = _read(part, schema, f"{name}.{key}")
    return Call(name, arguments, more=more is not None)


def run_call(call: Call, tools: Toolbox) -> Result:
    """Run a parsed call. Raises ToolError."""
    return tools[call.name].run(call.arguments)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _rule(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "(" + " | ".join(map(_quote, map(str, schema["enum"]))) + ")"
    if "x-grammar" in schema:
        return f"({schema['x-grammar']})"
    kind = schema.get("type", "string")
    if kind == "array":
        item = _rule(schema.get("items", {}))
        least = max(1, int(schema.get("minItems", 1)))
        return f"({item} " + f'", " {item} ' * (least - 1) + f'(", " {item})*)'
    return {"integer": _INTEGER, "number": _NUMBER, "boolean": '("true" | "false")'}.get(str(kind), _STRING)


def numbers_in(text: str) -> list[str]:
    """The numbers a text names, as written, small ones also as words; clock times are not numbers."""
    numbers = _NUMBERS_IN.findall(_CLOCKS_IN.sub(" ", text.replace(",", " ")))
    for number in re.findall(r"\d{1,3}(?:,\d{3})+", text):
        numbers.append(number.replace(",", ""))
    words = set(re.findall(r"[a-z]+", text.lower()))
    for value, word in enumerate(_WORDS):
        if word in words:
            numbers.append(str(value))
    return list(dict.fromkeys(numbers))


def copied(rules: str, text: str) -> str:
    """A grammar in which numbers and clock times can only be copied from `text`.

    A small reader that may write any digit invents numbers; one that may only copy does not. A kind of
    which the text offers nothing stays free.
    """
    clocks = list(dict.fromkeys(_CLOCKS_IN.findall(text)))
    numbers = numbers_in(text)
    whole = [n for n in numbers if "." not in n]
    for fragment, offered in ((CLOCK, clocks), (DECIMAL, numbers), (DIGITS, whole)):
        if offered:
            rules = rules.replace(fragment, "(" + " | ".join(map(_quote, offered)) + ")")
    return rules


def grammar(tools: Toolbox, names: Sequence[str] | None = None, *, more: bool | None = None) -> str:
    """GBNF of one call to any of `names` (default: all tools), with rule `root`.

    The call may end in ` then`; with `more` True it must, with False it must not.
    """
    chosen = list(tools.tools) if names is None else list(names)
    end = {None: f" {_quote(MORE)}?", True: f" {_quote(MORE)}", False: ""}[more]
    lines = [f"root ::= call{end}"]
    lines.append("call ::= " + " | ".join(f"call-{i}" for i in range(len(chosen))))
    for index, name in enumerate(chosen):
        body = ' " | " '.join(map(_rule, _properties(tools[name].parameters).values()))
        lines.append(f"call-{index} ::= {_quote(name + '(')} {body} {_quote(')')}")
    return "\n".join(lines) + "\n"
