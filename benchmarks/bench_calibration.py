"""How many conversations a quantizer has to see: KL, CPU seconds and memory of `soloist quantize` by `--samples`.

    python -P benchmarks/bench_calibration.py STUDENT --work DIR [--samples 4,8,16,32,64,128] [--seeds 42]

STUDENT is a student of the desk, its recording where its lineage says. Each number of samples is quantized by the
command itself, in a process of its own, whose CPU seconds and peak memory are counted: on a machine that has other work
wall-clock says nothing. KL is the mean from the float student over the tokens with which that student answers held-out
questions, in torch; no question is one that it was calibrated or trained on. One row each is appended to
benchmarks/results/calibration.jsonl; what has a row is not made again, so the whole may be killed at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "calibration.jsonl"
SEED = 37  # held-out questions of no other benchmark
QUESTIONS = 64


def answered(student, work):
    """What the student says first to held-out questions, as conversations whose answers count."""
    from soloist.targets.base import Sampling
    from soloist.targets.open import open_runtime
    from soloist.targets.to_gguf import compile_gguf
    from soloist.toolchain.desk.job import desk_test
    from soloist.toolchain.distill.data import encode
    from soloist.toolchain.distill.model import load_base
    from soloist.toolchain.teams.config import load_team

    folder = student.models[""]
    file = work / f"answers-{student.digest}.json"
    if not file.is_file():
        scratch = work / "answering"
        model = open_runtime(scratch / compile_gguf(folder, scratch, "F16")["file"])
        conversations = []
        for question in desk_test(load_team("desk"), QUESTIONS, 0, seed=SEED):
            asked = {"role": "user", "content": question.question}
            answer = {"role": "assistant", "content": model.chat([asked], Sampling(max_tokens=96)).text}
            conversations.append([asked, answer])
        model.close()
        shutil.rmtree(scratch)
        file.write_text(json.dumps(conversations), encoding="utf-8")
    tokenizer = load_base(folder)[1]
    return [encode(messages, tokenizer, str(i)) for i, messages in enumerate(json.loads(file.read_text()))]


def quantized(student, out, samples, seed, rounding):
    """The quantized student by the command, and what its process took."""
    shutil.rmtree(out, ignore_errors=True)
    options = ["--samples", str(samples), "--seed", str(seed), "--rounding", rounding]
    command = [sys.executable, "-P", "-m", "soloist.toolchain.cli", "quantize", str(student.path), "-o", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"soloist quantize failed ({process.returncode})")
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "peak_mb": usage.ru_maxrss // 1024,
        "load": round(os.getloadavg()[0], 1),
    }


def main():
    """Measure what is missing."""
    from soloist.kernels.layout import dequantize
    from soloist.toolchain.core.artifact import Artifact
    from soloist.toolchain.core.environment import commit, device, versions
    from soloist.toolchain.quantize.calibration import Walk
    from soloist.toolchain.quantize.sensitivity import Evaluator
    from soloist.toolchain.quantize.stage import QuantizeFacts, load_quantized
    from soloist.toolchain.student.student import open_float

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--samples", default="4,8,16,32,64,128")
    parser.add_argument("--seeds", default="42")
    parser.add_argument("--rounding", default="gptq")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    student = open_float(options.student)
    shared = {
        "bench": "calibration",
        "student": student.digest,
        "mode": student.card.mode,
        "rounding": options.rounding,
    }
    rows = []
    if options.results.is_file():
        rows = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
    evaluator = None
    for seed in map(int, options.seeds.split(",")):
        for samples in map(int, options.samples.split(",")):
            case = {**shared, "samples": samples, "seed": seed}
            if any(all(row[key] == value for key, value in case.items()) for row in rows):
                continue
            out = options.work / "quantized"
            took = quantized(student, out, samples, seed, options.rounding)
            evaluator = evaluator or Evaluator(Walk(student.models[""]), answered(student, options.work))
            facts = Artifact.open(out).read(QuantizeFacts).models[""]
            weights = {name: dequantize(matrix) for name, matrix in load_quantized(out).items()}
            kl = evaluator.kl_increase(-1, weights)
            row = {
                **case,
                "calibration_tokens": facts.calibration.tokens if facts.calibration else 0,
                "kl_mean": round(kl, 6),
                "tokens": evaluator.tokens,
                "size_mb": facts.size_mb,
                **took,
            }
            print(json.dumps(row), flush=True)
            stamp = {"device": device(), "versions": versions(), "commit": commit(), "label": "measured"}
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, **stamp}) + "\n")


if __name__ == "__main__":
    main()
