"""Writes the measured tables and the file tree of README.md between their markers; `--check` only compares.

Numbers come from `results/*.jsonl`: the newest job of `pipeline.jsonl`, the newest row of `train.jsonl`, all cells
of `methods.jsonl` with the newest number of tokens spent. Needs Soloist installed (the catalog of methods).
"""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {
    "team": "the team, live",
    "base": "its base model alone",
    "self-consistency": "self-consistency, team's tokens",
    "tool-agent": "one agent with the tools and demonstrations",
    "student": "student in torch",
}
HEAD = [
    "| system | MB | n | right, % (95 %) | against the team, points | p50 s | p95 s | tokens in / out | peak MB |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
]


def read(name: str) -> list[dict]:
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def percent(value: float) -> str:
    return f"{100 * value:.0f}"


def pipeline() -> str:
    every = read("pipeline.jsonl")
    if not every:
        return "(no measured row yet)"
    newest = [row for row in every if row["created"] == every[-1]["created"]]
    lines = []
    for split, title in (("held-out", "Same wordings, new numbers"), ("unseen-wording", "Unseen wordings")):
        rows = [row for row in newest if row["split"] == split]
        if not rows:
            continue
        lines += [f"**{title}**", "", *HEAD]
        for row in rows:
            a, d, t = row["accuracy"], row["vs_team"], row["latency_s"]
            name = NAMES.get(row["kind"], f"student, {row['format']}")
            size = f"{row['size_mb']:.0f}" if row["size_mb"] else ""
            against = f"{100 * d['difference']:+.0f} ({100 * d['low']:+.0f} to {100 * d['high']:+.0f})" if d else ""
            peak = f"{row['peak_mb']:.0f}" if row["peak_mb"] else ""
            lines.append(
                f"| {name} | {size} | {row['n']} | {percent(a['value'])} ({percent(a['low'])}–{percent(a['high'])}) "
                f"| {against} | {t['p50']:.2f} | {t['p95']:.2f} | {row['tokens_in']:.0f} / {row['tokens_out']:.0f} "
                f"| {peak} |"
            )
        lines.append("")
    device, first = newest[0]["device"], newest[0]
    lines.append(
        f"Measured live, {first['created']}, commit {first['commit']}, on {device['cores']} cores of an "
        f"{device['cpu']} ({device['memory_gb']} GB, no GPU); "
        f"llama-cpp-python {first['versions'].get('llama-cpp-python')}, "
        f"onnxruntime {first['versions'].get('onnxruntime')}. Systems took turns question by question."
    )
    return "\n".join(lines)


def training() -> str:
    rows = read("train.jsonl")
    if not rows:
        return "(no measured row yet)"
    row = rows[-1]
    ratio = row["ratio"]
    return (
        f"Training against TRL {row['versions'].get('trl')}, same model, data and batch, alternating runs on this "
        f"processor: {ratio['median']:.1f}× its tokens per second (rounds {ratio['low']:.1f}–{ratio['high']:.1f}×, "
        f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}, commit {row['commit']}); TRL in its fastest "
        "working setting. `benchmarks/LOG.md` has the profile."
    )


COLUMNS = (("few", "held-out"), ("few", "unseen-wording"), ("internalise", "held-out"))
METHODS_HEAD = [
    "| method | learns from | needs | few traces, % | against `sft` | unseen wordings, % | against `sft` "
    "| without tools, % | against `sft` | training, min |",
    "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
]


def answers(rows: list[dict], split: str) -> list[float]:
    """Of every question of a split, the share of seeds that got it right."""
    chosen = [i for i, name in enumerate(rows[0]["splits"]) if name == split]
    return [statistics.fmean(row["right"][i] for row in rows) for i in chosen]


