"""Every method on the same traces at the same cost: which one earns it?

    python -P benchmarks/bench_methods.py --work DIR [--methods a,b] [--seeds 0,1,2] [--settings few,cot]
                                          [--subset] [--max-train-tokens N] [--agent TEAM]

    few  the student that calls tools, from the first 150 traces; held-out questions and unseen wordings
    cot  the student that reasons in words, without tools, from all traces

In a setting all methods get the same runs of the team, with their default options, and read the same number of tokens:
what `sft` reads in three passes of few traces, in one pass of all (or `--max-train-tokens`). `pad` alone has other
options: it practices for 19 updates (6 without tools, and labels 20 disputed questions there), however many questions
there are.
A method that finds less in the traces reads it more often; one that trains several times divides the tokens among its
passes, one that takes several conversations a question makes fewer steps of more tokens. The local teacher that `gkd`
needs is an `sft` student of the same traces and tokens; its training counts as a cost of `gkd`. Every student is
compiled to GGUF Q8_0 and asked the same questions by llama.cpp, greedy. The team is asked them once.

AdaSkill trains nothing: `--agent skill_agent.yaml` (what `soloist assess desk --known TRACES` writes beside its card)
asks that agent the questions of the few traces' setting once, as the row `adaskill`.

A cell (setting, method, seed) that is in the results is not done again, and a student that was half trained goes on;
so the whole may be killed at any time. A method that cannot work here is named at the end, and the exit code is 1.
`--subset` is one seed, few traces, 60 questions and 30 unseen wordings, and the methods that train once: by estimate
20 minutes on two cores. One row a cell is appended to benchmarks/results/methods.jsonl, with every answer, so that
differences are paired question by question.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "methods.jsonl"
SETTINGS = {"few": ("tools", 150, 3), "cot": ("cot", None, 1)}  # mode, traces, passes of sft
# one pass of practice over few questions; over all, where answers are long besides, it would take nights
OPTIONS = {"pad": {"few": {"steps": 19}, "cot": {"steps": 6, "labeled": 20}}}
AGENT = "adaskill"
TEACHER = ("gkd",)  # need a local teacher
TEACHER_SEED = 99
HELD_OUT_SEED = 23  # neither the seed that settings were looked at with nor the one the report measures


def digest_of(value):
    """A short name for any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def base_of(options):
    """The base model's file or folder."""
    from soloist.targets.from_gguf import find_base

    return Path(options.base) if Path(options.base).exists() else find_base(options.base)


def ask(system, asked, note):
    """Verdicts of a team (or of a student as a team of one) on the questions in order, failures, seconds."""
    from soloist.toolchain.teams.team import Team

    right, failed, began = [], 0, time.perf_counter()
    with Team(system) as team:
        for number, question in enumerate(asked, 1):
            run = team.try_answer(question)
            right.append(int(run.verdict == "correct"))
            failed += run.error is not None
            if number % 20 == 0:
                print(f"    {note}: {number} of {len(asked)}, {sum(right)} right, {failed} failed", flush=True)
    return {"right": right, "failed": failed, "ask_seconds": round(time.perf_counter() - began, 1)}


def team_answers(work, asked, key):
    """What the team answers, asked once and kept in `work`."""
    from soloist.toolchain.core.files import write_atomic
    from soloist.toolchain.teams.config import load_team

    config = load_team("desk")
    path = work / f"team-{digest_of([key, config.model_dump(mode='json')])}.json"
    if not path.exists():
        engine = config.engine.model_copy(update={"threads": 1})
        write_atomic(path, json.dumps(ask(config.model_copy(update={"engine": engine}), asked, "team")))
    return json.loads(path.read_text(encoding="utf-8"))["right"]


