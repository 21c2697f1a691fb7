"""What quantization costs a student on its task: ours beside llama.cpp's and onnxruntime-genai's, by size.

    python -P benchmarks/bench_quantization.py --work DIR [--modes tools,cot] [--max-mb 100] [--count 200]

Per mode a student of the desk (`--student MODE=PATH`, or distilled here from the recording) and of it

    ours        4 bits everywhere (GPTQ, groups of 32, 8-bit embedding); plans for --max-mb (also with QAT) and for less
    llama.cpp   K- and I-quants and the older types, each with the importance matrix of our own calibration and without
    genai       the builder's int4 and int8 options

Divergence from the 16-bit student is measured in each file's own runtime, teacher-forced on the answers that the
16-bit student itself gives to held-out questions. Accuracy is asked of the 16-bit file, of ours, and of the best
baseline of each family within the size, on the same held-out questions, greedy, and compared in pairs. A file that
does not load is a row with its reason. One row a file is appended to benchmarks/results/quantization.jsonl; a file
whose row is there is not made again, so the whole may be killed at any time. The bar at the end: ours within the size
loses at most half the divergence of the best baseline of its size or larger, and at most one point of accuracy.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "quantization.jsonl"
LLAMA = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
GENAI = {
    "int4-default": ("int4", {}),
    "int4-block16": ("int4", {"block_size": "16"}),
    "int4-level0": ("int4", {"accuracy_level": "0"}),
    "int4-k_quant": ("int4", {"algo_config": "k_quant"}),
    "int4-k_quant_last": ("int4", {"algo_config": "k_quant_last"}),
    "int4-k_quant_mixed": ("int4", {"algo_config": "k_quant_mixed"}),
    "int4-asymmetric": ("int4", {"is_symmetric": "false"}),
    "int8": ("int8", {}),
}
HELD_OUT_SEED = 29  # neither training's, nor a report's, nor the one of bench_methods
PROMPTS = 64
SMALLER = 0.9  # of --max-mb: below the smallest baseline


def distilled(mode, options, work):
    """The student of a mode: the one that was named, or one distilled here."""
    from soloist.targets.from_gguf import find_base
    from soloist.toolchain.core.artifact import Artifact
    from soloist.toolchain.distill.stage import DistillConfig, distill
    from soloist.toolchain.student.student import open_float, open_student

    named = dict(item.split("=", 1) for item in options.student)
    if mode in named:
        return open_float(Path(named[mode]))
    traces = Artifact.open(Path(options.traces), stage="record")
    return open_student(distill(DistillConfig(mode=mode), traces, find_base(options.base), work / f"{mode}-student"))


def quantized(name, student, options, work):
    """A quantized student of ours: `4bit`, `plan`, `plan-small` or `plan-qat`."""
    from soloist.toolchain.quantize.budgets import PlanConfig
    from soloist.toolchain.quantize.plan import read_plan
    from soloist.toolchain.quantize.planner import make_plan
    from soloist.toolchain.quantize.qat import QATConfig
    from soloist.toolchain.quantize.stage import QuantizeConfig, quantize

    out = work / f"{student.path.name}-{name}"
    if name == "4bit":
        return quantize(QuantizeConfig(), student, out)
    plan = make_plan(PlanConfig(max_mb=options.max_mb), student, work / f"{student.path.name}-{options.max_mb:g}mb")
    if name == "plan-small":
        less = SMALLER * options.max_mb
        plan = make_plan(PlanConfig(max_mb=less), student, work / f"{student.path.name}-{less:g}mb", measured=plan)
    config = QATConfig() if name == "plan-qat" else None
    return quantize(QuantizeConfig(plan=read_plan(plan.path), qat=config), student, out)


def variants(student, options, work, scratch):
    """Name and a function that makes the file of each variant and returns its path; made one after the other."""
    from soloist.targets.llama_quantize import IMPORTANCE, mean_squares, quantize_gguf, read_importance
    from soloist.targets.to_gguf import compile_gguf
    from soloist.targets.to_onnx import compile_onnx

    def gguf(source, precision=None):
        return scratch / compile_gguf(source, scratch, precision)["file"]

    def llama(kind, weighed=True):
        matrix = quantized("4bit", student, options, work).path / IMPORTANCE
        importance = mean_squares(read_importance(matrix)) if weighed else None
        source = gguf(student.path, "F16")
        return scratch / quantize_gguf(source, scratch / f"{kind}.gguf", kind, importance=importance)["file"]

    def genai(precision, chosen):
        compile_onnx(student.path, scratch / "onnx", precision, options=chosen)
        return scratch / "onnx"

    yield "f16", "reference", lambda: gguf(student.path, "F16")

    def ours(name):
        return f"ours-{name}", "ours", lambda: gguf(quantized(name, student, options, work).path)

    yield ours("4bit")
    yield ours("plan")
    yield ours("plan-small")
    for kind in LLAMA:
        yield f"llama-{kind}", "llama.cpp", lambda kind=kind: llama(kind)
    for name, (precision, chosen) in GENAI.items():
        yield f"genai-{name}", "genai", lambda p=precision, c=chosen: genai(p, c)
    for kind in LLAMA:  # without: two of the types with a minimum lose far more with it
        yield f"llama-{kind}-plain", "llama.cpp", lambda kind=kind: llama(kind, weighed=False)
    yield ours("plan-qat")  # the longest to make


def size_mb(path):
    """Of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e6, 3)


