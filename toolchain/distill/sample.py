"""What a model itself would say: completions in token ids, of a student also while it is being trained.

transformers generates, so a student in training gets its own attention back for that moment (the packed one
knows no cache) and leaves training mode. Random numbers are torch's global ones: who seeds them by step gets the
same completions again. Left out: servers and compiled runtimes, which would need the weights of every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from soloist.targets.base import require
from soloist.toolchain.distill.packing import use_packed_attention
from soloist.toolchain.distill.student import Student

# New tokens of a batch before those that are finished leave it: transformers computes a finished row to the end of the
# batch, so one that never stops would make all as dear; to read the others once more costs less than a few tokens
_AT_ONCE = 32


@contextlib.contextmanager
def as_published(student: Student) -> Iterator[None]:
    """The student's model with its native attention, in evaluation mode."""
    training = student.model.training
    student.model.set_attn_implementation(student.native_attention)
    student.model.eval()
    try:
        yield
    finally:
        use_packed_attention(student.model)
        student.model.train(training)


def sample(
    student: Student, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float = 1.0
) -> list[list[int]]:
    """A student's completions, see `complete`."""
    with as_published(student):
        return complete(student.model, student.tokenizer, prompts, [max_new_tokens] * len(prompts), temperature)


def complete(
    model: Any,  # noqa: ANN401 - transformers is untyped here
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[Sequence[int]],
    rooms: Sequence[int],
    temperature: float,
) -> list[list[int]]:
    """One completion of each prompt (token ids), up to and with the end token, of at most its `rooms` tokens.

    Temperature 0 takes the likeliest. What a base model's own settings add (a repetition penalty, a threshold)
    is switched off: transformers would fill it in, and the words would not be the model's distribution.
    """
    end = tokenizer.eos_token_id
    positions = getattr(model.config, "max_position_embeddings", None) or max(map(len, prompts)) + max(rooms)
    said: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    while active:
        read = [[*prompts[i], *said[i]] for i in active]
        room = min(_AT_ONCE, max(rooms[i] - len(said[i]) for i in active), positions - max(map(len, read)))
        for i, ids in zip(active, _continue(model, tokenizer, read, max(1, room), temperature), strict=True):
            said[i] = [*said[i], *ids][: rooms[i]]
        active = [
            i for i in active
            if end not in said[i] and len(said[i]) < rooms[i] and len(prompts[i]) + len(said[i]) < positions
        ]  # fmt: skip
    return said


def _continue(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[Sequence[int]],
    room: int,
    temperature: float,
) -> list[list[int]]:
    """At most `room` tokens that go on from each prompt, up to and with the end token."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    width = max(map(len, prompts))
    config = require("transformers", "train").GenerationConfig(
        max_new_tokens=room, do_sample=temperature > 0,
        temperature=temperature or None, top_k=0, top_p=1.0, min_p=0.0 if temperature else None,
        repetition_penalty=1.0, no_repeat_ngram_size=0, eos_token_id=end, pad_token_id=pad, use_cache=True,
        disable_compile=True,
    )  # fmt: skip
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all completions begin in one column
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        seen[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    with torch.no_grad():
        made = model.generate(input_ids=ids.to(device), attention_mask=seen.to(device), generation_config=config)
    rows = made[:, width:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]
