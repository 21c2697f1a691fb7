"""Tree packing: training with shared beginnings computed once, against the same conversations kept apart.

    python -P benchmarks/bench_packing.py [--traces traces.jsonl.gz] [--batches da:apart=0 magdi:grid=run]

Batches are what methods select from the traces, by default the shipped recording: `da` takes several right
traces a question, `magdi` every attempt of every agent (`grid=run` leaves absent ones out, who would be bare
questions and flatter the result). A batch is `method:option=value,…`. Both sides are the product's own training
step (forward, backward, update) on the same groups in the same parts; the only difference is `pack(share=…)`.
Neither side computes padding. They alternate, and which goes first alternates too. The learning rate is 0,
so that every step sees the same weights and the losses of the two sides must agree: the row holds their gap.
Tokens are the conversations' own. Beside the speed: the prompt's share of the tokens, the share that is
computed when beginnings are shared, and the share of conversations that repeat another of their question
word for word, which sharing computes not at all. `--several 2` keeps to the questions where there is something
to share: on the desk's recording `da` finds two different right calls for one question in ten.
The last line on stdout is the row, which is also appended to benchmarks/results/packing.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

from soloist.toolchain.core.statistics import median_range

RESULTS = Path(__file__).parent / "results" / "packing.jsonl"
RECORDED = Path(__file__).resolve().parents[1] / "toolchain" / "desk" / "recorded" / "traces.jsonl.gz"


def chosen_by(spec):
    """A method and its options from `method:option=value,…`."""
    import yaml

    from soloist.toolchain.core.config import validated
    from soloist.toolchain.distill.methods.catalog import load

    name, _, given = spec.partition(":")
    pairs = (pair.partition("=") for pair in given.split(",") if pair)
    method = load(name)
    return method, validated(method.options, {key: yaml.safe_load(value) for key, _, value in pairs}, spec)


def batches_of(groups, options):
    """Whole batches of groups in random order, at most `steps` of them."""
    order = [group for group in groups if len(group.examples) >= options.several]
    random.Random(options.seed).shuffle(order)
    size = min(options.batch, len(order))
    cut = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    return cut[: options.steps]


def describe(batches, tokenizer):
    """What is in the batches, counted in tokens."""
    from soloist.toolchain.distill.data import render_ids

    groups = [group for batch in batches for group in batch]
    examples = [example for group in groups for example in group.examples]
    tokens = sum(len(example.ids) for example in examples)
    prompts = sum(min(len(render_ids(tokenizer, e.messages[:1], prompt=True)), len(e.ids)) for e in examples)
    distinct = sum(len({example.ids for example in group.examples}) for group in groups)
    return {
        "questions": len(groups),
        "conversations": len(examples),
        "tokens": tokens,
        "trained_tokens": sum(example.targets for example in examples),
        "longest": max(len(example.ids) for example in examples),
        "prompt_share": round(prompts / tokens, 3),
        "repeated_share": round(1 - distinct / len(examples), 3),
    }


def run_steps(trainer, batches, *, share):
    """The product's training step on each batch, shared or apart: totals and losses."""
    from soloist.toolchain.distill import packing, train

    # the trainer has no such setting: nobody but this comparison wants to keep them apart
    train.pack = functools.partial(packing.pack, share=share)
    try:
        began, busy = time.perf_counter(), time.process_time()
        records = [trainer.step(batch, index, 0.0) for index, batch in enumerate(batches)]
        seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    finally:
        train.pack = packing.pack
    tokens = sum(record["tokens"] for record in records)
    computed = sum(record["computed_tokens"] for record in records)
    return {
        "speed": tokens / seconds,
        "per_cpu": tokens / cpu,
        "computed": computed / tokens,
        "losses": [record["loss"] for record in records],
    }


