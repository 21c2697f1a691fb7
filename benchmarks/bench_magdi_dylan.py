"""MAGDi on real debates: does the student learn which attempts of a DyLAN graph are right?

    python -P benchmarks/bench_magdi_dylan.py DYLAN_FILES... [--graphs 200] [--epochs 3] [--seeds 1]

The DyLAN files are imported for training (they are test questions of MATH: the student is not reported on
MATH, and is thrown away here). Questions are split into training and held-out ones, all nodes of a question
on one side. After every epoch the graph network and the student's embeddings classify the nodes of the held-out
graphs; the headline is the last epoch's. The majority class is that of the *training* nodes. Both sides hold
only questions that somebody solved, as MAGDi selects them. The interval of the difference resamples held-out
questions, not nodes, because nodes of one question go together. `--variant released` trains without the
classification reaching the student (and says the prompts too): the difference says what that reach is worth.
The last line on stdout is the row, which is also appended to benchmarks/results/magdi_dylan.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "magdi_dylan.jsonl"
RESAMPLED = 2000


def graphs_of(options, tokenizer, folder, seed):
    """Training and held-out groups of the files, drawn by question."""
    from soloist.toolchain.distill.methods import magdi
    from soloist.toolchain.distill.stage import recheck
    from soloist.toolchain.distill.work import Setup
    from soloist.toolchain.record.importing import ImportOptions, import_traces
    from soloist.toolchain.traces.store import read_runs

    traces = import_traces([Path(f) for f in options.files], folder / "traces", ImportOptions(train_on_test=True))
    setup = Setup(tokenizer, recheck, "tools", options.max_length, seed, options.variant, settings(options))
    chosen = magdi.select(list(read_runs(traces.path / "traces.jsonl.gz")), setup)
    groups = list(chosen.groups)
    random.Random(f"{seed}/graphs").shuffle(groups)
    groups = groups[: options.graphs]
    held = round(len(groups) * options.held_out)
    if not 0 < held < len(groups):
        sys.exit(f"{len(groups)} graphs cannot be split into training and held-out ones")
    return groups[held:], groups[:held], chosen


def settings(options):
    """MAGDi on the graphs as they were: who saw whom, the agents and rounds that a run has."""
    from soloist.toolchain.distill.methods.magdi import MagdiOptions

    return MagdiOptions(edges="run", grid="run", gamma=options.gamma, beta=options.beta)


def classify(trainer, objective, groups):
    """Of each group its nodes' (label, predicted class, loss), without dropout."""
    import torch

    from soloist.toolchain.distill.graph_network import embed
    from soloist.toolchain.distill.packing import pack

    found = []
    for group in groups:
        batch = pack([group]).to(trainer.student.device)
        with torch.no_grad():
            _, states = trainer.student.logits_and_states(batch)
            ((logits, labels),) = objective.node_logits(embed(states, batch), batch, training=False)
        losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        rows = zip(labels.tolist(), logits.argmax(1).tolist(), losses.tolist(), strict=True)
        found.append([row for row in rows if row[0] >= 0])
    return found


def judge(found, majority, seed):
    """Accuracy of the nodes, the majority class's share of them, the difference with its interval, the loss."""
    per_graph = [
        (sum(got == label for label, got, _ in g), sum(label == majority for label, _, _ in g), len(g)) for g in found
    ]
    draw = random.Random(f"{seed}/resampled")
    gaps = []
    for _ in range(RESAMPLED):
        taken = draw.choices(per_graph, k=len(per_graph))
        nodes = sum(n for _, _, n in taken)
        gaps.append((sum(hits for hits, _, _ in taken) - sum(m for _, m, _ in taken)) / nodes)
    gaps.sort()
    hits, most, nodes = (sum(column) for column in zip(*per_graph, strict=True))
    interval = [round(gaps[round(q * (RESAMPLED - 1))], 4) for q in (0.025, 0.975)]
    loss = sum(loss for g in found for _, _, loss in g) / nodes
    return {
        "accuracy": round(hits / nodes, 4),
        "majority_share": round(most / nodes, 4),
        "above_majority": round((hits - most) / nodes, 4),
        "interval": interval,
        "loss": round(loss, 4),
        "graphs": len(found),
        "nodes": nodes,
    }


