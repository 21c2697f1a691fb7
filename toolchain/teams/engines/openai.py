"""Any OpenAI-compatible endpoint, through the `openai` client: its retries, back-off and time-outs.

Streams every call, because the time to the first token is part of what we measure; an answer that breaks
off is asked for again, as often as a refused connection. The key comes from the environment and goes
nowhere else: not into traces, logs or errors. Left out: servers that count no tokens while streaming
(llama-cpp-python's is one) leave `tokens_in` at 0; `stream: false` gets the count and loses the first token.
That server also drops an answer when the next call comes in: give it `--interrupt_requests false`.
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

FIRST_DELAY = 0.5  # seconds before an answer that broke off is asked for again; doubled each time


class OpenAIEngine:
    """Calls run in threads, at most `concurrency` at a time."""

    def __init__(self, config: OpenAIEngineConfig) -> None:
        self._openai: Any = require("openai", "api")
        self._config = config
        self.model = config.model
        variable = config.key_env or (None if config.base_url else "OPENAI_API_KEY")
        key = os.environ.get(variable) if variable else None
        if variable and not key:
            raise EngineError(f"no API key: set the environment variable {variable}")
        self._key = key
        self._client = self._openai.OpenAI(  # local servers ask for no key, the client insists on one
            api_key=key or "none", base_url=config.base_url, timeout=config.timeout, max_retries=config.retries
        )
        self._pool = ThreadPoolExecutor(max_workers=config.concurrency)

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        return list(self._pool.map(self._one, asks))

    def _one(self, ask: Ask) -> Reply:
        start = time.perf_counter()
        for attempt in range(self._config.retries + 1):
            if attempt:
                time.sleep(min(8.0, FIRST_DELAY * 2 ** (attempt - 1)))
            try:
                answer = self._create(ask)  # the client itself retries what fails before the answer begins
            except self._openai.OpenAIError as error:
                raise EngineError(self._explain(error)) from error
            try:
                reply = self._collect(answer, start) if self._config.stream else self._whole(answer, start)
                if reply is not None:
                    return reply
            except self._openai.APITimeoutError as error:
                if attempt == self._config.retries:
                    raise EngineError(self._explain(error)) from error
            except self._openai.APIConnectionError:
                continue
            except self._openai.OpenAIError as error:
                raise EngineError(self._explain(error)) from error
            except ValueError as error:
                raise EngineError(f"{self._where} sent an answer that is not JSON") from error
        raise EngineError(
            f"{self._where} broke off its answer ({self._config.retries} retries): "
            f"does it take {self._config.concurrency} calls at once?"
        )

    def _create(self, ask: Ask) -> Any:
        sampling = ask.sampling
        extra: dict[str, Any] = {}
        if ask.grammar is not None and self._config.grammar:
            extra["extra_body"] = {"grammar": ask.grammar}
        if self._config.stream:
            extra |= {"stream": True, "stream_options": {"include_usage": True}}
        if sampling.stop:
            extra["stop"] = list(sampling.stop)
        return self._client.chat.completions.create(
            model=ask.model or self.model,
            messages=list(ask.messages),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            **extra,
        )

    def _collect(self, stream: Any, start: float) -> Reply | None:
        """The reply, or None where the stream ended before the answer did."""
        parts: list[str] = []
        first, finish, usage, began = 0.0, None, None, False
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices[:1]:
                began = True
                finish = choice.finish_reason or finish
                if choice.delta.content:
                    first = first or time.perf_counter()
                    parts.append(choice.delta.content)
        if began and finish is None:
            return None
        if finish is None:
            raise EngineError(f"{self._where} sent no answer: is it an OpenAI-compatible endpoint?")
        return self._reply("".join(parts), usage, len(parts), start, first, finish)

    def _whole(self, answer: Any, start: float) -> Reply:
        choices = getattr(answer, "choices", None)
        if not choices:
            raise EngineError(f"{self._where} sent no answer: is it an OpenAI-compatible endpoint?")
        text = choices[0].message.content or ""
        return self._reply(text, answer.usage, 0, start, 0.0, choices[0].finish_reason or "stop")

    def _reply(self, text: str, usage: Any, chunks: int, start: float, first: float, finish: str) -> Reply:
        end = time.perf_counter()
        details = getattr(usage, "prompt_tokens_details", None)
        return Reply(
            text=text,
            tokens_in=usage.prompt_tokens if usage else 0,
            tokens_cached=getattr(details, "cached_tokens", 0) or 0,
            tokens_out=usage.completion_tokens if usage else chunks,
            start=start,
            first_token=first or end,
            end=end,
            finish=finish,
        )

    @property
    def _where(self) -> str:
        return self._config.base_url or "the endpoint"

    def _explain(self, error: Exception) -> str:
        retried = f"{self._config.retries} retries"
        status = getattr(error, "status_code", None)
        if status is not None:
            if status in (408, 409, 429) or status >= 500:
                return f"{self._where} answered HTTP {status} after {retried}"
            hints = {
                401: "; is the key right that key_env names?",
                404: f"; is the model '{self.model}' served there?",
            }
            return f"{self._where} answered HTTP {status}{hints.get(status) or self._reason(error)}"
        if isinstance(error, self._openai.APITimeoutError):
            return f"{self._where} did not answer within {self._config.timeout:g} s ({retried})"
        if isinstance(error, self._openai.APIConnectionError):
            return f"{self._where} cannot be reached ({retried}): is the server running?"
        return f"{self._where}: {type(error).__name__}{self._reason(error)}"

    def _reason(self, error: Exception) -> str:
        """What the server says about a call it refuses, as part of one line and without the key."""
        body = getattr(error, "body", None)
        message = body.get("message") if isinstance(body, dict) else None
        if not message:
            return ""
        text = str(message).replace(self._key, "<key>") if self._key else str(message)
        return ": " + " ".join(text.split())[:200]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()
