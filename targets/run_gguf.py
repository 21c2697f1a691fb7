"""The in-process GGUF runtime: llama.cpp through its C interface (llama_library.py).

Why not a package's own class or server: it holds one sequence, or gives no logits. Here every agent keeps its
own sequence ("slot") in the KV cache: a call computes only what its slot does not hold yet, and calls that do
not depend on each other (`chat_many`) are decoded in one batch, so that the weights are read once for all of
them. A team is thus measured as fast as it can be here. Left out: image input, draft models, sessions on disk.
"""

from __future__ import annotations

import ctypes
import re
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soloist.kernels.errors import ArtifactError, EngineError
from soloist.targets.base import Message, Reply, Sampling, default_threads, require
from soloist.targets.decode import before_stop, common_prefix, sample
from soloist.targets.gguf_file import check_gguf
from soloist.targets.gguf_tokenizer import NORMALIZER
from soloist.targets.llama_library import llama
from soloist.targets.portable.template import Render, chat_template

Logits = npt.NDArray[np.float32]
_UBATCH = 512


@dataclass
class _Slot:
    """One sequence of the KV cache: the tokens it holds, and when it was last used."""

    index: int
    tokens: list[int] = field(default_factory=list)
    used: int = 0


@dataclass
class Request:
    """One call of a batch."""

    messages: Sequence[Message]
    sampling: Sampling = field(default_factory=Sampling)
    grammar: str | None = None
    on_text: Callable[[str], None] | None = None


@dataclass
class _Job:
    """A request under way."""

    request: Request
    prompt: list[int]
    slot: _Slot
    cached: int
    grammar: Any
    random: np.random.Generator
    start: float
    out: list[int] = field(default_factory=list)
    data: bytes = b""
    shown: int = 0
    first: float = 0.0
    end: float = 0.0
    finish: str | None = None


