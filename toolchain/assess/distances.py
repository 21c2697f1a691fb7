"""How far apart two runs are: by what they say, and by how they got there.

    output     the texts of the turns that made the answer (`path`), then the answer itself; nothing where a
               run gave no answer. Distance: edits of tokens (words, numbers, signs) over the longer length,
               or 1 - cosine where an engine shows its hidden states
    trace      the role of every turn in order, each followed by its tool calls, a call being one symbol
               with its arguments. Distance: edits of symbols over the longer length

Whatever a scribe writes after the answer is found is in neither: it cannot change the score. A cosine
between equal texts is exactly 0 apart, so that ties stay ties.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from soloist.toolchain.teams.engines.base import Embedder
from soloist.toolchain.traces.distance import edit_distance, tokens
from soloist.toolchain.traces.schema import Run

Array = npt.NDArray[np.float64]
T = TypeVar("T", bound=Hashable)


def output_of(run: Run) -> str:
    """What the run handed over, and what it was made from."""
    if run.answer is None:
        return ""
    return "\n".join([*(run.turns[step].text.strip() for step in run.path), run.answer])


def trace_of(run: Run) -> tuple[tuple[str, str], ...]:
    """The run as a sequence of roles and tool calls."""
    symbols: list[tuple[str, str]] = []
    for turn in run.turns:
        symbols.append(("role", turn.role))
        symbols += [("call", " ".join(use.call.split())) for use in turn.tools]
    return tuple(symbols)


def between(items: Sequence[T], distance: Callable[[T, T], float]) -> Array:
    """All distances, shape (n, n); each different pair is computed once."""
    kinds = list(dict.fromkeys(items))
    known = np.zeros((len(kinds), len(kinds)))
    for i, first in enumerate(kinds):
        for j in range(i + 1, len(kinds)):
            known[i, j] = known[j, i] = distance(first, kinds[j])
    at = [kinds.index(item) for item in items]
    return known[np.ix_(at, at)]


def output_distances(runs: Sequence[Run], embedder: Embedder | None = None) -> Array:
    """Distances between the outputs of n runs, shape (n, n), by tokens or by an engine's hidden states."""
    texts = [output_of(run) for run in runs]
    if embedder is None:
        return between([tokens(text) for text in texts], edit_distance)
    states = {text: _unit(embedder.embed(text)[0]) for text in dict.fromkeys(texts) if text}

    def apart(first: str, second: str) -> float:
        if not first or not second:  # no answer has no direction
            return 1.0
        return float(np.clip(1 - states[first] @ states[second], 0, 2))

    return between(texts, apart)


def _unit(vector: npt.NDArray[np.float32]) -> Array:
    state: Array = np.asarray(vector, dtype=np.float64)
    return state / max(float(np.linalg.norm(state)), 1e-12)


def trace_distances(runs: Sequence[Run]) -> Array:
    """Distances between the traces of n runs, shape (n, n)."""
    return between([trace_of(run) for run in runs], edit_distance)
