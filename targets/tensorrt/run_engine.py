"""Runs a TensorRT engine of a student: the cache on the GPU, one sequence. Needs TensorRT, its driver and numpy.

    python3 run_engine.py "What is 12 + 30?"     with the `tokenizers` package; greedy
    engine = Engine(folder); logits = engine.feed([1, 5, 9])

The engine takes past keys and values and returns them with the new ones behind: two sets of buffers change places after
every step, so that nothing is copied but what the graph copies. Memory comes from CUDA's driver through ctypes: neither
torch nor cuda-python is needed on a device. This file is a module of Soloist (soloist.targets.tensorrt.run_engine),
exported as it is; `runner` makes a runtime of it. Left out: sampling, batches, CUDA graphs.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIDECAR = "engine.json"
SCHEMA = 1
PROFILES = ("prefill", "decode")  # in the order of the engine


class EngineFault(Exception):
    """What is wrong with an engine or where it is to run, and what to do."""


class Gpu:
    """Memory and one stream of the first GPU, by CUDA's driver. Raises EngineFault."""

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            self._driver = ctypes.CDLL(name)
        except OSError as error:
            raise EngineFault(f"no NVIDIA driver here ({error}): an engine runs on a GPU only") from error
        self._context: ctypes.c_void_p | None = None
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        self._call("cuStreamCreate", ctypes.byref(stream), 1)  # it does not wait for the stream 0
        self._stream = stream
        self._held: list[ctypes.c_uint64] = []

    def _call(self, name: str, *arguments: Any) -> None:
        if self._context is not None:  # whichever thread this is
            self._driver.cuCtxSetCurrent(self._context)
        if code := getattr(self._driver, name)(*arguments):
            raise EngineFault(f"CUDA's {name} failed with error {code}; no GPU, or not enough of its memory")

    @property
    def stream(self) -> int:
        """As TensorRT takes it."""
        return int(self._stream.value or 0)

    def allocate(self, size: int) -> int:
        """An address of so many bytes."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 256)))
        self._held.append(address)
        return int(address.value)

    def upload(self, address: int, values: np.ndarray[Any, Any]) -> None:
        """Copy an array there; it may be reused after `wait`."""
        source = ctypes.c_void_p(values.ctypes.data)
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(values.nbytes), self._stream
        )

    def download(self, values: np.ndarray[Any, Any], address: int) -> None:
        """Fill an array from there, after `wait`."""
        target = ctypes.c_void_p(values.ctypes.data)
        self._call(
            "cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(values.nbytes), self._stream
        )

    def move(self, target: int, source: int, size: int) -> None:
        """Copy bytes on the GPU."""
        places = ctypes.c_uint64(target), ctypes.c_uint64(source)
        self._call("cuMemcpyDtoDAsync_v2", *places, ctypes.c_size_t(size), self._stream)

    def wait(self) -> None:
        """Until all of it is done."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free all of it."""
        for address in self._held:
            self._call("cuMemFree_v2", address)
        self._held.clear()


