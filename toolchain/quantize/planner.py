"""Stage `plan`: the bits with which a student fits a device and loses least of its task.

    traces ─► inputs of every layer ─► integers of every matrix at all numbers of bits: the candidates
                                           └─► KL increase of every unit at each of them ─► search ─► plan.yaml
    sensitivity.json   unit x bits: bytes, KL increase; what was bought and what the next bytes would buy

Budgets: megabytes of the file, predicted milliseconds per token on a device (`soloist.targets.predict`), and points
of accuracy on questions: of several sizes the smallest whose accuracy keeps within them is taken. A plan is judged by
the task and not by the perplexity of a text: KL is measured on conversations of the student's own, and that of the
whole plan is measured after the search, beside the sum that predicted it. Another budget needs no other measurements:
a plan takes those of one that was `measured` before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.devices.spec import device as device_named
from soloist.toolchain.core.artifact import Artifact, Facts, stage
from soloist.toolchain.core.config import describe
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.core.statistics import paired_difference
from soloist.toolchain.quantize.budgets import (
    Model,
    PlanConfig,
    max_streamed,
    option_of,
    predicted_ms,
    read_model,
    refuse_impossible,
)
from soloist.toolchain.quantize.matrices import Kernels, Rounder, device_of, read_matrices, write_matrices
from soloist.toolchain.quantize.plan import FILE, BitPlan, Rule, model_of, write_plan
from soloist.toolchain.quantize.search import Choice, Option, Step, Unit, choose, explain, least, total
from soloist.toolchain.quantize.sizes import Target
from soloist.toolchain.quantize.weights import TABLES_GROUP, Source, architecture
from soloist.toolchain.student.student import Student

if TYPE_CHECKING:
    from soloist.kernels.gptq import Gram
    from soloist.kernels.layout import Quantized
    from soloist.toolchain.quantize.calibration import Walk
    from soloist.toolchain.quantize.sensitivity import Evaluator

STAGE = "plan"
SENSITIVITY = "sensitivity.json"
_CANDIDATES, _LOG, _TRIED = "candidates", "kl_increases.jsonl", "tried"
_SIZES = 8  # sizes between the smallest and the largest that an accuracy budget is tried on, by halving
_MEASURED = ("group", "rounding", "samples", "eval_samples", "seed")  # what KL depends on, beside bits and parents

# the integers of every matrix by bits and name
Candidates = Mapping[int, Mapping[str, "Quantized"]]
# the integers of a whole model as an answer sheet: 1 for each question that is right
Ask = Callable[[Mapping[str, "Quantized"] | None], Sequence[int]]


class AccuracyFacts(Facts):
    """Points of accuracy lost against the float student, question by question, with their interval."""

    drop_points: float
    interval_points: tuple[float, float]
    questions: int
    p: float


class PlanFacts(Facts):
    """What a plan promises: megabytes of the file, mean KL in nats as the sum of its parts and as measured.

    `tokens` of the `evaluated` conversations are what KL was averaged over.
    """

    target: Target
    size_mb: float
    kl_predicted: float
    kl_measured: float
    tokens: int
    calibrated: int
    evaluated: int
    accuracy: AccuracyFacts | None = None
    device: str | None = None
    ms_per_token_predicted: float | None = None


class Sensitivity(Facts):
    """The file `sensitivity.json`: every unit's options, the bits chosen, what they bought, what is next to buy."""

    units: Mapping[str, tuple[Option, ...]]
    chosen: Mapping[str, int]
    bought: tuple[Step, ...]
    next: tuple[Step, ...]


def read_sensitivity(made: Artifact) -> Sensitivity:
    """What a plan measured. Raises ArtifactError."""
    file = made.path / SENSITIVITY
    try:
        return Sensitivity.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        why = describe(error) if isinstance(error, ValidationError) else str(error)
        raise ArtifactError(f"{file}: not what `soloist plan` measured ({why}); make the plan again") from error


def make_plan(
    config: PlanConfig,
    student: Student,
    out: Path,
    *,
    traces: Artifact | None = None,
    ask: Ask | None = None,
    measured: Artifact | None = None,
    device: str = "auto",
    kernels: Kernels = "auto",
    events: EventLog = QUIET,
) -> Artifact:
    """Measure, search, write. `ask` answers the questions that an accuracy budget is about; None: the float student's.
    `measured` is a plan of the same student and traces whose measurements are taken.

    Raises:
        UsageError: budgets that cannot be met (the message says the nearest that can), a device that is not known, a
            student of two models.
        ArtifactError: traces that are gone, a model that cannot be taken layer by layer, or a plan of another student.
    """
    if len(student.models) > 1:
        raise UsageError("a plan is for one model; quantize a student of two with --bits")
    if config.max_accuracy_drop is not None and ask is None:
        raise UsageError("an accuracy budget needs questions to ask: --questions FILE")
    traces = traces or student.traces()
    parents = [student.artifact, traces]
    known = "" if measured is None else _measurements(config, measured, parents)
    rounder = Rounder(device_of(device), kernels)

    def build(made: Path) -> PlanFacts:
        if known and not (made / _LOG).is_file():
            write_atomic(made / _LOG, known)
        return _Planning(config, student, student.models[""], made, rounder, events).run(traces, ask)

    scratch = (_CANDIDATES, _LOG, _TRIED)
    return stage(STAGE, out, config.model_dump(mode="json"), parents, build, events=events, scratch=scratch)