def train(options, base, folder, seed):
    """One student; the facts of its training and what its graph network says of the held-out graphs."""
    import torch

    from soloist.toolchain.distill.methods.magdi import GraphObjective
    from soloist.toolchain.distill.model import freed_memory_kept
    from soloist.toolchain.distill.train import TrainConfig, Trainer

    config = TrainConfig(
        tuning=options.tuning,
        learning_rate=options.rate,
        epochs=options.epochs,
        batch_size=options.batch,
        max_length=options.max_length,
        seed=seed,
        device=options.torch_device,
        checkpoint_seconds=1e9,
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    with freed_memory_kept():
        trainer = Trainer(base, config)
        learned, held, chosen = graphs_of(options, trainer.student.tokenizer, folder, seed)
        objective = GraphObjective(trainer.student.width, settings(options), variant=options.variant, seed=seed)
        trainer.optimize(objective)
        labels = Counter(label for group in learned for label in group.facts["labels"] if label >= 0)
        majority = labels.most_common(1)[0][0]
        curve = [judge(classify(trainer, objective, held), majority, seed)]
        an_epoch = -(-len(learned) // config.batch_size)

        def on_step(record):
            print(json.dumps(record), file=sys.stderr, flush=True)
            if (record["step"] + 1) % an_epoch == 0:
                curve.append(judge(classify(trainer, objective, held), majority, seed))
                print(f"held-out: {curve[-1]}", file=sys.stderr, flush=True)

        trained = trainer.fit(learned, folder / "student", on_step=on_step)
    epochs = [trained.steps[i * an_epoch : (i + 1) * an_epoch] for i in range(config.epochs)]
    return {
        "seed": seed,
        "training_graphs": len(learned),
        "training_labels": {str(k): v for k, v in labels.items()},
        "selected": {"kept": len(chosen.groups), **dict(chosen.rejected)},
        "node_loss": [round(sum(s["loss_nodes"] for s in steps) / len(steps), 4) for steps in epochs],
        "node_accuracy": [round(sum(s["node_accuracy"] for s in steps) / len(steps), 4) for steps in epochs],
        "held_out": curve,
        **trained.facts().model_dump(exclude={"phases"}),
    }


def arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="DyLAN's MATH files, or the folder that holds them")
    parser.add_argument("--model", default="smollm2-135m", help="a base by name, a GGUF file or a Hugging Face folder")
    parser.add_argument("--graphs", type=int, default=200, help="at most so many, training and held-out together")
    parser.add_argument("--held-out", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--gamma", type=float, default=0.1)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--tuning", choices=["lora", "full"], default="lora")
    parser.add_argument("--variant", choices=["paper", "released"], default="paper")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--torch-device", choices=["cpu", "auto"], default="auto")
    parser.add_argument("--dry", action="store_true", help="do not append the row")
    options = parser.parse_args()
    if options.beta <= 0:
        parser.error("--beta: the classification is what is measured; give it a weight above 0")
    return options


def main():
    """Train, judge, print, append."""
    options = arguments()
    warnings.simplefilter("ignore")
    from soloist.targets.from_gguf import find_base, from_gguf
    from soloist.toolchain.core.environment import commit, device, versions

    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(options.model)
        if not base.exists():
            base = find_base(options.model)
        if base.is_file():
            from_gguf(base, Path(scratch) / "base", dtype="float32")
            base = Path(scratch) / "base"
        runs = [train(options, base, Path(scratch) / f"seed-{seed}", seed) for seed in range(options.seeds)]
    last = [run["held_out"][-1] for run in runs]
    nodes = sum(result["nodes"] for result in last)
    row = {
        "bench": "magdi_dylan",
        "device": device(),
        "versions": versions(),
        "commit": commit(),
        "model": Path(options.model).name,
        "variant": options.variant,
        "tuning": options.tuning,
        "rate": options.rate,
        "batch": options.batch,
        "epochs": options.epochs,
        "max_length": options.max_length,
        "beta": options.beta,
        "gamma": options.gamma,
        "files": sorted(Path(f).name for f in options.files),
        "runs": runs,
        "accuracy": round(sum(r["accuracy"] * r["nodes"] for r in last) / nodes, 4),
        "majority_share": round(sum(r["majority_share"] * r["nodes"] for r in last) / nodes, 4),
        "node_loss_first_epoch": runs[0]["node_loss"][0],
        "node_loss_last_epoch": runs[0]["node_loss"][-1],
        "seconds": round(time.time() - began, 1),
    }
    line = json.dumps(row)
    if not options.dry:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
