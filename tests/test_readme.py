"""What README.md quotes is what the results say, and every command in it runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from soloist.toolchain.cli import COMMANDS, main
from soloist.toolchain.tasks.files import save_questions

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks() -> list[str]:
    """The command lines of the fenced blocks, in order, comments cut off."""
    lines = []
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        lines += [line.partition(" #")[0].strip() for line in block.splitlines()]
    return lines


def in_tables() -> list[str]:
    """The commands of the table of what to run, with their arguments."""
    table = README.partition("## What you have, what to run")[2].partition("## ")[0]
    return re.findall(r"`(soloist [^`]+)`", table)


def test_generated_parts_are_current():
    script = ROOT / "benchmarks" / "readme_tables.py"
    done = subprocess.run([sys.executable, "-P", str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_mentioned():
    assert not [name for name in COMMANDS if f"soloist {name}" not in README]


def test_it_is_short():
    assert README.count("\n") <= 250


def test_what_make_is_told_is_what_the_makefile_knows():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    asked = {line.split()[1] for line in blocks() if line.startswith("make ")}
    assert asked and asked <= set(targets)
    (options,) = {line.partition("ARGS=")[2] for line in blocks() if "ARGS=" in line}
    assert options in CliRunner().invoke(main, ["run", "--help"]).output


@pytest.fixture(scope="module")
def home(whole_job, sums, tmp_path_factory) -> Path:
    """A folder as README leaves it: a finished job in runs/desk, and files of the reader's own."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(whole_job.out, folder / "runs" / "desk")
    team = json.loads(whole_job.job.task.team.model_dump_json(exclude_none=True))
    for name in ("team.yaml", "panel.yaml"):  # the panel's endpoint is nowhere: its place is taken by the small team
        (folder / name).write_text(yaml.safe_dump(team))
    save_questions(folder / "train.jsonl", sums.questions(24))
    save_questions(folder / "test.jsonl", sums.questions(4, "held-out", 100))
    example = re.search(r'`(\{"question".*?\})`', README)[1]
    (folder / "my-questions.jsonl").write_text(example + "\n")
    debate = {"question": "What is 2 + 3?", "answer": "5"}
    (folder / "their-traces.json").write_text(json.dumps(_du(debate)))
    return folder


def _du(asked: dict) -> dict:
    """A debate as Du's code writes it: a question, and for each agent its messages."""
    talk = [{"role": "user", "content": asked["question"]}, {"role": "assistant", "content": "\\boxed{5}"}]
    return {asked["question"]: [[talk, talk], asked["answer"]]}


def is_quick(command: str) -> str:
    """The same command on the tiny model: its base, and formats that are there to be compiled in seconds."""
    if command.startswith("soloist run") or command.startswith("soloist distill"):
        command += " -m {base}"
    command = command.replace(" --mode cot", "")  # the small team's traces hold calls
    if command.startswith("soloist run"):
        command += " --formats gguf-f16 --epochs 1 -o out --no-open"
    return command


@pytest.mark.usefixtures("warm_workers")
def test_every_command_of_the_readme_runs(home, whole_job, monkeypatch):
    for package in ("torch", "gguf", "onnxruntime_genai", "onnx_ir", "optimum"):
        pytest.importorskip(package)
    monkeypatch.chdir(home)
    ran = 0
    for command in [*blocks(), *in_tables()]:
        if not command.startswith("soloist ") or command in ("soloist plan",):
            continue
        shutil.rmtree("out", ignore_errors=True)
        arguments = shlex.split(is_quick(command).format(base=whole_job.base))[1:]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, f"{command}\n{done.output}"
        ran += 1
    assert ran >= 20
