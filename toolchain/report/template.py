"""The page's templates: Jinja with every value escaped, so that text a model wrote stays text.

A template that asks for what is not there is an error, not an empty place.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from soloist.toolchain.report import format
from soloist.toolchain.report.svg import clip, printable


def render_template(name: str, **values: Any) -> Markup:
    """The template `name` of this folder, filled in."""
    return Markup(_environment().get_template(name).render(values))  # noqa: S704  the environment escaped every value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    for filter in (
        format.count,
        format.cut,
        format.number,
        format.percent,
        format.points,
        format.seconds,
        format.usd,
        clip,
    ):
        environment.filters[filter.__name__] = filter
    environment.globals["SPLITS"] = format.SPLITS
    return environment


def _source(name: str) -> str:
    return files("soloist.toolchain.report").joinpath(name).read_text(encoding="utf-8")


def _printable(value: Any) -> Any:
    """Before escaping: a text without the characters HTML forbids. What is HTML already stays."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
