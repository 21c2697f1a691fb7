"""The distillation loss: `linear_kl` against the plain loss on whole logits, speed and peak memory of a step.

    python -P benchmarks/bench_linear_kl.py [--quick] [--rows 2048] [--tune]

Vocabularies of 49,152 (SmolLM2) and 151,936 (Qwen2.5); the teacher as all its logits (forward KL, and the generalized
JSD of GKD) or as its 64 likeliest tokens. bfloat16 states and matrix, both with a gradient. Values and gradients are
compared with float64 at the same shape first, and a wrong loss is not timed. The plain loss is what trainers write:
logits, two log-softmaxes in fp32, `kl_div`; also as `torch.compile` makes it. The sides take turns; their tensors are
many times the L2 cache without rotation, and calls of milliseconds need no graph. Memory is torch's
`max_memory_allocated` over one step, all inputs included; beside it what comes on top of the inputs. Appended to
benchmarks/results/linear_kl.jsonl. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # -P leaves it out

import torch
from gpu_program import Bar, Found, program
from gpu_timing import Side, absent_or, compared, interleave, told
from gpu_tuning import best_of, write_entries
from torch.nn import functional

from soloist.kernels.divergences import TopK
from soloist.kernels.errors import GateError
from soloist.kernels.linear_kl import KERNEL

STUDENTS = {"smollm2-135m": (49_152, 576), "qwen2.5-0.5b": (151_936, 896)}  # V, D
LOSSES = {"forward": "forward", "jsd": "jsd", "top-64": "forward"}
LIKELIEST = 64
BETA = 0.5
REFERENCE_ROWS = 256  # at a time: whole logits in float64 are large
CHUNK = 1 << 23  # logits at a time, by which the kernel cuts the vocabulary


@dataclass(frozen=True)
class Problem:
    """States (T, D), matrix (V, D) and a teacher; the divergence by name."""

    hidden: torch.Tensor
    weight: torch.Tensor
    teacher: torch.Tensor | TopK
    kind: str

    @property
    def moved(self):
        """Bytes that must be moved: inputs once in each pass, gradients once."""
        taught = [self.teacher.indices, self.teacher.values] if isinstance(self.teacher, TopK) else [self.teacher]
        sizes = [each.numel() * each.element_size() for each in (self.hidden, self.weight)]
        return 3 * sum(sizes) + 2 * sum(each.numel() * each.element_size() for each in taught)


def problem(run, student, loss):
    """Random, on the device."""
    vocabulary, width = STUDENTS[student]
    rows, device = run.options.rows, run.clock.device
    draw = torch.Generator(device).manual_seed(run.options.seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, device=device, generator=draw) * scale).to(torch.bfloat16)

    hidden, weight = normal(rows, width), normal(vocabulary, width, scale=2 * width**-0.5)
    teacher = normal(rows, vocabulary, scale=2.0)
    if loss == f"top-{LIKELIEST}":
        likely = teacher.float().log_softmax(-1).topk(LIKELIEST)
        teacher = TopK(likely.indices, likely.values)
    return Problem(hidden.requires_grad_(), weight.requires_grad_(), teacher, LOSSES[loss])


def plain_loss(hidden, weight, teacher, *, kind):
    """What a trainer writes, (T,)."""
    log_q = functional.linear(hidden, weight).float().log_softmax(-1)
    if isinstance(teacher, TopK):
        log_q, log_p = log_q.gather(1, teacher.indices), teacher.values.float().log_softmax(-1)
    else:
        log_p = teacher.float().log_softmax(-1)
    apart = functools.partial(functional.kl_div, reduction="none", log_target=True)
    if kind == "forward":
        return apart(log_q, log_p).sum(-1)
    log_m = torch.logaddexp(log_p + math.log(BETA), log_q + math.log1p(-BETA))
    return BETA * apart(log_m, log_p).sum(-1) + (1 - BETA) * apart(log_m, log_q).sum(-1)


def step(loss, given, **how):
    """Forward and backward of the mean; the rows' values."""
    given.hidden.grad = given.weight.grad = None
    values = loss(given.hidden, given.weight, given.teacher, kind=given.kind, **how)
    values.mean().backward()
    return values.detach()


def side_of(name, loss, given, *, ours=False, **how):
    """A side of one call: its tensors do not fit in the cache."""
    return Side(name, [functools.partial(step, loss, given, **how)], given.moved, graph=False, ours=ours)


def exact(given):
    """Values and gradients in float64, some rows at a time."""
    weight = given.weight.detach().double().requires_grad_()
    values, gradients = [], []
    for start in range(0, len(given.hidden), REFERENCE_ROWS):
        rows = slice(start, start + REFERENCE_ROWS)
        own, taught = given.hidden.detach()[rows].double().requires_grad_(), given.teacher
        taught = TopK(taught.indices[rows], taught.values[rows].double()) if isinstance(taught, TopK) else taught[rows]
        found = KERNEL.reference(own, weight, taught, kind=given.kind, beta=BETA)
        (found.sum() / len(given.hidden)).backward()
        values.append(found.detach())
        gradients.append(own.grad)
    return [torch.cat(values), torch.cat(gradients), weight.grad]


