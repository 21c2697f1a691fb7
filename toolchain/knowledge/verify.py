"""Is it so? Each triple is looked up, re-computed, or asked of a verifier agent.

    exact     the graph holds the triple in these words           alias    ... or in words that mean the same
    tool      a tool computes the same again, and its own check by another way agrees
    agent     a verifier agent said exactly "This is a loyal fact." and nothing else

What the graph contradicts is not asked any more. Whoever praises, hedges or repeats the sentence with a "not"
before it has not said it: the triple stays unverified. The phrase is KG-MASD's (2510.06240, released code).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.triples import Triple

LOYAL = "This is a loyal fact."
Verdict = Literal["verified", "unverified", "contradicted"]
How = Literal["exact", "alias", "tool", "agent", "none"]
Ask = Callable[[Sequence[Triple]], Sequence[str | None]]  # a verifier agent: its reply to each triple, if any


@dataclass(frozen=True)
class Judgment:
    """A triple, whether it is so, how we know, and why in words."""

    triple: Triple
    verdict: Verdict
    how: How = "none"
    reason: str = ""

    @property
    def verified(self) -> bool:
        return self.verdict == "verified"


@dataclass(frozen=True)
class Rates:
    """Counts of verdicts. The two rates are None where there was no triple: nothing is not a success."""

    verified: int = 0
    unverified: int = 0
    contradicted: int = 0

    @property
    def triples(self) -> int:
        return self.verified + self.unverified + self.contradicted

    @property
    def verification_rate(self) -> float | None:
        """Fact-verification rate: the share of triples that were verified."""
        return self.verified / self.triples if self.triples else None

    @property
    def unsupported_rate(self) -> float | None:
        """Unsupported-triple rate: the share that was not verified, contradicted ones included."""
        return (self.unverified + self.contradicted) / self.triples if self.triples else None

    def as_facts(self) -> dict[str, Any]:
        """For manifests and reports."""
        return {
            "triples": self.triples,
            "verified": self.verified,
            "unverified": self.unverified,
            "contradicted": self.contradicted,
            "fact_verification_rate": self.verification_rate,
            "unsupported_triple_rate": self.unsupported_rate,
        }


def rates(judgments: Iterable[Judgment]) -> Rates:
    """Count verdicts."""
    counts = Counter(judgment.verdict for judgment in judgments)
    return Rates(counts["verified"], counts["unverified"], counts["contradicted"])


def is_loyal(reply: str) -> bool:
    """Whether a verifier said the sentence, and only it."""
    return reply.strip() == LOYAL


def look_up(triple: Triple, graph: KnowledgeGraph) -> Judgment:
    """What the graph alone says."""
    match = graph.find(triple)
    if match is not None:
        fact, how = match
        return Judgment(triple, "verified", how, "in the graph" if how == "exact" else f"in the graph as {fact}")
    against = graph.against(triple)
    if against is not None:
        return Judgment(triple, "contradicted", reason=f"the graph says {against}")
    return Judgment(triple, "unverified", reason="not in the graph")


def judge(triples: Sequence[Triple], graph: KnowledgeGraph | None, ask: Ask | None = None) -> tuple[Judgment, ...]:
    """Verify triples: by the graph, then by the verifier agent for those it does not know.

    Without a graph (while one is being built) everything is asked.

    Raises:
        DataError: the graph is empty.
    """
    if graph is None:
        judged = {triple: Judgment(triple, "unverified") for triple in triples}
    else:
        judged = {triple: look_up(triple, graph.require_facts()) for triple in triples}
    unknown = [triple for triple, judgment in judged.items() if judgment.verdict == "unverified"]
    if ask is not None and unknown:
        for triple, reply in zip(unknown, ask(unknown), strict=True):
            if reply is not None:
                judged[triple] = _heard(triple, reply)
    return tuple(judged[triple] for triple in triples)


def _heard(triple: Triple, reply: str) -> Judgment:
    if is_loyal(reply):
        return Judgment(triple, "verified", "agent", LOYAL)
    words = " ".join(reply.split()) or "nothing"
    return Judgment(triple, "unverified", "agent", f"the verifier said: {words[:200]}")
