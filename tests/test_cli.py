"""The command line: every command explains itself quickly, and errors are one line with an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from soloist.kernels import errors
from soloist.toolchain.cli import COMMANDS, main

HEAVY = ["torch", "transformers", "onnxruntime", "llama_cpp", "triton", "pydantic", "numpy", "reasoning_gym", "openai"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name):
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from soloist.toolchain.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in out


def test_help_of_commands_imports_no_runtime():
    code = (
        "import sys\n"
        "from soloist.toolchain.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n    try:\n        main([name, '--help'])\n    except SystemExit:\n        pass\n"
        "print('HEAVY', [m for m in ['torch','transformers','onnxruntime','llama_cpp','triton'] if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in out


def test_help_is_quick():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-m", "soloist.toolchain.cli", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3 * float(os.environ.get("SOLOIST_SLOW_MACHINE", "1"))


def test_exit_codes_differ_and_are_drawn():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.SoloistError)]
    assert len({c.exit_code for c in classes}) == len(classes)
    for c in classes:
        assert f"{c.__name__}" in errors.__doc__
        assert f" {c.exit_code} " in errors.__doc__


def test_an_unknown_team_is_one_line_with_its_exit_code():
    result = CliRunner().invoke(main, ["teams", "no-such-team"])
    assert result.exit_code == errors.UsageError.exit_code
    assert result.output.strip().count("\n") == 0
    assert "no-such-team.yaml: no such file" in result.output
