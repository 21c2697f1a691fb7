"""The methods by name: what each is, where it comes from, what it needs and what it costs. Imports no torch.

`cost` is the training time relative to `sft` on the same questions, as far as the method's form fixes it;
measured ratios are in `benchmarks/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from soloist.kernels.errors import UsageError
from soloist.targets.base import require

if TYPE_CHECKING:
    from soloist.toolchain.distill.work import Method


@dataclass(frozen=True)
class Entry:
    """One line of `soloist methods`. `module` lies beside this file and holds a Method called `attribute`."""

    module: str
    summary: str
    source: str
    needs: tuple[str, ...] = ()
    cost: str = "1x"
    attribute: str = "METHOD"


CATALOG: Mapping[str, Entry] = {
    "sft": Entry("sft", "cross-entropy on one verified trajectory a question", "rejection sampling", ("a verifier",)),
    "rsft": Entry(
        "agentark",
        "one right trace of the debate's consensus a question, corrective ones first",
        "AgentArk, arXiv 2602.03955",
        ("a verifier", "several agents"),
        attribute="RSFT",
    ),
    "da": Entry(
        "agentark",
        "several different right traces a question, each weighing 1/k",
        "AgentArk, arXiv 2602.03955",
        ("a verifier", "several agents"),
        "1-3x",
        attribute="DA",
    ),
    "pad": Entry(
        "pad",
        "a reward model learns which steps are good, then the student practices by GRPO",
        "AgentArk, arXiv 2602.03955",
        ("a verifier", "several agents", "trl"),
        "20x and more",
    ),
    "magdi": Entry(
        "magdi",
        "right attempts imitated, all attempts classified in their graph, right ranked above wrong",
        "MAGDi, arXiv 2402.01620",
        ("a verifier", "several agents"),
        "3-6x",
    ),
    "smagdi": Entry(
        "smagdi",
        "a decomposer and a solver; right and wrong steps classified, ranked and aligned in their graph",
        "SMAGDi, arXiv 2511.05528",
        ("a verifier",),
        "4-7x",
    ),
    "answer-only": Entry(
        "baselines", "the bare answer of runs that are right", "baseline", ("a verifier",), "0.5-1x", "ANSWER_ONLY"
    ),
    "random-trace": Entry(
        "baselines", "any attempt of any agent, drawn at random", "baseline", attribute="RANDOM_TRACE"
    ),
    "single-agent": Entry(
        "baselines",
        "right first attempts of the strongest agent, at sft's tokens",
        "baseline",
        ("a verifier",),
        attribute="SINGLE_AGENT",
    ),
    "majority-vote": Entry(
        "baselines",
        "a first attempt that gives the majority's answer, right or wrong",
        "baseline",
        ("several agents",),
        attribute="MAJORITY_VOTE",
    ),
    "kg-masd": Entry(
        "kg_masd",
        "runs whose facts a knowledge graph bears out; its facts before the question",
        "KG-MASD, arXiv 2510.06240",
        ("a verifier", "a knowledge graph"),
        "1x; 1-2x with facts",
    ),
    "sad": Entry(
        "sad",
        "reasoning and acting imitated apart, from easy to hard; observations only read",
        "SAD, arXiv 2505.13820",
        ("a verifier", "optionally a local teacher's logits"),
        "1x; 2-3x with a teacher",
    ),
    "gkd": Entry(
        "gkd",
        "a local teacher's next-token distributions, partly on the student's own samples",
        "GKD, arXiv 2306.13649",
        ("a verifier", "a local teacher's logits"),
        "2-4x",
    ),
    "tdpo": Entry(
        "tdpo",
        "correct attempts, then correct preferred to wrong ones of the same round",
        "D&R, arXiv 2506.03541",
        ("a verifier", "several agents"),
        "2-8x",
    ),
}


def resolve(name: str) -> Entry:
    """The catalog's entry of a method. Raises UsageError with those there are."""
    if name not in CATALOG:
        raise UsageError(f"method: unknown '{name}'; there are: {', '.join(CATALOG)}")
    return CATALOG[name]


def load(name: str) -> Method:
    """A method, ready to use. Raises UsageError, or MissingExtraError where nothing can be trained."""
    entry = resolve(name)
    require("torch", "train")
    module = importlib.import_module(f"soloist.toolchain.distill.methods.{entry.module}")
    method: Method = getattr(module, entry.attribute)
    return method
