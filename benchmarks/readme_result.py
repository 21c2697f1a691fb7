"""What README.md says of the newest job in `results/pipeline.jsonl`: two sentences and five rows."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "team": "the team, live",
    "undebated": "the team without its debate",
    "base": "its base model alone",
    "self-consistency": "self-consistency, team's tokens",
    "tool-agent": "one agent with the tools and demonstrations",
    "student": "student in torch",
}


def read(name: str) -> list[dict]:
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def percent(value: float) -> str:
    return f"{100 * value:.0f}"


def newest_job() -> list[dict]:
    every = read("pipeline.jsonl")
    return [row for row in every if row["created"] == every[-1]["created"]]


def of_system(rows: list[dict], system: str, split: str) -> dict | None:
    return next((row for row in rows if row["id"] == system and row["split"] == split), None)


def share(row: dict) -> str:
    a = row["accuracy"]
    return f"{percent(a['value'])} % ({percent(a['low'])}–{percent(a['high'])})"


def against_team(row: dict) -> str:
    d = row["vs_team"]
    return f"{100 * d['difference']:+.0f} points ({100 * d['low']:+.0f} to {100 * d['high']:+.0f})"


def sentence() -> str:
    """The result in two sentences: the file that was recommended, on both sets."""
    rows = newest_job()
    chosen = rows[0].get("recommended") or "student-gguf-q4_0"  # what jobs before recommendations handed over
    team, file = of_system(rows, "team", "held-out"), of_system(rows, chosen, "held-out")
    unseen, theirs = of_system(rows, chosen, "unseen-wording"), of_system(rows, "team", "unseen-wording")
    faster = team["latency_s"]["p50"] / file["latency_s"]["p50"]
    text = (
        f"The embedded team of small models answers {share(team)} of {team['n']} held-out questions; its student in "
        f"one file of {file['size_mb']:.0f} MB ({file['format']}) answers {share(file)}, {against_team(file)} on the "
        f"same questions, {faster:.0f} times as fast ({file['latency_s']['p50']:.2f} s against "
        f"{team['latency_s']['p50']:.2f} s) on two processor cores."
    )
    if unseen and theirs:
        text += (
            f" In {unseen['n']} wordings that occur nowhere in training it answers {share(unseen)}, the team "
            f"{share(theirs)} of {theirs['n']}."
        )
    return textwrap.fill(text, 120)


def result() -> str:
    """Five rows: the team, the team without its debate, and three files of its student."""
    rows = newest_job()
    chosen = rows[0].get("recommended") or "student-gguf-q4_0"  # what jobs before recommendations handed over
    wanted = dict.fromkeys(["team", "undebated", "student-gguf-f16", chosen, "student-gguf-q4_0"])
    lines = [
        "| | MB | held out, % (95 %) | unseen wordings, % (95 %) | p50 s | $ per 1,000 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for system in wanted:
        held, unseen = of_system(rows, system, "held-out"), of_system(rows, system, "unseen-wording")
        if held is None:
            continue
        name = NAMES.get(held["kind"], f"student, {held['format']}") + (" (recommended)" if system == chosen else "")
        size = f"{held['size_mb']:.0f}" if held["size_mb"] else ""
        cost = f"{held['usd_per_1k']:.4f}" if held["usd_per_1k"] is not None else "unknown"
        other = f"{share(unseen)[:-1].replace(' %', '')})" if unseen else ""
        lines.append(
            f"| {name} | {size} | {share(held).replace(' %', '')} | {other} | {held['latency_s']['p50']:.2f} | {cost} |"
        )
    return "\n".join([*lines, "", textwrap.fill(where(rows[0]), 120)])


def where(row: dict) -> str:
    device = row["device"]
    text = (
        f"Measured live, {row['created']}, commit {row['commit']}, on {device['cores']} cores of an {device['cpu']} "
        f"({device['memory_gb']} GB, no GPU). Systems took turns question by question."
    )
    return text + (f" Cost: {row['price']}." if row.get("price") else "")
