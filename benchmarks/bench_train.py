"""Training speed: our loop against TRL's SFTTrainer, same model, data, batches, precision and rate.

    python -P benchmarks/bench_train.py [--traces traces.jsonl.gz] [--rounds 3] [--steps 8]

Each measurement is a process of its own; ours and TRL's variants alternate, so that a machine that slows
down slows all; tokens per processor second stand beside, because they hardly feel other programs. TRL
runs in the ways a user would try on a CPU; the fastest is the baseline. Tokens are the conversations' own
(padding earns nothing), the first two steps of each process are warm-up. Both see the same conversations
in the same order at a constant rate, so their losses can be compared step by step.
The last line on stdout is the row, which is also appended to benchmarks/results/train.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from soloist.toolchain.core.statistics import median_range

RESULTS = Path(__file__).parent / "results" / "train.jsonl"
WARM_UP = 2
TRL_VARIANTS = {  # what differs from SFTConfig's defaults: fp32 weights, bf16 autocast, padded batches
    "trl": {},
    "trl-padding-free": {"padding_free": True, "max_length": None},
    "trl-bf16-weights": {"weights": "bfloat16"},
}


def synthetic(count, seed=0):
    """Questions of two families in several wordings, with the call that answers them."""
    draw, made = random.Random(seed), {}
    while len(made) < count:
        if len(made) % 2:
            a, b, x, name = draw.randint(2, 19), draw.randint(1, 60), draw.randint(-30, 60), draw.choice("xyzwnk")
            equation = f"{a}*{name} + {b} = {a * x + b}"
            wording = draw.choice(
                ["Solve for {0}: {1}", "Determine the value of {0} in the equation {1}.", "Find {0} if {1}"]
            )
            made[wording.format(name, equation)] = f"solve({equation})"
        else:
            numbers = [draw.randint(2, 9999) for _ in range(draw.randint(2, 6))]
            text = " + ".join(map(str, numbers))
            wording = draw.choice(
                ["What is {0}?", "A clerk adds {0}. Which total does she write down?", "Calculate {0}."]
            )
            made[wording.format(text)] = f"calculate({text})"
    return list(made.items())


def examples_for(options, tokenizer):
    """The conversations to train on, as tokens and mask."""
    from soloist.toolchain.distill.data import encode, select
    from soloist.toolchain.distill.stage import recheck
    from soloist.toolchain.traces.store import read_runs

    count = options.batch * options.steps
    if options.traces:
        chosen = select(read_runs(Path(options.traces)), tokenizer, check_steps=recheck).examples
        order = list(chosen)
        random.Random(0).shuffle(order)
        if len(order) < count:
            sys.exit(f"{options.traces}: {len(order)} examples, {count} are needed")
        return order[:count]
    pairs = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": call}]
        for question, call in synthetic(count)
    ]
    return [encode(messages, tokenizer) for messages in pairs]


def run_ours(options):
    """Our loop on a fixed order; one record per step."""
    from soloist.toolchain.distill.data import as_groups
    from soloist.toolchain.distill.train import TrainConfig, Trainer

    settings = {"precision": options.precision, "learning_rate": options.rate, "batch_size": options.batch}
    trainer = Trainer(Path(options.base), TrainConfig(**settings, device=options.torch_device))
    groups = as_groups(examples_for(options, trainer.student.tokenizer))
    records = []
    for index in range(options.steps):
        began, busy = time.perf_counter(), time.process_time()
        record = trainer.step(groups[index * options.batch : (index + 1) * options.batch], index, options.rate)
        records.append({**record, "seconds": time.perf_counter() - began, "cpu": time.process_time() - busy})
    return records


def run_trl(options, folder):
    """TRL's trainer on the same tokens and masks, its own collator, loss and optimizer."""
    import torch
    import transformers
    import trl
    from datasets import Dataset

    from soloist.toolchain.distill.data import prepare_tokenizer

    variant = dict(TRL_VARIANTS[options.worker])
    dtype = getattr(torch, variant.pop("weights", "float32"))
    model = transformers.AutoModelForCausalLM.from_pretrained(options.base, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.base)
    prepare_tokenizer(tokenizer)
    examples = examples_for(options, tokenizer)
    rows = [
        {"input_ids": list(e.ids), "labels": [i if t else -100 for i, t in zip(e.ids, e.trained, strict=True)]}
        for e in examples
    ]
    config = trl.SFTConfig(
        **{
            "output_dir": str(folder),
            "use_cpu": options.torch_device == "cpu",
            "bf16": options.precision != "fp32",
            "per_device_train_batch_size": options.batch,
            "num_train_epochs": 1,
            "learning_rate": options.rate,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "train_sampling_strategy": "sequential",
            "max_grad_norm": 1.0,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "optim": "adamw_torch_fused",
            **variant,
        }
    )
    records = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began, self.busy = time.perf_counter(), time.process_time()

        def on_step_end(self, *_, **__):
            batch = examples[len(records) * options.batch : (len(records) + 1) * options.batch]
            times = {"seconds": time.perf_counter() - self.began, "cpu": time.process_time() - self.busy}
            records.append({**times, "tokens": sum(len(e.ids) for e in batch)})

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                records[-1]["loss"] = float(logs["loss"])

    trainer = trl.SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Clock()]
    )
    trainer.train()
    return records


