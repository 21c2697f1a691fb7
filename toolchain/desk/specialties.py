"""What a team of specialists knows of a task: its fields, their tools, and demonstrations of each.

A module of questions (the desk's, or the user's own) offers FAMILIES (name to an object with `tools`,
`description` and `kinds`), `demonstrations(family, count, seed, kind)` and `toolbox()`.
A field is a family, or one kind within a family that has kinds, written `family:kind`. Kinds tell last
calls apart, so only the reader of the last step is shown demonstrations of one kind; the steps before
it share the family's, and with them their prefix caches.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import UsageError
from soloist.targets.base import Message
from soloist.targets.requantize import cache_folder
from soloist.toolchain.core.environment import versions
from soloist.toolchain.teams.config import AgentConfig, Demonstration, DemonstrationSource, Followup
from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.tools.calls import render_call, run_call

QUESTIONS = "soloist.toolchain.desk.questions"
ROUTING_SEED = 900  # demonstrations that the router compares with; the readers have seeds of their own
_SHRINKAGE = 0.2


def _family(field: str) -> str:
    return field.partition(":")[0]


class Specialties:
    """Families of one task, with demonstrations rendered as chat messages and kept."""

    def __init__(self, module: Any, toolbox: Toolbox, names: Sequence[str] = ()) -> None:
        self._module = module
        self._toolbox = toolbox
        fields: list[str] = []
        for name in names or module.FAMILIES:
            fields += [f"{name}:{kind}" for kind in module.FAMILIES[name].kinds] or [name]
        self.names = tuple(fields)
        self._shown: dict[tuple[str, int, int, int], list[Message]] = {}
        self._discriminants: dict[tuple[str, int], Discriminant] = {}

    def tools(self, field: str) -> tuple[str, ...]:
        """The tools of a field's calls, in order."""
        return tuple(self._module.FAMILIES[_family(field)].tools)

    def _cases(self, field: str, count: int, seed: int) -> Sequence[Any]:
        family, _, kind = field.partition(":")
        cases: Sequence[Any] = self._module.demonstrations(family, count, seed=seed, kind=kind)
        return cases

    def routing(self, count: int) -> list[Message]:
        """`count` questions of every field with the field's name as the reply, fields interleaved."""
        messages: list[Message] = []
        shown = {name: self._cases(name, count, ROUTING_SEED) for name in self.names}
        for k in range(count):
            for name in self.names:
                case = shown[name][k]
                messages.append({"role": "user", "content": case.question.question})
                messages.append({"role": "assistant", "content": name})
        return messages

    def discriminant(
        self, embed: Callable[[str], npt.NDArray[np.float32]], count: int, *, model: str, digest: str | None = None
    ) -> Discriminant:
        """What tells the fields' hidden states apart, from `count` demonstrations of each; made once for a `model`.

        Reading hundreds of questions takes minutes on a small processor, so where the `digest` of the weights is known
        the states are kept in the user's cache, under all that they depend on.
        """
        if (model, count) not in self._discriminants:
            texts: dict[str, list[str]] = {}
            for name in self.names:
                texts[name] = [case.question.question for case in self._cases(name, count, ROUTING_SEED)]
            key = hashlib.sha256(json.dumps([digest, texts, _libraries()]).encode()).hexdigest()[:24]
            kept = cache_folder() / "states" / f"{key}.npz"
            if digest is not None and kept.is_file():
                with np.load(kept, allow_pickle=False) as arrays:
                    states = {name: arrays[f"arr_{number}"] for number, name in enumerate(self.names)}
            else:
                states = {name: np.stack([embed(text) for text in asked]) for name, asked in texts.items()}
                if digest is not None:
                    _keep(kept, [states[name] for name in self.names])
            self._discriminants[model, count] = Discriminant(states)
        return self._discriminants[model, count]

    def demonstrations(self, agent: AgentConfig, field: str, step: int) -> list[Message]:
        """The agent's own worked demonstrations of one step of a field: question (and results so far) to call."""
        source = agent.demonstrations
        if not isinstance(source, DemonstrationSource):
            raise UsageError(f"agent '{agent.name}': demonstrations must be a count and a seed, not worked examples")
        told = field if step + 1 == len(self.tools(field)) else _family(field)
        key = (told, step, source.count, source.seed)
        if key not in self._shown:
            messages: list[Message] = []
            for case in self._cases(told, source.count, source.seed):
                results = [run_call(call, self._toolbox).value for call in case.calls[:step]]
                messages.append({"role": "user", "content": asked(case.question.question, results)})
                messages.append({"role": "assistant", "content": self._written(case, step)})
            self._shown[key] = messages
        return self._shown[key]

    def examples(self, count: int, seed: int = 0) -> tuple[Demonstration, ...]:
        """`count` whole worked examples of every family, for an agent that has to know them all."""
        examples = []
        for family in dict.fromkeys(map(_family, self.names)):
            for case in self._cases(family, count, seed):
                first, *replies = [self._written(case, step) for step in range(len(case.calls))]
                followups = []
                for call, reply in zip(case.calls[:-1], replies, strict=True):
                    followups.append(Followup(result=run_call(call, self._toolbox).value, reply=reply))
                question = case.question.question
                examples.append(Demonstration(question=question, reply=first, then=tuple(followups)))
        return tuple(examples)

    def _written(self, case: Any, step: int) -> str:
        """A call of a case as a model writes it."""
        call = case.calls[step]
        return render_call(call.name, call.arguments, self._toolbox, more=step + 1 < len(case.calls))


