"""Writes the numbers of README.md and the tables of benchmarks/README.md between markers; `--check` compares.

Numbers come from `results/*.jsonl`: the newest job of `pipeline.jsonl`, the newest row of `train.jsonl`, the newest
whole comparison in `methods.jsonl`, the newest student of each mode in `quantization.jsonl`. Needs Soloist installed
(the catalog of methods).
"""

from __future__ import annotations

import re
import statistics
import sys
import textwrap
from pathlib import Path

import numpy as np

from soloist.toolchain.core.statistics import central

sys.path.insert(0, str(Path(__file__).parent))  # run by its path, so that it stands on no path of Python's
from readme_result import NAMES, percent, read, result, sentence

ROOT = Path(__file__).resolve().parents[1]
HEAD = [
    "| system | MB | n | right, % (95 %) | against the team, points | p50 s | p95 s | tokens in / out | peak MB |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
]


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
    runtime = "xllamacpp" if "xllamacpp" in first["versions"] else "llama-cpp-python"
    lines.append(
        f"Measured live, {first['created']}, commit {first['commit']}, on {device['cores']} cores of an "
        f"{device['cpu']} ({device['memory_gb']} GB, no GPU); "
        f"{runtime} {first['versions'].get(runtime)}, "
        f"onnxruntime {first['versions'].get('onnxruntime')}. Systems took turns question by question."
    )
    return "\n".join(lines)


def training() -> str:
    rows = read("train.jsonl")
    if not rows:
        return "(no measured row yet)"
    row = rows[-1]
    ratio, threads = row["ratio"], row["threads"] or row["device"]["cores"]
    return (
        f"Training against TRL {row['versions'].get('trl')}, same model, data and batch, alternating runs on this "
        f"processor: {ratio['median']:.1f}× its tokens per second (rounds {ratio['low']:.1f}–{ratio['high']:.1f}×, "
        f"{threads} thread{'s' if threads > 1 else ''}, commit {row['commit']}); TRL in its fastest "
        "working setting. `benchmarks/LOG.md` has the profile."
    )


COLUMNS = (
    ("few", "held-out", "few traces"),
    ("few", "unseen-wording", "unseen wordings"),
    ("cot", "held-out", "without tools"),
)
DRAWS = 4000


def comparable(rows: list[dict]) -> list[dict]:
    """The rows that belong in one table: those with the most questions; of each setting the newest run of it."""
    most = max((len(row["right"]) for row in rows), default=0)
    rows = [row for row in rows if len(row["right"]) == most]
    newest = {row["setting"]: (row["max_train_tokens"], row["asked"], row["traces"]) for row in rows}
    return [row for row in rows if newest[row["setting"]] == (row["max_train_tokens"], row["asked"], row["traces"])]


def verdicts(rows: list[dict], split: str, key: str = "right") -> np.ndarray:
    """Right (1) or wrong (0), of every seed and every question of a split: (seeds, questions)."""
    chosen = [i for i, name in enumerate(rows[0]["splits"]) if name == split]
    return np.array([[row[key][i] for i in chosen] for row in rows], dtype=float)


def interval(one: np.ndarray, other: np.ndarray | None = None) -> tuple[float, float, float]:
    """Mean of `one`, or of its difference to `other`, with a bootstrapped 95 % interval.

    Questions and seeds are drawn anew, each by itself. Both systems get the same questions, for they are paired by
    question; seeds are drawn for each, for equal seeds have nothing else in common.
    """
    rng = np.random.default_rng(0)
    count = one.shape[1]
    questions = rng.multinomial(count, [1 / count] * count, size=DRAWS) / count

    def drawn(right: np.ndarray) -> np.ndarray:
        seeds = len(right)
        weights = rng.multinomial(seeds, [1 / seeds] * seeds, size=DRAWS) / seeds
        return (weights @ right * questions).sum(axis=1)

    mean, draws = one.mean(), drawn(one)
    if other is not None:
        mean, draws = mean - other.mean(), draws - drawn(other)
    return float(mean), *central(draws)


def apart(one: np.ndarray, other: np.ndarray | None) -> str:
    """A paired difference in points; empty where there is nothing to compare with."""
    if other is None or one is other:
        return ""
    mean, low, high = (100 * value for value in interval(one, other))
    return f"{mean:+.0f} ({low:+.0f} to {high:+.0f})"


