"""Traces in, a student folder out: whole, reusable, honest about what it kept."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from soloist.kernels.errors import DataError, UsageError  # noqa: E402
from soloist.toolchain.core.artifact import Artifact  # noqa: E402
from soloist.toolchain.core.events import QUIET  # noqa: E402
from soloist.toolchain.distill.methods.catalog import CATALOG, load  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig  # noqa: E402
from soloist.toolchain.distill.work import Work  # noqa: E402
from soloist.toolchain.student.artifact import StudentFacts, read_card  # noqa: E402

CONFIG = DistillConfig(train=TrainConfig(batch_size=4, learning_rate=3e-3, precision="fp32", device="cpu"))


@pytest.fixture
def traces(tmp_path, run_of, record_runs):
    runs = [run_of(number, calls=1 + number % 2) for number in range(10)] + [run_of(50, verdict="wrong")]
    return record_runs(runs, tmp_path / "traces")


def test_distill_makes_a_student_folder(tiny_base, traces, tmp_path):
    made = distill(CONFIG, traces, tiny_base, tmp_path / "student")
    assert Artifact.open(tmp_path / "student", stage="distill").digest == made.digest
    names = set(made.manifest["files"])
    assert {"config.json", "model.safetensors", "tokenizer.json", "student.json", "train.jsonl"} <= names
    assert not any(name.startswith("checkpoints") for name in names)
    card = read_card(made.path)
    assert (card.mode, card.method, card.tools) == ("tools", "sft", ("add",))
    assert card.data.kept == 10
    assert card.data.rejected == {"no correct answer": 1}
    assert made.read(StudentFacts).training.steps == 3
    assert len((made.path / "train.jsonl").read_text().splitlines()) == 3


def test_the_same_work_gives_the_same_artifact(tiny_base, traces, tmp_path):
    one, two = (distill(CONFIG, traces, tiny_base, tmp_path / name) for name in ("one", "two"))
    assert one.manifest["files"] == two.manifest["files"]
    assert one.digest == two.digest


def test_a_student_that_is_there_is_not_trained_again(tiny_base, traces, tmp_path):
    first = distill(CONFIG, traces, tiny_base, tmp_path / "student")
    stamp = (first.path / "model.safetensors").stat().st_mtime_ns
    later = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"checkpoint_seconds": 7.0})})
    distill(later, traces, tiny_base, tmp_path / "student")
    assert (first.path / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_budget_of_tokens_is_kept_and_is_part_of_the_plan(tiny_base, traces, tmp_path):
    whole = distill(CONFIG, traces, tiny_base, tmp_path / "whole")
    budget = whole.read(StudentFacts).data.trained_tokens // 2
    config = CONFIG.model_copy(update={"max_target_tokens": budget})
    half = distill(config, traces, tiny_base, tmp_path / "half")
    taken = half.read(StudentFacts)
    assert 0.7 * budget < taken.data.trained_tokens <= budget
    assert taken.training.trained_tokens == taken.data.trained_tokens
    assert taken.data.rejected[f"over the budget of {budget} trained tokens"] > 0
    assert half.digest != whole.digest
    assert whole.manifest["config"]["max_target_tokens"] is None


@pytest.mark.parametrize(("method", "passes"), [("sft", 1), ("tdpo", 2)])
def test_the_tokens_to_read_are_shared_by_the_passes_of_a_method(tiny_base, tmp_path, method, passes):
    work = Work(
        method=load(method),
        runs=[],
        base=tiny_base,
        folder=tmp_path,
        mode="tools",
        train=CONFIG.train.model_copy(update={"max_train_tokens": 1000}),
        variant="paper",
        options=None,
        check_steps=recheck,
        events=QUIET,
    )
    assert work.trainer().config.max_train_tokens == 1000 // passes
    assert work.trainer(learning_rate=1e-5).config.max_train_tokens == 1000 // passes


def test_every_method_with_phases_says_in_how_many_it_trains():
    assert {name: load(name).passes for name in CATALOG if load(name).passes > 1} == {"pad": 3, "smagdi": 2, "tdpo": 2}


def test_a_variant_that_nobody_released_is_refused():
    there = {name for name in CATALOG if load(name).released}
    assert there == {"magdi", "pad"}
    for name in set(CATALOG) - there:
        with pytest.raises(UsageError, match=f"method {name}: there is no released code"):
            DistillConfig(method=name, variant="released").settled()
    DistillConfig(method="magdi", variant="released").settled()


def test_held_out_questions_stop_the_stage(tiny_base, tmp_path, run_of, record_runs):
    held = record_runs([run_of(1, split="held-out")], tmp_path / "t")
    with pytest.raises(DataError, match="may not be trained on"):
        distill(CONFIG, held, tiny_base, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_worked_steps_are_recomputed():
    assert recheck(["3 + 4 = 7", "7 * 2 = 14"])
    assert not recheck(["3 + 4 = 7", "7 * 2 = 15"])
