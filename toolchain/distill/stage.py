"""Stage `distill`: traces -> a student, a plain Hugging Face folder with its training log.

    config.json · model.safetensors (bf16) · tokenizer.json · chat_template.jinja
    student.json      method, mode, base, what was kept and rejected: what compiling and running need
    train.jsonl       one line per step

A kill loses at most `checkpoint_seconds` of training; the same call goes on from there. Of several processes
(`distributed.py`) the main one makes the artifact, and the others train along where it says so.
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
from soloist.toolchain.distill.work import PHASES, Distilled, Work
from soloist.toolchain.student.artifact import Mode, StudentFacts, Variant, base_digest
from soloist.toolchain.tools import arithmetic
from soloist.toolchain.traces.recording import TRACES, TraceFacts
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import read_runs


class DistillConfig(Config):
    """By which `method` the student learns, in which `mode`, and how it is trained.

    `options` are the method's own; `variant` "released" follows a paper's published code where there is such a
    variant. `limit` takes the first traces only; `max_target_tokens` at most so many trained tokens, of groups drawn
    at random, so that methods can be compared.
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
    plan = _plan(config, options, base)
    processes = launched(cpu=config.train.device == "cpu")
    events = events if processes.main else QUIET

    def build(folder: Path) -> StudentFacts:
        runs = list(read_runs(traces.path / TRACES))[: config.limit]
        work = Work(
            method=method,
            runs=runs,
            base=base,
            folder=folder,
            mode=config.mode,
            train=config.train,
            variant=config.variant,
            options=options,
            check_steps=check_steps,
            events=events,
            max_target_tokens=config.max_target_tokens,
            processes=processes,
        )
        made = method.train(work) if method.train else work.once()
        facts = _facts(config, options, runs, base, plan["base"], made)
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


def _plan(config: DistillConfig, options: Config, base: Path) -> dict[str, Any]:
    """What decides what is learned; a path counts by the content of its file or model."""
    plan = {**config.model_dump(mode="json"), "base": base_digest(base)}
    for name, value in options:
        if isinstance(value, Path):
            plan["options"][name] = base_digest(value)
    del plan["train"]["checkpoint_seconds"]  # when it was saved does not change what was learned
    return plan


def _facts(
    config: DistillConfig, options: Config, runs: Sequence[Run], base: Path, digest: str, made: Distilled
) -> StudentFacts:
    """The student's card and training, from what its method hands back. Of a path only the name is kept."""
    shown = dict(config.options)
    for name, value in options:
        if isinstance(value, Path):
            shown[name] = value.name
    called: set[str] = set()
    for run in runs:
        called.update(use.name for use in run.trajectory)
    tools = made.tools if made.tools is not None else config.tools or tuple(sorted(called))
    return StudentFacts(
        method=config.method,
        variant=config.variant,
        options=shown,
        mode=config.mode,
        tuning=config.train.tuning,
        base=base.name,
        base_digest=digest,
        tools=tools,
        precision=made.precision,
        precision_reason=made.precision_reason,
        data=made.data,
        context=made.context,
        parts=made.parts,
        notes=made.notes,
        training=made.training,
    )


def _follow(processes: Processes, build: Callable[[Path], object], out: Path) -> Artifact:
    """Train along if the main process has something to train; the artifact it has made."""
    folder = processes.share(None)
    if folder is not None:
        build(Path(folder))
        processes.share(None)  # until the artifact is whole
    return Artifact.open(out, stage=STAGE, verify=False)
