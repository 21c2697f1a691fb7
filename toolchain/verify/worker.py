"""What runs in the subprocess: one model opened, everything that is compared taken, the record written last.

    observe    rendered prompts, token ids, logits over the reference answers (logits-<i>.npy), greedy answers
    ask        questions answered by a team, which a student is one of: verdicts

Not imported by the package: it is started as a module.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soloist.kernels.errors import SoloistError
from soloist.targets.base import Runtime, Sampling
from soloist.targets.open import open_runtime
from soloist.toolchain.core.environment import peak_mb
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.verify.process import RECORD

_GREEDY, _NEW_TOKENS = 4, 64  # whole answers are drawn for the first prompts only: they take most of the time


def work(job_file: Path) -> None:
    """Do the job and write its record."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    record = {"observe": _observe, "ask": _ask}[job["what"]](job, job_file.parent)
    write_atomic(job_file.parent / RECORD, json.dumps({**record, "peak_mb": peak_mb()}, ensure_ascii=False))


def _observe(job: Mapping[str, Any], out: Path) -> dict[str, Any]:
    began = time.perf_counter()
    model = open_runtime(Path(job["model"]))
    record: dict[str, Any] = {"load_s": round(time.perf_counter() - began, 3)}
    rendered = [model.render(messages) for messages in job["prompts"]]
    answers, references = _answers(model, job)
    record["note"] = str(getattr(model, "note", ""))
    record["rendered"] = rendered
    record["references"] = references
    record["prompt_ids"] = [model.tokenize(text) for text in rendered]
    record["answer_ids"] = [model.tokenize(text) for text in references]
    record["case_ids"] = [model.tokenize(text) for text in job["tokenizer_cases"]]
    record["answers"] = answers
    for index, (prompt, answer) in enumerate(zip(record["prompt_ids"], record["answer_ids"], strict=True)):
        rows = model.logits([*prompt, *answer])[len(prompt) - 1 :]  # the row after the last token: does it stop?
        np.save(out / f"logits-{index}.npy", rows)
    model.close()
    return record


def _answers(model: Runtime, job: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Greedy answers to the first prompts, and the references, its own answer where none is given."""
    answers: list[str] = []
    references: list[str] = []
    for index, (messages, reference) in enumerate(zip(job["prompts"], job["references"], strict=True)):
        own = ""
        if index < _GREEDY or not reference:
            own = model.chat(messages, Sampling(max_tokens=_NEW_TOKENS)).text
        if index < _GREEDY:
            answers.append(own)
        references.append(reference or own)
    return answers, references


def _ask(job: Mapping[str, Any], _: Path) -> dict[str, Any]:
    from soloist.toolchain.student.ask import ask
    from soloist.toolchain.tasks.base import Question
    from soloist.toolchain.teams.config import TeamConfig

    return {
        "right": ask(TeamConfig.model_validate(job["team"]), [Question.model_validate(q) for q in job["questions"]])
    }


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]))
    except SoloistError as problem:
        print(str(problem).replace("\n", " "), file=sys.stderr)
        sys.exit(problem.exit_code)
