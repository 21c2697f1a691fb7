"""The ONNX runtime: onnxruntime-genai on a folder its builder made.

Tokens are sampled here, not in the library, so that the cache can be cropped (`rewind_to`) and the prefix
two calls share is computed once; the library's own loop measured 112 tokens per second against 100 this
way on two cores. Its telemetry is switched off before anything else. A package is made for one device: one for the CPU
computes attention in float32, of which CUDA has no kernel, so CUDA is for packages whose configuration names it (the
builder's `-e cuda`). Left out: beams, adapters, images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soloist.kernels.errors import ArtifactError, SoloistError, UsageError
from soloist.targets.base import Message, default_threads, first_line, require
from soloist.targets.decode import CachedDecoder, Logits
from soloist.targets.providers import Provider, open_on


def check_onnx(path: Path) -> dict[str, Any]:
    """The genai_config.json of a model folder, its files there. Raises ArtifactError."""
    file = path / "genai_config.json"
    if not file.is_file():
        raise ArtifactError(f"{path}: not an onnxruntime-genai folder (no genai_config.json)")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        model = str(config["model"]["decoder"]["filename"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: not a configuration of onnxruntime-genai ({error})") from error
    for name in (model, "tokenizer.json", "chat_template.jinja"):
        if not (path / name).is_file():
            raise ArtifactError(f"{path}: {name} is missing; export the student again")
    return config


class OnnxRuntime(CachedDecoder):
    """An onnxruntime-genai model with one cached sequence of at most `context` tokens.

    Args:
        provider: what computes, see `soloist.targets.providers`; `note` says what a user should know of it.

    Raises:
        ArtifactError: files are missing or onnxruntime refuses the graph.
        UsageError, ResourceError: a provider there is not, or CUDA where it or the package cannot.
    """

    def __init__(
        self, path: Path, *, context: int = 2048, threads: int | None = None, provider: Provider = "auto"
    ) -> None:
        super().__init__()
        config = check_onnx(path)
        self._og = require("onnxruntime_genai", "onnx")
        self._og.disable_telemetry_events()
        self.name = path.name
        self.context = min(context, int(config["model"]["context_length"]))
        self._template = (path / "chat_template.jinja").read_text(encoding="utf-8")
        session = config["model"]["decoder"].get("session_options", {})
        suits = any("cuda" in options for options in session.get("provider_options", []))
        if provider == "cuda" and not suits:
            raise UsageError(f"{path}: this package was made for the CPU; export onnx-cuda for a GPU")
        try:
            opened = open_on(
                provider,
                suits and self._og.is_cuda_available(),
                lambda device: self._start(path, device, threads),
                lambda model: str(model.device_type).lower() == "cuda",
            )
            self._model, self.note = opened.model, opened.note
            if suits and opened.device == "cpu":
                self.note = opened.note or "made for a GPU, computed on the CPU"
            self._tokenizer: Any = self._og.Tokenizer(self._model)
            parameters = self._og.GeneratorParams(self._model)
            parameters.set_search_options(max_length=self.context, do_sample=False)
            self._generator: Any = self._og.Generator(self._model, parameters)
        except SoloistError:
            raise
        except Exception as error:  # the library raises RuntimeError and its own kinds
            raise ArtifactError(f"{path}: onnxruntime cannot load this model ({first_line(error)})") from error
        self.stop_ids = frozenset(map(int, self._tokenizer.eos_token_ids))

    def _start(self, path: Path, device: str, threads: int | None) -> Any:
        settings = self._og.Config(str(path))
        if device == "cpu":
            settings.clear_providers()
        options = {"intra_op_num_threads": threads or default_threads()}
        settings.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        return self._og.Model(settings)

    def render(self, messages: Sequence[Message]) -> str:
        text = self._tokenizer.apply_chat_template(
            json.dumps(list(messages), ensure_ascii=False), template_str=self._template, add_generation_prompt=True
        )
        return str(text)

    def tokenize(self, text: str) -> list[int]:
        return list(map(int, self._tokenizer.encode(text))) if text else []

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(np.array(tokens, dtype=np.int32)))

    def _feed(self, tokens: Sequence[int], keep: int) -> Logits:
        if keep < len(self._cached):
            self._generator.rewind_to(keep)
        self._generator.append_tokens(np.array(tokens, dtype=np.int32))
        logits: Logits = np.array(self._generator.get_logits(), dtype=np.float32).reshape(-1)
        return logits

    def _feed_all(self, tokens: Sequence[int]) -> Logits:
        self._generator.rewind_to(0)
        self._generator.append_tokens(np.array(tokens, dtype=np.int32))
        rows: Logits = np.array(self._generator.get_output("logits"), dtype=np.float32)
        return rows.reshape(len(tokens), -1)

    def close(self) -> None:
        self._generator = self._tokenizer = self._model = None
        self._cached = []
