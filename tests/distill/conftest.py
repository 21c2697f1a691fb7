"""A tiny two-layer model with a byte-level tokenizer, hand-written runs, and a recheck that always agrees."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from soloist.toolchain.core.artifact import stage  # noqa: E402
from soloist.toolchain.distill.data import STUDENT_TEMPLATE, encode  # noqa: E402
from soloist.toolchain.distill.model import Student, load_base  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.traces.recording import RECORD, TRACES, summarize  # noqa: E402
from soloist.toolchain.traces.schema import Run, ToolUse, Turn  # noqa: E402
from soloist.toolchain.traces.store import read_runs, write_runs  # noqa: E402

RECORDED = Path(__file__).resolve().parents[2] / "toolchain" / "desk" / "recorded" / "traces.jsonl.gz"


@pytest.fixture(scope="session")
def tokenizer():
    """Bytes as tokens, ChatML marks as special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = STUDENT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, tokenizer) -> Path:
    """A Hugging Face folder of a random two-layer Llama, tied embeddings, grouped heads."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_student(base: Path, dtype: torch.dtype = torch.float32) -> Student:
    model, tokenizer = load_base(base)
    return Student(model.to(dtype), tokenizer, torch.device("cpu"))


@pytest.fixture(scope="session")
def student_of():
    """Builder of students on the CPU: `student_of(base, dtype)`, fp32 unless another type is asked for."""
    return load_student


@pytest.fixture(scope="session")
def recorded_runs() -> list[Run]:
    """The first 60 of the desk's runs that the package ships."""
    return list(islice(read_runs(RECORDED), 60))


@pytest.fixture
def example_of(tokenizer):
    """Builder of conversations: `example_of(*turns, results=…)`, the student's turns and its tools' results."""

    def build(*turns, results=()):
        messages = [{"role": "user", "content": "Go"}]
        for index, turn in enumerate(turns):
            messages.append({"role": "assistant", "content": turn})
            if index < len(results):
                messages.append({"role": "tool", "content": results[index]})
        return encode(messages, tokenizer, "q")

    return build


def make_run(number: int, *, verdict: str = "correct", split: str = "train", calls: int = 1) -> Run:
    """`calls` sums in a row, the last result being the answer."""
    uses, total = [], number
    for index in range(calls):
        add = 3 + index
        uses.append(
            ToolUse(
                name="add",
                arguments={"a": total, "b": add},
                call=f"add({total} | {add})",
                result=str(total + add),
                steps=(f"{total} + {add} = {total + add}",),
            )
        )
        total += add
    question = Question(
        id=f"q{number}",
        question=f"What is {number} plus {total - number}?",
        gold=str(total),
        split=split,
        scorer="number",
    )
    turn = Turn(id=0, agent="reader", role="reader", text=uses[-1].call, tools=tuple(uses))
    return Run(question=question, team="t", turns=(turn,), path=(0,), answer=str(total), verdict=verdict)


@pytest.fixture
def run_of():
    """Builder of runs: `run_of(number, verdict=…, split=…, calls=…)`."""
    return make_run


@pytest.fixture(scope="session")
def record_runs():
    """Recorder of runs: `record_runs(runs, folder)`, the artifact of traces a team would have left there."""

    def record(runs, folder):
        def build(partial):
            write_runs(runs, partial / TRACES)
            return summarize(runs)

        return stage(RECORD, folder, {}, [], build)

    return record


@pytest.fixture
def conversations(tokenizer):
    """Twelve short conversations of different lengths that share beginnings, one with a tool result in the middle."""
    made = []
    for i in range(12):
        messages = [
            {"role": "user", "content": f"What is {i} plus {'1' * (i % 4 + 1)}?"},
            {"role": "assistant", "content": f"add({i} | {'1' * (i % 4 + 1)})"},
        ]
        if i % 3 == 0:
            messages += [{"role": "tool", "content": f"{i * 7}"}, {"role": "assistant", "content": f"done({i})"}]
        made.append(encode(messages, tokenizer, f"q{i}"))
    return made