def budget_of(setting, options, traces, work):
    """How many tokens every method reads in a setting: the passes of what sft takes from the setting's traces."""
    from soloist.toolchain.core.files import write_atomic
    from soloist.toolchain.distill.data import prepare_tokenizer, select
    from soloist.toolchain.distill.model import load_base
    from soloist.toolchain.distill.stage import recheck
    from soloist.toolchain.student.artifact import base_digest
    from soloist.toolchain.traces.store import read_runs

    if options.max_train_tokens:
        return options.max_train_tokens
    mode, limit, passes = SETTINGS[setting]
    path = work / f"pass-{digest_of([mode, limit, traces.digest, base_digest(base_of(options))])}.json"
    if not path.exists():
        tokenizer = load_base(base_of(options))[1]
        prepare_tokenizer(tokenizer)
        runs = list(read_runs(traces.path / "traces.jsonl.gz"))[:limit]
        write_atomic(path, select(runs, tokenizer, check_steps=recheck, mode=mode).counts.model_dump_json())
    return passes * json.loads(path.read_text(encoding="utf-8"))["tokens"]


def student_of(setting, method, seed, budget, options, traces, work, name, **extra):
    """The student of one cell, trained unless it is there."""
    from soloist.toolchain.distill.stage import DistillConfig, distill

    mode, limit, _ = SETTINGS[setting]
    config = DistillConfig.model_validate(
        {
            "method": method,
            "mode": mode,
            "limit": limit,
            "options": extra,
            "train": {"seed": seed, "max_train_tokens": budget, "part_tokens": 1024},
        }
    )
    return distill(config, traces, base_of(options), work / name)


def cost_of(student):
    """Tokens read and seconds spent by all passes of training that made a student."""
    from soloist.toolchain.student.artifact import StudentFacts

    passes = student.read(StudentFacts).training.passes
    # a manifest's seconds are those since the last start, the steps' those of all starts
    seconds = max(student.manifest["seconds"], sum(one.seconds for one in passes))
    return {"tokens_read": sum(one.tokens for one in passes), "train_seconds": round(seconds, 1)}


def cell(setting, method, seed, budget, options, traces, work, asked):
    """Train, compile, ask: one row."""
    from soloist.targets.compile import compile_format
    from soloist.toolchain.core.environment import commit, device, versions
    from soloist.toolchain.student.artifact import StudentFacts
    from soloist.toolchain.student.ask import student_team
    from soloist.toolchain.student.student import open_student
    from soloist.toolchain.teams.config import load_team

    extra, costs = dict(OPTIONS.get(method, {}).get(setting, {})), []
    if method in TEACHER:
        made = student_of(setting, "sft", TEACHER_SEED, budget, options, traces, work, f"{setting}-teacher")
        extra["teacher"] = str(made.path)
        costs.append(cost_of(made))
    student = student_of(setting, method, seed, budget, options, traces, work, f"{setting}-{method}-{seed}", **extra)
    costs.append(cost_of(student))
    gc.collect()
    opened, scratch = open_student(student), work / f"{student.path.name}-gguf"
    compiled = compile_format(opened.models, scratch, "gguf-q8_0", "student", graphs=scratch / "graphs")
    opened.write_sidecars(scratch / "gguf-q8_0")
    system = student_team(scratch / compiled.path, opened.called_tools, load_team("desk").tools)
    answers = ask(system, asked, method)
    shutil.rmtree(scratch)
    facts = student.read(StudentFacts)
    return {
        "bench": "methods",
        "setting": setting,
        "method": method,
        "seed": seed,
        "max_train_tokens": budget,
        "traces": traces.digest,
        "data": facts.data.model_dump(),
        "options": facts.options,
        **{key: sum(cost[key] for cost in costs) for key in costs[0]},
        "splits": [q.split for q in asked],
        **answers,
        "device": device(),
        "versions": versions(),
        "commit": commit(),
        "label": "measured",
    }


def agent_cell(setting, budget, options, traces, asked):
    """The row of one agent with a skill card: nothing trained, asked greedily."""
    from soloist.toolchain.core.environment import commit, device, versions
    from soloist.toolchain.teams.config import load_team

    system = load_team(options.agent)
    return {
        "bench": "methods",
        "setting": setting,
        "method": AGENT,
        "seed": options.seeds[0],
        "max_train_tokens": budget,
        "traces": traces.digest,
        "data": {},
        "options": {},
        "tokens_read": 0,
        "train_seconds": 0.0,
        "splits": [q.split for q in asked],
        **ask(system, asked, system.name),
        "device": device(),
        "versions": versions(),
        "commit": commit(),
        "label": "measured",
    }


