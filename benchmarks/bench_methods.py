"""Every method on the same traces at the same cost: which one earns it?

    python -P benchmarks/bench_methods.py --work DIR [--methods a,b] [--seeds 0,1,2] [--settings few,internalise]
                                          [--subset] [--spend TOKENS]

    few          the student that calls tools, from few traces; asked held-out questions and unseen wordings
    internalise  the student that reasons in words, without tools, from all traces

All methods get the same runs of the team and read the same number of tokens (`--spend`, default: what `sft`
reads in one pass of its traces times `--passes`); a method that finds less in the traces reads it more
often. Every student is compiled to GGUF Q8_0 and asked the same questions by llama.cpp, greedy, one thread.
The team is asked the same questions once. A (setting, method, seed) that is in the results is not done
again, and a student that was half trained goes on; so the whole may be killed at any time. `--subset` is
one seed, 60 questions and the methods that train in one pass: about 20 minutes on two cores.
One row a (setting, method, seed) is appended to benchmarks/results/methods.jsonl, with every answer, so
that differences are paired question by question.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import time
from pathlib import Path

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "methods.jsonl"
SETTINGS = {"few": ("acts", 150), "internalise": ("internalise", None)}
STAGED = ("pad", "smagdi", "tdpo")  # train several times; not in the subset
TEACHER = ("gkd",)  # need a local teacher: the sft student of all traces
HELD_OUT_SEED = 23  # neither the seed that settings were looked at with nor the one the report measures


def questions(count, unseen):
    """Held-out questions and unseen wordings of the desk's families."""
    from soloist.toolchain.tasks import desk
    from soloist.toolchain.teams.config import load_team

    families = load_team("desk").options["families"]
    fresh = desk.questions("held-out", count, seed=HELD_OUT_SEED, families=families)
    return [*fresh, *[q for q in desk.unseen_questions() if q.task in families][:unseen]]


def ask(system, asked, note):
    """Verdicts of a team of one (or the whole team) on the questions, in order."""
    from soloist.toolchain.teams.team import Team

    team, right, began = Team(system), [], time.perf_counter()
    for number, question in enumerate(asked, 1):
        right.append(team.try_answer(question).verdict == "correct")
        if number % 20 == 0:
            print(f"    {note}: {number} of {len(asked)}, {sum(right)} right", flush=True)
    team.close()
    return right, time.perf_counter() - began


def team_answers(work, asked, key):
    """The team's verdicts, asked once and kept in `work`."""
    from soloist.toolchain.teams.config import load_team

    path = work / f"team-{key}.json"
    if not path.exists():
        config = load_team("desk")
        engine = config.engine.model_copy(update={"threads": 1})
        right, seconds = ask(config.model_copy(update={"engine": engine}), asked, "team")
        path.write_text(json.dumps({"right": right, "seconds": seconds}), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))["right"]


def train(setting, method, seed, options, work):
    """The student of one cell, and what it cost."""
    from soloist.targets.from_gguf import find_base
    from soloist.toolchain.artifact import Artifact
    from soloist.toolchain.distill.stage import DistillConfig, distill

    mode, limit = SETTINGS[setting]
    traces = Artifact.open(Path(options.traces), stage="teach")
    extra = {"teacher": str(teacher(mode, options, work))} if method in TEACHER else {}
    config = DistillConfig.model_validate({
        "method": method, "mode": mode, "limit": limit, "options": extra,
        "train": {"seed": seed, "spend": options.spend, "part_tokens": 1024},
    })  # fmt: skip
    base = Path(options.base) if Path(options.base).exists() else find_base(options.base)
    return distill(config, traces, base, work / f"{setting}-{method}-{seed}")


def teacher(mode, options, work):
    """The local teacher of methods that need logits: an sft student of all traces, two passes."""
    from soloist.targets.from_gguf import find_base
    from soloist.toolchain.artifact import Artifact
    from soloist.toolchain.distill.stage import DistillConfig, distill

    config = DistillConfig.model_validate({"mode": mode, "train": {"seed": 99, "epochs": 2}})
    base = Path(options.base) if Path(options.base).exists() else find_base(options.base)
    return distill(config, Artifact.open(Path(options.traces), stage="teach"), base, work / f"teacher-{mode}").path


