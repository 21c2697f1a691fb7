"""`python -m soloist.toolchain`: the `soloist` command as a module, which is what launchers of several processes start.

Only `distill` trains, so only it is for several processes: any other command would do its work once in each.
"""

from __future__ import annotations

import os
import sys

from soloist.toolchain.cli import main


def several(arguments: list[str]) -> str | None:
    """Why this command may not run in several processes; None where it may, or runs in one."""
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or asked in (None, "distill"):
        return None
    return f"soloist: {asked} runs in one process; start only `distill` by accelerate launch"


if __name__ == "__main__":
    refusal = several(sys.argv[1:])
    if refusal:
        sys.exit(refusal if os.environ.get("RANK", "0") == "0" else 2)
    main(prog_name="soloist")