def asked(question: str, results: Sequence[str]) -> str:
    """The question as a reader of a later step sees it: with the results so far."""
    return "\n".join([question, *(f"Result: {result}" for result in results)])


def _libraries() -> dict[str, str]:
    """The versions of what computes hidden states: another one may compute a little differently."""
    return {name: version for name, version in versions().items() if name in ("xllamacpp", "llama-cpp-python")}


def _keep(file: Path, arrays: Sequence[npt.NDArray[np.float32]]) -> None:
    """Write arrays, whole or not at all; where the cache cannot be written, they are made again next time."""
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez(stream, *arrays)
        temporary.replace(file)


class Discriminant:
    """Fisher's linear discriminant: the fields by the log-odds of a hidden state, all of one covariance.

    Hidden states of a small model differ most in what does not matter (numbers, names, length); dividing
    by the covariance *within* fields takes that out. With fewer states than dimensions the covariance is
    mixed with its own diagonal (`_SHRINKAGE`, a share).
    """

    def __init__(self, states: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self._names = list(states)
        means = np.stack([rows.mean(axis=0, dtype=np.float64) for rows in states.values()])
        apart = np.concatenate([rows - mean for rows, mean in zip(states.values(), means, strict=True)])
        covariance = apart.T @ apart / len(apart)
        spread = np.diag(covariance)
        mixed = (1 - _SHRINKAGE) * covariance + np.diag(_SHRINKAGE * spread + 1e-6 * spread.mean() + 1e-12)
        self._weights = np.linalg.solve(mixed, means.T)
        self._offsets = -0.5 * np.einsum("nd,dn->n", means, self._weights)

    def ranked(self, vector: npt.NDArray[np.float32]) -> list[str]:
        """Field names, likeliest first."""
        odds = vector @ self._weights + self._offsets
        return [self._names[i] for i in np.argsort(-odds, kind="stable")]


@functools.cache
def load_specialties(name: str = QUESTIONS, families: tuple[str, ...] = ()) -> Specialties:
    """The specialties of a module of questions; all its families, or those named. Raises UsageError."""
    try:
        module = importlib.import_module(name)
        unknown = [family for family in families if family not in module.FAMILIES]
        if unknown:
            raise UsageError(f"'{name}' has no family {', '.join(unknown)}; it has {', '.join(module.FAMILIES)}")
        return Specialties(module, module.toolbox(), families)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"'{name}' offers no specialties: {error}") from error
