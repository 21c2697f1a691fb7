"""Stage `plan`: the widths with which a student fits a device and loses least of its task.

    traces ─► inputs of every layer ─► integers of every matrix at every width
                                           └─► damage of every unit at every width ─► search ─► plan.yaml
    sensitivity.json   unit × width: bytes, damage; what was bought and what the next bytes would buy

Budgets: megabytes of the file, predicted milliseconds per token on a device (`soloist.targets.predict`), and points
of accuracy on questions: of several sizes the smallest whose accuracy keeps within them is taken. The gate of a plan
is the task and not the perplexity of a text: damages are measured on conversations of the student's own, and what the
whole plan does there is measured after the search, beside the sum that predicted it. Another budget needs no other
damages: a plan takes those of one that was `measured` before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.devices.spec import device as device_named
from soloist.targets.predict import itl_ms
from soloist.targets.predict import student as shape_named
from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.core.config import Config
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import write_atomic
from soloist.toolchain.quantize.matrices import Kernels, Rounding, device_of, read_matrices, write_matrices
from soloist.toolchain.quantize.plan import FILE, TABLES, Bits, Method, Plan, Rule, model_of, size_of, write_plan
from soloist.toolchain.quantize.search import Choice, Option, Unit, choose, explain, total
from soloist.toolchain.quantize.weights import FIRST, Source, architecture, groups_of, read_weights, shapes_of, tied
from soloist.toolchain.student.student import Student

if TYPE_CHECKING:
    from soloist.kernels.layout import Quantized
    from soloist.toolchain.quantize.sensitivity import Probe, Spot

STAGE = "plan"
SENSITIVITY = "sensitivity.json"
_BANK, _LOG, _TRIED = "bank", "damages.jsonl", "tried"
_SIZES = 8  # sizes between the smallest and the largest that an accuracy budget is tried on, by halving
_DESCRIBED = {"gguf": 128, "onnx": 2048}  # bytes of names, shapes and nodes per tensor, at most
_KEYS = 8192  # bytes of settings, at most
_MEASURED = ("group", "method", "samples", "probes", "seed")  # what damages depend on, beside student, traces, widths
CONTEXT = 512  # tokens in the cache when milliseconds are predicted


class PlanConfig(Config):
    """Budgets and what is measured. `target`: whose containers count (`plan.CONTAINERS`); `samples`: conversations to
    calibrate on; `probes`: others, on which damage is measured."""

    target: Literal["gguf", "onnx"] = "gguf"
    max_mb: float | None = Field(default=None, gt=0)
    device: str | None = None
    max_ms_per_token: float | None = Field(default=None, gt=0)
    max_accuracy_drop: float | None = Field(default=None, ge=0)
    widths: tuple[Bits, ...] = (4, 5, 8)
    group: Literal[32, 64, 128] = 32
    method: Method = "gptq"
    samples: int = Field(default=64, ge=1)
    probes: int = Field(default=32, ge=1)
    seed: int = 42

    @model_validator(mode="after")
    def _possible(self) -> PlanConfig:
        if self.max_mb is None and self.max_ms_per_token is None and self.max_accuracy_drop is None:
            raise ValueError("no budget: give max_mb, max_ms_per_token or max_accuracy_drop")
        if (self.max_ms_per_token is None) != (self.device is None):
            raise ValueError("max_ms_per_token needs a device, and a device is for that")
        if not self.widths or len(set(self.widths)) != len(self.widths):
            raise ValueError("widths: name each once")
        return self

    def rule(self, name: str, bits: Bits) -> Rule:
        """The rule of a matrix at a width."""
        table = name.endswith(TABLES)
        method: Method = ("rtn" if self.method == "rtn" else "mse") if table else self.method
        return Rule(tensors=name, bits=bits, group=32 if table else self.group, method=method)


# the integers of a whole model as an answer sheet: 1 for each question that is right
Asks = Callable[[Mapping[str, "Quantized"] | None], Sequence[int]]


def make_plan(
    config: PlanConfig,
    student: Student,
    out: Path,
    *,
    traces: Artifact | None = None,
    ask: Asks | None = None,
    measured: Artifact | None = None,
    device: str = "auto",
    kernels: Kernels = "auto",
    events: EventLog = QUIET,
) -> Artifact:
    """Measure, search, write. `ask` answers the questions that an accuracy budget is about; None: the float student's.
    `measured` is a plan of the same student and traces whose damages are taken.

    Raises:
        UsageError: budgets that cannot be met (the message says the nearest that can), a device that is not known, a
            student of two models.
        ArtifactError: traces that are gone, a model that cannot be taken layer by layer, or a plan of another student.
    """
    models = student.models
    if len(models) > 1:
        raise UsageError("a plan is for one model; quantize a student of two with --bits")
    if config.max_accuracy_drop is not None and ask is None:
        raise UsageError("an accuracy budget needs questions to ask: --questions FILE")
    traces = traces or student.traces()
    rounding = Rounding(device_of(device), kernels)
    known = "" if measured is None else _damages(config, measured, [student.artifact, traces])

    def build(made: Path) -> Mapping[str, Any]:
        if known and not (made / _LOG).is_file():
            write_atomic(made / _LOG, known)
        return _Planning(config, student, models[""], made, rounding, events).run(traces, ask)

    scratch = (_BANK, _LOG, _TRIED)
    return stage(
        STAGE, out, config.model_dump(mode="json"), [student.artifact, traces], build, events=events, scratch=scratch
    )


def _damages(config: PlanConfig, measured: Artifact, parents: Sequence[Artifact]) -> str:
    """The damages of another plan, as the log of measurements has them."""
    from soloist.toolchain.quantize.sensitivity import line

    if [parent["digest"] for parent in measured.manifest["parents"]] != [parent.digest for parent in parents]:
        raise ArtifactError(f"{measured.path}: was measured on another student or other traces; measure this one anew")
    told, wanted = measured.manifest["config"], config.model_dump(mode="json")
    for name in _MEASURED:
        if told[name] != wanted[name]:
            raise UsageError(f"{measured.path}: was measured with {name} {told[name]}, not {wanted[name]}")
    if missing := sorted(set(wanted["widths"]) - set(told["widths"])):
        raise UsageError(f"{measured.path}: has not measured widths {missing}, only {told['widths']}")
    units = json.loads((measured.path / SENSITIVITY).read_text(encoding="utf-8"))["units"]
    return "".join(line(unit, one["bits"], one["damage"]) for unit, options in units.items() for one in options)


@dataclass(frozen=True)
class _Planning:
    config: PlanConfig
    student: Student
    folder: Path
    made: Path
    rounding: Rounding
    events: EventLog

    def run(self, traces: Artifact, ask: Asks | None) -> Mapping[str, Any]:
        from soloist.toolchain.quantize.calibration import Walk, conversations
        from soloist.toolchain.quantize.sensitivity import Probe, spots

        (self.made / _BANK).mkdir(exist_ok=True)
        with ExitStack() as stack:
            read = read_weights(self.folder, stack)
            groups = groups_of(read)
            shapes = shapes_of(groups)
            other = _other_bytes(self.folder, read, shapes, self.config.target)
            places = spots({group: list(members) for group, members in groups.items()})
            self._refuse_impossible(places, shapes, other)
            walk = Walk(self.folder, self.rounding.device)
            wanted = self.config.samples + self.config.probes
            talks = conversations(self.student, walk.tokenizer, traces, wanted, self.config.seed)
            split = max(1, len(talks) * self.config.samples // wanted)
            if len(talks) < 2:
                raise UsageError("a plan needs at least two conversations: one to calibrate on, one to measure on")
            walk.start([talk.ids for talk in talks[:split]])
            bank = self._bank(walk, groups)
            probe = Probe(walk, talks[split:])
            units = self._units(probe, places, shapes, bank)
        limit = None if self.config.max_mb is None else int(self.config.max_mb * 1e6) - other
        chosen, asked = self._settle(units, limit, bank, ask)
        return self._write(chosen, units, probe, bank, shapes, other, asked, split)

    def _bank(self, walk: Any, groups: Mapping[str, Mapping[str, Source]]) -> dict[int, dict[str, Quantized]]:
        """The integers of every matrix at every width, for the float model's own inputs."""
        found: dict[int, dict[str, Quantized]] = {bits: {} for bits in self.config.widths}
        for done, (group, members) in enumerate(groups.items()):
            self.events.progress(STAGE, done, len(groups), doing="rounding", layer=group)
            files = {bits: self.made / _BANK / f"{group}-{bits}.safetensors" for bits in self.config.widths}
            missing = [bits for bits, file in files.items() if not file.is_file()]
            grams = walk.observe(int(group)) if missing and group != FIRST else {}
            for bits in missing:
                write_matrices(
                    files[bits],
                    {
                        name: self.rounding.matrix(source.load(), self.config.rule(name, bits), grams.get(name))
                        for name, source in members.items()
                    },
                )
            for bits, file in files.items():
                found[bits] |= read_matrices(file, {name: self.config.rule(name, bits) for name in members})
            if group != FIRST:
                walk.advance(int(group), lambda _: None)
        return found

    def _units(
        self,
        probe: Probe,
        places: Sequence[Spot],
        shapes: Mapping[str, tuple[int, ...]],
        bank: Mapping[int, Mapping[str, Quantized]],
    ) -> list[Unit]:
        from soloist.toolchain.quantize.sensitivity import Log, measure

        log = Log(self.made / _LOG)
        options: dict[str, list[Option]] = {spot.name: [] for spot in places}
        count = len(places) * len(bank)
        for done, (spot, bits, damage) in enumerate(measure(probe, places, bank, log)):
            self.events.progress(STAGE, done, count, doing="measuring", unit=spot.name, bits=bits, damage=damage)
            options[spot.name].append(self._option(spot, bits, shapes, damage))
        return [Unit(spot.name, spot.tensors, tuple(options[spot.name])) for spot in places]

    def _option(self, spot: Spot, bits: int, shapes: Mapping[str, tuple[int, ...]], damage: float) -> Option:
        rules = {name: self.config.rule(name, bits) for name in spot.tensors}  # type: ignore[arg-type]  # one of widths
        size = sum(size_of(shapes[name], rule, self.config.target) for name, rule in rules.items())
        looked_up = spot.name == "embedding" and not tied(self.folder)  # a row of it, not all
        return Option(bits, size, 0 if looked_up else size, damage)

    def _streamed_limit(self) -> int | None:
        """Bytes of weights that a token may stream for the milliseconds it may take; below 0 where none may."""
        if self.config.max_ms_per_token is None or self.config.device is None:
            return None
        place, shape = device_named(self.config.device), shape_named(str(self.folder))
        cache = shape.kv_bytes(CONTEXT)
        fixed, per_byte = itl_ms(place, shape, 0), (itl_ms(place, shape, 1e9) - itl_ms(place, shape, 0)) / 1e9
        return int((self.config.max_ms_per_token - fixed) / per_byte) - cache

    def _refuse_impossible(self, places: Sequence[Spot], shapes: Mapping[str, tuple[int, ...]], other: int) -> None:
        """Budgets that no width meets, before anything is measured; the message names the nearest that can be met."""
        least = [
            min((self._option(spot, bits, shapes, 0.0) for bits in self.config.widths), key=lambda o: o.bytes)
            for spot in places
        ]
        size, streamed = (sum(getattr(option, what) for option in least) for what in ("bytes", "streamed"))
        if self.config.max_mb is not None and size + other > self.config.max_mb * 1e6:
            raise UsageError(
                f"max_mb {self.config.max_mb:g} cannot be met: with {min(self.config.widths)} bits everywhere the file "
                f"takes {_upward((size + other) / 1e6)} MB, {other / 1e6:.4g} of them tokenizer and norms"
            )
        limit = self._streamed_limit()
        if limit is not None and streamed > limit and self.config.device is not None:
            place, shape = device_named(self.config.device), shape_named(str(self.folder))
            cache = shape.kv_bytes(CONTEXT)
            least_ms, cached, nearest = (itl_ms(place, shape, moved) for moved in (0, cache, streamed + cache))
            raise UsageError(
                f"max_ms_per_token {self.config.max_ms_per_token:g} cannot be met on {place.name}: with "
                f"{min(self.config.widths)} bits everywhere a token takes {_upward(nearest)} ms (predicted), "
                f"{least_ms:.3g} of them launches and {cached - least_ms:.3g} the cache of {CONTEXT} tokens"
            )

    def _settle(
        self, units: Sequence[Unit], limit: int | None, bank: Mapping[int, Mapping[str, Quantized]], ask: Asks | None
    ) -> tuple[Choice, dict[str, Any]]:
        """The choice within the budgets; with an accuracy budget the smallest of several that keeps it."""
        least, most = (int(sum(pick(o.bytes for o in unit.options) for unit in units)) for pick in (min, max))
        limit = most if limit is None else limit
        streamed = self._streamed_limit()
        if self.config.max_accuracy_drop is None or ask is None:
            return choose(units, limit, streamed), {}
        sizes = [least + (min(limit, most) - least) * k // _SIZES for k in range(_SIZES + 1)]
        reference = self._asked("float", partial(ask, None))
        tried: dict[int, dict[str, Any]] = {}
        low, high = 0, len(sizes)  # the smallest that keeps the accuracy lies in [low, high)
        while low < high:
            middle = (low + high) // 2
            choice = choose(units, sizes[middle], streamed)
            rights = self._asked(str(sizes[middle]), partial(ask, _weights(choice, units, bank)))
            tried[middle] = _paired(reference, rights)
            if tried[middle]["drop_points"] <= self.config.max_accuracy_drop:
                high = middle
            else:
                low = middle + 1
        if low == len(sizes):
            best = min(tried.values(), key=lambda one: float(one["drop_points"]))
            raise UsageError(
                f"max_accuracy_drop {self.config.max_accuracy_drop:g} cannot be met within the other budgets: the best "
                f"of {len(tried)} sizes tried loses {best['drop_points']:g} points on {best['questions']} questions"
            )
        return choose(units, sizes[low], streamed), tried[low]

    def _asked(self, name: str, ask: Callable[[], Sequence[int]]) -> list[int]:
        """Answers, from their file if they were given before a kill."""
        file = self.made / _TRIED / f"{name}.json"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            write_atomic(file, json.dumps(list(ask())))
        found: list[int] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _write(
        self,
        chosen: Choice,
        units: Sequence[Unit],
        probe: Probe,
        bank: Mapping[int, Mapping[str, Quantized]],
        shapes: Mapping[str, tuple[int, ...]],
        other: int,
        asked: Mapping[str, Any],
        calibrated: int,
    ) -> dict[str, Any]:
        from soloist.kernels.layout import dequantize

        whole = {name: dequantize(matrix) for name, matrix in _weights(chosen, units, bank).items()}
        bought, more = explain(units, chosen)
        expected: dict[str, Any] = {
            "target": self.config.target,
            "size_mb": round((total(chosen, "bytes") + other) / 1e6, 3),
            "damage_predicted": total(chosen, "damage"),
            "damage_measured": probe.damage(-1, whole),
            "tokens": probe.tokens,
            "conversations": {"calibrated": calibrated},
            **({"accuracy": asked} if asked else {}),
        }
        if self.config.device is not None:
            place, shape = device_named(self.config.device), shape_named(str(self.folder))
            streamed = total(chosen, "streamed") + shape.kv_bytes(CONTEXT)
            expected |= {"device": place.name, "ms_per_token_predicted": round(itl_ms(place, shape, streamed), 4)}
        rules = [
            self.config.rule(name, bits=chosen[unit.name].bits)  # type: ignore[arg-type]  # one of widths
            for unit in units
            for name in unit.tensors
        ]
        plan = Plan(schema=1, model=model_of(architecture(self.folder), shapes), rules=tuple(rules), expected=expected)
        write_plan(self.made / FILE, plan)
        table = {unit.name: [asdict(option) for option in unit.options] for unit in units}
        record = {
            "units": table,
            "chosen": {name: option.bits for name, option in chosen.items()},
            "bought": [asdict(step) for step in bought],
            "next": [asdict(step) for step in more],
        }
        write_atomic(self.made / SENSITIVITY, json.dumps(record, indent=1))
        return expected


def _upward(value: float) -> str:
    """Four digits, none too few: what is named as a budget can be met."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / step) * step:.4g}"


def _weights(
    choice: Choice, units: Sequence[Unit], bank: Mapping[int, Mapping[str, Quantized]]
) -> dict[str, Quantized]:
    return {name: bank[choice[unit.name].bits][name] for unit in units for name in unit.tensors}


def _other_bytes(folder: Path, read: Mapping[str, Source], shapes: Mapping[str, tuple[int, ...]], target: str) -> int:
    """At most what a file holds beside its matrices: norms in fp32, the tokenizer's text, names and settings."""
    floats = sum(4 * math.prod(source.shape) for name, source in read.items() if name not in shapes)
    template = folder / "chat_template.jinja"
    text = template.stat().st_size if template.is_file() else 0
    return _KEYS + _DESCRIBED[target] * len(read) + floats + text + _tokenizer_bytes(folder, target)


def _tokenizer_bytes(folder: Path, target: str) -> int:
    """ONNX folders carry tokenizer.json; GGUF every text with its length, and a type and at most a score of a token."""
    file = folder / "tokenizer.json"
    if not file.is_file() or target != "gguf":
        return file.stat().st_size if file.is_file() else 0
    content = json.loads(file.read_text(encoding="utf-8"))
    known = content["model"]["vocab"]  # of BPE text -> id, of Unigram pairs of text and score
    tokens = {*(known if isinstance(known, dict) else (text for text, _ in known))}
    tokens |= {token["content"] for token in content.get("added_tokens") or []}
    merges = [one if isinstance(one, str) else " ".join(one) for one in content["model"].get("merges") or []]
    size: int = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size", 0)
    padding = max(0, size - len(tokens)) * 32  # rows of the embedding that no text has get one
    return sum(16 + len(text.encode()) for text in tokens) + sum(8 + len(one.encode()) for one in merges) + padding


def _paired(reference: Sequence[int], rights: Sequence[int]) -> dict[str, Any]:
    """How many points of accuracy are lost, with its interval, question by question."""
    from soloist.toolchain.core.statistics import paired_difference

    found = paired_difference([bool(one) for one in reference], [bool(one) for one in rights])
    points = (100 * value for value in (found.difference.value, found.difference.low, found.difference.high))
    drop, low, high = (round(value, 3) for value in points)
    return {"drop_points": drop, "interval_points": [low, high], "questions": len(rights), "p": found.p_value}
