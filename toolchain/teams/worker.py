"""One team in a process of its own: questions in, runs out.

A process each, so that a system's peak memory is its own, a crash is one system's, and systems can take
turns question by question on the same machine.
"""

from __future__ import annotations

import json
import sys

from soloist.kernels.child import Parent
from soloist.kernels.errors import SoloistError
from soloist.toolchain.core.environment import peak_mb
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.teams.team import Team


def main() -> int:
    """Serve one team until its parent needs nothing more; the exit code."""
    parent = Parent()
    try:
        with Team(TeamConfig.model_validate_json(json.dumps(parent.receive()))) as team:
            parent.send({"ready": True})
            while (order := parent.receive()) is not None:
                run = team.try_answer(Question.model_validate(order["question"]), seed=order["seed"])
                answer = json.loads(run.model_dump_json(exclude_defaults=True, by_alias=True))
                parent.send({"run": answer, "peak_mb": peak_mb()})
    except SoloistError as error:  # an engine's failure is a run; this is a team that does not open or cannot work
        parent.send({"failed": str(error), "code": error.exit_code})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
