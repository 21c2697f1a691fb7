"""llama.cpp's own server on loopback: a real OpenAI-compatible endpoint that somebody else wrote.

`xllamacpp` carries it; it runs in a process of its own, on one core.
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

NEEDS = ("openai", "xllamacpp")
_SERVER = """
import sys
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.model_alias = {"local"}
params.n_ctx, params.n_parallel = 1024, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()  # until whoever started it is gone
"""


def missing():
    """What has to be installed for it and is not."""
    return [name for name in NEEDS if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def serve(model, log, *, seconds=90):
    """Serve a GGUF file as the model `local`, for as long as the block lasts. Gives the URL; writes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-c", _SERVER, str(model), str(port)]
    url = f"http://127.0.0.1:{port}/v1"
    environment = {key: value for key, value in os.environ.items() if "KEY" not in key}
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment) as process,
    ):
        try:
            deadline = time.monotonic() + seconds
            while not _answers(url):
                said = log.read_text(errors="replace")[-2000:]
                assert process.poll() is None, f"the server ended: {said}"
                assert time.monotonic() < deadline, f"the server did not start in {seconds} s: {said}"
                time.sleep(0.2)
            yield url
        finally:
            process.kill()  # it holds nothing that has to be closed
            process.wait(20)


def _answers(url):
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5):
            return True
    except OSError:
        return False