def methods() -> str:
    from soloist.toolchain.distill.methods.catalog import CATALOG

    lines = ["| method | learns from | needs |", "|---|---|---|"]
    lines += [f"| {name} | {entry.summary} | {', '.join(entry.needs) or '–'} |" for name, entry in CATALOG.items()]
    rows = comparable(read("methods.jsonl"))
    if not rows:
        said = "How they compare is not measured yet (`benchmarks/bench_methods.py`, a night on two cores)."
        return "\n".join([*lines, "", said])
    measured = [name for name in (*CATALOG, "adaskill") if any(row["method"] == name for row in rows)]
    return "\n".join([*lines, "", *compared(rows, measured), "", earned(rows, measured), "", methods_note(rows)])


def of(rows: list[dict], setting: str, method: str) -> list[dict]:
    return [row for row in rows if (row["setting"], row["method"]) == (setting, method)]


def compared(rows: list[dict], names: list[str]) -> list[str]:
    """The measured table: a line for the team, then one a method."""
    titles = [part for _, _, name in COLUMNS for part in (f"{name}, %", "against `sft`", "against the team")]
    settings = list(dict.fromkeys(setting for setting, _, _ in COLUMNS))
    costs = [f"{what}, {' / '.join(settings)}" for what in ("thousand tokens read", "training, min")]
    lines = ["| | " + " | ".join([*titles, *costs]) + " |", "|---|" + "---:|" * (len(titles) + len(costs))]
    for name in ("", *names):
        told = [name or "the team, live"]
        for setting, split, _ in COLUMNS:
            mine = of(rows, setting, name) or ([] if name else [row for row in rows if row["setting"] == setting][:1])
            if not mine:
                told += ["", "", ""]
                continue
            team = verdicts(mine[:1], split, "team_right")
            right = verdicts(mine, split) if name else team
            sft = verdicts(found, split) if (found := of(rows, setting, "sft")) else None
            value, low, high = interval(right)
            told += [
                f"{percent(value)} ({percent(low)}–{percent(high)})",
                apart(right, sft) if name not in ("", "sft") else "",
                apart(right, team) if name else "",
            ]
        for key, unit in (("tokens_read", 1000), ("train_seconds", 60)):
            spent = [[row[key] / unit for row in of(rows, setting, name)] for setting in settings]
            told.append(" / ".join(f"{statistics.median(values):.1f}" if values else "–" for values in spent if name))
        lines.append("| " + " | ".join(told) + " |")
    return lines


def earned(rows: list[dict], names: list[str]) -> str:
    """In words: who beats `sft`, who loses to it, at which cost, and how many would do so by chance."""
    better, worse, count = [], [], 0
    for name in names:
        for setting, split, title in COLUMNS:
            mine, sft = of(rows, setting, name), of(rows, setting, "sft")
            if name == "sft" or not mine or not sft:
                continue
            count += 1
            _, low, high = interval(verdicts(mine, split), verdicts(sft, split))
            times = [statistics.median(row["train_seconds"] for row in those) for those in (mine, sft)]
            said = f"{name} ({title}, {times[0] / times[1]:.1f}× the training time)"
            better += [said] if low > 0 else []
            worse += [said] if high < 0 else []
    rest = count - len(better) - len(worse)
    return (
        f"Better than `sft` by more than the interval: {', '.join(better) or 'none'}. "
        f"Worse: {', '.join(worse) or 'none'}. The other {rest} of {count} comparisons show no difference. "
        f"Were no method different at all, {count * 0.025:.1f} of {count} would be expected to look better by chance."
    )