def bootstrap(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a mean over questions."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    return means[draws * 25 // 1000], means[draws * 975 // 1000 - 1]


def cell(rows: list[dict], sft: list[dict], split: str) -> tuple[str, str]:
    """Accuracy with its interval, and the paired difference to `sft` with its own."""
    if not rows:
        return "", ""
    own = answers(rows, split)
    low, high = bootstrap(own)
    said = f"{percent(statistics.fmean(own))} ({percent(low)}–{percent(high)})"
    if not sft or rows is sft:
        return said, ""
    apart = [a - b for a, b in zip(own, answers(sft, split), strict=True)]
    low, high = bootstrap(apart)
    return said, f"{100 * statistics.fmean(apart):+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"


def methods() -> str:
    from soloist.toolchain.distill.methods.catalog import CATALOG

    rows = read("methods.jsonl")
    rows = [row for row in rows if (row["spend"], len(row["right"])) == (rows[-1]["spend"], len(rows[-1]["right"]))]
    lines = list(METHODS_HEAD)
    for name, entry in CATALOG.items():
        told = [name, entry.summary, ", ".join(entry.needs) or "–"]
        for setting, split in COLUMNS:
            mine, sft = (
                [row for row in rows if row["setting"] == setting and row["method"] == which] for which in (name, "sft")
            )
            told += cell(sft if name == "sft" else mine, sft, split)
        spent = [row["train_seconds"] / 60 for row in rows if row["method"] == name]
        told.append(f"{statistics.median(spent):.1f}" if spent else "")
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join([*lines, "", methods_note(rows)])


def methods_note(rows: list[dict]) -> str:
    if not rows:
        return "Accuracies: not measured yet (`benchmarks/bench_methods.py`, a night on two cores)."
    seeds = sorted({row["seed"] for row in rows})
    asked = rows[0]["splits"]
    team = [[row["team_right"][i] for i, s in enumerate(asked) if s == split] for row in rows[:1]
            for split in ("held-out", "unseen-wording")]  # fmt: skip
    return (
        f"Measured with seeds {', '.join(map(str, seeds))}, {asked.count('held-out')} held-out questions and "
        f"{asked.count('unseen-wording')} unseen wordings, every method reading {rows[0]['spend']:,} tokens; the team "
        f"answers {percent(statistics.fmean(team[0]))} % and {percent(statistics.fmean(team[1]))} % of them. "
        "Intervals: bootstrap over questions, seeds averaged."
    )


def tree() -> str:
    lines = ["```"]
    for layer in ("kernels", "targets", "toolchain"):
        lines.append(f"{layer}/")
        for path in sorted((ROOT / layer).iterdir()):
            if path.suffix == ".py" and path.name != "__init__.py":
                lines.append(f"  {path.name:<20} {first_sentence(path)}")
            elif path.is_dir() and (path / "__init__.py").is_file():
                modules = [m.stem for m in sorted(path.glob("*.py")) if not m.stem.startswith("_")]
                lines.append(f"  {path.name + '/':<20} {textwrap.shorten(', '.join(modules), 92, placeholder=' …')}")
    return "\n".join([*lines, "```"])


def first_sentence(path: Path) -> str:
    match = re.match(r'"""(.+?)(?:\.\s|\.?"""|\n\n)', path.read_text(encoding="utf-8"), re.DOTALL)
    return textwrap.shorten(match[1], 92, placeholder=" …") if match else ""


def render(text: str) -> str:
    for name, make in (("pipeline", pipeline), ("training", training), ("methods", methods), ("tree", tree)):
        pattern = re.compile(rf"<!-- {name}:start -->\n.*?<!-- {name}:end -->", re.DOTALL)
        assert pattern.search(text), f"README.md has no markers for {name}"
        start, end = pattern.search(text).span()
        text = text[:start] + f"<!-- {name}:start -->\n{make()}\n<!-- {name}:end -->" + text[end:]
    return text


def main() -> int:
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = render(old)
    if "--check" in sys.argv:
        if old != new:
            print("README.md is not what benchmarks/readme_tables.py writes: run it")
            return 1
        return 0
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