def cell(setting, method, seed, options, work, asked):
    """Train, compile, ask: one row."""
    from soloist.toolchain.artifact import commit, device, versions
    from soloist.toolchain.bench.systems import student_team, student_tools
    from soloist.toolchain.export import compile_format, knowledge, model_folders
    from soloist.toolchain.teams.config import load_team

    student = train(setting, method, seed, options, work)
    gc.collect()
    compiled = work / f"{student.path.name}-gguf"
    made = compile_format(model_folders(student), compiled, "gguf-q8_0", "student", knowledge(student.path))
    right, asking = ask(
        student_team(compiled / made["path"], student_tools(student), load_team("desk").tools), asked, method
    )
    facts = student.facts
    shutil.rmtree(compiled)
    if not options.keep:
        for weights in student.path.rglob("*.safetensors"):
            weights.unlink()
    return {
        "bench": "methods", "setting": setting, "method": method, "seed": seed, "spend": options.spend,
        "traces": student.manifest["parents"], "data": facts["data"], "options": facts["options"],
        "train_seconds": student.manifest["seconds"], "train_tokens": facts["training"].get("tokens"),
        "splits": [q.split for q in asked], "right": [int(r) for r in right], "ask_seconds": round(asking, 1),
        "device": device(), "versions": versions(), "commit": commit(), "label": "measured",
    }  # fmt: skip


def spend_of(options):
    """What sft reads in `passes` passes of the traces of the setting with the fewest."""
    from soloist.toolchain.traces.store import read_runs

    if options.spend:
        return options.spend
    runs = list(read_runs(Path(options.traces) / "traces.jsonl.gz"))
    few = min(limit for _, limit in SETTINGS.values() if limit)
    right = sum(run.verdict == "correct" for run in runs[:few])
    return options.passes * right * 45  # a desk conversation has about 45 tokens


def done(path):
    """The cells that are in the results already."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return {(row["setting"], row["method"], row["seed"], row["spend"], len(row["right"])) for row in rows}


def main():
    """Measure what is missing, append a row each."""
    from soloist.kernels.errors import SoloistError
    from soloist.toolchain.distill.methods.catalog import CATALOG
    from soloist.toolchain.jobs import recorded

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/methods", help="students and the team's answers; keep it to go on")
    parser.add_argument("--traces", default=str(recorded()), help="folder of a recording of the desk")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--methods", help="default: all")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--unseen", type=int, default=90)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--spend", type=int, help="tokens every method reads")
    parser.add_argument("--subset", action="store_true", help="one seed, 60 questions, methods of one pass")
    parser.add_argument("--keep", action="store_true", help="keep the students' weights")
    parser.add_argument("--results", default=str(RESULTS))
    options = parser.parse_args()
    methods = options.methods.split(",") if options.methods else list(CATALOG)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.subset:
        options.questions, options.unseen, seeds = 60, 30, seeds[:1]
        methods = [method for method in methods if method not in (*STAGED, *TEACHER)]
    options.spend = spend_of(options)
    work, results = Path(options.work), Path(options.results)
    work.mkdir(parents=True, exist_ok=True)
    asked = questions(options.questions, options.unseen)
    known = done(results)
    team = team_answers(work, asked, f"{options.questions}-{options.unseen}")
    for seed in seeds:
        for setting in options.settings.split(","):
            for method in methods:
                if (setting, method, seed, options.spend, len(asked)) in known:
                    continue
                print(f"{setting} {method} seed {seed}", flush=True)
                try:
                    row = cell(setting, method, seed, options, work, asked)
                except SoloistError as error:  # a method that finds nothing to learn from in these traces
                    print(f"    {error}", flush=True)
                    continue
                row["team_right"] = [int(r) for r in team]
                results.parent.mkdir(exist_ok=True)
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
