"""Made-up measurements of a plausible shape, for the report's tests only."""

import json
import math
import random

import pytest

from soloist.toolchain.bench.cost import LocalPrice, Spend
from soloist.toolchain.bench.records import Answered, Measurement
from soloist.toolchain.report.build import build_report
from soloist.toolchain.report.context import Context
from soloist.toolchain.report.schema import Parity, TrainingPoint
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.schema import ChatMessage, Edge, Run, ToolUse, Turn

FAMILIES = (
    "simple_equations",
    "chain_sum",
    "products",
    "leg_counting",
    "time_intervals",
    "calendar",
    "unit_prices",
    "number_sorting",
    "fractions",
    "divisors",
    "two_step_change",
    "two_step_average",
)

# id, kind, format, MB, accuracy held out, accuracy unseen, median s, calls, tokens in, tokens out, peak MB
SYSTEMS = (
    ("desk", "team", None, None, 0.93, 0.62, 2.9, 9.0, 7400, 210, 620),
    ("desk-self-consistency", "self-consistency", None, None, 0.12, 0.08, 3.1, 6.0, 1100, 640, 390),
    ("desk-tool-agent", "tool-agent", None, None, 0.86, 0.58, 0.62, 1.2, 640, 24, 400),
    ("smollm2-135m", "base", None, None, 0.03, 0.02, 0.9, 1.0, 70, 110, 380),
    ("student-torch", "student", "safetensors", 269.0, 0.97, 0.55, 0.81, 1.15, 78, 22, 1450),
    ("student-f16", "artifact", "GGUF F16", 271.0, 0.97, 0.55, 0.33, 1.15, 78, 22, 410),
    ("student-q8_0", "artifact", "GGUF Q8_0", 145.0, 0.97, 0.54, 0.24, 1.15, 78, 22, 280),
    ("student-q4", "artifact", "GGUF Q4_K/Q8", 104.0, 0.95, 0.53, 0.19, 1.15, 78, 22, 240),
    ("student-onnx-int8", "artifact", "ONNX int8", 165.0, 0.96, 0.54, 0.41, 1.15, 78, 22, 420),
    ("student-onnx-int4", "artifact", "ONNX int4", 131.0, 0.91, 0.49, 0.36, 1.15, 78, 22, 380),
)


def measure(row, split, n, *, accuracy=None, median=None, seed=7):
    """One system's answers: log-normal latencies, families of different hardness."""
    name, kind, form, size, held, unseen, usual, calls, tokens_in, tokens_out, peak = row
    draw = random.Random(f"{name}{split}{seed}")
    share = accuracy if accuracy is not None else (held if split == "held-out" else unseen)
    right = [True] * round(share * n) + [False] * (n - round(share * n))
    draw.shuffle(right)
    answers = []
    for i in range(n):
        seconds = (median or usual) * math.exp(draw.gauss(0, 0.28 if kind != "team" else 0.45))
        out = max(1, round(tokens_out * draw.uniform(0.7, 1.4)))
        answers.append(
            Answered(
                question_id=f"{split}-{i}",
                task=FAMILIES[i % len(FAMILIES)],
                correct=right[i],
                seconds=seconds,
                ttft=seconds * (0.9 if kind == "team" else 0.25),
                calls=max(1, round(calls * draw.uniform(0.8, 1.2))),
                tokens_in=round(tokens_in * draw.uniform(0.9, 1.1)),
                tokens_cached=round(tokens_in * 0.7),
                tokens_out=out,
                critical_path=seconds * 0.6 if kind == "team" else None,
            )
        )
    return Measurement(
        system_id=name, split=split, kind=kind, format=form, size_mb=size, answers=tuple(answers), peak_mb=peak
    )


HOSTILE = "<script>alert('x')</script> & \"quoted\" <img src=http://evil.example/x onerror=alert(1)>"


def legs(result, *steps, **animals):
    """One use of the tool that counts legs."""
    call = f"legs({json.dumps(animals)})"
    return ToolUse(name="legs", arguments=animals, call=call, result=result, steps=steps, seconds=0.001)