def prompts_for(reference, asked):
    """Held-out questions, and what the 16-bit student says to them first."""
    from soloist.targets.base import Sampling
    from soloist.targets.open import open_runtime
    from soloist.toolchain.verify.process import Prompts

    messages = [[{"role": "user", "content": question.question}] for question in asked[:PROMPTS]]
    model = open_runtime(reference)
    answers = [model.chat(prompt, Sampling(max_tokens=96)).text for prompt in messages]
    model.close()
    return Prompts(messages, answers)


def compared(reference, path, prompts, work):
    """Divergence of a file from the reference file, each in its own runtime; a reason where it does not run."""
    from soloist.kernels.errors import GateError
    from soloist.toolchain.verify.differences import compare
    from soloist.toolchain.verify.process import observe

    try:
        wanted = observe(reference, prompts, work / "reference")
        got = observe(path, prompts, work / "file")
        return compare(wanted, got, work / "reference", work / "file").model_dump(mode="json", exclude_none=True)
    except GateError as error:
        return {"refused": str(error)}
    finally:
        shutil.rmtree(work / "file", ignore_errors=True)


def answers(path, student, asked, note):
    """Verdicts on the questions, 1 for right."""
    from soloist.toolchain.student.ask import student_team
    from soloist.toolchain.teams.config import load_team
    from soloist.toolchain.teams.team import Team

    right, began = [], time.perf_counter()
    with Team(student_team(path, student.called_tools, load_team("desk").tools)) as team:
        for number, question in enumerate(asked, 1):
            right.append(int(team.try_answer(question).verdict == "correct"))
            if number % 50 == 0:
                print(f"    {note}: {sum(right)} of {number} right", flush=True)
    return {"right": right, "ask_seconds": round(time.perf_counter() - began, 1)}


