"""GRPO of a student by TRL, in short segments: each begins at a folder and ends with one.

    segment: policy <- folder · reference <- the same folder for all segments · S updates · policy -> folder

TRL samples through our rollouts, so that a student of mode `tools` calls its tools and their results are masked,
and its rewards are a reward model's and a verifier's. Advantages are computed here (`credit.py`), because TRL's
own divide by std + 1e-4 and know one number per solution; `released` gives every step its own.

TRL's checkpoints hold pickled optimizer states, which we neither write nor read: a killed run repeats its
segment, and AdamW's moments begin anew with every segment. Weights are fp32 throughout, on disk as well
(`full_precision.py`). Left out: several processes (a group's rewards would lie on several), LoRA in this phase, vLLM.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional

from soloist.kernels.errors import UsageError
from soloist.targets.base import Message, require
from soloist.toolchain.core.artifact import Facts
from soloist.toolchain.core.config import Config
from soloist.toolchain.distill.credit import Solution, released, softmin, z_scores
from soloist.toolchain.distill.data import Example, prepare_tokenizer, render_ids
from soloist.toolchain.distill.full_precision import write_exact
from soloist.toolchain.distill.model import load_base, no_progress_bar
from soloist.toolchain.distill.prm import RewardModel
from soloist.toolchain.distill.rollouts import Rollout, Sampler
from soloist.toolchain.distill.steps import step_ends
from soloist.toolchain.student.artifact import Variant
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.tools.base import Toolbox

_CALL = 64  # tokens of padding that cost about as much as one more call of a small model


class GrpoConfig(Config):
    """The policy phase. The defaults marked released are those of AgentArk's published scripts."""

    generations: int = Field(default=8, ge=2, description="G, solutions sampled per question (released)")
    temperature: float = Field(default=0.5, gt=0, description="of sampling (released)")
    learning_rate: float = Field(default=5e-7, gt=0, description="of the policy (released)")
    kl: float = Field(default=0.001, ge=0, description="beta, weight of the KL to the reference (released)")
    clip: float = Field(default=0.2, gt=0, description="epsilon (released)")
    questions: int = Field(default=8, ge=1, description="per update; our choice, for small machines (released: 64)")
    steps: int | None = Field(default=None, ge=1, description="updates; default one pass over the questions (released)")
    segment: int = Field(default=16, ge=1, description="updates that a kill repeats at most (our choice)")
    step_weight: float = Field(default=1.0, ge=0, description="of the reward model's softmin over steps (our choice)")
    answer_weight: float = Field(default=1.0, ge=0, description="of the verified answer (released)")
    tau: float = Field(default=0.1, gt=0, description="of softmin and of min-form credit (released)")
    new_tokens: int | None = Field(default=None, ge=1, description="most tokens per turn; 64 of a call, 256 in words")


@dataclass
class Judge:
    """What a sampled solution is worth: its steps by the reward model, its answer by the question's scorer."""

    model: RewardModel
    config: GrpoConfig
    variant: Variant

    def __post_init__(self) -> None:
        self.judged: list[tuple[list[int], Solution]] = []  # step ends within the completion, in sampled order

    def judge(
        self, prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout], questions: Sequence[Question]
    ) -> None:
        """Score a whole batch; TRL asks for the numbers afterwards."""
        tokenizer = self.model.student.tokenizer
        examples, ends, ends_with_prompt = [], [], []
        for prompt, rollout in zip(prompts, rollouts, strict=True):
            examples.append(Example((), (*prompt, *rollout.ids), (*[False] * len(prompt), *rollout.own)))
            ends.append(step_ends(rollout.ids, rollout.own, tokenizer))
            ends_with_prompt.append([len(prompt) + end for end in ends[-1]])
        scores = self.model.scores(examples, ends_with_prompt)
        self.judged = []
        for rollout, stops, values, question in zip(rollouts, ends, scores, questions, strict=True):
            tokens = tuple(sum(rollout.own[step]) for step in _steps(stops))
            self.judged.append((stops, Solution(tuple(values), tokens, rollout.right(question))))

    def step_reward(self, **_: Any) -> list[float]:
        """Softmin of the steps' scores, for TRL."""
        return [softmin(solution.rewards, self.config.tau) for _, solution in self.judged]

    def answer_reward(self, **_: Any) -> list[float]:
        """1 for a right answer, for TRL."""
        return [float(solution.solved) for _, solution in self.judged]

    def advantages(self, width: int) -> torch.Tensor:
        """(B, 1) of the paper, one number a solution; (B, width) of the released code, one a token."""
        config, size = self.config, self.config.generations
        if self.variant == "paper":
            advantages: list[float] = []
            for start in range(0, len(self.judged), size):
                rewards = []
                for _, solution in self.judged[start : start + size]:
                    steps = softmin(solution.rewards, config.tau)
                    rewards.append(config.step_weight * steps + config.answer_weight * solution.solved)
                advantages += z_scores(rewards)
            return torch.tensor(advantages)[:, None]
        of_tokens = torch.zeros(len(self.judged), width)
        for start in range(0, len(self.judged), size):
            group, signed = self.judged[start : start + size], []
            for _, solution in group:
                signed.append(replace(solution, rewards=tuple(2 * reward - 1 for reward in solution.rewards)))
            credits = released(signed, tau=config.tau, coefficient=config.answer_weight)
            for row, ((stops, _), values) in enumerate(zip(group, credits, strict=True), start):
                for step, value in zip(_steps(stops), values, strict=True):
                    of_tokens[row, step] = value
        return of_tokens