def done(path):
    """The cells that are in the results already."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return {
        tuple(row[key] for key in ("setting", "method", "seed", "max_train_tokens", "traces", "asked")) for row in rows
    }


def measure(options, traces, asked):
    """Do every cell that is missing and append its row; returns why some could not be done."""
    from soloist.kernels.errors import SoloistError
    from soloist.toolchain.teams.config import load_team

    work, results = Path(options.work), Path(options.results)
    work.mkdir(parents=True, exist_ok=True)
    key = digest_of([question.model_dump(mode="json") for question in asked])
    known, failed = done(results), []
    team = team_answers(work, asked, key)
    print(f"{load_team('desk').name}: {sum(team)} of {len(team)} right", flush=True)
    wanted = {*options.settings, *(["few"] if options.agent else [])}
    budgets = {setting: budget_of(setting, options, traces, work) for setting in sorted(wanted)}
    cells = [(s, m, n) for n in options.seeds for s in options.settings for m in options.methods]
    if options.agent:
        cells = [("few", AGENT, options.seeds[0]), *cells]
    for setting, method, seed in cells:
        budget = budgets[setting]
        if (setting, method, seed, budget, traces.digest, key) in known:
            continue
        print(f"{setting} {method} seed {seed}, {budget} tokens", flush=True)
        try:
            if method == AGENT:
                row = agent_cell(setting, budget, options, traces, asked)
            else:
                row = cell(setting, method, seed, budget, options, traces, work, asked)
        except SoloistError as error:  # it finds nothing to learn from here, or lacks a package: the others go on
            failed.append(f"{setting} {method} seed {seed}: {error}")
            print(f"    {error}", flush=True)
            continue
        results.parent.mkdir(exist_ok=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "asked": key, "team_right": team}) + "\n")
        if (
            not options.keep and method != AGENT
        ):  # 270 MB each; only now, so that a kill never leaves a student without its weights
            shutil.rmtree(work / f"{setting}-{method}-{seed}")
    return failed


def parsed():
    """The command line, settled."""
    from soloist.toolchain.desk.job import recorded
    from soloist.toolchain.distill.methods.catalog import CATALOG, load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/methods", help="students and the team's answers; keep it to go on")
    parser.add_argument("--traces", default=recorded(), help="folder of a recording of the desk")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--methods", default=",".join(CATALOG))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--unseen", type=int, default=90)
    parser.add_argument("--max-train-tokens", type=int, help="tokens every method reads, in every setting")
    parser.add_argument("--subset", action="store_true", help="one seed, few traces, 60 questions, methods of one pass")
    parser.add_argument("--agent", help="team file of an agent with a skill card")
    parser.add_argument("--keep", action="store_true", help="keep the students")
    parser.add_argument("--results", default=str(RESULTS))
    options = parser.parse_args()
    if options.traces is None:
        parser.error("this installation has no recording of the desk: give one with --traces")
    options.methods = options.methods.split(",") if options.methods else []  # none: the agent alone
    options.settings = options.settings.split(",")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    for what, chosen, known in (("method", options.methods, CATALOG), ("setting", options.settings, SETTINGS)):
        if unknown := sorted(set(chosen) - set(known)):
            parser.error(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    if options.subset:
        options.count, options.unseen, options.seeds = 60, 30, options.seeds[:1]
        options.settings = ["few"]
        options.methods = [method for method in options.methods if load(method).passes == 1 and method not in TEACHER]
    return options


def main():
    """Measure what is missing, append a row each."""
    from soloist.toolchain.core.artifact import Artifact
    from soloist.toolchain.desk.job import desk_test
    from soloist.toolchain.desk.questions import assert_disjoint
    from soloist.toolchain.teams.config import load_team
    from soloist.toolchain.traces.store import read_runs

    options = parsed()
    traces = Artifact.open(Path(options.traces), stage="record")
    asked = desk_test(load_team("desk"), options.count, options.unseen, seed=HELD_OUT_SEED)
    assert_disjoint([run.question for run in read_runs(traces.path / "traces.jsonl.gz")], asked)
    failed = measure(options, traces, asked)
    for reason in failed:
        print(reason, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
