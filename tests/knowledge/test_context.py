"""Asking with facts: what a machine needs for it that only runs a student."""

from __future__ import annotations

import subprocess
import sys

from soloist.toolchain.desk.graph import desk_graph
from soloist.toolchain.knowledge.context import FILE, graph_beside

ASK = """
import sys
from unittest.mock import MagicMock, patch

sys.modules.update(dict.fromkeys(["torch", "transformers", "networkx", "accelerate", "peft"]))  # not installed
from soloist.targets.base import Sampling
from soloist.toolchain.teams.config import StudentEngineConfig
from soloist.toolchain.teams.engines.base import Ask
from soloist.toolchain.teams.engines.student import StudentEngine

with patch("soloist.targets.open.open_runtime", return_value=MagicMock()) as opened:
    engine = StudentEngine(StudentEngineConfig(kind="student", path=sys.argv[1]))
    engine.ask([Ask([{"role": "user", "content": "How many legs have 9 spiders?"}], Sampling())])
    print(opened.return_value.chat.call_args.args[0][0]["content"])
"""


def test_a_student_with_facts_is_asked_where_nothing_of_training_is_installed(tmp_path):
    desk_graph().save(tmp_path / FILE)
    (tmp_path / "student.gguf").write_bytes(b"weights")
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path / "student.gguf")], capture_output=True, text=True, check=False
    )
    assert asked.stdout == "Facts:\n(spider, has legs, 8)\n\nHow many legs have 9 spiders?\n", asked.stderr


def test_a_model_without_a_graph_beside_it_is_asked_plainly(tmp_path):
    assert graph_beside(tmp_path) is None
    assert graph_beside(tmp_path / "student.gguf") is None