def _steps(ends: Sequence[int]) -> list[slice]:
    """The tokens of each step, from the places of the steps' last tokens."""
    steps, begin = [], 0
    for end in ends:
        steps.append(slice(begin, end + 1))
        begin = end + 1
    return steps


class Update(Facts):
    """What one update did, as TRL logs it; means over what was sampled. `tokens` are prompts and the student's own."""

    loss: float
    reward: float
    reward_steps: float
    reward_answer: float
    kl: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    trained_tokens: int
    seconds: float


class Practice(Facts):
    """The updates of one segment, in order."""

    updates: tuple[Update, ...]


@dataclass(frozen=True)
class Segment:
    """One segment: where it begins, what it must stay near to, and the questions of its updates in order."""

    start: Path
    reference: Path
    questions: Sequence[Question]
    seed: int
    cpu: bool
    limit: int
    tools: Toolbox | None

    def run(self, judge: Judge, folder: Path) -> Practice:
        """Train and save."""
        config = judge.config
        model, tokenizer = load_base(self.start)
        prepare_tokenizer(tokenizer)
        model.config._name_or_path = str(self.reference)  # where TRL takes the reference from
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        began = time.perf_counter()
        with _quiet():
            trainer = self._trainer(model, tokenizer, judge, folder)
            trainer.train()
        sampled = config.generations * config.questions
        updates = _updates(trainer.state.log_history, sampled, time.perf_counter() - began)
        steps = len(self.questions) // config.questions
        assert len(updates) == steps, f"TRL logged {len(updates)} of {steps} updates"
        model.config._name_or_path = ""
        # TRL patches `forward` of this very object; what is saved are weights and config
        write_exact(model, tokenizer, folder)
        return Practice(updates=tuple(updates))

    def _trainer(self, model: Any, tokenizer: Any, judge: Judge, folder: Path) -> Any:
        config = judge.config
        trl, datasets = require("trl", "rl"), require("datasets", "rl")
        if not hasattr(trl.GRPOTrainer, "_generate_and_score_completions"):
            raise UsageError("this trl has no GRPOTrainer that takes our advantages: install trl 1.16")

        class Trainer(trl.GRPOTrainer):  # type: ignore[misc,name-defined]  # trl's types are not followed
            def _generate_and_score_completions(self, inputs: Any) -> Any:
                made = super()._generate_and_score_completions(inputs)
                made["advantages"] = judge.advantages(made["completion_ids"].shape[1]).to(made["completion_ids"].device)
                return made

            def _get_per_token_logps_and_entropies(
                self,
                model: Any,
                ids: torch.Tensor,
                mask: torch.Tensor,
                keep: int,
                batch_size: int | None = None,
                **more: Any,
            ) -> Any:
                read = functools.partial(super()._get_per_token_logps_and_entropies, model, **more)
                return unpadded(read, ids, mask, keep, batch_size or len(ids))

        rows = []
        for at, question in enumerate(self.questions):
            rows.append({"prompt": [{"role": "user", "content": question.question.strip()}], "at": at})
        trainer = Trainer(
            model,
            [judge.step_reward, judge.answer_reward],
            args=self._arguments(trl, config, folder),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            rollout_func=self._rollouts(judge),
        )
        trainer.remove_callback(require("transformers", "train").PrinterCallback)
        return trainer

    def _arguments(self, trl: Any, config: GrpoConfig, folder: Path) -> Any:
        pinned = not self.cpu and torch.cuda.is_available()  # torch warns of pinned memory where no GPU is
        return trl.GRPOConfig(
            output_dir=str(folder / "trl"),
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=self.cpu,
            dataloader_pin_memory=pinned,
            bf16=False,
            gradient_checkpointing=False,
            seed=self.seed,
            shuffle_dataset=False,
            per_device_train_batch_size=config.generations,
            gradient_accumulation_steps=config.questions,
            num_generations=config.generations,
            max_steps=len(self.questions) // config.questions,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            beta=config.kl,
            epsilon=config.clip,
            temperature=config.temperature,
            loss_type="grpo",
            max_completion_length=self.limit,
            reward_weights=[config.step_weight, config.answer_weight],
        )

    def _rollouts(self, judge: Judge) -> Any:
        known = {question.question.strip(): question for question in self.questions}
        config = judge.config

        def roll(prompts: Sequence[list[Message]], trainer: Any) -> Mapping[str, Any]:
            policy = trainer.accelerator.unwrap_model(trainer.model_wrapped)
            sampler = Sampler(
                policy,
                trainer.processing_class,
                self.tools,
                config.temperature,
                turn_tokens(config, self.tools),
                self.limit,
            )
            ids = [render_ids(trainer.processing_class, prompt, prompt=True) for prompt in prompts]
            was_training = policy.training
            policy.eval()
            rollouts = sampler.roll(ids)
            policy.train(was_training)
            judge.judge(ids, rollouts, [known[prompt[0]["content"]] for prompt in prompts])
            completions, masks = [], []
            for rollout in rollouts:
                completions.append(rollout.ids)
                masks.append(list(map(int, rollout.own)))
            return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None, "env_mask": masks}

        return roll


