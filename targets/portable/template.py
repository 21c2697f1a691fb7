"""Prompts and tokens of an exported folder without transformers: jinja2 and the `tokenizers` package alone.

Templates are in the dialect of transformers: its settings, filters and globals. A template comes with the student,
who may come from anywhere: it runs in jinja2's immutable sandbox. Left out: tools, documents and which tokens are the
assistant's (`{% generation %}` is read and passes its text on).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from soloist.kernels.errors import ArtifactError, EngineError
from soloist.targets.base import Message, first_line, require
from soloist.targets.decode import CachedDecoder
from soloist.targets.portable.facts import TEMPLATE, TOKENIZER


class FolderDecoder(CachedDecoder):
    """What tokenizer.json and chat_template.jinja of a folder decide of a runtime; `special` as of `chat_template`.

    Raises:
        ArtifactError: one of the two is missing or is no such thing.
    """

    def __init__(self, folder: Path, special: Mapping[str, str]) -> None:
        super().__init__()
        self.name = folder.name
        for name in (TOKENIZER, TEMPLATE):
            if not (folder / name).is_file():
                raise ArtifactError(f"{folder}: {name} is missing; export the student again")
        self._render = chat_template((folder / TEMPLATE).read_text(encoding="utf-8"), special)
        package, file = require("tokenizers", "onnx"), folder / TOKENIZER
        try:
            self._tokenizer: Any = package.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise ArtifactError(f"{file}: not a tokenizer ({first_line(error)}); export the student again") from error

    def render(self, messages: Sequence[Message]) -> str:
        return self._render(messages)

    def tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


class Render(Protocol):
    """The prompt of messages, by default with the text that opens the answer."""

    def __call__(self, messages: Sequence[Message], open_answer: bool = True) -> str: ...


def chat_template(source: str, special: Mapping[str, str], *, dates: bool = True) -> Render:
    """What a template writes.

    Args:
        special: special tokens by the name a template knows them under ("bos_token" …).
        dates: False refuses a template that asks what day it is.

    Raises:
        ArtifactError: not a template. The function raises EngineError where the template refuses the messages.
    """
    jinja2 = require("jinja2", "onnx")
    sandbox = require("jinja2.sandbox", "onnx")
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _today if dates else lambda _: _refuse("it asks for the date")
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ArtifactError(f"the chat template is not jinja2 ({error}); mend it") from error

    def render(messages: Sequence[Message], open_answer: bool = True) -> str:
        try:
            return str(
                template.render(
                    messages=list(messages), tools=None, documents=None, add_generation_prompt=open_answer, **special
                )
            )
        except jinja2.TemplateError as error:
            raise EngineError(f"the chat template refuses these messages ({error})") from error

    return render


def _today(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _generation() -> type[Any]:
    """The extension that reads `{% generation %} … {% endgeneration %}`."""
    jinja2, extension = require("jinja2", "onnx"), require("jinja2.ext", "onnx")

    class Generation(extension.Extension):  # type: ignore[misc,name-defined]  # jinja2 is imported late
        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    return Generation


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where jinja2's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise require("jinja2", "onnx").TemplateError(message)
