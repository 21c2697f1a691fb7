"""How fast compiled students say their tokens, side by side, and how much of the memory's bandwidth that is.

    python -P benchmarks/bench_decode.py NAME=FILE… [--count 12] [--rounds 5]

FILE is anything that opens: a .gguf, an onnxruntime-genai folder, a portable ONNX folder. Give ours beside what
llama.cpp and the genai builder make at the same bits (`bench_quantization.py` and `soloist export` write them). All
models are open at once and take turns question by question, so that a busy moment hits each; each answers the same
held-out questions of the desk greedily. Per model: milliseconds per token after the first (all tokens of a round), the
median over rounds and their spread, and the bytes a token streams (the file without its tokenizer) times tokens per
second as a share of what this machine reads in the same run. Processes that compute meanwhile make the numbers theirs:
run it alone. One thread, unless OMP_NUM_THREADS says otherwise. The row goes to benchmarks/results/decode.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "decode.jsonl"
SEED = 31  # held-out questions of no other benchmark
READ_BYTES = 1 << 29  # far more than any cache
LEAST_TOKENS = 4  # a shorter answer times the first token only


def read_bandwidth(rounds):
    """Bytes per second that one thread reads from memory, the best of some rounds."""
    block = np.ones(READ_BYTES // 8, np.float64)
    best = 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        block.sum()
        best = max(best, READ_BYTES / (time.perf_counter() - began))
    return best


def weights_bytes(path):
    """Bytes of weights in a model's files: tokenizers and settings are not streamed."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix in (".onnx", ".data", ".safetensors")]
    return sum(file.stat().st_size for file in files)


def answered(model, prompt, tokens):
    """Tokens after the first, and the seconds they took; nothing where the answer was too short."""
    from soloist.targets.base import Sampling

    reply = model.chat([{"role": "user", "content": prompt}], Sampling(max_tokens=tokens))
    if reply.tokens_out < LEAST_TOKENS:
        return 0, 0.0
    return reply.tokens_out - 1, reply.end - reply.first_token


def measure(models, prompts, rounds, tokens):
    """Milliseconds per token of each model in each round; one round before them is thrown away."""
    found = {name: [] for name in models}
    for number in range(rounds + 1):
        spent = {name: [0, 0.0] for name in models}
        for prompt in prompts:
            for name, model in models.items():
                count, seconds = answered(model, prompt, tokens)
                spent[name][0] += count
                spent[name][1] += seconds
        for name, (count, seconds) in spent.items():
            if number and count:
                found[name].append(1e3 * seconds / count)
        print(f"  round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def arguments():
    """The command line, and the files it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96, help="at most so many an answer")
    parser.add_argument("--results", default=str(RESULTS))
    options = parser.parse_args()
    paths = {name: Path(path) for name, _, path in (item.partition("=") for item in options.files)}
    for name, path in paths.items():
        if not path.exists():
            parser.error(f"{name}: {path}: no such file or folder")
    return options, paths


def main():
    """Open all, measure, append one row."""
    from soloist.targets.open import open_runtime
    from soloist.toolchain.core.environment import commit, device, versions
    from soloist.toolchain.desk.job import desk_test
    from soloist.toolchain.teams.config import load_team

    options, paths = arguments()
    threads = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))  # what the runtimes read
    prompts = [question.question for question in desk_test(load_team("desk"), options.count, 0, seed=SEED)]
    models = {name: open_runtime(path) for name, path in paths.items()}
    before = read_bandwidth(3)
    times = measure(models, prompts, options.rounds, options.tokens)
    bandwidth = max(before, read_bandwidth(3))
    rows = []
    for name, each in times.items():
        size = weights_bytes(paths[name])
        middle = statistics.median(each) if each else None
        rows.append(
            {
                "name": name,
                "weights_mb": round(size / 1e6, 2),
                "ms_per_token": middle,
                "spread_ms": [min(each), max(each)] if each else None,
                "tokens_per_second": 1e3 / middle if middle else None,
                "share_of_bandwidth": size / (middle / 1e3) / bandwidth if middle else None,
            }
        )
    row = {
        "bench": "decode",
        "questions": options.count,
        "rounds": options.rounds,
        "threads": threads,
        "models": rows,
        "read_gb_per_second": bandwidth / 1e9,
        "device": device(),
        "versions": versions(),
        "commit": commit(),
        "label": "measured",
    }
    for one in sorted(rows, key=lambda r: r["ms_per_token"] or 0.0):
        print(
            f"{one['name']:24} {one['weights_mb']:7.1f} MB  {one['ms_per_token'] or float('nan'):7.2f} ms a token  "
            f"{100 * (one['share_of_bandwidth'] or 0):5.1f} % of the memory's bandwidth"
        )
    results = Path(options.results)
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
