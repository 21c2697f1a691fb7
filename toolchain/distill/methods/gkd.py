"""GKD (arXiv 2306.13649): the student's next-token distributions drawn to a local teacher's, partly on its own samples.

    step    with probability lmbda the student completes the conversations itself (on-policy), else the traces' turns
    loss    mean over the step's trained tokens of D(teacher, student);  D: forward KL, reverse KL, or JSD(beta)

Each step draws once, as in the paper's algorithm 1. On-policy, one turn of each conversation is drawn: what came
before it is the trace's, the turn is sampled from the student as it is at that step, and nothing after it is
trained, for no tool has answered it. No gradient goes through the sampling. Draws and samples are
functions of (seed, step) and of the weights, so a resumed run samples what the uninterrupted one did. Of several
processes each samples the whole step, so that they agree on it.

Defaults are TRL's (JSD, beta 0.5, lmbda 0.5, 128 new tokens) but for the temperature, 1 as in the paper, where TRL
has 0.9. The paper averages over a sequence before it averages over sequences; here, as in TRL, every
token of a step weighs the same. Left out: a temperature on the teacher, mixing in a reward.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field
from torch import Tensor

from soloist.kernels.divergences import Kind
from soloist.kernels.errors import UsageError
from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.data import Example, Group, count_tokens, examples_of
from soloist.toolchain.distill.divergence import divergences
from soloist.toolchain.distill.methods.sft import verified
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.objective import SelfContained
from soloist.toolchain.distill.packing import Batch
from soloist.toolchain.distill.sampling import sample
from soloist.toolchain.distill.teacher import load_teacher
from soloist.toolchain.distill.work import Distilled, Method, Setup, Work


class Options(Config):
    """Options of GKD."""

    teacher: Path | None = Field(
        default=None, description="needed: folder or GGUF of a teacher with the student's vocabulary"
    )
    divergence: Kind = Field(default="jsd", description="forward KL, reverse KL or generalized JSD (TRL's default)")
    beta: float = Field(default=0.5, gt=0, lt=1, description="the teacher's share in the mixture of JSD (TRL's)")
    lmbda: float = Field(default=0.5, ge=0, le=1, description="share of on-policy steps (TRL's default)")
    max_new_tokens: int = Field(default=128, ge=1, description="longest sampled turn (TRL's default)")
    temperature: float = Field(default=1.0, gt=0, description="of the student's sampling (the paper's)")


class Distillation(SelfContained):
    """The divergence from the teacher, on the traces or on what the student samples at that step."""

    names = ("divergence",)

    def __init__(self, options: Options, teacher: Student, setup: Setup) -> None:
        self.options = options
        self.teacher = teacher
        self.seed = setup.seed
        self.max_length = setup.max_length

    def refresh(self, student: Student, groups: Sequence[Group], step: int) -> Sequence[Group]:
        """The step's conversations, each with one turn sampled from the student if the step is on-policy."""
        if not on_policy(self.options.lmbda, self.seed, step):
            return groups
        examples = examples_of(groups)
        draw = random.Random(f"{self.seed}/{step}/turns")  # noqa: S311 - not cryptography
        prompts = [example.ids[: draw.choice(turn_starts(example))] for example in examples]
        rooms = [min(self.options.max_new_tokens, self.max_length - len(prompt)) for prompt in prompts]
        sampled = sample(student, prompts, max_new_tokens=max(rooms), temperature=self.options.temperature)
        refreshed = []
        for example, prompt, room, turn in zip(examples, prompts, rooms, sampled, strict=True):
            own = turn[:room]
            trained = (*[False] * len(prompt), *[True] * len(own))
            refreshed.append(Group((Example((), (*prompt, *own), trained, example.question_id),)))
        return refreshed

    def counts(self, groups: Sequence[Group]) -> Mapping[str, float]:
        return {"tokens": float(count_tokens(groups)[1])}

    def terms(self, student: Student, batch: Batch, counts: Mapping[str, float]) -> Mapping[str, Tensor]:
        rows = divergences(student, self.teacher, batch, self.options.divergence, self.options.beta)
        return {"divergence": rows.sum() / counts["tokens"]}


def on_policy(lmbda: float, seed: int, step: int) -> bool:
    """Whether this step trains on the student's own samples."""
    return random.Random(f"{seed}/{step}/policy").random() < lmbda  # noqa: S311 - not cryptography


def turn_starts(example: Example) -> list[int]:
    """Where the student's turns begin."""
    starts = []
    for place, trained in enumerate(example.trained):
        if trained and not example.trained[place - 1]:
            starts.append(place)
    return starts


def train(work: Work) -> Distilled:
    """One pass; notes how many of its steps were on-policy."""
    options: Options = work.options
    made = work.once()
    on_policy_steps = 0
    for step in range(made.training.steps):
        on_policy_steps += on_policy(options.lmbda, work.train.seed, step)
    return made.model_copy(update={"notes": {"on_policy_steps": on_policy_steps}})


def objective(student: Student, setup: Setup) -> Distillation:
    """The loss, its teacher loaded."""
    options = setup.options_of(Options)
    return Distillation(options, load_teacher(_needed(options), student, setup.max_length), setup)


def _needed(options: Options) -> Path:
    if options.teacher is None:
        raise UsageError(
            "method gkd: it learns from a teacher's logits: give `--set teacher=PATH`, a model of the student's "
            "vocabulary; without one use sft"
        )
    return options.teacher


METHOD = Method(select=verified, objective=objective, options=Options, train=train, check=_needed)
