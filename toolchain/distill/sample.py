"""What the student itself would say: completions sampled while it is being trained.

transformers generates, so for that moment the model gets its own attention back (the packed one knows no cache)
and leaves training mode. Random numbers are torch's global ones: who seeds them by step gets the same
completions again. Left out: servers and compiled runtimes, which would need the weights of every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from soloist.targets.base import require
from soloist.toolchain.distill.packing import use_packed_attention
from soloist.toolchain.distill.student import Student


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
    """One completion of each prompt (token ids), up to and with the end token. Temperature 0 takes the likeliest."""
    width = max(map(len, prompts))
    positions = getattr(student.model.config, "max_position_embeddings", None) or width + max_new_tokens
    config = require("transformers", "train").GenerationConfig(
        max_new_tokens=max(1, min(max_new_tokens, positions - width)), do_sample=temperature > 0,
        temperature=temperature or None, top_k=0, top_p=1.0, eos_token_id=student.tokenizer.eos_token_id,
        pad_token_id=student.tokenizer.pad_token_id,
    )  # fmt: skip
    ids = torch.full((len(prompts), width), student.tokenizer.pad_token_id, dtype=torch.long)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all completions begin in one column
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        seen[row, width - len(prompt) :] = 1
    with as_published(student), torch.no_grad():
        made = student.model.generate(
            input_ids=ids.to(student.device), attention_mask=seen.to(student.device), generation_config=config,
            use_cache=True,
        )  # fmt: skip
    return [_until(row, student.tokenizer.eos_token_id) for row in made[:, width:].tolist()]


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
