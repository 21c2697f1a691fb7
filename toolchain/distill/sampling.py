"""Completions in token ids, of a student also while it is being trained.

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
from soloist.toolchain.distill.model import Student
from soloist.toolchain.distill.packing import use_packed_attention

_AT_ONCE = 16  # new tokens of a batch before those that are finished leave it: transformers itself computes them on


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
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    rooms: Sequence[int],
    temperature: float,
) -> list[list[int]]:
    """One completion of each prompt (token ids), up to and with the end token, of at most its `rooms` tokens.

    Temperature 0 takes the likeliest. What a base model's own settings add (a repetition penalty, a threshold)
    is switched off: transformers would fill it in, and the samples would not be of the model's distribution.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    width, room = max(map(len, prompts)), max(rooms)
    positions = getattr(model.config, "max_position_embeddings", None) or width + room
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all completions begin in one column
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        seen[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    ids, seen = ids.to(device), seen.to(device)
    cache: Any = None
    left = max(1, min(room, positions - width))
    completions: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    while active and left > 0:
        config = require("transformers", "train").GenerationConfig(
            max_new_tokens=min(left, _AT_ONCE),
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_k=0,
            top_p=1.0,
            min_p=0.0 if temperature else None,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=end,
            pad_token_id=pad,
            use_cache=True,
            disable_compile=True,
            return_dict_in_generate=True,
        )
        with torch.no_grad():
            made = model.generate(input_ids=ids, attention_mask=seen, generation_config=config, past_key_values=cache)
        new = made.sequences[:, ids.shape[1] :]
        left -= new.shape[1]
        for row, tokens in zip(active, new.tolist(), strict=True):
            completions[row] += tokens[: tokens.index(end) + 1] if end in tokens else tokens
        going = []
        for place, row in enumerate(active):
            if completions[row][-1] != end and len(completions[row]) < rooms[row]:
                going.append(place)
        active = [active[place] for place in going]
        seen = torch.cat([seen, torch.ones_like(new)], 1)[going]
        ids, cache = made.sequences[going], made.past_key_values
        if active:
            cache.batch_select_indices(torch.tensor(going, device=device))
    return [tokens[:room] for tokens, room in zip(completions, rooms, strict=True)]