def methods_note(rows: list[dict]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    fewer = {row["method"]: n for row in rows if (n := len(of(rows, row["setting"], row["method"]))) < len(seeds)}
    few = ", ".join(f"`{name}` {n}" for name, n in fewer.items())
    few = f" (fewer: {few}; their intervals know less of chance)" if few else ""
    asked = rows[0]["splits"]
    budgets = {row["setting"]: f"{row['max_train_tokens']:,}" for row in rows}
    card = "`adaskill` is one agent with the skill card of `soloist assess`, on the team's model: nothing is trained. "
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    card = card if any(row["method"] == "adaskill" for row in rows) else ""
    return (
        f"{asked.count('held-out')} held-out questions and {asked.count('unseen-wording')} unseen wordings, seeds "
        f"{', '.join(map(str, seeds))}{few}; the traces are the same at every seed. Every method reads as many tokens, "
        f"to within one step: {' and '.join(f'{budget} ({setting})' for setting, budget in budgets.items())}, which a "
        "method that trains several times divides among its passes; what `pad` samples in its practice (19 updates, 6 "
        "without tools), and what the teacher of `gkd` read, is not in it, but in the tokens and minutes shown. All "
        "options but these updates, and the 20 questions whose attempts `pad` labels without tools, are the defaults. "
        f"{card}Differences are "
        f"paired by question. Intervals: 95 %, bootstrap over questions and over seeds. Commits {commits}, on "
        f"{rows[-1]['device']['cores']} cores of an {rows[-1]['device']['cpu']}."
    )


def quantization() -> str:
    rows = read("quantization.jsonl")
    newest = {row["mode"]: (row["student"], row["max_mb"]) for row in rows}
    tables = [
        quantized(mode, [row for row in rows if (row["mode"], row["student"], row["max_mb"]) == (mode, *key)])
        for mode, key in newest.items()
    ]
    return "\n\n".join(tables) or "(no measured row yet)"


def quantized(mode: str, rows: list[dict]) -> str:
    """The files of one student by size, ours and those within it; accuracy of those that were asked."""
    most = rows[0]["max_mb"]
    right = {row["variant"]: np.array([row["right"]], float) for row in rows if "right" in row}
    files = {row["variant"]: row for row in rows if "kl_mean" in row}
    lines = [
        "| file | MB | mean KL | KL, 99 % | same top-1, % | right, % (95 %) | against 16 bit |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    shown = [name for name, row in files.items() if row["family"] in ("ours", "reference") or row["size_mb"] <= most]
    for name in sorted(shown, key=lambda name: files[name]["size_mb"]):
        row = files[name]
        asked, plain = right.get(name), right.get("f16")
        mean, low, high = (0, 0, 0) if asked is None else (100 * value for value in interval(asked))
        lines.append(
            f"| {name} | {row['size_mb']:.1f} | {row['kl_mean']:.5f} | {row['kl_p99']:.4f} | {100 * row['top1']:.1f} | "
            + (f"{mean:.0f} ({low:.0f}–{high:.0f})" if asked is not None else "")
            + f" | {apart(asked, plain) if asked is not None else ''} |"
        )
    broken = {row["variant"]: row["refused"] for row in rows if "refused" in row}
    told = "".join(
        f" Refused: {name} (`{textwrap.shorten(reason, 100, placeholder='…')}`)." for name, reason in broken.items()
    )
    told += f" Baselines of more than {most:.0f} MB, only in the results: {len(files) - len(shown)}."
    one = next(iter(files.values()))
    return "\n".join(lines) + (
        f"\n\nStudent of mode `{mode}`; llama.cpp's types weighed by our importance matrix, or plain. KL from its 16 "
        f"bits of {one['tokens']} tokens that it answers {one['prompts']} held-out questions with, each file in its "
        f"own runtime; differences are paired by question.{told} Commit "
        f"{rows[-1]['commit']}, on {rows[-1]['device']['cores']} cores of an {rows[-1]['device']['cpu']}."
    )


def decode() -> str:
    rows = read("decode.jsonl")
    if not rows:
        return "(no measured row yet)"
    row = rows[-1]
    lines = ["| file | MB | ms a token | spread | share of the memory's bandwidth |", "|---|---:|---:|---:|---:|"]
    for one in sorted(row["models"], key=lambda one: one["ms_per_token"]):
        low, high = one["spread_ms"]
        lines.append(
            f"| {one['name']} | {one['weights_mb']:.1f} | {one['ms_per_token']:.2f} | {low:.2f}–{high:.2f} | "
            f"{100 * one['share_of_bandwidth']:.0f} % |"
        )
    return "\n".join(lines) + (
        f"\n\nOne answer's tokens after the first, greedy, {row['threads']} thread, median of {row['rounds']} rounds "
        f"over {row['questions']} questions, all files in turns; this thread reads {row['read_gb_per_second']:.1f} "
        "GB/s. The share counts every byte of a file; of `genai-int8` 113 MB are a separate fp32 embedding, of which a "
        f"token reads one row. Commit {row['commit']}, on {row['device']['cores']} cores of an {row['device']['cpu']}."
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


PARTS = {
    "README.md": {"sentence": sentence, "result": result},
    "benchmarks/README.md": {
        "pipeline": pipeline,
        "quantization": quantization,
        "decode": decode,
        "methods": methods,
        "training": training,
        "tree": tree,
    },
}


def render(text: str, parts: dict) -> str:
    for name, make in parts.items():
        pattern = re.compile(rf"<!-- {name}:start -->\n.*?<!-- {name}:end -->", re.DOTALL)
        assert pattern.search(text), f"no markers for {name}"
        start, end = pattern.search(text).span()
        text = text[:start] + f"<!-- {name}:start -->\n{make()}\n<!-- {name}:end -->" + text[end:]
    return text


def main() -> int:
    stale = []
    for file, parts in PARTS.items():
        path = ROOT / file
        old = path.read_text(encoding="utf-8")
        new = render(old, parts)
        if old != new:
            stale.append(file)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"{', '.join(stale)}: not what benchmarks/readme_tables.py writes: run it")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