def read_rows(path):
    """What is in the results."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def best(rows, family, most_mb):
    """The row of a family with the least divergence within the size, None if there is none."""
    fitting = [r for r in rows if r["family"] == family and r["size_mb"] <= most_mb and "kl_mean" in r]
    return min(fitting, key=lambda row: row["kl_mean"], default=None)


def measure(mode, options, asked, work):
    """All rows of a mode: divergences first, then accuracy of those that the size class is about."""
    from soloist.kernels.errors import SoloistError
    from soloist.toolchain.core.environment import commit, device, versions

    results, student = Path(options.results), distilled(mode, options, work)
    scratch, kept = work / "file", work / f"{mode}-reference.gguf"
    shared = {"bench": "quantization", "mode": mode, "student": student.digest, "max_mb": options.max_mb}

    def mine():
        return [row for row in read_rows(results) if all(row[key] == value for key, value in shared.items())]

    def add(**row):
        with results.open("a", encoding="utf-8") as file:
            stamp = {"device": device(), "versions": versions(), "commit": commit(), "label": "measured"}
            file.write(json.dumps({**shared, **row, **stamp}).replace(f"{work}/", "") + "\n")  # no paths of a machine
        shown = {key: value for key, value in row.items() if key != "right"}
        print(f"  {json.dumps(shown)}", flush=True)

    results.parent.mkdir(parents=True, exist_ok=True)
    makers = {name: (family, make) for name, family, make in variants(student, options, work, scratch)}
    prompts = None
    for name, (family, make) in makers.items():
        if any(row["variant"] == name and "right" not in row for row in mine()) and (name != "f16" or kept.is_file()):
            continue
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            path = make()
        except SoloistError as error:
            add(variant=name, family=family, size_mb=0.0, refused=str(error))
            continue
        if name == "f16":
            shutil.copyfile(path, kept)
            path = kept
        prompts = prompts or prompts_for(kept, asked)
        drift = compared(kept, path, prompts, work / f"{mode}-prompts")
        add(variant=name, family=family, size_mb=size_mb(path), **drift)
    rows = [row for row in mine() if "right" not in row]
    chosen = [row for family in ("ours", "llama.cpp", "genai") if (row := best(rows, family, options.max_mb))]
    for name in ["f16", *(row["variant"] for row in chosen)]:
        if any(row["variant"] == name and "right" in row for row in mine()):
            continue
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        path = makers[name][1]()
        add(variant=name, family=makers[name][0], size_mb=size_mb(path), **answers(path, student, asked, name))
    return mine()


def bars(rows, most_mb):
    """Print what was to be shown, each as met or missed; returns whether all are met."""
    from soloist.toolchain.core.statistics import paired_difference

    plain = [row for row in rows if "right" not in row]
    ours = best(plain, "ours", most_mb)
    if ours is None:
        print("nothing of ours within the size")
        return False
    baselines = [
        r for r in plain if r["family"] in ("llama.cpp", "genai") and "kl_mean" in r and r["size_mb"] <= most_mb
    ]
    baseline = min(baselines, key=lambda row: row["kl_mean"])
    fits = [r for r in plain if r["family"] == "ours" and "kl_mean" in r and r["size_mb"] <= baseline["size_mb"]]
    mine = min(fits, key=lambda row: row["kl_mean"], default=ours)
    smaller = mine["size_mb"] <= baseline["size_mb"]
    met = [smaller and mine["kl_mean"] <= baseline["kl_mean"] / 2]
    print(
        f"{'met' if met[0] else 'MISSED'}: {mine['variant']} {mine['size_mb']:.1f} MB, KL {mine['kl_mean']:.4f}; "
        f"best baseline {baseline['variant']} {baseline['size_mb']:.1f} MB, KL {baseline['kl_mean']:.4f}"
    )
    right = {row["variant"]: [bool(one) for one in row["right"]] for row in rows if "right" in row}
    for name, rights in right.items():
        if name == "f16":
            continue
        value, low, high = paired_difference(rights, right["f16"]).difference.points()
        line = f"{name}: {value:+.1f} points ({low:+.1f} to {high:+.1f}) against 16 bit"
        if name == ours["variant"]:
            met.append(value >= -1)
            line = f"{'met' if met[-1] else 'MISSED'}: {line}"
        print(line)
    return all(met)


def main():
    """Measure what is missing of each mode, then the bars."""
    from soloist.toolchain.core.artifact import Artifact
    from soloist.toolchain.desk.job import desk_test, recorded
    from soloist.toolchain.desk.questions import assert_disjoint
    from soloist.toolchain.teams.config import load_team
    from soloist.toolchain.traces.store import read_runs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/quantization", help="students and plans; keep it to go on")
    parser.add_argument("--student", action="append", default=[], metavar="MODE=PATH", help="instead of distilling one")
    parser.add_argument("--traces", default=recorded(), help="folder of a recording of the desk")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--modes", default="tools,cot")
    parser.add_argument("--max-mb", type=float, default=100.0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--unseen", type=int, default=90)
    parser.add_argument("--results", default=str(RESULTS))
    options = parser.parse_args()
    if options.traces is None:
        parser.error("this installation has no recording of the desk: give one with --traces")
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    asked = desk_test(load_team("desk"), options.count, options.unseen, seed=HELD_OUT_SEED)
    traces = Artifact.open(Path(options.traces), stage="record")
    assert_disjoint([run.question for run in read_runs(traces.path / "traces.jsonl.gz")], asked)
    fine = True
    for mode in options.modes.split(","):
        print(mode, flush=True)
        fine = bars(measure(mode, options, asked, work), options.max_mb) and fine
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
