"""The student in memory: a Hugging Face causal model that runs on packed batches.

`logits` is the one way every method reads the student: next-token logits at the trained positions only,
since a vocabulary-wide product at every position is the largest single cost of a small model. The
input embedding is looked up outside the graph and its gradient added to the touched rows: torch would
build a second dense gradient of the whole table. Weights are bf16 while training in bf16; what is
updated are the fp32 copies in `optimizer.py`. LoRA wraps the model with peft and is merged before it
is saved. Left out: quantized bases.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.base import Message, require
from soloist.toolchain.distill.data import encode, prepare_tokenizer
from soloist.toolchain.distill.packing import Batch, pack, use_packed_attention

_PACKING_TOLERANCE = 2e-3  # of the largest logit, fp32; a wrong layout is off by tenths, TF32 by 1e-4
Precision = Literal["auto", "fp32", "bf16"]


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep freed memory for a while, and hand all of it back at the end.

    Otherwise it returns large buffers to the kernel after every operation, and each activation is mapped
    and zeroed anew, a good part of a training step on a small CPU. Without glibc this does nothing.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    assert libc is not None
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(mmap_max, 65536)  # both are glibc's own defaults
        libc.mallopt(trim_threshold, 128 * 1024)
        libc.malloc_trim(0)


def load_base(base: Path) -> tuple[Any, Any]:
    """Model (fp32) and tokenizer of a Hugging Face folder or a GGUF file.

    Raises:
        ArtifactError: missing, foreign or damaged.
    """
    if base.is_file():
        from soloist.targets.from_gguf import from_gguf

        with tempfile.TemporaryDirectory() as folder:
            from_gguf(base, Path(folder), dtype="float32")
            return load_base(Path(folder))
    tokenizer = _tokenizer(base)
    transformers = require("transformers", "train")
    with _explained(base), no_progress_bar():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(base),
            dtype=torch.float32,
            use_safetensors=True,  # the other format is a pickle
        )
    return model, tokenizer


def check_base(base: Path) -> None:
    """Refuse early, without reading weights, what could not be trained on.

    Raises:
        ArtifactError: missing, foreign or damaged.
        DataError: no chat template.
    """
    if base.is_file():
        from soloist.targets.gguf_file import read_gguf

        read_gguf(base)
    else:
        prepare_tokenizer(_tokenizer(base))


def _tokenizer(base: Path) -> Any:
    if not (base / "config.json").is_file():
        raise ArtifactError(f"{base}: neither a GGUF file nor a Hugging Face folder (no config.json)")
    with _explained(base):
        return require("transformers", "train").AutoTokenizer.from_pretrained(str(base))


@contextlib.contextmanager
def _explained(base: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{base}: not a model that transformers can load ({error})") from error


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Without the bar that transformers draws while it loads or saves."""
    logging = require("transformers", "train").utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def choose_precision(precision: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the weights that compute, and why.

    bf16 pays where the hardware multiplies it; elsewhere it is emulated and slower than fp32.
    """
    if precision != "auto":
        return (torch.bfloat16 if precision == "bf16" else torch.float32), f"asked for {precision}"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "the GPU multiplies bf16") if fast else (torch.float32, "the GPU has no bf16")
    if device.type == "cpu":
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
        fast = "avx512_bf16" in flags or "amx_bf16" in flags or " bf16 " in flags
        return (torch.bfloat16, "the CPU multiplies bf16") if fast else (torch.float32, "the CPU has no bf16")
    return torch.float32, f"bf16 is not established on {device.type}"


class Student:
    """A causal model, its tokenizer and how it is trained."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        prepare_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.native_attention = model.config._attn_implementation
        model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
        use_packed_attention(model)
        self.model = model.to(device=device).train()
        self.device = device
        self.lora = False
        self._pending: list[tuple[Tensor, Tensor]] = []  # (ids, gradient) of embeddings looked up

    def verify_packing(self, max_length: int) -> None:
        """Refuse an architecture for which a packed batch is not what the unchanged model computes.

        Two short conversations with a common beginning are enough to see a layout that is not understood.
        """
        window = getattr(self.model.config, "sliding_window", None)
        if window is not None and window < max_length:
            raise UsageError(f"max_length {max_length} exceeds the model's attention window of {window} tokens")
        examples = []
        for question, answer in (("What is 1 + 1?", "2"), ("What is 1 + 2, in words?", "three")):
            messages: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            examples.append(encode(messages, self.tokenizer))
        batch = pack(examples).to(self.device)
        with torch.no_grad():
            packed = self.logits(batch)
            self.model.set_attn_implementation(self.native_attention)
            for owner, example in enumerate(examples):
                alone = self.model(torch.tensor([example.ids], device=self.device)).logits[0, :-1]
                alone = alone[torch.tensor(example.trained[1:], device=self.device)]
                gap = float((alone - packed[batch.owners == owner]).abs().max() / alone.abs().max())
                if not gap < _PACKING_TOLERANCE:
                    name = type(self.model).__name__
                    raise ArtifactError(
                        f"{name}: packed batches differ from the model by {gap:.1e}; choose another base"
                    )
        use_packed_attention(self.model)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Round the weights to `dtype`, once the optimizer holds their exact copies.

        The order matters: copies of weights that were rounded first would all lie in the middle of a
        rounding interval, and small updates would not show in the rounded weights for many steps.
        """
        self.model.to(dtype)

    def add_lora(self, rank: int, alpha: float) -> None:
        """Freeze the model and train low-rank additions to every linear layer instead."""
        peft = require("peft", "train")
        config = peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        with warnings.catch_warnings():
            # peft 0.19 asks transformers 5 for a renamed attribute
            warnings.simplefilter("ignore", FutureWarning)
            self.model = peft.get_peft_model(self.model, config, autocast_adapter_dtype=False)
        self.lora = True

    @property
    def embedding(self) -> nn.Module:
        module: nn.Module = self.model.get_input_embeddings()
        return module

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What is trained, tied weights once."""
        return [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]

    def logits(self, batch: Batch) -> Tensor:
        """Next-token logits at the batch's trained positions, (R, vocabulary)."""
        logits: Tensor = self._forward(batch).logits[0]
        return logits

    def logits_and_states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same, and the last hidden state of every node of the trie, (T, width)."""
        output = self._forward(batch, output_hidden_states=True)
        return output.logits[0], output.hidden_states[-1][0]

    @property
    def width(self) -> int:
        """The size of a hidden state."""
        return int(self.model.config.hidden_size)

    def _forward(self, batch: Batch, **more: Any) -> Any:
        return self.model(
            **self._inputs(batch),
            **more,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.rows,
            soloist_batch=batch,
        )

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        table = self.embedding
        if type(table) is not nn.Embedding or table.max_norm is not None or not table.weight.requires_grad:
            return {"input_ids": batch.ids}
        looked_up = table.weight.detach()[batch.ids].requires_grad_()
        looked_up.register_hook(lambda gradient: self._pending.append((batch.ids[0], gradient[0])))
        return {"inputs_embeds": looked_up}

    def backward(self, loss: Tensor) -> None:
        """Back-propagate, then add the input embedding's gradient to the rows that were looked up."""
        self._pending = []
        loss.backward()
        table = self.embedding
        for ids, gradient in self._pending:
            assert isinstance(table, nn.Embedding)
            if table.weight.grad is None:
                table.weight.grad = torch.zeros_like(table.weight)
            keep = ids != table.padding_idx if table.padding_idx is not None else ids >= 0  # torch skips padding too
            table.weight.grad.index_add_(0, ids[keep], gradient[keep])
        self._pending = []

    def restore(self, master: Mapping[str, Tensor]) -> None:
        """Put exact fp32 weights in the place of the rounded ones that computed."""
        self.model.float()
        with torch.no_grad():
            for name, value in self.named_parameters():
                value.copy_(master[name])

    def save(self, folder: Path, master: Mapping[str, Tensor]) -> None:
        """Write a plain Hugging Face folder in bf16: fp32 `master` weights put in, LoRA merged, rounded once.

        The student can be saved once; it does not train on afterwards.
        """
        self.restore(master)
        model = self.model
        if self.lora:
            model = model.merge_and_unload()
        model.set_attn_implementation(self.native_attention)
        with no_progress_bar():
            model.to(torch.bfloat16).save_pretrained(str(folder), safe_serialization=True)
        self.tokenizer.save_pretrained(str(folder))


def frozen(path: Path, dtype: torch.dtype, device: torch.device) -> Student:
    """A model that is only read: a reference, a judge."""
    reader = Student(*load_base(path), device)
    reader.compute_in(dtype)
    reader.model.eval().requires_grad_(False)
    return reader
