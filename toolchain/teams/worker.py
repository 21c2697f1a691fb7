"""One system in a process of its own: JSON lines in (questions), JSON lines out (runs).

A process each, so that a system's peak memory is its own, a crash is one system's, and systems can take
turns question by question on the same machine. Libraries that print to stdout are sent to stderr. The
process ends with the one that started it, in the middle of a question if need be.
"""

from __future__ import annotations

import json
import os
import sys

from soloist.kernels.errors import SoloistError
from soloist.toolchain.core.environment import peak_mb
from soloist.toolchain.core.lifeline import Parent
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.teams.team import Team


def main() -> int:
    """Serve one system until its parent needs nothing more."""
    parent = Parent()
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def tell(**answer: object) -> None:
        parent.wait()
        out.write(json.dumps(answer, ensure_ascii=False) + "\n")

    try:
        with Team(TeamConfig.model_validate_json(parent.line() or "")) as team:
            tell(ready=True)
            while (line := parent.line()) is not None:
                asked = json.loads(line)
                run = team.try_answer(Question.model_validate(asked["question"]), seed=asked["seed"])
                tell(run=json.loads(run.model_dump_json(exclude_defaults=True, by_alias=True)), peak_mb=peak_mb())
    except SoloistError as error:  # an engine's failure is a run; this is a team that does not open or cannot work
        tell(failed=str(error), code=error.exit_code)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
