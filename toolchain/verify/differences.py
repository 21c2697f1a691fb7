"""Numbers between the records of a student and of a file, and the token where they are furthest apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import GateError
from soloist.targets.base import require
from soloist.targets.tokenizer_cases import TOKENIZER_CASES
from soloist.toolchain.verify.verdict import Drift, Token, Worst

Rows = npt.NDArray[np.float32]


def compare(wanted: Mapping[str, Any], got: Mapping[str, Any], wanted_dir: Path, got_dir: Path) -> Drift:
    """How far the logits of `got` are from those of `wanted`; `worst` is the token with the largest divergence.

    Raises:
        GateError: another chat template, other token ids, another vocabulary, or logits that are no numbers.
    """
    _same_tokens(wanted, got)
    kl, same = [], []
    worst: Worst | None = None
    for index in range(len(wanted["rendered"])):
        a = np.load(wanted_dir / f"logits-{index}.npy", allow_pickle=False)
        b = np.load(got_dir / f"logits-{index}.npy", allow_pickle=False)
        if a.shape != b.shape:
            raise GateError(f"has another vocabulary: {b.shape[-1]} tokens instead of {a.shape[-1]}")
        if not np.isfinite(b).all():
            raise GateError(f"gives logits that are not numbers (prompt {index})")
        kl.append(divergence(a, b))
        same.append(a.argmax(-1) == b.argmax(-1))
        at = int(kl[-1].argmax())
        if worst is None or kl[-1][at] > worst.kl:
            expected, observed = (_probabilities(int(row.argmax()), a[at], b[at]) for row in (a[at], b[at]))
            worst = Worst(prompt=index, position=at, kl=float(kl[-1][at]), expected=expected, got=observed)
    assert worst is not None, "there is at least one prompt"
    every = np.concatenate(kl)
    answers = [a == b for a, b in zip(wanted["answers"], got["answers"], strict=True)]
    return Drift(
        kl_mean=float(every.mean()),
        kl_p99=float(np.quantile(every, 0.99)),
        kl_first=float(np.mean([one[0] for one in kl])),
        top1=float(np.concatenate(same).mean()),
        top1_first=float(np.mean([one[0] for one in same])),
        same_answers=float(np.mean(answers)),
        tokens=len(every),
        prompts=len(kl),
        worst=worst,
    )


def _same_tokens(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    for index, (a, b) in enumerate(zip(wanted["rendered"], got["rendered"], strict=True)):
        if a != b:
            raise GateError(f"renders another chat template (prompt {index}: {_first_difference(a, b)})")
    for key, what in (("prompt_ids", "prompt"), ("answer_ids", "answer"), ("case_ids", "tokenizer case")):
        for index, (ids, other) in enumerate(zip(wanted[key], got[key], strict=True)):
            if ids != other:
                shown = f" {TOKENIZER_CASES[index]!r}" if key == "case_ids" else ""
                raise GateError(f"cuts {what} {index}{shown} into other tokens: {other[:8]} instead of {ids[:8]}")


def _probabilities(token: int, student: Rows, file: Rows) -> Token:
    """What student and file give a next token."""
    return Token(
        token=token,
        student=round(float(np.exp(_log_softmax(student[None])[0, token])), 4),
        file=round(float(np.exp(_log_softmax(file[None])[0, token])), 4),
    )


def in_words(worst: Worst, wanted: Mapping[str, Any], student: Path) -> Worst:
    """The worst case with its texts, where the student's tokenizer can be read."""
    told = worst.model_copy(update={"prompt_text": wanted["rendered"][worst.prompt]})
    try:
        tokenizer = require("tokenizers", "onnx").Tokenizer.from_file(str(student / "tokenizer.json"))
    except Exception:  # the package may be absent, and raises plain Exception for what it cannot read
        return told
    before = wanted["answer_ids"][worst.prompt][: worst.position]
    texts: dict[str, Any] = {"after": tokenizer.decode(before, skip_special_tokens=False)}
    for name, token in (("expected", worst.expected), ("got", worst.got)):
        text = tokenizer.decode([token.token], skip_special_tokens=False)
        texts[name] = token.model_copy(update={"text": text})
    return told.model_copy(update=texts)


def divergence(reference: Rows, other: Rows) -> npt.NDArray[np.float64]:
    """KL(reference || other) of each row of logits, in nats, never below zero."""
    p, q = _log_softmax(reference), _log_softmax(other)
    found: npt.NDArray[np.float64] = np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)
    return found


def _log_softmax(logits: Rows) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def _first_difference(a: str, b: str) -> str:
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{b[at : at + 30]!r} instead of {a[at : at + 30]!r}"
