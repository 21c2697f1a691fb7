"""The triples of a recorded run, each with a verdict.

What the answer's path says counts, because that is what a student learns:

    a tool call      (arguments, tool, result), verified by computing it again and by the tool's own check
    its working      facts the tool says it used: (spider, has legs, 8), (km, is, 1000 m), verified by the graph
    a written text   lines that are triples (a knowledge graph master wrote them), or what an extractor finds

Only tools handed over (by default those that ship with Soloist, which are pure) are run again: a user's tool may
do more than compute. A call of another tool stays unverified and its reason says so. What a verifier agent said
of a triple while the run was recorded counts, unless the graph contradicts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.knowledge.files import Extractor
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.prompts import ASKED
from soloist.toolchain.knowledge.triples import Triple, parse_triples
from soloist.toolchain.knowledge.verify import Ask, Judgment, Rates, Verdict, judge, rates
from soloist.toolchain.tools.arithmetic import check_steps
from soloist.toolchain.tools.base import Toolbox, ToolError
from soloist.toolchain.tools.calls import parse_call
from soloist.toolchain.tools.files import SHIPPED, load_tools
from soloist.toolchain.traces.recording import TRACES
from soloist.toolchain.traces.schema import Run, ToolUse
from soloist.toolchain.traces.store import read_runs


@dataclass(frozen=True)
class Annotation:
    """The judgments of one run, each triple once."""

    judgments: tuple[Judgment, ...] = ()

    @property
    def triples(self) -> tuple[Triple, ...]:
        return tuple(judgment.triple for judgment in self.judgments)

    @property
    def verdicts(self) -> Mapping[Triple, Verdict]:
        return {judgment.triple: judgment.verdict for judgment in self.judgments}

    @property
    def verified(self) -> tuple[Triple, ...]:
        return tuple(judgment.triple for judgment in self.judgments if judgment.verified)

    @property
    def unverified(self) -> tuple[Triple, ...]:
        """All that is not verified, contradicted ones included."""
        return tuple(judgment.triple for judgment in self.judgments if not judgment.verified)

    @property
    def clean(self) -> bool:
        """Nothing unverified in it. A run that states no fact is clean: there is nothing to hold against it."""
        return not self.unverified

    @property
    def rates(self) -> Rates:
        return rates(self.judgments)


def annotated(
    run: Run,
    graph: KnowledgeGraph,
    *,
    tools: Toolbox | None = None,
    extractor: Extractor | None = None,
    ask: Ask | None = None,
) -> Annotation:
    """The triples of a run with verdicts.

    Args:
        tools: the tools whose calls are computed again, and whose working is read; the desk's if not given.
        extractor: finds triples in prose; without it only lines that are triples are read.
        ask: a verifier agent, for triples the graph does not know.

    Raises:
        DataError: the graph is empty.
    """
    graph.require_facts()
    box = load_tools((SHIPPED,)) if tools is None else tools
    computed: dict[Triple, Judgment] = {}
    for use in run.trajectory:
        judgment = _of_call(use, box)
        if judgment is not None:
            computed[judgment.triple] = judgment
    stated = dict.fromkeys(triple for triple in _stated(run, box, extractor) if triple not in computed)
    looked_up = judge(tuple(stated), graph, _Hearing(run, ask))
    return Annotation((*computed.values(), *looked_up))


class _Hearing:
    """The replies of the run's own verifier to the triples it was shown; `ask` (or nobody) for the rest."""

    def __init__(self, run: Run, ask: Ask | None) -> None:
        self._ask = ask
        self._heard: dict[Triple, str] = {}
        for turn in run.turns:
            if turn.role == "verifier" and turn.model is not None and turn.messages:
                line = turn.messages[-1].content.rpartition("\n")[2]
                shown = parse_triples(line.removeprefix(ASKED)).triples if line.startswith(ASKED) else ()
                self._heard |= dict.fromkeys(shown, turn.text)

    def __call__(self, triples: Sequence[Triple]) -> Sequence[str | None]:
        rest = [triple for triple in triples if triple not in self._heard]
        heard: dict[Triple, str | None] = {**self._heard}
        if self._ask is not None and rest:
            heard |= zip(rest, self._ask(rest), strict=True)
        return [heard.get(triple) for triple in triples]


