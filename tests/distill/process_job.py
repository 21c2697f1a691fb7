"""What each process of test_processes.py does; the test imports it to do the same in one process.

python process_job.py BASE TRACES OUT     RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from soloist.kernels.errors import ResourceError
from soloist.toolchain.core.artifact import Artifact
from soloist.toolchain.core.events import QUIET
from soloist.toolchain.distill.distributed import launched
from soloist.toolchain.distill.methods.catalog import load
from soloist.toolchain.distill.stage import TRACES, DistillConfig, distill, recheck
from soloist.toolchain.distill.train import TrainConfig, Trainer
from soloist.toolchain.distill.work import Setup
from soloist.toolchain.traces.store import read_runs

OPTIONS = {"magdi": {"hidden": 8, "dropout": 0.3}, "tdpo": {"epochs": 1, "learning_rate": 1e-3}}
STOPPED_AFTER = 4


class Stop(Exception):
    """A run that is cut off."""


def config_of(method, **train):
    """Seven questions make steps of 3, 3 and 1: of two processes one has nothing to do in every third."""
    settings = {"epochs": 3, "batch_size": 3, "part_tokens": 160, "learning_rate": 1e-3, "precision": "fp32"}
    made = TrainConfig(**{**settings, "device": "cpu", "weight_decay": 0.01, **train})
    return DistillConfig(method=method, options=OPTIONS.get(method, {}), train=made)


def fitted(method, traces, base, folder, on_step=None, events=QUIET, **train):
    """A trainer that has trained as the stage would have it."""
    config = config_of(method, **train)
    trainer = Trainer(base, config.train)
    kind = load(method)
    options = kind.options.model_validate(config.options)
    setup = Setup(trainer.student.tokenizer, recheck, "tools", config.train.max_length, 0, "paper", options)
    groups = kind.select(list(read_runs(traces / TRACES)), setup).groups
    trainer.optimize(kind.objective(trainer.student, setup))
    trainer.trained = trainer.fit(groups, folder, on_step=on_step, events=events)
    return trainer


def stopped(traces, base, folder):
    """A run that ends in the middle, with a checkpoint of its last step but one."""

    def stop(record):
        if record["step"] + 1 == STOPPED_AFTER:
            raise Stop

    try:
        fitted("sft", traces, base, folder, stop, checkpoint_seconds=1e-9)
    except Stop:
        return
    raise AssertionError("it was not stopped")


def keep(trainer, out):
    """Write the exact weights, and how much of them each process holds, from the main process."""
    exact = trainer.optimizer.exact()
    mine = sum(value.numel() for value in trainer.optimizer.first.values())
    held = [int(trainer.processes.sum(torch.tensor(mine * (trainer.processes.rank == i)))) for i in range(2)]
    rounded = {name: value.to(trainer.dtype) for name, value in exact.items()}
    same = all(torch.equal(value, rounded[name]) for name, value in trainer.optimizer.parameters.items())
    agree = int(trainer.processes.sum(torch.tensor(int(same)))) == trainer.processes.count
    if trainer.processes.main:
        save_file({name: value.contiguous() for name, value in exact.items()}, out.with_suffix(".safetensors"))
        out.with_suffix(".json").write_text(json.dumps({"held": held, "weights_are_the_exact_ones_rounded": agree}))


def main(base, traces, out):
    for method in ("sft", "magdi"):
        keep(fitted(method, traces, base, out / method), out / f"{method}-end")
    keep(fitted("sft", traces, base, out / "bf16", precision="bf16"), out / "bf16-end")
    stopped(traces, base, out / "cut")
    if launched(cpu=True).main:
        shutil.copytree(out / "cut", out / "cut-for-one")
    keep(fitted("sft", traces, base, out / "cut"), out / "cut-end")
    made = [distill(config_of("tdpo"), Artifact.open(traces), base, out / "tdpo") for _ in range(2)]
    processes = launched(cpu=True)
    (out / f"seen-{processes.rank}.json").write_text(json.dumps([artifact.digest for artifact in made]))
    if processes.rank == 1:
        sys.exit(3)
    try:
        processes.sum(torch.zeros(1))
    except ResourceError as error:
        print(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:]))