class GgufRuntime:
    """A GGUF model with `slots` cached sequences of at most `context` tokens each, on `threads` cores.

    Raises:
        ArtifactError: the file is missing, is not GGUF, or normalizes text in an unknown way, or llama.cpp refuses it.
    """

    def __init__(self, path: Path, *, slots: int = 1, context: int = 2048, threads: int | None = None) -> None:
        check_gguf(path)
        require("jinja2", "gguf")
        self._lib: Any = llama()
        self.name = path.stem
        self.path = path
        self._context_size = context
        self._slots = list(map(_Slot, range(slots)))
        self._clock = 0
        self._embedding_slot = -1  # the slot `embed` took, and takes again
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise ArtifactError(f"{path}: llama.cpp cannot load this file (truncated, or an unknown architecture)")
        self._context = self._open_context(slots, context, threads or default_threads())
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self._size = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._batch_size = max(context, _UBATCH)
        self._batch = self._lib.llama_batch_init(self._batch_size * min(slots, 4), 0, 1)
        self._capacity = self._batch_size * min(slots, 4)
        self._render = self._chat_template()
        self._special: re.Pattern[str] | None = None
        self._normal = self.metadata(NORMALIZER)
        if self._normal not in (None, "NFC"):
            raise ArtifactError(f"{path}: normalizes text by '{self._normal}', this version by NFC; update Soloist")

    def _open_context(self, slots: int, context: int, threads: int) -> Any:
        p = self._lib.llama_context_default_params()
        p.n_ctx = slots * context
        p.n_seq_max = slots
        p.kv_unified = False  # one stream per slot: a call attends over its own tokens, not over all slots
        p.n_batch = max(context, _UBATCH) * min(slots, 4)
        p.n_ubatch = _UBATCH
        p.n_threads = p.n_threads_batch = threads
        p.no_perf = True
        opened = self._lib.llama_init_from_model(self._model, p)
        if not opened:
            raise ArtifactError(f"{self.path}: llama.cpp cannot open a context of {slots} x {context} tokens")
        return opened

    def metadata(self, key: str) -> str | None:
        """A metadata value of the file as text, or None."""
        buffer = ctypes.create_string_buffer(1 << 17)
        size = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else None

    def _chat_template(self) -> Render:
        template = self.metadata("tokenizer.chat_template")
        if not template:
            raise ArtifactError(f"{self.path}: the file has no chat template")
        special = {}
        for name in ("bos", "eos"):
            token = getattr(self._lib, f"llama_vocab_{name}")(self._vocab)
            special[f"{name}_token"] = self._piece(token).decode("utf-8", "replace") if token >= 0 else ""
        try:
            return chat_template(template, special)
        except ArtifactError as error:
            raise ArtifactError(f"{self.path}: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        return self._render(messages)

    def tokenize(self, text: str) -> list[int]:
        data = self._normalized(text).encode()
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, room, False, True)
        if count < 0:
            raise EngineError(f"{self.name}: cannot tokenize a text of {len(data)} bytes")
        return list(tokens[:count])

    def _normalized(self, text: str) -> str:
        """As the student's own tokenizer does between special tokens, and llama.cpp does not."""
        if self._normal is None or unicodedata.is_normalized("NFC", text):
            return text
        if self._special is None:
            self._special = self._special_pattern()
        parts = self._special.split(text)
        parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]  # special tokens stand between them
        return "".join(parts)

    def _special_pattern(self) -> re.Pattern[str]:
        """What matches one special token, the longest first."""
        kinds = self._lib.LLAMA_TOKEN_ATTR_CONTROL | self._lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        texts = []
        for token in range(self._size):
            if self._lib.llama_vocab_get_attr(self._vocab, token) & kinds:
                texts.append(re.escape(self._piece(token).decode("utf-8", "replace")))
        return re.compile(f"({'|'.join(sorted(texts, key=len, reverse=True)) or '(?!)'})")

    def _piece(self, token: int, *, special: bool = True) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        size = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[: max(size, 0)]

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        grammar: str | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        return self.chat_many([Request(messages, sampling, grammar, on_text)])[0]

    def chat_many(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer several independent requests in one batch. Replies stand in the order of the requests."""
        replies: list[Reply] = []
        for at in range(0, len(requests), len(self._slots)):
            jobs = self._start(requests[at : at + len(self._slots)])
            try:
                self._finish(jobs)
            finally:
                for job in jobs:
                    if job.grammar is not None:
                        self._lib.llama_sampler_free(job.grammar)
            replies += map(self._reply, jobs)
        return replies

    def _start(self, requests: Sequence[Request]) -> list[_Job]:
        jobs: list[_Job] = []
        started = time.perf_counter()
        for request in requests:
            prompt = self.tokenize(self.render(request.messages))
            if len(prompt) + 2 > self._context_size:
                raise EngineError(
                    f"{self.name}: a prompt of {len(prompt)} tokens does not fit the context of {self._context_size}"
                )
            slot, cached = self._claim(prompt, {job.slot.index for job in jobs})
            rules = None
            if request.grammar is not None:
                rules = self._lib.llama_sampler_init_grammar(self._vocab, request.grammar.encode(), b"root")
                if not rules:
                    raise EngineError(f"{self.name}: llama.cpp cannot read the grammar:\n{request.grammar}")
            random = np.random.default_rng(request.sampling.seed)
            jobs.append(_Job(request, prompt, slot, cached, rules, random, started))
        return jobs

    def _claim(self, prompt: list[int], busy: set[int]) -> tuple[_Slot, int]:
        """The slot that saves most work and the number of tokens it saves. At least one token is computed."""
        memory = self._lib.llama_get_memory(self._context)
        shared = [common_prefix(slot.tokens, prompt) for slot in self._slots]
        self._clock += 1
        best = max(self._slots, key=lambda slot: (shared[slot.index], slot.index not in busy))
        prefix = shared[best.index]
        worth = 2 * prefix >= len(prompt)  # else the slot's owner keeps what it holds
        if best.index not in busy and (worth or not best.tokens):
            slot = best
        else:
            free = [slot for slot in self._slots if slot.index not in busy]
            slot = min(free, key=lambda slot: (bool(slot.tokens), slot.used))
            prefix = shared[slot.index]
            if worth:
                self._lib.llama_memory_seq_rm(memory, slot.index, -1, -1)
                self._lib.llama_memory_seq_cp(memory, best.index, slot.index, -1, -1)
                prefix = shared[best.index]
                slot.tokens = list(best.tokens[:prefix])
        keep = min(prefix, len(prompt) - 1)
        self._lib.llama_memory_seq_rm(memory, slot.index, keep, -1)
        slot.tokens = slot.tokens[:keep]
        slot.used = self._clock
        return slot, keep

    def _finish(self, jobs: Sequence[_Job]) -> None:
        """Prefill all prompts, then decode all jobs together until each has ended."""
        pending = [(job, job.prompt[job.cached :]) for job in jobs]
        while pending:
            group, size = [], 0
            while pending and size + len(pending[0][1]) <= self._capacity:
                size += len(pending[0][1])
                group.append(pending.pop(0))
            self._step(group)
        while active := [job for job in jobs if job.finish is None]:
            self._step([(job, [job.out[-1]]) for job in active])

    def _step(self, work: Sequence[tuple[_Job, list[int]]]) -> None:
        """Compute `tokens` for each job and sample its next token."""
        rows, n = [], 0
        for job, tokens in work:
            at = len(job.slot.tokens)
            for offset, token in enumerate(tokens):
                self._put(n, token, at + offset, job.slot.index, logits=offset == len(tokens) - 1)
                n += 1
            rows.append(n - 1)
            job.slot.tokens.extend(tokens)
        self._decode(n)
        for (job, _), row in zip(work, rows, strict=True):
            self._take(job, self._row(row))

    def _put(self, n: int, token: int, position: int, sequence: int, *, logits: bool) -> None:
        batch = self._batch
        batch.token[n] = token
        batch.pos[n] = position
        batch.n_seq_id[n] = 1
        batch.seq_id[n][0] = sequence
        batch.logits[n] = logits

    def _decode(self, n: int) -> None:
        self._batch.n_tokens = n
        code = self._lib.llama_decode(self._context, self._batch)
        if code != 0:
            for slot in self._slots:
                slot.tokens = []
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
            raise EngineError(f"{self.name}: llama.cpp could not compute a batch of {n} tokens (code {code})")

    def _row(self, index: int) -> Logits:
        pointer = self._lib.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, shape=(self._size,))

    def _take(self, job: _Job, logits: Logits) -> None:
        """Sample a token for the job and see whether it ends there."""
        token = self._sample(job, logits)
        now = time.perf_counter()
        job.first = job.first or now
        job.end = now
        if self._lib.llama_vocab_is_eog(self._vocab, token):
            job.finish = "stop"
        else:
            job.out.append(token)
            job.data += self._piece(token, special=False)
            self._show(job)
            if any(stop.encode() in job.data for stop in job.request.sampling.stop):
                job.finish = "stop"
            elif len(job.out) >= job.request.sampling.max_tokens or len(job.slot.tokens) + 1 >= self._context_size:
                job.finish = "length"
        if job.finish is None and job.grammar is not None:
            self._lib.llama_sampler_accept(job.grammar, token)

    def _show(self, job: _Job) -> None:
        if job.request.on_text is None:
            return
        text = job.data[job.shown :].decode("utf-8", "ignore")
        if text:
            job.shown += len(text.encode())
            job.request.on_text(text)

    def _sample(self, job: _Job, logits: Logits) -> int:
        """Greedy or sampled; under a grammar the whole vocabulary is checked only if the first choice is refused."""
        sampling = job.request.sampling
        if job.grammar is None:
            return sample(logits, sampling, job.random)
        token = sample(logits, sampling, job.random)
        if self._allowed(job, np.array([token], dtype=np.int32)).size:
            return token
        order = np.argsort(-logits)
        for count in (64, 1024, len(order)):
            allowed = self._allowed(job, order[:count].astype(np.int32))
            if allowed.size:
                return int(allowed[sample(logits[allowed], sampling, job.random)])
        raise EngineError(f"{self.name}: the grammar allows no token after '{job.data.decode('utf-8', 'replace')}'")

    def _allowed(self, job: _Job, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        data = (self._lib.llama_token_data * len(tokens))()
        for entry, token in zip(data, tokens, strict=True):
            entry.id, entry.logit = int(token), 1.0
        array = self._lib.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
        self._lib.llama_sampler_apply(job.grammar, ctypes.byref(array))
        allowed = [entry.id for entry in data[: array.size] if entry.logit > -1e30]
        return np.array(allowed, dtype=np.int32)

    def _reply(self, job: _Job) -> Reply:
        return Reply(
            text=before_stop(job.data.decode("utf-8", "replace"), job.request.sampling.stop),
            tokens_in=len(job.prompt),
            tokens_cached=job.cached,
            tokens_out=len(job.out) or 1,
            start=job.start,
            first_token=job.first,
            end=job.end,
            finish=job.finish or "length",
        )

    def logits(self, tokens: Sequence[int]) -> Logits:
        if len(tokens) > self._context_size:
            raise EngineError(f"{self.name}: {len(tokens)} tokens do not fit the context of {self._context_size}")
        self._decode_all(self._slots[0], tokens)
        return np.stack([self._row(i) for i in range(len(tokens))])

    def embed(self, text: str) -> tuple[npt.NDArray[np.float32], int]:
        """Mean of the last hidden states over the tokens of `text`, shape (width,), and the number of tokens.

        Uses the slot that was used least recently; a runtime that also chats should have one to spare.
        """
        tokens = self.tokenize(text)[: self._context_size]
        slot = min(self._slots, key=lambda s: s.used if s.index != self._embedding_slot else -1)
        self._embedding_slot = slot.index
        self._lib.llama_set_embeddings(self._context, True)
        try:
            self._decode_all(slot, tokens)
            width = int(self._lib.llama_model_n_embd(self._model))
            states = []
            for i in range(len(tokens)):
                pointer = self._lib.llama_get_embeddings_ith(self._context, i)
                states.append(np.ctypeslib.as_array(pointer, shape=(width,)))
            mean = np.mean(states, axis=0)
        finally:
            self._lib.llama_set_embeddings(self._context, False)
        return mean.astype(np.float32), len(tokens)

    def _decode_all(self, slot: _Slot, tokens: Sequence[int]) -> None:
        """Compute `tokens` from the beginning of a slot, with an output for each."""
        self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), slot.index, -1, -1)
        slot.tokens = list(tokens)
        for i, token in enumerate(tokens):
            self._put(i, token, i, slot.index, logits=True)
        self._decode(len(tokens))

    def close(self) -> None:
        if self._context is not None:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = None
