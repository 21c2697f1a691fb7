"""The parent's side of `worker.py`: start a team in a process of its own, put questions to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from soloist.kernels.child import Child, ChildDied
from soloist.kernels.errors import EngineError, SoloistError
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.traces.schema import Run


@dataclass
class Worker:
    """A team's process. Raises EngineError when it dies, and what the team raised when that does not open or go on."""

    name: str
    team: TeamConfig
    peak: float | None = None
    child: Child = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.child = Child("soloist.toolchain.teams.worker", {"TOKENIZERS_PARALLELISM": "false"})
        try:
            self._exchange(self.team.model_dump(mode="json"))
        except BaseException:  # whatever it is, nobody will close a worker that did not open
            self.close()
            raise

    def ask(self, question: Question, seed: int) -> Run:
        """The team's run on one question."""
        answer = self._exchange({"question": question.model_dump(mode="json"), "seed": seed})
        self.peak = answer["peak_mb"]
        return Run.model_validate({"schema": 1, **answer["run"]})

    def _exchange(self, order: dict[str, Any]) -> dict[str, Any]:
        self.child.send(order)
        try:
            answer = self.child.receive()
        except ChildDied as error:
            raise EngineError(f"'{self.name}': its process {error}") from error
        if "failed" in answer:
            raise _error(answer["code"], f"'{self.name}': {answer['failed']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self.child.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _error(code: int, text: str) -> SoloistError:
    """The error that ends the process with `code`: the same one, whether the team failed here or in a worker."""
    kinds = {kind.exit_code: kind for kind in SoloistError.__subclasses__()}
    kind = kinds.get(code, SoloistError)
    return kind.__new__(kind, text)  # not the constructor: that of MissingExtraError words the text itself