def turn_tokens(config: GrpoConfig, tools: Toolbox | None) -> int:
    """The most tokens of one turn of the student's."""
    return config.new_tokens or (256 if tools is None else 64)


def unpadded(
    read: Callable[..., Any], ids: torch.Tensor, mask: torch.Tensor, keep: int, most: int
) -> tuple[torch.Tensor, torch.Tensor | None, None]:
    """TRL's (log-probabilities, entropies, None) of the last `keep` columns of (B, T), (B, keep), zero at padding.

    TRL pads every conversation of an update to the longest; one that rambles until it is cut off makes all of them as
    long. Here `read` sees rows of like length together, only as wide as they are.
    """
    begins = mask.argmax(1)
    ends = mask.shape[1] - mask.flip(1).argmax(1)
    calls = like_lengths((ends - begins).tolist(), most)
    log_probs: list[torch.Tensor] = []
    entropies: list[torch.Tensor] = []
    order: list[int] = []
    for rows in calls:
        begin, end = int(begins[rows].min()), int(ends[rows].max())
        cut = mask.shape[1] - end
        log_prob, entropy, _ = read(ids[rows, begin:end], mask[rows, begin:end], keep - cut)
        log_probs.append(functional.pad(log_prob, (0, cut)))
        if entropy is not None:
            entropies.append(functional.pad(entropy, (0, cut)))
        order += rows
    back = torch.tensor(order, device=ids.device).argsort()
    return torch.cat(log_probs)[back], torch.cat(entropies)[back] if entropies else None, None


def like_lengths(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices in groups of at most `most`, longest first, that waste little when each is padded to its longest."""
    groups: list[list[int]] = []
    wasted = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        wasted += lengths[groups[-1][0]] - lengths[index] if groups else 0
        if groups and len(groups[-1]) < most and wasted <= _CALL:
            groups[-1].append(index)
        else:
            groups.append([index])
            wasted = 0
    return groups


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out two warnings that are not ours to act on.

    TRL calls every rollout function experimental (our tests pin its API), and names a setting of transformers
    by the name before last. Nor does loading the reference need a progress bar.
    """
    with no_progress_bar(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing` is", category=FutureWarning)
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'", category=UserWarning)
        yield


def _updates(history: Sequence[Mapping[str, Any]], sampled: int, seconds: float) -> list[Update]:
    """TRL's log as ours. It counts prompts and the student's own tokens, no tool's results."""
    steps = [entry for entry in history if "loss" in entry]
    updates = []
    before = 0
    for entry in steps:
        updates.append(
            Update(
                loss=round(entry["loss"], 6),
                reward=round(entry["reward"], 6),
                reward_steps=round(entry["rewards/step_reward/mean"], 6),
                reward_answer=round(entry["rewards/answer_reward/mean"], 6),
                kl=round(entry.get("kl", 0.0), 8),
                learning_rate=entry["learning_rate"],
                gradient_norm=round(entry["grad_norm"], 6),
                tokens=int(entry["num_tokens"] - before),
                trained_tokens=round(entry["completions/mean_length"] * sampled),
                seconds=round(seconds / len(steps), 4),
            )
        )
        before = entry["num_tokens"]
    return updates
