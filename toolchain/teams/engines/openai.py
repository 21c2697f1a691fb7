"""Any OpenAI-compatible endpoint, through the `openai` client: its retries, back-off and time-outs.

Streams every call, because the time to the first token is part of what we measure. The key comes from
the environment and goes nowhere else: not into traces, logs or errors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from soloist.kernels.errors import EngineError
from soloist.targets.base import Reply, require
from soloist.toolchain.teams.config import OpenAIEngineConfig
from soloist.toolchain.teams.engines.base import Ask


class OpenAIEngine:
    """Calls run in threads, at most `concurrency` at a time."""

    def __init__(self, config: OpenAIEngineConfig) -> None:
        self._openai: Any = require("openai", "api")
        self._config = config
        self.model = config.model
        key = os.environ.get(config.key_env)
        if not key:
            if config.base_url is None:
                raise EngineError(f"no API key: set the environment variable {config.key_env}")
            key = "none"  # local servers ask for no key, the client insists on one
        self._client = self._openai.OpenAI(
            api_key=key, base_url=config.base_url, timeout=config.timeout, max_retries=config.retries
        )
        self._pool = ThreadPoolExecutor(max_workers=config.concurrency)

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        return list(self._pool.map(self._one, asks))

    def _one(self, ask: Ask) -> Reply:
        sampling = ask.sampling
        extra: dict[str, Any] = {}
        if ask.grammar is not None and self._config.grammar:
            extra["extra_body"] = {"grammar": ask.grammar}
        start = time.perf_counter()
        try:
            stream = self._client.chat.completions.create(
                model=ask.model or self.model,
                messages=list(ask.messages),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=sampling.seed,
                stop=list(sampling.stop) or None,
                stream=True,
                stream_options={"include_usage": True},
                **extra,
            )
            return self._collect(stream, start)
        except self._openai.OpenAIError as error:
            raise EngineError(self._explain(error)) from error

    def _collect(self, stream: Any, start: float) -> Reply:  # noqa: ANN401 - the client's stream
        parts: list[str] = []
        first, finish, usage, chunks = 0.0, "stop", None, 0
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices[:1]:
                text = choice.delta.content or ""
                if text:
                    first = first or time.perf_counter()
                    chunks += 1
                    parts.append(text)
                finish = choice.finish_reason or finish
        end = time.perf_counter()
        details = getattr(usage, "prompt_tokens_details", None)
        return Reply(
            text="".join(parts),
            tokens_in=usage.prompt_tokens if usage else 0,
            tokens_cached=getattr(details, "cached_tokens", 0) or 0,
            tokens_out=usage.completion_tokens if usage else chunks,
            start=start, first_token=first or end, end=end, finish=finish,
        )  # fmt: skip

    def _explain(self, error: Exception) -> str:
        where = self._config.base_url or "the endpoint"
        status = getattr(error, "status_code", None)
        if status is not None:
            hint = {401: f"; is {self._config.key_env} right?", 404: f"; is the model '{self.model}' served there?"}
            return f"{where} answered HTTP {status} after {self._config.retries} retries{hint.get(status, '')}"
        if isinstance(error, self._openai.APITimeoutError):
            return f"{where} did not answer within {self._config.timeout:g} s ({self._config.retries} retries)"
        if isinstance(error, self._openai.APIConnectionError):
            return f"{where} cannot be reached ({self._config.retries} retries): is the server running?"
        return f"{where}: {type(error).__name__}"

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()
