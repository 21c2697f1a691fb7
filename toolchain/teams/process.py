"""The parent's side of `worker.py`: start a team in a process of its own, put questions to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import IO, Any

from soloist.kernels.errors import EngineError, SoloistError
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.traces.schema import Run

_PATIENCE_S = 20  # for a process that was told to end


@dataclass
class Worker:
    """A team's process. Raises EngineError when it dies, and what the team raised when that does not open or go on."""

    name: str
    team: TeamConfig
    process: subprocess.Popen[str] = field(init=False)
    peak: float | None = None
    _stderr: IO[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        command = [sys.executable, "-P", "-W", "ignore", "-m", "soloist.toolchain.teams.worker"]
        # read only when the process dies: its last line says why
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"},
        )
        try:
            self._send(self.team.model_dump_json())
            self._receive()
        except BaseException:  # whatever it is, nobody will close a worker that did not open
            self.close()
            raise

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None and self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def _send(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come says it
            self._pipes[0].write(line + "\n")
            self._pipes[0].flush()

    def _receive(self) -> dict[str, Any]:
        line = self._pipes[1].readline()
        if not line.endswith("\n"):  # nothing, or an answer that its death cut off
            raise EngineError(f"'{self.name}': its process {self._death(self.process.wait())}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise _error(answer["code"], f"'{self.name}': {answer['failed']}")
        return answer

    def _death(self, code: int) -> str:
        if code < 0:
            return f"was killed ({signal.Signals(-code).name}); is there enough memory?"
        self._stderr.seek(0)
        said = [line.strip() for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        return f"ended with code {code}" + (f": {said[-1][:300]}" if said else "")

    def ask(self, question: Question, seed: int) -> Run:
        self._send(json.dumps({"question": question.model_dump(mode="json"), "seed": seed}))
        answer = self._receive()
        self.peak = answer["peak_mb"]
        return Run.model_validate({"schema": 1, **answer["run"]})

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # what a dead process did not read is written once more
            self._pipes[0].close()
        try:
            self.process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._pipes[1].close()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _error(code: int, text: str) -> SoloistError:
    """The error that ends the process with `code`: the same one, whether the team failed here or in a worker."""
    kinds = {kind.exit_code: kind for kind in SoloistError.__subclasses__()}
    found = kinds.get(code, SoloistError)
    return found.__new__(found, text)  # not the constructor: that of MissingExtraError words the text itself
