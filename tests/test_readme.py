"""What README.md quotes is what the results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_generated_parts_are_current():
    script = ROOT / "benchmarks" / "readme_tables.py"
    done = subprocess.run([sys.executable, "-P", str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_mentioned():
    from soloist.toolchain.cli import COMMANDS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"soloist {name}" not in text]
