"""A local teacher that is read for its next-token logits, of exactly the student's vocabulary.

Logits of another vocabulary are about other tokens: the loss would fall and mean nothing. So the token
strings are compared one by one, and the number of logits too, because models of one family are padded
to different widths (Qwen2.5: 151,936 up to 3B, 152,064 from 7B). The teacher reads the student's token ids,
under the student's template; its own template is not used. Left out: alignment of different tokenizers,
quantized teachers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soloist.kernels.errors import UsageError
from soloist.toolchain.distill.model import Student, load_base
from soloist.toolchain.distill.packing import Batch


def vocabulary_digest(tokenizer: Any) -> str:
    """Hash of the token strings and their ids."""
    return hashlib.sha256(json.dumps(_strings(tokenizer)).encode()).hexdigest()[:16]


def _strings(tokenizer: Any) -> list[tuple[int, str]]:
    return sorted((number, token) for token, number in tokenizer.get_vocab().items())


def refuse_other_vocabulary(name: str, model: Any, tokenizer: Any, student: Student) -> None:
    """Raise UsageError unless a teacher called `name` scores exactly the student's tokens."""
    theirs, ours = _strings(tokenizer), _strings(student.tokenizer)
    widths = int(model.config.vocab_size), int(student.model.config.vocab_size)
    if theirs == ours and widths[0] == widths[1]:
        return
    where = ""
    for one, other in zip(theirs, ours, strict=False):
        if one != other:
            where = f"; they first differ at token {other[0]}: {one[1]!r}, {other[1]!r}"
            break
    raise UsageError(
        f"teacher {name}: its vocabulary ({len(theirs)} tokens, {widths[0]} logits, {vocabulary_digest(tokenizer)}) is "
        f"not the student's ({len(ours)} tokens, {widths[1]} logits, {vocabulary_digest(student.tokenizer)}){where}; "
        "take a teacher of the student's own family and size of vocabulary"
    )


def load_teacher(path: Path, student: Student, max_length: int) -> Student:
    """A teacher from a Hugging Face folder or a GGUF file, frozen, in the student's precision and place.

    Raises:
        UsageError: another vocabulary.
        ArtifactError: not a model, or one of which packed batches cannot be computed.
    """
    model, tokenizer = load_base(path)
    refuse_other_vocabulary(path.name, model, tokenizer, student)
    teacher = Student(model, student.tokenizer, student.device)
    teacher.verify_packing(max_length)
    teacher.compute_in(next(student.model.parameters()).dtype)
    teacher.model.eval().requires_grad_(False)
    return teacher


def teacher_logits(teacher: Student, batch: Batch) -> Tensor:
    """The teacher's logits at the batch's trained positions."""
    with torch.no_grad():
        return teacher.logits(batch)
