"""The desk's toolbox: fifteen exact tools, enough for every question family of `questions.py`."""

from __future__ import annotations

from soloist.toolchain.desk.tools_numbers import number_tools
from soloist.toolchain.desk.tools_world import world_tools
from soloist.toolchain.tools.base import Toolbox


def desk_tools() -> Toolbox:
    """All tools of the desk."""
    return Toolbox.of([*number_tools(), *world_tools()])
