"""PAD: attempts that can be compared, all phases end to end, a kill in between, what is refused."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from soloist.kernels.errors import DataError, MissingExtraError, UsageError  # noqa: E402
from soloist.toolchain.core.artifact import Artifact  # noqa: E402
from soloist.toolchain.distill.grpo import Judge  # noqa: E402
from soloist.toolchain.distill.methods.pad import Options, attempts  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.steps import Labeller, step_ends  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.student.artifact import StudentFacts, read_card  # noqa: E402
from soloist.toolchain.traces.graph import graph_of  # noqa: E402


@pytest.fixture
def debate(debate_of):
    """Agent a is right in one call, b wrong in two, of which the first is a's and goes on."""

    def build(number, *, same=False, **more):
        want = number + 1
        right = (f"calc({number} + 1) = {want}",)
        wrong = right if same else (*right, f"calc({want} + 5) = {want + 5}")
        return debate_of([(right, wrong)], number=number, gold=str(want), **more)

    return build


@pytest.fixture
def setup(tokenizer):
    return Setup(tokenizer, recheck, options=Options())


# ------------------------------------------------------------------------------------------- selection


def test_attempts_of_a_question_form_a_group(setup, debate):
    chosen = attempts([debate(3), debate(4, same=True)], setup)
    assert [group.facts for group in chosen.groups] == [{"run": 0, "nodes": [0, 1], "right": [True, False]}]
    assert chosen.rejected == {"attempts all right or all wrong": 1}


def test_attempts_of_the_recorded_desk(setup, recorded_runs):
    for mode in ("tools", "cot"):
        chosen = attempts(recorded_runs, replace(setup, mode=mode, max_length=4096))
        assert len(chosen.groups) >= 5
        assert all(set(group.facts["right"]) == {True, False} for group in chosen.groups)
    for group in attempts(recorded_runs, replace(setup, max_length=4096)).groups[:20]:
        run = recorded_runs[group.facts["run"]]
        for example, node in zip(group.examples, group.facts["nodes"], strict=True):
            uses = graph_of(run).nodes[node].uses
            assert len(step_ends(example.ids, example.trained, setup.tokenizer)) == len(uses)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"same": True}, "no question with both a right and a wrong attempt"),
        ({"graded": False}, r"\(2 x not graded, 1 x no attempt\)"),
        (None, "no question with both"),
        ({"split": "test"}, "may not be trained on"),
    ],
)
def test_traces_that_compare_nothing_are_refused(setup, debate, given, message):
    with pytest.raises(DataError, match=message):
        attempts([] if given is None else [debate(3, **given)], setup)


# ------------------------------------------------------------------------------------------- end to end

TRAIN = TrainConfig(batch_size=6, learning_rate=3e-3, precision="fp32", device="cpu", max_length=200)
SMALL = {
    "rollouts": 2,
    "head_epochs": 1,
    "generations": 2,
    "questions": 2,
    "steps": 2,
    "segment": 1,
    "new_tokens": 12,
    "temperature": 1.0,
    "learning_rate": 1e-4,
}


def config_of(**changes):
    options = {**SMALL, **changes.pop("options", {})}
    return DistillConfig(method="pad", options=options, train=TRAIN, **changes)


@pytest.fixture
def needs_trl():
    pytest.importorskip("trl", reason="the extra `rl` is not installed")
    logging.getLogger("trl").setLevel(logging.ERROR)


