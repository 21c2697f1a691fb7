"""The parent's side of `worker.py`: start a team in a process of its own, put questions to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import IO, Any

from soloist.kernels.errors import EngineError
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import TeamConfig
from soloist.toolchain.traces.schema import Run


@dataclass
class Worker:
    """A team's process. Raises EngineError when the team does not open or its process dies."""

    name: str
    team: TeamConfig
    process: subprocess.Popen[str] = field(init=False)
    peak: float | None = None

    def __post_init__(self) -> None:
        command = [sys.executable, "-P", "-W", "ignore", "-m", "soloist.toolchain.bench.worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        self._send(self.team.model_dump_json())
        answer = self._receive()
        if "failed" in answer:
            raise EngineError(f"'{self.name}': {answer['failed']}")

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None and self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def _send(self, line: str) -> None:
        try:
            self._pipes[0].write(line + "\n")
            self._pipes[0].flush()
        except BrokenPipeError:
            pass  # the answer that does not come says it

    def _receive(self) -> dict[str, Any]:
        line = self._pipes[1].readline()
        if not line:
            code = self.process.wait()
            raise EngineError(f"'{self.name}': its process ended with code {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, question: Question, seed: int) -> Run:
        self._send(json.dumps({"question": question.model_dump(mode="json"), "seed": seed}))
        answer = self._receive()
        self.peak = answer["peak_mb"]
        return Run.model_validate({"schema": 1, **answer["run"]})

    def close(self) -> None:
        self._pipes[0].close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
