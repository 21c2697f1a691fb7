"""The command line as a user calls it, and files as a user would write them."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from soloist.toolchain.cli import main


@pytest.fixture
def soloist(tmp_path, monkeypatch):
    """Call `soloist` with arguments in a folder of its own; anything but an exit is a failure with its traceback."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, stdin=None):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def refused(soloist):
    """Call `soloist`, expect this exit code, and return the message, of one line: what begins at `soloist: `."""

    def call(code, *arguments, lines=1):
        result = soloist(*arguments)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        begin = result.stderr.index("soloist: ")
        message = result.stderr[begin:].removeprefix("soloist: ").strip()
        assert len(message.splitlines()) == lines, message
        return message

    return call


@pytest.fixture
def team_file(tmp_path):
    """Write a team file."""

    def write(config, **changes):
        path = tmp_path / "team.yaml"
        path.write_text(
            yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True) | changes, sort_keys=False)
        )
        return path

    return write


@pytest.fixture
def question_file(tmp_path):
    """Write a question file."""

    def write(questions, name="questions.jsonl"):
        rows = [
            {"id": q.id, "question": q.question, "answer": q.gold, "scorer": q.scorer}
            | ({"benchmark": q.benchmark} if q.benchmark else {})
            for q in questions
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
