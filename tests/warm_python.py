"""A Python that has imported the slow packages already: subprocesses of the tests start as forks of it.

torch and transformers take five seconds of a core to import, and every worker of the gate, every measured system and
every run of the ONNX builder imports them again. `warm` starts a server that has imported them, and gives a program
that takes Python's arguments (`-P`, `-W`, `-m` or a script): streams, environment, folder, exit code and signals are
those of a fork, which ends with the program. Left out: what happens before the first import (`sitecustomize`); tests
of that, of crashes and of memory start Python itself. Linux only (pidfd).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "accelerate",
    "gguf",
    "onnx_ir",
    "openai",
    "soloist.toolchain.teams.process",
    "soloist.toolchain.teams.team",
)
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
told = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(told).to_bytes(8, "little")], [0, 1, 2])
server.sendall(told)
code = int(server.makefile().readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextlib.contextmanager
def warm():
    """The path of the program, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:  # the name of a socket is 107 characters long at most
        address, program = Path(folder, "socket"), Path(folder, "python")
        program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
        program.chmod(0o755)
        command = [sys.executable, "-P", "-W", "ignore", __file__, str(address)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout.readline() == "ready\n"
            try:
                yield str(program)
            finally:
                server.terminate()


def serve(address: str) -> None:
    """Take connections; returns in a fork that has become the process that was asked for."""
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return keep(connection)
        connection.close()


def keep(connection: socket.socket) -> None:
    """Start the process, tell how it ended, and end it if nobody is left to be told."""
    start, streams, *_ = socket.recv_fds(connection, 8, 3)
    told = connection.makefile("rb").read(int.from_bytes(start, "little"))
    child = os.fork()
    if child == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os._exit(become(*json.loads(told)))
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    ready, _, _ = select.select([ended := os.pidfd_open(child), connection], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def become(arguments: list[str], environment: dict[str, str], folder: str) -> int:
    """Do what `python ARGUMENTS` does; the exit code."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    warnings.resetwarnings()
    while arguments[0] in ("-P", "-W"):
        if arguments.pop(0) == "-W":
            warnings.simplefilter(arguments.pop(0))
    module = arguments[0] == "-m" and arguments.pop(0)
    sys.argv = list(arguments)
    code = 0
    try:
        if module:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        if isinstance(asked.code, str):
            print(asked.code, file=sys.stderr)
    except BaseException:  # as the interpreter would
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1])