def _stated(run: Run, tools: Toolbox, extractor: Extractor | None) -> Iterator[Triple]:
    for step in run.path:
        turn = run.turns[step]
        for use in turn.tools:
            yield from used_facts(use, tools)
        if not turn.tools:
            yield from parse_triples(turn.text, whole_lines=True).triples
            if extractor is not None and turn.text.strip():
                yield from extractor(turn.text)


def used_facts(use: ToolUse, tools: Toolbox) -> Iterator[Triple]:
    """The facts that the working of a call states, as its tool reads them; none of a tool that is not at hand."""
    tool = tools.tools.get(use.name)
    if tool is not None and tool.facts is not None:
        for parts in tool.facts(use.steps):
            yield Triple(*parts)


def call_triple(use: ToolUse) -> Triple | None:
    """A tool call with its result as a triple; None if it failed."""
    if use.result is None or not use.name:
        return None
    inside = use.call.partition("(")[2].rpartition(")")[0]
    arguments = inside if inside.strip() else json.dumps(use.arguments, ensure_ascii=False)
    return Triple(arguments, use.name, use.result if use.result.strip() else "(empty)")


def _of_call(use: ToolUse, tools: Toolbox) -> Judgment | None:
    triple = call_triple(use)
    if triple is None:
        return None
    if use.name not in tools.tools:
        return Judgment(triple, "unverified", reason=f"no tool '{use.name}' at hand to compute it again")
    fault = recompute(use, tools)
    if fault is not None:
        return Judgment(triple, "contradicted", "tool", fault)
    return Judgment(triple, "verified", "tool", "computed again")


def recompute(use: ToolUse, tools: Toolbox) -> str | None:
    """Run a call again, as it is written, and check its result another way; None if it stands, else why not."""
    tool, arguments = tools[use.name], use.arguments
    try:
        call = parse_call(use.call, tools)
    except ToolError:
        call = None  # not written in our form: an imported call has only its arguments
    if call is not None and (call.name, dict(call.arguments)) != (use.name, dict(arguments)):
        return f"the call '{use.call}' is not the one its arguments make"
    try:
        again = tool.run(arguments)
    except ToolError as error:
        return f"cannot be computed again: {error}"
    if again.value.strip() != (use.result or "").strip():
        return f"computed again it is {again.value}"
    if tool.check is not None and not tool.check(arguments, again.value):
        return f"the tool's own check refuses {again.value}"
    return None if check_steps("\n".join(use.steps)) else "a worked step does not re-check"


@dataclass(frozen=True)
class Counts:
    """A recording under verification. `clean` runs have nothing unverified, `silent` ones no triple at all."""

    runs: int
    clean: int
    silent: int
    rates: Rates


def verify_traces(
    traces: Path, graph: KnowledgeGraph, *, tools: Toolbox | None = None, output: Path | None = None
) -> Counts:
    """Annotate every run of a recording; with `output` also write the verdicts, a line a run. Raises DataError."""
    graph.require_facts()
    file = traces / TRACES if traces.is_dir() else traces
    judgments: list[Judgment] = []
    text = ""
    runs = clean = silent = 0
    for run in read_runs(file):
        annotation = annotated(run, graph, tools=tools)
        judgments += annotation.judgments
        runs, clean, silent = runs + 1, clean + annotation.clean, silent + (not annotation.judgments)
        rows = []
        for judgment in annotation.judgments:
            verdict = {"verdict": judgment.verdict, "how": judgment.how, "reason": judgment.reason}
            rows.append({"triple": judgment.triple.parts, **verdict})
        text += json.dumps({"question": run.question.id, "triples": rows}, ensure_ascii=False) + "\n"
    if output is not None:
        write_atomic(output, text)
    return Counts(runs, clean, silent, rates(judgments))