@pytest.mark.parametrize(("mode", "variant"), [("tools", "paper"), ("cot", "released")])
def test_all_phases_make_a_student(needs_trl, tiny_base, tmp_path, mode, variant, debate, traces_of):
    traces = traces_of([debate(n) for n in range(10, 16)])
    config = config_of(mode=mode, variant=variant)
    made = distill(config, traces, tiny_base, tmp_path / "student")
    card = read_card(made.path)
    assert (card.method, card.variant, card.notes["questions"], card.tools) == ("pad", variant, 6, ("calc",))
    kinds = {"answer", "rollouts"} if variant == "paper" else {"answer", "propagated"}
    assert set(card.data.notes["labels"]) == kinds
    training = made.read(StudentFacts).training
    assert training.steps == 2
    assert set(training.phases) == {"sft", "prm_head", *({"prm_all"} if variant == "paper" else ())}
    lines = [json.loads(line) for line in (made.path / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all(0 < line["reward_steps"] < 1 and 0 < line["trained_tokens"] < line["tokens"] for line in lines)
    assert training.trained_tokens == sum(line["trained_tokens"] for line in lines)
    files = set(made.manifest["files"])
    assert "model.safetensors" in files
    assert not [name for name in files if name.startswith("phases") or name.endswith((".bin", ".pt"))]
    stamp = (made.path / "model.safetensors").stat().st_mtime_ns
    assert distill(config, traces, tiny_base, tmp_path / "student").digest == made.digest
    assert (made.path / "model.safetensors").stat().st_mtime_ns == stamp
    assert Artifact.open(tmp_path / "student", stage="distill").digest == made.digest


def test_a_kill_repeats_one_segment_and_changes_nothing(needs_trl, tiny_base, tmp_path, monkeypatch, debate, traces_of):
    from soloist.toolchain.distill import grpo

    traces = traces_of([debate(n) for n in range(10, 16)])
    config = config_of()
    whole = distill(config, traces, tiny_base, tmp_path / "whole")
    run, ran = grpo.Segment.run, []

    def dies(self, judge, folder):
        if len(ran) == 1:
            (folder / "half").write_text("of a segment")
            raise KeyboardInterrupt
        ran.append(self.start.name)
        return run(self, judge, folder)

    monkeypatch.setattr(grpo.Segment, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        distill(config, traces, tiny_base, tmp_path / "cut")
    phases = {path.parent.name: load_file(path) for path in tmp_path.glob("cut*/phases/*/model.safetensors")}
    assert set(phases) == {"sft", "prm-head", "prm-all", "grpo-000000"}
    for weights in phases.values():
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    block = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(phases["sft"][block], phases["prm-head"][block])
    moved = (phases["prm-head"][block] - phases["prm-all"][block]).abs()
    assert (moved > 0).float().mean() > 0.9, "a rate of 1e-6 is not lost on the way to the disk"
    assert moved.max() < 1e-4
    ran.clear()
    monkeypatch.setattr(grpo.Segment, "run", lambda self, *a: ran.append(self.start.name) or run(self, *a))
    made = distill(config, traces, tiny_base, tmp_path / "cut")
    assert ran == ["grpo-000000"]
    assert made.manifest["files"] == whole.manifest["files"]
    lines = [json.loads(line) for line in (made.path / "train.jsonl").read_text().splitlines()]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-7)
    assert lines[1]["kl"] > 1e-6  # the second segment is still held to the first student


@pytest.mark.parametrize("silent", [True, False])
def test_the_advantages_that_train_are_ours(needs_trl, tiny_base, tmp_path, monkeypatch, silent, debate, traces_of):
    if silent:
        monkeypatch.setattr(Judge, "advantages", lambda self, width: torch.zeros(len(self.judged), 1))
    traces = traces_of([debate(n) for n in range(10, 13)])
    config = config_of(mode="cot", options={"kl": 0.0, "rollouts": 0, "start": "base", "all_epochs": 0})
    made = distill(config, traces, tiny_base, tmp_path / "student")
    norms = [json.loads(line)["gradient_norm"] for line in (made.path / "train.jsonl").read_text().splitlines()]
    assert all((norm == 0) == silent for norm in norms)
    assert set(made.read(StudentFacts).training.phases) == {"prm_head"}


@pytest.mark.parametrize(("count", "labeled"), [(2, 2), (9, 6)])
def test_only_so_many_disputed_questions_are_labeled(
    needs_trl, tiny_base, tmp_path, monkeypatch, count, labeled, debate, traces_of
):
    traces, asked = traces_of([debate(n) for n in range(10, 16)]), []
    label = Labeller.label
    monkeypatch.setattr(
        Labeller, "label", lambda self, tried: asked.extend({t.question.question for t in tried}) or label(self, tried)
    )
    config = config_of(options={"labeled": count, "rollouts": 0})
    facts = distill(config, traces, tiny_base, tmp_path / "student").read(StudentFacts)
    assert (facts.data.notes["labeled"], len(asked), facts.notes["questions"]) == (labeled, labeled, 6)
    assert facts.data.kept == 6, "what may be compared is still told"


def test_tools_of_the_traces_must_be_there(needs_trl, tiny_base, tmp_path, debate, traces_of):
    run = debate(3)
    other = run.turns[1].tools[0].model_copy(update={"name": "add", "call": "add(3 | 1)"})
    turns = (run.turns[0], run.turns[1].model_copy(update={"tools": (other,)}))
    traces = traces_of([run.model_copy(update={"turns": turns})])
    with pytest.raises(UsageError, match="add of the traces are not among them; set the option tools"):
        distill(config_of(), traces, tiny_base, tmp_path / "student")


def test_questions_without_answers_are_refused(needs_trl, tiny_base, tmp_path, debate, traces_of):
    run = debate(3)
    run = run.model_copy(update={"question": run.question.model_copy(update={"gold": None})})
    with pytest.raises(DataError, match="no question has a known answer"):
        distill(config_of(), traces_of([run]), tiny_base, tmp_path / "student")


def test_without_trl_the_extra_is_named_at_once(tiny_base, tmp_path, monkeypatch, debate, traces_of):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtraError, match=r"soloist\[rl\]"):
        distill(config_of(), traces_of([debate(3)]), tiny_base, tmp_path / "student")
