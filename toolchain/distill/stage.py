"""Stage `distill`: traces -> a student, a plain Hugging Face folder with its training log.

    config.json · model.safetensors (bf16) · tokenizer.json · chat_template.jinja
    student.json      method, mode, base, what was kept and rejected: what compiling and running need
    train.jsonl       one line per step

A kill loses at most `checkpoint_seconds` of training; the same call goes on from there. Of several processes
(`processes.py`) the main one makes the artifact, and the others train along where it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from soloist.kernels.errors import UsageError
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.core.config import Config, validated
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.distill.data import CheckSteps
from soloist.toolchain.distill.distributed import Processes, launched
from soloist.toolchain.distill.methods.catalog import load
from soloist.toolchain.distill.model import freed_memory_kept
from soloist.toolchain.distill.train import CHECKPOINTS, STAGE, TrainConfig
from soloist.toolchain.distill.work import PHASES, Work
from soloist.toolchain.student.artifact import Mode, StudentFacts, Variant, base_digest
from soloist.toolchain.tools import arithmetic
from soloist.toolchain.traces.recording import TRACES, TraceFacts
from soloist.toolchain.traces.store import read_runs


class DistillConfig(Config):
    """By which `method` the student learns, in which `mode`, and how it is trained. `limit`: only the first traces.
    `max_target_tokens`: at most so many trained tokens, of groups drawn at random, so that methods can be compared.

    `options` are the method's own; `variant` "released" follows a paper's published code where there is such a
    variant.
    """

    method: str = "sft"
    variant: Variant = "paper"
    options: Mapping[str, Any] = Field(default_factory=dict)
    mode: Mode = "tools"
    train: TrainConfig = TrainConfig()
    tools: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    max_target_tokens: int | None = Field(default=None, ge=1)

    def settled(self) -> DistillConfig:
        """With the method's own defaults filled in.

        Raises:
            SoloistError: what does not exist, or could not work; nothing has been read or trained yet.
        """
        method = load(self.method)
        train = {**method.defaults, **self.train.model_dump(exclude_unset=True)}
        options = validated(method.options, self.options, f"method {self.method}")
        if self.variant == "released" and not method.released:
            raise UsageError(f"method {self.method}: there is no released code to follow; leave variant at 'paper'")
        for name, value in options:
            if isinstance(value, Path) and not value.exists():
                raise UsageError(f"method {self.method}: {name}: {value}: no such file or folder")
        if method.check is not None:
            method.check(options)
        return self.model_copy(
            update={"train": TrainConfig.model_validate(train), "options": options.model_dump(mode="json")}
        )


def recheck(steps: Sequence[str]) -> bool:
    """Whether every equality in the worked steps holds, recomputed exactly."""
    return arithmetic.check_steps("\n".join(steps))


def distill(
    config: DistillConfig,
    traces: Artifact,
    base: Path,
    out: Path,
    *,
    events: EventLog = QUIET,
    check_steps: CheckSteps = recheck,
) -> Artifact:
    """Train a student on an artifact of traces and save it.

    Raises:
        DataError: held-out questions among the traces, or no trace to learn from.
        ArtifactError: a base model that cannot be loaded.
    """

    config = config.settled()
    method = load(config.method)
    options = method.options.model_validate(config.options)
    files = {name: value for name, value in options if isinstance(value, Path)}
    plan = _plan(config, files, base)
    processes = launched(cpu=config.train.device == "cpu")
    events = events if processes.main else QUIET

    def build(folder: Path) -> StudentFacts:
        runs = list(read_runs(traces.path / TRACES))[: config.limit]
        work = Work(
            method,
            runs,
            base,
            folder,
            config.mode,
            config.train,
            config.variant,
            options,
            check_steps,
            events,
            config.max_target_tokens,
            processes,
        )
        made = method.train(work) if method.train else work.once()
        tools = made.tools
        if tools is None:
            tools = config.tools or tuple(sorted({use.name for run in runs for use in run.trajectory}))
        facts = StudentFacts(
            method=config.method,
            variant=config.variant,
            options={**config.options, **{name: path.name for name, path in files.items()}},
            mode=config.mode,
            tuning=config.train.tuning,
            base=base.name,
            base_digest=plan["base"],
            tools=tools,
            precision=made.precision,
            precision_reason=made.precision_reason,
            data=made.data,
            context=made.context,
            parts=made.parts,
            notes=made.notes,
            training=made.training,
        )
        if processes.main:
            facts.write(folder)
            known = traces.read(TraceFacts).tools
            if known is not None and facts.called_tools:
                known.subset(facts.called_tools).write(folder)
        return facts

    def lead(folder: Path) -> StudentFacts:
        processes.share(str(folder))
        return build(folder)

    with freed_memory_kept():
        if not processes.main:
            return _follow(processes, build, out)
        student = stage(STAGE, out, plan, [traces], lead, events=events, scratch=(CHECKPOINTS, PHASES))
        processes.share(None)
        return student


def _plan(config: DistillConfig, files: Mapping[str, Path], base: Path) -> dict[str, Any]:
    """What decides what is learned; paths count by what lies there."""
    digests = {name: base_digest(path) for name, path in files.items()}
    plan = {**config.model_dump(mode="json"), "base": base_digest(base), "options": {**config.options, **digests}}
    del plan["train"]["checkpoint_seconds"]  # when it was saved does not change what was learned
    return plan


def _follow(processes: Processes, build: Callable[[Path], object], out: Path) -> Artifact:
    """Train along if the main process finds that there is something to train; the artifact it has made."""
    folder = processes.share(None)
    if folder is not None:
        build(Path(folder))
        processes.share(None)  # until the artifact is whole
    return Artifact.open(out, stage=STAGE, verify=False)
