"""The loop: resume, kill, seeds, LoRA, clipping, schedule, and the update itself."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from pydantic import ValidationError  # noqa: E402

from soloist.kernels.errors import ArtifactError, UsageError  # noqa: E402
from soloist.toolchain.core.events import EventLog  # noqa: E402
from soloist.toolchain.distill.checkpoint import CheckpointFacts, load_checkpoint, save_checkpoint  # noqa: E402
from soloist.toolchain.distill.data import Example, as_groups, examples_of  # noqa: E402
from soloist.toolchain.distill.model import Student, choose_precision, load_base  # noqa: E402
from soloist.toolchain.distill.objective import CrossEntropy  # noqa: E402
from soloist.toolchain.distill.optimizer import MasterAdamW  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig, Trainer, learning_rate, parts, plan  # noqa: E402

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=3e-3, precision="fp32", device="cpu")
TIMES = {"seconds"}


def losses(trained):
    return [{k: v for k, v in step.items() if k not in TIMES} for step in trained.steps]


class Stop(Exception):
    pass


def stop_after(count):
    def on_step(record):
        if record["step"] + 1 == count:
            raise Stop

    return on_step


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_uninterrupted_run(tiny_base, conversations, tmp_path, precision):
    config = CONFIG.model_copy(update={"precision": precision, "checkpoint_seconds": 1e-9})
    whole = Trainer(tiny_base, config)
    expected = whole.fit(conversations, tmp_path / "whole")
    with pytest.raises(Stop):
        Trainer(tiny_base, config).fit(conversations, tmp_path / "cut", on_step=stop_after(6))
    again = Trainer(tiny_base, config)
    trained = again.fit(conversations, tmp_path / "cut")
    assert trained.resumed_at == 5  # the sixth step ran, but was killed before its checkpoint
    assert losses(trained) == losses(expected)
    assert expected.steps[-1]["loss"] < expected.steps[0]["loss"]
    for name, value in whole.optimizer.state().items():
        assert torch.equal(value, again.optimizer.state()[name]), name
    log = [json.loads(line) for line in (tmp_path / "cut" / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(9))


SCRIPT = """
import json, sys, time, torch
torch.set_num_threads(1)
from pathlib import Path
from soloist.toolchain.distill.data import Example
from soloist.toolchain.distill.train import TrainConfig, Trainer
base, folder, data, config = sys.argv[1:]
examples = [Example((), tuple(i), tuple(t)) for i, t in json.loads(Path(data).read_text())]
trainer = Trainer(Path(base), TrainConfig.model_validate_json(config))
trainer.fit(examples, Path(folder), on_step=lambda record: time.sleep(0.3))
"""


def test_sigkill_loses_nothing(tiny_base, conversations, tmp_path, one_thread):
    examples = [Example((), e.ids, e.trained) for e in conversations]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([(e.ids, e.trained) for e in examples]))
    config = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9})
    child = [str(tiny_base), str(tmp_path / "killed"), str(data), config.model_dump_json()]
    victim = subprocess.Popen([sys.executable, "-P", "-c", SCRIPT, *child])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/step-*3")):
        assert victim.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    again, whole = (Trainer(tiny_base, config).fit(examples, tmp_path / folder) for folder in ("killed", "whole"))
    assert again.resumed_at >= 3
    assert whole.resumed_at == 0
    lines = [(tmp_path / folder / "train.jsonl").read_text().splitlines() for folder in ("killed", "whole")]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 9


def test_the_seed_decides_everything(tiny_base, conversations, tmp_path):
    runs = [
        losses(Trainer(tiny_base, CONFIG.model_copy(update={"seed": seed})).fit(conversations, tmp_path / str(i)))
        for i, seed in enumerate((5, 5, 6))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_size_of_parts_changes_no_number(tiny_base, conversations, tmp_path):
    whole, split = (
        Trainer(tiny_base, CONFIG.model_copy(update={"part_tokens": size})).fit(conversations, tmp_path / str(size))
        for size in (4096, 64)
    )
    for one, other in zip(whole.steps, split.steps, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


def test_lora_trains_only_its_additions_and_merges_to_the_same_logits(tiny_base, conversations, tmp_path):
    pytest.importorskip("peft")
    config = CONFIG.model_copy(update={"tuning": "lora", "lora_rank": 4, "learning_rate": 2e-2})
    trainer = Trainer(tiny_base, config)
    assert all("lora_" in name for name in trainer.optimizer.master)
    trained = trainer.fit(conversations, tmp_path / "log")
    assert trained.steps[-1]["loss"] < 0.9 * trained.steps[0]["loss"]
    batch = pack(conversations)
    with torch.no_grad():
        before = trainer.student.logits(batch)
        trainer.student.save(tmp_path / "out", trainer.optimizer.master)
        model, tokenizer = load_base(tmp_path / "out")
        after = Student(model, tokenizer, torch.device("cpu")).logits(batch)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert (before - after).abs().max() < 0.03 * before.abs().max()  # bf16 on disk


def test_the_saved_student_is_the_trained_one_rounded_to_bf16(tiny_base, conversations, tmp_path):
    trainer = Trainer(tiny_base, CONFIG)
    trainer.fit(conversations, tmp_path / "log")
    want = {name: value.to(torch.bfloat16).float() for name, value in trainer.optimizer.master.items()}
    trainer.student.save(tmp_path / "out", trainer.optimizer.master)
    model, tokenizer = load_base(tmp_path / "out")
    for name, value in model.named_parameters():
        assert torch.equal(value, want[name]), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert tokenizer.chat_template == trainer.student.tokenizer.chat_template


def test_the_update_is_torchs_adamw(tiny_base):
    torch.manual_seed(0)
    ours = {"w": torch.nn.Parameter(torch.randn(40, 30)), "b": torch.nn.Parameter(torch.randn(30))}
    theirs = {name: torch.nn.Parameter(value.detach().clone()) for name, value in ours.items()}
    optimizer = MasterAdamW(list(ours.items()), separate=False, weight_decay=0.1)
    groups = [{"params": [theirs["w"]], "weight_decay": 0.1}, {"params": [theirs["b"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01)
    for _ in range(5):
        for name, value in ours.items():
            value.grad = torch.randn_like(value)
            theirs[name].grad = value.grad * 0.5
        optimizer.step(0.01, 0.5)
        reference.step()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-6), name


def test_updates_below_the_last_bit_show_in_rounded_weights_on_average():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.rand(100_000) + 1)
    start = weight.detach().clone()
    optimizer = MasterAdamW([("w", weight)], separate=True)
    weight.data = weight.data.to(torch.bfloat16)  # what Student.compute_in does
    weight.grad = torch.ones_like(weight)
    optimizer.step(1e-4)  # a bf16 number in [1, 2) has steps of 78e-4
    assert torch.allclose(optimizer.master["w"], start - 1e-4, atol=1e-7)
    assert (weight.float() - start.to(torch.bfloat16).float()).mean().item() == pytest.approx(-1e-4, rel=0.1)


def test_trainer_keeps_the_exact_weights_it_was_given(tiny_base):
    trainer = Trainer(tiny_base, CONFIG.model_copy(update={"precision": "bf16"}))
    exact = dict(load_base(tiny_base)[0].named_parameters())
    for name, value in trainer.student.named_parameters():
        assert torch.equal(trainer.optimizer.master[name], exact[name]), name
        assert torch.equal(value, exact[name].to(torch.bfloat16)), name


def test_another_objective_starts_from_the_exact_weights_too(tiny_base):
    base = load_base(tiny_base)[0]
    uneven = {name: value.detach() * (1 + 1e-4) for name, value in base.named_parameters()}  # no bf16 numbers
    trainer = Trainer(tiny_base, CONFIG.model_copy(update={"precision": "bf16"}))
    trainer.optimizer.master.update(uneven)
    trainer.optimize(CrossEntropy())
    for name, value in trainer.student.named_parameters():
        assert torch.equal(trainer.optimizer.master[name], uneven[name]), name
        assert torch.equal(value, uneven[name].to(torch.bfloat16)), name


def test_gradients_are_clipped_to_the_norm(tiny_base, conversations, tmp_path):
    config = CONFIG.model_copy(update={"clip_norm": 1e-3, "epochs": 1})
    trainer = Trainer(tiny_base, config)
    trainer.step(as_groups(conversations[:4]), 0, 1e-3)
    squares = sum(float((moment / 0.1).square().sum()) for moment in trainer.optimizer.first.values())
    assert squares**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_every_conversation_is_seen_once_an_epoch():
    steps = plan(10, TrainConfig(epochs=2, batch_size=4))
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    first, second = list(itertools.chain(*steps[:3])), list(itertools.chain(*steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_number_of_tokens_is_spent_whatever_the_number_of_groups():
    config = TrainConfig(max_train_tokens=100, batch_size=2, epochs=7)
    few = plan(3, config, [10, 10, 10])
    assert [len(step) for step in few] == [2, 1, 2, 1, 2, 1, 2]  # 20 + 10 + … until 100 are reached
    assert [len(step) for step in plan(1000, config, [25] * 1000)] == [2, 2]


def test_parts_respect_the_bound_and_lose_nothing(conversations):
    made = [examples_of(part) for part in parts(as_groups(conversations), 200)]
    ids = [example.question_id for example in itertools.chain(*made)]
    assert sorted(ids) == sorted(example.question_id for example in conversations)
    assert all(len(part) == 1 or len(part) * max(len(e.ids) for e in part) <= 200 for part in made)
    assert len(made) > 1


def test_schedule_warms_up_then_falls():
    config = TrainConfig(learning_rate=1.0, warmup=0.1, schedule="cosine")
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] < rates[5] < rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    linear = config.model_copy(update={"schedule": "linear"})
    assert learning_rate(55, 100, linear) == pytest.approx(0.5)


def test_progress_and_metrics_are_events(tiny_base, conversations, tmp_path):
    seen = []
    Trainer(tiny_base, CONFIG.model_copy(update={"epochs": 1})).fit(
        conversations, tmp_path, events=EventLog(listeners=(seen.append,))
    )
    progress = [event for event in seen if event["event"] == "progress"]
    assert [(event["done"], event["total"]) for event in progress] == [(1, 3), (2, 3), (3, 3)]
    metric = next(event for event in seen if event["event"] == "metric")
    assert metric["tokens_per_second"] > metric["trained_tokens_per_second"] > 0


def test_faults_are_explained(tiny_base, conversations, tmp_path):
    with pytest.raises(UsageError, match="unknown 'magic'; there are: sft"):
        DistillConfig(method="magic").settled()
    with pytest.raises(UsageError, match="method sft: temperature: unknown field"):
        DistillConfig(options={"temperature": 1}).settled()
    with pytest.raises(ValidationError, match="extra"):
        TrainConfig.model_validate({"learning_rte": 1})
    with pytest.raises(ArtifactError, match="neither a GGUF file nor a Hugging Face folder"):
        load_base(tmp_path)
    pickled = shutil.copytree(tiny_base, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"not a model that transformers can load .*safetensors"):
        load_base(pickled)
    with pytest.raises(UsageError, match="lower learning_rate"):
        config = CONFIG.model_copy(update={"learning_rate": 1e30})
        Trainer(tiny_base, config).fit(conversations, tmp_path / "diverged")


def test_a_checkpoint_of_other_settings_is_refused(tiny_base, conversations, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9})
    with pytest.raises(Stop):
        Trainer(tiny_base, config).fit(conversations, tmp_path, on_step=stop_after(3))
    with pytest.raises(ArtifactError, match="other settings or data"):
        Trainer(tiny_base, config.model_copy(update={"seed": 9})).fit(conversations, tmp_path)


def test_checkpoints_ignore_torn_ones_and_report_damage(tmp_path):
    save_checkpoint(tmp_path, CheckpointFacts(step=3, fingerprint="x", seconds=(0.5,) * 3), {"a": torch.ones(2)})
    (tmp_path / "step-00000004.tmp").mkdir()
    facts, tensors = load_checkpoint(tmp_path)
    assert (facts.step, tensors["a"].tolist()) == (3, [1.0, 1.0])
    (tmp_path / "step-00000003" / "state-000.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="damaged checkpoint"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_many_files_is_read_back_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("soloist.toolchain.distill.checkpoint._FILE_BYTES", 64)
    tensors = {f"w{i}": torch.full((10,), float(i)) for i in range(5)}
    save_checkpoint(tmp_path, CheckpointFacts(step=1, fingerprint="x", seconds=(0.5,)), tensors)
    files = sorted((tmp_path / "step-00000001").glob("*.safetensors"))
    assert len(files) == 5, "of 40 bytes each, one fits a file"
    _, again = load_checkpoint(tmp_path)
    assert {name: tensor.tolist() for name, tensor in again.items()} == {n: t.tolist() for n, t in tensors.items()}
    files[2].unlink()
    with pytest.raises(ArtifactError, match="damaged checkpoint"):
        load_checkpoint(tmp_path)


def test_precision_is_chosen_with_a_reason():
    assert choose_precision("fp32", torch.device("cpu")) == (torch.float32, "asked for fp32")
    dtype, reason = choose_precision("auto", torch.device("cpu"))
    assert dtype in (torch.float32, torch.bfloat16)
    assert "CPU" in reason
