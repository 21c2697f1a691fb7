"""llama-cpp-python's own server on loopback: a real OpenAI-compatible endpoint that somebody else wrote.

It counts no tokens while streaming, so a team's engine says `stream: false` where tokens matter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request

NEEDS = ("openai", "llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")


def missing():
    """What has to be installed for it and is not."""
    return [name for name in NEEDS if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def serve(model, log, *, seconds=90):
    """Serve a GGUF file as the model `local`, for as long as the block lasts. Gives the URL; writes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-P",
        "-m",
        "llama_cpp.server",
        "--model",
        str(model),
        "--model_alias",
        "local",
        "--n_ctx",
        "1024",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--n_threads",
        "1",
        "--n_threads_batch",
        "1",
        "--verbose",
        "false",
        "--interrupt_requests",
        "false",  # or an answer is dropped when the next call comes in
    ]
    url = f"http://127.0.0.1:{port}/v1"
    environment = {key: value for key, value in os.environ.items() if "KEY" not in key}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            deadline = time.monotonic() + seconds
            while not _answers(url):
                said = log.read_text(errors="replace")[-2000:]
                assert process.poll() is None, f"the server ended: {said}"
                assert time.monotonic() < deadline, f"the server did not start in {seconds} s: {said}"
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _answers(url):
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5):
            return True
    except OSError:
        return False
