"""A student sampled as it will be used: it calls, its tools answer, it goes on, until a call is the last.

    prompt ids ── student ──► own tokens ── tool ──► read tokens ── student ──► own tokens …

The loop of `teams/acting.py` on token ids instead of messages, because whoever trains on what was sampled
needs the very tokens and which of them are the student's own. Without tools one answer in words is the whole
solution. Tools parse their arguments; nothing is evaluated as code. Left out: engines other than
transformers' own generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from soloist.targets.base import Message
from soloist.toolchain.distill.data import render_ids
from soloist.toolchain.distill.sampling import complete
from soloist.toolchain.tasks.base import Question, extract, score
from soloist.toolchain.tools.base import Toolbox, ToolError
from soloist.toolchain.tools.calls import MORE, parse_call, run_call


@dataclass
class Rollout:
    """What followed a prompt. `own[i]` says that token i is the student's, not a tool's or the template's."""

    ids: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    answer: str | None = None

    def right(self, question: Question) -> bool:
        """Whether the answer is the question's."""
        return score(self.answer, question) or score(extract(self.answer or ""), question)


@dataclass(frozen=True)
class Sampler:
    """How a student is sampled. Without `tools` it answers in words.

    `limit` is of the whole conversation; one token is sampled in any case, because TRL knows no empty completion.
    """

    model: Any
    tokenizer: Any
    tools: Toolbox | None = None
    temperature: float = 0.5
    new_tokens: int = 64
    limit: int = 1024
    max_calls: int = 4
    batch: int = 64

    def roll(self, prompts: Sequence[Sequence[int]]) -> list[Rollout]:
        """One solution from each prompt; torch's random numbers decide."""
        rollouts = [Rollout() for _ in prompts]
        active = list(range(len(prompts)))
        for _ in range(self.max_calls if self.tools is not None else 1):
            if not active:
                break
            turns = self._generate([[*prompts[i], *rollouts[i].ids] for i in active])
            going = []
            for i, ids in zip(active, turns, strict=True):
                rollouts[i].ids += ids
                rollouts[i].own += [True] * len(ids)
                if self._goes_on(rollouts[i], ids) and len(prompts[i]) + len(rollouts[i].ids) < self.limit:
                    going.append(i)
            active = going
        return rollouts

    def _goes_on(self, rollout: Rollout, ids: Sequence[int]) -> bool:
        """Run the call that a turn holds; True if the student is to go on.

        A call that did not end is none, and the result of one after which more was announced is no answer.
        """
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if self.tools is None:
            rollout.answer = extract(text)  # as a lone agent's: the words before it are not scored
            return False
        if ids[-1] != self.tokenizer.eos_token_id:
            return False
        try:
            call = parse_call(text, self.tools)
            result = run_call(call, self.tools).value
        except ToolError:
            return False
        if not call.more:
            rollout.answer = result
            return False
        seen = read_tokens(self.tokenizer, result)
        rollout.ids += seen
        rollout.own += [False] * len(seen)
        return True

    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        turns: list[list[int]] = []
        for start in range(0, len(prompts), self.batch):
            batch = prompts[start : start + self.batch]
            rooms = [max(1, min(self.new_tokens, self.limit - len(prompt))) for prompt in batch]
            turns += complete(self.model, self.tokenizer, batch, rooms, self.temperature)
        return turns


def read_tokens(tokenizer: Any, result: str) -> list[int]:
    """What stands between the end of a call and the student's next word: the tool's turn, and the opened next one."""
    called: list[Message] = [{"role": "user", "content": "?"}]
    start = len(render_ids(tokenizer, called, prompt=True))
    called += [{"role": "assistant", "content": "f()" + MORE}, {"role": "tool", "content": result.strip()}]
    ids = render_ids(tokenizer, called, prompt=True)
    return ids[ids.index(tokenizer.eos_token_id, start) + 1 :]