def demand_right(given, side, wanted):
    """Compare a step with float64, within the tolerances of the kernel's own cases.

    Raises:
        GateError: a wrong value or gradient: then nothing is timed.
    """
    case = next(case for case in KERNEL.cases if case.dtype == "bfloat16")
    found = [side.calls[0](), given.hidden.grad, given.weight.grad]
    most = {}
    for name, one, other in zip(("values", "dh", "dW"), found, wanted, strict=True):
        # as in the kernel's check: values are fp32's, gradients in units of their largest element
        atol, rtol = (2e-5, 1e-4) if name == "values" else (case.atol * float(other.abs().max()), case.rtol)
        off = (one.double() - other).abs() / (atol + rtol * other.abs())
        most[name] = float(off.nan_to_num(nan=float("inf")).max())
    if max(most.values()) > 1:
        told_off = ", ".join(f"{name} {value:.3g}" for name, value in most.items())
        raise GateError(
            f"linear_kl is wrong, {given.kind}, {side.name}: {told_off} times the allowed error against "
            "float64; it is not timed"
        )
    return {name: round(value, 4) for name, value in most.items()}


def measure_loss(run, student, loss):
    """One loss of one student: correctness, memory, then the sides in turns."""
    given = problem(run, student, loss)
    own = side_of("ours", KERNEL.run, given, ours=True)
    errors = demand_right(given, own, exact(given))
    sides = [own, side_of("plain", plain_loss, given)]
    baseline = absent_or(lambda: _compiled(run, given))
    absent = {"compiled": baseline} if isinstance(baseline, str) else {}
    sides += [baseline] if isinstance(baseline, Side) else []
    memory = {}
    for side in sides:
        side.calls[0]()  # compiled, workspaces allocated
        given.hidden.grad = given.weight.grad = None
        before, peak = run.clock.peak(side.calls[0])
        memory[side.name] = {"peak_bytes": peak, "above_inputs_bytes": peak - before}
    times = interleave(run.clock, sides, run.options.rounds)
    found = compared(times, sides, run.rate)
    for name, bytes_of in memory.items():
        found.get(name, {}).update(bytes_of)
    run.say(
        f"{student} {loss}: {told(found)}; peak "
        + ", ".join(f"{name} {each['peak_bytes'] / 2**20:.0f} MiB" for name, each in memory.items())
    )
    vocabulary, width = STUDENTS[student]
    return {
        "student": student,
        "loss": loss,
        "T": run.options.rows,
        "V": vocabulary,
        "D": width,
        "dtype": "bfloat16",
        "error": errors,
        "sides": found,
        "absent": {**absent, **times.absent},
    }


def _compiled(run, given):
    side = side_of("compiled", run.clock.compiled(plain_loss), given)
    side.calls[0]()
    return side


def tuned(run, student, loss):
    """The best configuration of a loss."""
    given = problem(run, student, loss)
    wanted, rows = exact(given), run.options.rows
    chunk = min(max(256, CHUNK // rows // 256 * 256), STUDENTS[student][0])
    kind = "lse" if isinstance(given.teacher, TopK) else given.kind
    return best_of(
        run,
        KERNEL,
        {"T": rows, "C": chunk},
        {"kind": kind},
        lambda config: side_of(config.name, KERNEL.run, given, ours=True, chunk=chunk, configuration=config),
        lambda side: demand_right(given, side, wanted),
    )


def bars(rows):
    """At most half the memory, at least the speed, of the plain loss."""
    found = []
    for row in rows:
        name = f"{row['student']} {row['loss']}, {row['T']} rows"
        ours, plain = row["sides"]["ours"], row["sides"].get("plain")
        share = ours["peak_bytes"] / plain["peak_bytes"] if plain else None
        speed = plain["times_slower_than"]["ours"]["median"] if plain else None
        found += [
            Bar(f"peak memory, share of the plain loss's, {name}", 0.5, share, most=True),
            Bar(f"times as fast as the plain loss, {name}", 1.0, speed),
        ]
    return found


def measure(run):
    """All losses of all students."""
    students = list(STUDENTS)[: 1 if run.options.quick else None]
    shapes = [(student, loss) for student in students for loss in LOSSES]
    if run.options.tune:
        write_entries(run, KERNEL, _different([tuned(run, *shape) for shape in shapes]))
    rows = [measure_loss(run, *shape) for shape in shapes]
    return Found(rows, bars(rows))


def _different(entries):
    """The fastest where two students have the same sizes: a chunk does not know its vocabulary."""
    best = {}
    for entry in entries:
        key = (*entry.sizes.items(), *entry.options.items())
        best[key] = min(best.get(key, entry), entry, key=lambda one: one.microseconds)
    return list(best.values())


def add_options(parser):
    """Beside those of all."""
    parser.add_argument("--rows", type=int, default=2048, help="tokens of a batch")


def main(**more):
    """The exit code."""
    return program("linear_kl", __doc__, measure, add_options, **more)


if __name__ == "__main__":
    sys.exit(main())