def compare(spec, trainer, runs, options):
    """Both sides on one kind of batch, alternating."""
    from soloist.toolchain.distill.stage import recheck
    from soloist.toolchain.distill.work import Setup

    method, chosen = chosen_by(spec)
    tokenizer = trainer.student.tokenizer
    setup = Setup(tokenizer, recheck, options.mode, options.max_length, options.seed, options=chosen)
    batches = batches_of(method.select(runs, setup).groups, options)
    trainer.optimize(method.objective(trainer.student, setup))
    for share in (True, False):  # warm-up
        run_steps(trainer, batches[:1], share=share)
    found = {True: [], False: []}
    for index in range(options.rounds):
        for share in (True, False) if index % 2 == 0 else (False, True):
            found[share].append(run_steps(trainer, batches, share=share))
        shared, apart = found[True][-1], found[False][-1]
        print(f"{spec}: {shared['speed']:.0f} tokens/s shared, {apart['speed']:.0f} apart", file=sys.stderr)
    first, other = found[True][0]["losses"], found[False][0]["losses"]
    return {
        **describe(batches, tokenizer),
        "steps": len(batches),
        "options": chosen.model_dump(mode="json"),
        "computed_share": round(found[True][0]["computed"], 3),
        "shared_tok_s": median_range([r["speed"] for r in found[True]], 1),
        "apart_tok_s": median_range([r["speed"] for r in found[False]], 1),
        "ratio": ratios(found, "speed"),
        "ratio_cpu": ratios(found, "per_cpu"),
        "loss_gap": max(abs(a - b) for a, b in zip(first, other, strict=True)),
        "loss": first,
    }


def ratios(found, unit):
    """Median and range over rounds of shared / apart, each pair measured side by side."""
    pairs = [a[unit] / b[unit] for a, b in zip(found[True], found[False], strict=True)]
    return median_range(pairs, 2)


def measure(options, base):
    """The row to keep."""
    import torch

    from soloist.toolchain.core.environment import commit, device, versions
    from soloist.toolchain.distill.model import freed_memory_kept
    from soloist.toolchain.distill.train import TrainConfig, Trainer
    from soloist.toolchain.traces.store import read_runs

    if options.threads:
        torch.set_num_threads(options.threads)
    settings = TrainConfig(
        precision=options.precision,
        device=options.torch_device,
        max_length=options.max_length,
        part_tokens=options.part_tokens,
        seed=options.seed,
    )
    runs = list(read_runs(Path(options.traces)))
    with freed_memory_kept():  # as the stage does
        trainer = Trainer(base, settings)
        kinds = {spec: compare(spec, trainer, runs, options) for spec in options.batches}
    return {
        "bench": "packing",
        "device": device(),
        "versions": versions(),
        "commit": commit(),
        "model": Path(options.model).name,
        "data": Path(options.traces).resolve().parent.name,
        "runs": len(runs),
        "mode": options.mode,
        "batch": options.batch,
        "several": options.several,
        "rounds": options.rounds,
        "part_tokens": options.part_tokens,
        "precision": f"{trainer.dtype}".removeprefix("torch."),
        "computed_on": f"{trainer.student.device}",
        "threads": torch.get_num_threads(),
        "seed": options.seed,
        "batches": kinds,
    }


def main():
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a base by name, a GGUF file or a Hugging Face folder")
    parser.add_argument("--traces", default=str(RECORDED))
    parser.add_argument("--batches", nargs="+", default=["da:apart=0", "magdi:grid=run"], metavar="METHOD[:OPTIONS]")
    parser.add_argument("--mode", choices=["tools", "cot"], default="tools")
    parser.add_argument("--batch", type=int, default=4, help="questions a step")
    parser.add_argument("--several", type=int, default=1, help="only questions with so many conversations")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part-tokens", type=int, default=2048)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--torch-device", choices=["cpu", "auto"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="do not append the row")
    options = parser.parse_args()
    from soloist.targets.from_gguf import find_base, from_gguf

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(options.model)
        if not base.exists():
            base = find_base(options.model)
        if base.is_file():
            from_gguf(base, Path(folder) / "base", dtype="float32")
            base = Path(folder) / "base"
        row = json.dumps(measure(options, base))
    if not options.dry:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(row + "\n")
    print(row)


if __name__ == "__main__":
    main()
