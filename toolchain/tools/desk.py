"""The desk's toolbox: fifteen exact tools, enough for every question family of `tasks/desk.py`."""

from __future__ import annotations

from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.tools.desk_numbers import number_tools
from soloist.toolchain.tools.desk_world import world_tools


def desk_tools() -> Toolbox:
    """All tools of the desk."""
    return Toolbox.of([*number_tools(), *world_tools()])