def read_sidecar(folder: Path) -> dict[str, Any]:
    """engine.json of a folder whose engine is the one it speaks of. Raises EngineFault."""
    file = folder / SIDECAR
    try:
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema, name, wanted = facts["schema"], facts["engine"]["file"], facts["engine"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineFault(f"{file}: not there or not ours ({error}); build the engine again") from error
    if schema != SCHEMA:
        raise EngineFault(f"{file}: schema {schema}, this version reads {SCHEMA}; build the engine again")
    if not (folder / name).is_file():
        raise EngineFault(f"{folder}: {name} is missing; build the engine again")
    if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
        raise EngineFault(
            f"{folder / name} is not the engine that {SIDECAR} speaks of (its hash differs); build it again"
        )
    if facts["options"]["stripped"]:
        raise EngineFault(f"{folder / name} has no weights: build_engine.py --refit {name} puts them in")
    return facts


def load_library(facts: dict[str, Any]) -> Any:
    """The library that built the engine, in its version. Raises EngineFault."""
    built = facts["built_with"]
    try:
        trt = importlib.import_module(built["library"])
    except (ImportError, OSError) as error:  # OSError: a library of CUDA is missing
        raise EngineFault(f"no {built['library']} here ({error}); {facts['target']['install']}") from error
    if built["version"].split(".")[:3] != str(trt.__version__).split(".")[:3]:
        raise EngineFault(
            f"this engine was built with {built['library']} {built['version']}, and here is {trt.__version__}; "
            "build it again"
        )
    return trt


class Engine:
    """An engine with a cache of at most `context` tokens.

    Args:
        gpu: what holds the buffers; the first GPU if not given.

    Raises:
        EngineFault: another version or file, no GPU, or not enough memory.
    """

    def __init__(self, folder: Path, gpu: Any = None) -> None:
        self.facts = read_sidecar(folder)
        model = self.facts["model"]
        self.context, self.piece, self.vocabulary = (int(model[name]) for name in ("context", "piece", "vocabulary"))
        self._heads, self._dim = int(model["kv_heads"]), int(model["head_dim"])
        self._row = self._dim * np.dtype(model["dtype"]).itemsize  # bytes of a head's key
        trt = load_library(self.facts)
        self.gpu = Gpu() if gpu is None else gpu
        self._log = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine((folder / self.facts["engine"]["file"]).read_bytes())
        if self._engine is None:
            raise EngineFault(f"{folder}: {trt.__name__} {trt.__version__} does not load this engine on this GPU")
        self._run = self._engine.create_execution_context()
        if self._run is None:
            raise EngineFault(f"{folder}: not enough memory on this GPU; build with a shorter context")
        self.length = 0
        self._profile = -1
        self._past = [name for name in self.facts["inputs"] if name.startswith("past_")]
        self._present = [name for name in self.facts["outputs"] if name.startswith("present")]
        size = self._heads * self.context * self._row
        self._sets: list[list[int]] = [[], []]  # buffers that a step reads and writes; they change places
        for buffers in self._sets:
            for _ in self._past:
                buffers.append(self.gpu.allocate(size))
        self._fed = {  # of int64
            "input_ids": self.gpu.allocate(8 * self.piece),
            "position_ids": self.gpu.allocate(8 * self.piece),
            "attention_mask": self.gpu.allocate(8 * self.context),
        }
        self._logits = self.gpu.allocate(4 * self.piece * self.vocabulary)

    def crop(self, keep: int) -> None:
        """Forget all but the first `keep` tokens."""
        if keep >= self.length:
            return
        now, other = self._sets
        if keep:
            for source, target in zip(now, other, strict=True):
                for head in range(self._heads):
                    places = target + head * keep * self._row, source + head * self.length * self._row
                    self.gpu.move(*places, keep * self._row)
            self._sets = [other, now]
        self.length = keep

    def feed(self, tokens: Sequence[int], every: bool = False) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits after the last of the tokens, (vocabulary,), or after every one of them, (tokens, vocabulary).

        Raises:
            EngineFault: no tokens, more than fit, or TensorRT stopped.
        """
        if not tokens or self.length + len(tokens) > self.context:
            raise EngineFault(f"{self.length} tokens and {len(tokens)} more: the engine holds {self.context}")
        rows = []
        for at in range(0, len(tokens), self.piece):
            rows.append(self._step(tokens[at : at + self.piece], every))
        return np.concatenate(rows) if every else rows[-1][-1]

    def _step(self, tokens: Sequence[int], every: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One run of the engine; logits of every token, or of the last alone."""
        count, total = len(tokens), self.length + len(tokens)
        profile = PROFILES.index("decode" if count == 1 else "prefill")
        if profile != self._profile:
            if not self._run.set_optimization_profile_async(profile, self.gpu.stream):
                raise EngineFault(f"this engine has no profile {profile}; build it again")
            self._profile = profile
        fed = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.length, total, dtype=np.int64)[None],
        }
        for name, values in fed.items():
            self.gpu.upload(self._fed[name], values)
            self._bind(name, self._fed[name], values.shape)
        now, other = self._sets
        for name, address in zip(self._past, now, strict=True):
            self._bind(name, address, (1, self._heads, self.length, self._dim))
        for name, address in zip(self._present, other, strict=True):
            self._bind(name, address)
        self._bind("logits", self._logits)
        if not self._run.execute_async_v3(self.gpu.stream):
            raise EngineFault("TensorRT stopped in the middle of a step; its messages are above")
        rows = np.empty((count if every else 1, self.vocabulary), np.float32)
        self.gpu.download(rows, self._logits + 4 * self.vocabulary * (count - len(rows)))
        self.gpu.wait()
        self._sets, self.length = [other, now], total
        return rows

    def _bind(self, name: str, address: int, shape: tuple[int, ...] | None = None) -> None:
        fits = shape is None or self._run.set_input_shape(name, shape)
        if not fits or not self._run.set_tensor_address(name, address):
            raise EngineFault(f"the engine takes no '{name}' of {shape}; build it again")

    def close(self) -> None:
        """Free the GPU."""
        self._run = self._engine = self._runtime = None
        self.gpu.close()


def answer(engine: Engine, tokenizer: Any, question: str, most: int) -> tuple[str, int, float]:
    """Greedy text, its tokens, and the seconds after the first of them."""
    before, after = engine.facts["model"]["around"]
    prompt = list(tokenizer.encode(before + question + after, add_special_tokens=False).ids)
    engine.crop(0)
    out: list[int] = []
    logits = engine.feed(prompt)
    start = time.perf_counter()
    while len(out) < most and engine.length + 1 < engine.context:
        token = int(logits.argmax())
        if token in engine.facts["model"]["stop_ids"]:
            break
        out.append(token)
        logits = engine.feed([token])
    return tokenizer.decode(out), len(out), time.perf_counter() - start


def main(given: Sequence[str] | None = None) -> int:
    """0, or 1 with one line that says why."""
    reader = argparse.ArgumentParser(description="Ask a student, a TensorRT engine.")
    reader.add_argument("question")
    reader.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent)
    reader.add_argument("--max-tokens", type=int, default=256)
    options = reader.parse_args(given)
    try:
        tokenizers = importlib.import_module("tokenizers")
        engine = Engine(options.folder)
        tokenizer = tokenizers.Tokenizer.from_file(str(options.folder / "tokenizer.json"))
        text, count, seconds = answer(engine, tokenizer, options.question, options.max_tokens)
        engine.close()
    except ImportError as error:
        print(f"error: {error}; pip install tokenizers", file=sys.stderr)
        return 1
    except EngineFault as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    print(text)
    print(f"{count} tokens, {count / seconds if seconds else 0:.1f} a second", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
