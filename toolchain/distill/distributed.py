"""Several processes that train one student together: who writes, who follows, what they tell each other.

    accelerate launch --multi_gpu --num_processes 2 --num_machines 1 -m soloist.toolchain distill TRACES -o OUT

The launcher starts the same command several times; without a GPU the processes meet on the CPU, over gloo.
(`--cpu` would start one process only: accelerate leaves several to mpirun there.) The first process is the main
one: it alone reads and writes checkpoints, log, events and the artifact, and shares with the others what it read.
Objects travel as JSON, never as pickles. Where a process ends, the launcher ends the rest, and whoever waits
for it says so in one line. Several machines need a folder they share: a later phase reads what an earlier one
wrote. Left out: a single command that talks to itself (MPI without a launcher), joining or leaving while
training.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soloist.kernels.errors import ResourceError, UsageError
from soloist.targets.base import require

MAIN = 0
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process among `count`. Every method but the properties is a meeting: all processes must call it."""

    count: int = 1
    rank: int = MAIN
    device: torch.device = _CPU

    @property
    def main(self) -> bool:
        """Whether this one writes."""
        return self.rank == MAIN

    @property
    def several(self) -> bool:
        return self.count > 1

    def share(self, value: Any) -> Any:
        """The main process's `value`, on all of them; the others' own is ignored, and they wait for it."""
        if not self.several:
            return value
        data = json.dumps(value).encode() if self.main else b""
        size = self.spread(torch.tensor([len(data)], device=self.device), MAIN)
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.main:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return json.loads(bytes(self.spread(content.to(self.device), MAIN).tolist()))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place, the same numbers everywhere."""
        if self.several:
            with self._meeting():
                torch.distributed.all_reduce(tensor)
        return tensor

    def collect(self, tensor: Tensor, owner: int) -> Tensor:
        """The sum over all processes, in place, of use to its owner only."""
        if self.several:
            with self._meeting():
                torch.distributed.reduce(tensor, owner)
        return tensor

    def spread(self, tensor: Tensor, owner: int) -> Tensor:
        """Its owner's numbers, in place, everywhere. Moved as bytes, so that every dtype and every bit arrives."""
        if self.several:
            content = tensor.detach().view(-1).view(torch.uint8)
            with self._meeting():
                torch.distributed.broadcast(content, owner)
        return tensor

    @contextlib.contextmanager
    def _meeting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ResourceError(
                f"process {self.rank} of {self.count}: another process has ended or cannot be reached; its own message "
                "says why. Run the same command again to go on"
            ) from error


ALONE = Processes()


def follows() -> bool:
    """Whether this process was started beside a main one, by its environment, without importing torch."""
    return int(os.environ.get("RANK", MAIN)) != MAIN


def launched(*, cpu: bool) -> Processes:
    """The processes a launcher started, met; or this one alone. `cpu`: use no accelerator though there be one.

    Raises:
        UsageError: a launcher that starts processes which cannot meet.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if wanted == 1 and forced and "MASTER_ADDR" in os.environ:
        raise UsageError(
            "`accelerate launch --cpu` starts one process, whatever --num_processes says; write --multi_gpu in its "
            "place: without a GPU the processes meet on the CPU"
        )
    cpu = cpu or forced or not torch.accelerator.is_available()
    if wanted == 1:
        return Processes(device=_CPU if cpu else torch.accelerator.current_accelerator())
    state = require("accelerate", "train").PartialState(cpu=cpu)
    if state.num_processes != wanted:
        raise UsageError(
            f"{wanted} processes were started but only {state.num_processes} can meet on {state.device.type}; "
            "start one, or use NVIDIA GPUs or CPUs"
        )
    return Processes(state.num_processes, state.process_index, state.device)


def leave() -> None:
    """The last thing processes do together: part in good order."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