def _measurements(config: PlanConfig, measured: Artifact, parents: Sequence[Artifact]) -> str:
    """Those of another plan, as the log of measurements has them."""
    from soloist.toolchain.quantize.sensitivity import line

    if [parent["digest"] for parent in measured.manifest["parents"]] != [parent.digest for parent in parents]:
        raise ArtifactError(f"{measured.path}: was measured on another student or other traces; measure this one anew")
    theirs, ours = measured.manifest["config"], config.model_dump(mode="json")
    for name in _MEASURED:
        if theirs.get(name) != ours[name]:
            raise UsageError(f"{measured.path}: was measured with {name} {theirs.get(name)}, not {ours[name]}")
    if missing := sorted(set(config.bits) - set(theirs["bits"])):
        raise UsageError(f"{measured.path}: has not measured bits {missing}, only {theirs['bits']}")
    lines: list[str] = []
    for unit, options in read_sensitivity(measured).units.items():
        lines += [line(unit, option.bits, option.kl_increase) for option in options]
    return "".join(lines)


@dataclass(frozen=True)
class _Planning:
    config: PlanConfig
    student: Student
    folder: Path
    made: Path
    rounder: Rounder
    events: EventLog

    def run(self, traces: Artifact, ask: Ask | None) -> PlanFacts:
        from soloist.toolchain.quantize.calibration import Walk, batched, conversations
        from soloist.toolchain.quantize.sensitivity import Evaluator

        (self.made / _CANDIDATES).mkdir(exist_ok=True)
        with ExitStack() as stack:
            model = read_model(self.folder, self.config.target, stack)
            refuse_impossible(self.config, model)
            walk = Walk(self.folder, self.rounder.device)
            wanted = self.config.samples + self.config.eval_samples
            examples = conversations(self.student, walk.tokenizer, traces, wanted, self.config.seed)
            if len(examples) < 2:
                raise UsageError("a plan needs at least two conversations: one to calibrate on, one to measure on")
            split = max(1, len(examples) * self.config.samples // wanted)
            walk.start(batched(examples[:split], walk.device))
            candidates = self._candidates(walk, model.groups)
            evaluator = Evaluator(walk, examples[split:])
            options = self._options(evaluator, model, candidates)
        choice, accuracy = self._settle(model, options, candidates, ask)
        counts = {"calibrated": split, "evaluated": len(examples) - split}
        facts = self._facts(model, choice, candidates, evaluator, counts, accuracy)
        self._write(model, options, choice, facts)
        return facts

    def _candidates(self, walk: Walk, groups: Mapping[str, Mapping[str, Source]]) -> Candidates:
        """The integers of every matrix at all numbers of bits, for the float model's own inputs."""
        candidates: dict[int, dict[str, Quantized]] = {}
        for done, (group, members) in enumerate(groups.items()):
            self.events.progress(STAGE, done, len(groups), doing="rounding", layer=group)
            grams: dict[str, Gram] = {}
            for bits in self.config.bits:
                file = self.made / _CANDIDATES / f"{group}-{bits}.safetensors"
                rules = {name: self.config.rule(name, bits) for name in members}
                if not file.is_file():
                    if group != TABLES_GROUP:
                        grams = grams or walk.observe(int(group))
                    write_matrices(file, self.rounder.round_all(members, rules, grams))
                candidates.setdefault(bits, {}).update(read_matrices(file, rules))
            if group != TABLES_GROUP:
                walk.advance(int(group), {})
        return candidates

    def _options(self, evaluator: Evaluator, model: Model, candidates: Candidates) -> dict[str, list[Option]]:
        """Every unit at each number of bits: what it costs and how much KL it adds."""
        from soloist.toolchain.quantize.sensitivity import Log, measure

        log = Log(self.made / _LOG)
        options: dict[str, list[Option]] = {}
        count = len(model.units) * len(candidates)
        for done, (unit, bits, increase) in enumerate(measure(evaluator, model.units, candidates, log)):
            self.events.progress(STAGE, done, count, doing="measuring", unit=unit.name, bits=bits, kl_increase=increase)
            options.setdefault(unit.name, []).append(option_of(self.config, model, unit, bits, increase))
        return options

    def _settle(
        self, model: Model, options: Mapping[str, Sequence[Option]], candidates: Candidates, ask: Ask | None
    ) -> tuple[Choice, AccuracyFacts | None]:
        """The choice within the budgets; with an accuracy budget the smallest of several that keeps it."""
        smallest = least(options, "bytes")
        largest = sum(max(option.bytes for option in alternatives) for alternatives in options.values())
        if self.config.max_mb is not None:
            largest = min(largest, int(self.config.max_mb * 1e6) - model.other)
        streamed = max_streamed(self.config, self.folder)
        if self.config.max_accuracy_drop is None or ask is None:
            return choose(options, largest, streamed), None
        sizes = [smallest + (largest - smallest) * k // _SIZES for k in range(_SIZES + 1)]
        reference = self._asked("float", partial(ask, None))
        tried: dict[int, AccuracyFacts] = {}
        low, high = 0, len(sizes)  # the smallest that keeps the accuracy lies in [low, high)
        while low < high:
            middle = (low + high) // 2
            choice = choose(options, sizes[middle], streamed)
            rights = self._asked(str(sizes[middle]), partial(ask, _picked(choice, model.units, candidates)))
            tried[middle] = _paired(reference, rights)
            if tried[middle].drop_points <= self.config.max_accuracy_drop:
                high = middle
            else:
                low = middle + 1
        if low == len(sizes):
            best = min(tried.values(), key=lambda one: one.drop_points)
            raise UsageError(
                f"max_accuracy_drop {self.config.max_accuracy_drop:g} cannot be met within the other budgets: the best "
                f"of {len(tried)} sizes tried loses {best.drop_points:g} points on {best.questions} questions"
            )
        return choose(options, sizes[low], streamed), tried[low]

    def _asked(self, name: str, ask: Callable[[], Sequence[int]]) -> list[int]:
        """Answers, from their file if they were given before a kill."""
        file = self.made / _TRIED / f"{name}.json"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            write_atomic(file, json.dumps(list(ask())))
        answers: list[int] = json.loads(file.read_text(encoding="utf-8"))
        return answers

    def _facts(
        self,
        model: Model,
        choice: Choice,
        candidates: Candidates,
        evaluator: Evaluator,
        counts: Mapping[str, int],
        accuracy: AccuracyFacts | None,
    ) -> PlanFacts:
        from soloist.kernels.layout import dequantize

        weights = {name: dequantize(one) for name, one in _picked(choice, model.units, candidates).items()}
        ms = None
        if self.config.device is not None:
            ms = round(predicted_ms(self.config.device, self.folder, total(choice, "streamed")), 4)
        return PlanFacts(
            target=self.config.target,
            size_mb=round((total(choice, "bytes") + model.other) / 1e6, 3),
            kl_predicted=total(choice, "kl_increase"),
            kl_measured=evaluator.kl_increase(-1, weights),
            tokens=evaluator.tokens,
            calibrated=counts["calibrated"],
            evaluated=counts["evaluated"],
            accuracy=accuracy,
            device=None if self.config.device is None else device_named(self.config.device).name,
            ms_per_token_predicted=ms,
        )

    def _write(self, model: Model, options: Mapping[str, Sequence[Option]], choice: Choice, facts: PlanFacts) -> None:
        rules: list[Rule] = []
        for unit in model.units:
            rules += [self.config.rule(name, choice[unit.name].bits) for name in unit.tensors]
        expected = facts.model_dump(mode="json", exclude_none=True)
        made_for = model_of(architecture(self.folder), model.shapes)
        write_plan(self.made / FILE, BitPlan(schema=1, model=made_for, rules=tuple(rules), expected=expected))
        bought, following = explain(options, choice)
        record = Sensitivity(
            units={unit: tuple(alternatives) for unit, alternatives in options.items()},
            chosen={unit: option.bits for unit, option in choice.items()},
            bought=tuple(bought),
            next=tuple(following),
        )
        write_atomic(self.made / SENSITIVITY, record.model_dump_json(indent=1))


def _picked(choice: Choice, units: Sequence[Unit], candidates: Candidates) -> dict[str, Quantized]:
    """The integers of every matrix at its chosen bits."""
    picked: dict[str, Quantized] = {}
    for unit in units:
        picked |= {name: candidates[choice[unit.name].bits][name] for name in unit.tensors}
    return picked


def _paired(reference: Sequence[int], rights: Sequence[int]) -> AccuracyFacts:
    """How many points of accuracy are lost, with its interval, question by question."""
    lost = paired_difference([bool(one) for one in reference], [bool(one) for one in rights])
    drop, low, high = lost.difference.points(3)
    return AccuracyFacts(drop_points=drop, interval_points=(low, high), questions=len(rights), p=lost.p_value)