WRONG = legs("68", "7 * 8 = 56", "3 * 4 = 12", "56 + 12 = 68", spider=7, cow=3)
RIGHT = legs("92", "7 * 8 = 56", "3 * 4 = 12", "12 * 2 = 24", "56 + 12 + 24 = 92", spider=7, cow=3, hen=12)
SUMMED = "7 * 8 = 56, 3 * 4 = 12, 12 * 2 = 24; 56 + 12 + 24 = 92. The answer is 92."
# agent, role, round, text, start, end, tools, answer
TURNS = (
    ("router", "router", 0, "leg_counting", 0.0, 0.2, (), None),
    ("reader-a", "reader", 1, "The animals are spiders and cows.", 0.2, 0.7, (WRONG,), "68"),
    ("reader-b", "reader", 1, "Three kinds of animals.", 0.7, 1.2, (RIGHT,), "92"),
    ("reader-c", "reader", 1, HOSTILE, 1.2, 1.6, (), None),
    ("reader-a", "reader", 2, "I left out the hens.", 1.6, 2.0, (RIGHT,), "92"),
    ("reader-c", "reader", 2, "All three kinds count.", 2.0, 2.5, (RIGHT,), "92"),
    ("critic", "critic", 3, "Three of three readers say 92; computed again: 92.", 2.5, 2.5, (), "92"),
    ("scribe", "scribe", 4, SUMMED, 2.5, 3.1, (), "92"),
)
EDGES = (
    (0, 1, "influence"),
    (0, 2, "influence"),
    (0, 3, "influence"),
    (1, 4, "continuity"),
    (3, 5, "continuity"),
    (2, 4, "corrects"),
    (1, 2, "disputes"),
    (2, 5, "influence"),
    (4, 5, "agrees"),
    (4, 6, "agrees"),
    (5, 6, "agrees"),
    (2, 6, "tool"),
    (6, 7, "influence"),
)


def debate():
    """One debate: two readers disagree, look at each other's calls, agree; the critic checks."""
    question = Question(
        id="held-out-3",
        question="A farm keeps 7 spiders, 3 cows and 12 hens. How many legs do the animals have in total?",
        gold="92",
        task="leg_counting",
        split="held-out",
    )
    ask = (ChatMessage(role="user", content=question.question),)
    tokens = {"model": "SmolLM2-135M-Instruct", "tokens_in": 410, "tokens_cached": 300, "tokens_out": 31}
    turns = tuple(
        Turn(
            id=i,
            agent=agent,
            role=role,
            round=number,
            messages=ask,
            text=text,
            start=start,
            end=end,
            tools=tools,
            answer=answer,
            verdict={"92": "correct", "68": "wrong", None: "absent" if role == "reader" else "unknown"}[answer],
            **({} if role == "critic" else tokens | {"first_token": start + 0.05}),
        )
        for i, (agent, role, number, text, start, end, tools, answer) in enumerate(TURNS)
    )
    return Run(
        question=question,
        team="desk",
        turns=turns,
        path=(0, 2, 6, 7),
        answer="92",
        verdict="correct",
        wall=3.1,
        edges=tuple(Edge(source=a, target=b, kind=kind) for a, b, kind in EDGES),
    )


def context(**more):
    parity = tuple(
        Parity(
            file=f"{row[0]}{'.gguf' if 'GGUF' in row[2] else '/model.onnx'}",
            format=row[2],
            size_mb=row[3],
            kl=0.0004 * 3**i,
            top1=0.999 - 0.006 * i,
            tolerance="KL ≤ 0.05, same top-1 ≥ 96 %",
            verdict="fail" if i == 4 else "pass",
            note="" if i != 4 else "same top-1 95.5 % is below 96 %",
        )
        for i, row in enumerate(SYSTEMS[5:])
    )
    training = tuple(
        TrainingPoint(
            step=i,
            loss=2.4 * math.exp(-i / 30) + 0.04 + 0.02 * math.sin(i),
            tokens_per_second=910 + 40 * math.sin(i / 5),
        )
        for i in range(0, 240, 2)
    )
    base = {
        "command": "soloist run --count 120",
        "created": "2026-11-22 18:20 UTC",
        "seeds": {"train": 1, "questions": 20261122},
        "method": (
            "Every system answered the same questions on the same machine in the same run, in interleaved order.",
            "One question at a time, no network; prefix caches on for every system; first question of each dropped.",
        ),
        "training": training,
        "parity": parity,
        "runs": (debate(),),
        "overlap": 0,
    }
    return Context(**(base | more))


def make(rows=SYSTEMS, *, n=120, splits=("held-out", "unseen-wording"), **more):
    measurements = more.pop("measurements", None) or [measure(row, split, n) for row in rows for split in splits]
    price = LocalPrice(usd_per_hour=0.04, watts=35, usd_per_kwh=0.3)
    return build_report(
        measurements,
        task="desk",
        commit="0123456789ab",
        device={"cpu": "Example CPU @ 2.0 GHz", "cores": 2, "memory_gb": 8.0, "system": "Linux", "gpu": None},
        versions={"python": "3.11.9", "soloist": "0.1.0", "torch": "2.13.0", "llama-cpp-python": "0.3.36"},
        **{
            "price": price,
            "spend": Spend.of_seconds(price, recording=5400, training=600, evaluation=900),
            "context": context(),
            "anatomy": debate(),
        }
        | more,
    )


@pytest.fixture(scope="session")
def builder():
    """The builder itself, for tests that bend one input."""
    return make


@pytest.fixture(scope="session")
def measured():
    """One measurement with a wanted accuracy and median."""
    return measure


@pytest.fixture(scope="session")
def system_rows():
    return {row[1]: row for row in reversed(SYSTEMS)}


@pytest.fixture(scope="session")
def make_context():
    return context


@pytest.fixture(scope="session")
def hostile():
    return HOSTILE


@pytest.fixture(scope="session")
def report():
    return make()