def worker(options):
    """Measure one variant in this process; the records are the last line on stdout."""
    import torch

    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.worker == "ours":
            from soloist.toolchain.distill.model import freed_memory_kept

            with freed_memory_kept():  # as the stage does
                print(json.dumps(run_ours(options)))
        else:
            print(json.dumps(run_trl(options, Path(folder))))


def measure(options, name, base):
    """One process: tokens per second of each step after the warm-up, and the losses of all steps."""
    command = [sys.executable, "-P", __file__, "--worker", name, "--base", str(base)]
    for flag in ("steps", "batch", "rate", "precision", "torch_device", "threads", "traces"):
        if (value := getattr(options, flag)) is not None:
            command += [f"--{flag.replace('_', '-')}", str(value)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        print(f"{name} does not run: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    records = json.loads(lines[-1])
    timed = records[WARM_UP:]
    speed, per_cpu = (sum(r["tokens"] for r in timed) / sum(r[unit] for r in timed) for unit in ("seconds", "cpu"))
    rates = f"{speed:.0f} tokens/s, {per_cpu:.0f} per processor second"
    print(f"{name}: {rates}, loss {records[0]['loss']:.3f} -> {records[-1]['loss']:.3f}", file=sys.stderr)
    return {"speed": speed, "per_cpu": per_cpu, "losses": [r["loss"] for r in records], "records": records}


def compare(options, base):
    """Alternate the variants; the row to keep."""
    import trl

    from soloist.toolchain.core.environment import commit, device, versions

    found = {name: [] for name in ("ours", *options.baselines.split(","))}
    for _ in range(options.rounds):
        for name in list(found):
            result = measure(options, name, base)
            if result is None:
                if name == "ours":
                    sys.exit(1)
                del found[name]
            else:
                found[name].append(result)
    speeds, per_cpu = (
        {name: [round(r[unit], 1) for r in results] for name, results in found.items()} for unit in ("speed", "per_cpu")
    )
    same_math = [name for name in found if name not in ("ours", "trl-bf16-weights")]
    best = max(same_math, key=lambda name: statistics.median(speeds[name]))
    fastest = max((name for name in found if name != "ours"), key=lambda name: statistics.median(speeds[name]))
    ours, theirs = found["ours"][0], found[best][0]
    gaps = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    record = ours["records"]
    return {
        "bench": "train",
        "device": device(),
        "versions": {**versions(), "trl": trl.__version__},
        "commit": commit(),
        "model": Path(options.model).name,
        "data": "traces" if options.traces else "synthetic",
        "batch": options.batch,
        "steps": options.steps,
        "rate": options.rate,
        "precision": options.precision,
        "threads": options.threads,
        "tokens": sum(r["tokens"] for r in record),
        "trained_tokens": sum(r["trained_tokens"] for r in record),
        "computed_tokens": sum(r["computed_tokens"] for r in record),
        "ours_tok_s": median_range(speeds["ours"], 1),
        "trl_tok_s": {n: median_range(s, 1) for n, s in speeds.items() if n != "ours"},
        "tok_per_cpu_s": {name: median_range(values, 1) for name, values in per_cpu.items()},
        "baseline": best,
        "ratio": ratio(speeds, best),
        "ratio_cpu": ratio(per_cpu, best),
        "fastest_baseline": fastest,
        "ratio_fastest": ratio(speeds, fastest),
        "loss": {"ours": ours["losses"], "trl": theirs["losses"]},
        "loss_gap": {"max": max(gaps), "mean": statistics.mean(gaps)},
    }


def ratio(speeds, baseline):
    """Median over rounds of ours / theirs, each pair measured side by side."""
    pairs = [a / b for a, b in zip(speeds["ours"], speeds[baseline], strict=True)]
    return median_range(pairs, 2)


def main():
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a base by name, a GGUF file or a Hugging Face folder")
    parser.add_argument("--traces", help="train on recorded traces instead of generated questions")
    parser.add_argument("--baselines", default=",".join(TRL_VARIANTS), help="which of TRL's ways to run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--torch-device", choices=["cpu", "auto"], default="cpu")
    parser.add_argument("--dry", action="store_true", help="do not append the row")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    from soloist.targets.from_gguf import find_base, from_gguf

    with tempfile.TemporaryDirectory() as folder:
        base = Path(options.model)
        if not base.exists():
            base = find_base(options.model)
        if base.is_file():
            from_gguf(base, Path(folder) / "base", dtype="float32")
            base = Path(folder) / "base"
        row = json.dumps(compare(options, base))
    if not options.dry:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(row + "\n")
    print(row)


if __name__ == "__main__":
    main()
