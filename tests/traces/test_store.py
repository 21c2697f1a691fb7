"""Traces on disk: what is written is what is read, and what is damaged is named."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soloist.kernels.errors import DataError, ResourceError
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.schema import ChatMessage, Edge, Run, ToolUse, Turn
from soloist.toolchain.traces.store import TraceWriter, format_line, parse_line, read_runs, write_runs


def make_run(text="What is 2 + 3?", **fields):
    use = ToolUse(name="sum", arguments={"numbers": [2, 3]}, call="sum(2, 3)", result="5", steps=("2 + 3 = 5",))
    turns = (
        Turn(
            id=0,
            agent="reader",
            role="reader",
            messages=(ChatMessage(role="user", content=text),),
            model="m",
            text="sum(2, 3)",
            tools=(use,),
            tokens_in=40,
            tokens_out=5,
            start=0.0,
            first_token=0.2,
            end=0.3,
            finish="stop",
            answer="5",
            verdict="correct",
        ),
        Turn(id=1, agent="critic", role="critic", text="holds", start=0.3, end=0.3),
    )
    given = {"answer": "5", "verdict": "correct", "wall": 0.31, "path": (0,)} | fields
    question = Question(id="q", question=text, gold="5", task="sums", scorer="number")
    return Run(question=question, team="desk", turns=turns, edges=(Edge(source=0, target=1, kind="agrees"),), **given)


@pytest.fixture
def recorded(tmp_path):
    """A recording of three runs."""
    path = tmp_path / "traces" / "runs.jsonl"
    with TraceWriter(path) as writer:
        for number in range(3):
            assert writer.add(make_run(f"What is {number} + 3?"))
    return path


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
seconds = st.floats(0, 1e6, allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def tool_uses(draw):
    outcome = draw(st.sampled_from(["result", "error"]))
    return ToolUse(
        name=draw(text),
        arguments=draw(st.dictionaries(text, json_values, max_size=3)),
        call=draw(text),
        steps=draw(st.lists(text, max_size=2)),
        seconds=draw(seconds),
        **{outcome: draw(text)},
    )


@st.composite
def turns_of(draw, number):
    model = draw(st.none() | text)
    tokens_in = draw(st.integers(0, 10**6)) if model is not None else 0
    start = draw(seconds)
    return Turn(
        id=number,
        agent=draw(text),
        role=draw(text),
        round=draw(st.integers(0, 9)),
        text=draw(text),
        model=model,
        messages=draw(st.lists(st.builds(ChatMessage, role=text, content=text), max_size=2)),
        tools=draw(st.lists(tool_uses(), max_size=2)),
        tokens_in=tokens_in,
        tokens_cached=draw(st.integers(0, tokens_in)),
        start=start,
        end=start + draw(seconds),
        first_token=draw(st.none() | seconds),
        finish=draw(st.none() | st.sampled_from(["stop", "length"])),
        error=draw(st.none() | text),
        answer=draw(st.none() | text),
        verdict=draw(st.sampled_from(["correct", "wrong", "unknown", "absent"])),
    )


@st.composite
def runs(draw):
    turns = [draw(turns_of(number)) for number in range(draw(st.integers(0, 4)))]
    pairs = [(s, t) for t in range(len(turns)) for s in range(t)]
    kinds = st.sampled_from(["continuity", "influence", "tool", "agrees", "disputes", "corrects"])
    maybe = st.none() | text
    return Run(
        question=Question(id=draw(text), question=draw(text), gold=draw(maybe), choices=draw(st.lists(text))),
        team=draw(text),
        turns=turns,
        path=sorted(draw(st.sets(st.sampled_from(range(len(turns)))))) if turns else (),
        edges=[Edge(source=s, target=t, kind=draw(kinds)) for s, t in pairs if draw(st.booleans())],
        answer=draw(maybe),
        wall=draw(seconds),
        seed=draw(st.integers(0, 2**32)),
        error=draw(maybe),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs())
def test_any_run_comes_back_from_its_line_as_it_was(record):
    line = format_line(record)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert parse_line(line, "here") == record
    assert json.loads(line)["schema"] == 1


def test_recording_and_sealing_keep_every_run(recorded, tmp_path):
    write_runs(read_runs(recorded), tmp_path / "runs.jsonl.gz")
    found = list(read_runs(tmp_path / "runs.jsonl.gz"))
    assert found == list(read_runs(recorded))
    assert len(found) == 3
    assert found[0] == make_run("What is 0 + 3?")


def test_sealed_file_is_the_same_byte_for_byte(recorded, tmp_path, monkeypatch):
    write_runs(read_runs(recorded), tmp_path / "a.jsonl.gz")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_runs(read_runs(recorded), tmp_path / "b.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert write_runs(read_runs(recorded), tmp_path / "c.jsonl.gz") == 3


def test_question_is_kept_once_whatever_its_case_and_spacing(recorded):
    with TraceWriter(recorded) as writer:
        assert len(writer) == 3
        assert "what is  1 + 3?" in writer
        assert "What is 7 + 3?" not in writer
        assert not writer.add(make_run("What is  1 + 3? "))
        assert writer.add(make_run("What is 7 + 3?"))
        assert not writer.add(make_run("What is 7 + 3?"))
    assert len(list(read_runs(recorded))) == 4


@pytest.mark.parametrize("keep", [1, 25, -1])
def test_torn_last_line_is_cut_off_and_recording_goes_on(recorded, keep):
    whole = recorded.read_bytes()
    last = format_line(make_run("What is 9 + 3?")).encode()[:keep]
    recorded.write_bytes(whole + last)
    if keep > 0:
        with pytest.raises(DataError, match=r"runs\.jsonl:4: not JSON"):
            list(read_runs(recorded))
    with TraceWriter(recorded) as writer:
        assert writer.recovered_bytes == len(last)
        assert recorded.read_bytes() == whole
        writer.add(make_run("What is 9 + 3?"))
    assert [r.question.question[8] for r in read_runs(recorded)] == ["0", "1", "2", "9"]


def spoil(line: str, **changes) -> str:
    return json.dumps(json.loads(line) | changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line[: len(line) // 2], "2: not JSON"),
        (lambda line: "[" * 100_000, "2: not JSON"),
        (lambda line: '{"messages": [{"role": "user", "content": "hi"}]}', "2: not a Soloist trace (no 'question')"),
        (lambda line: '"question"', "2: not a Soloist trace"),
        (lambda line: spoil(line, mood="good"), "2: mood: unknown field"),
        (lambda line: spoil(line, schema=2), "2: schema: this Soloist reads 1, the line says 2"),
        (lambda line: line.replace('"schema":1,', ""), "2: schema: this Soloist reads 1, the line says None"),
        (lambda line: spoil(line, wall=-1), "2: wall: Input should be greater than or equal to 0"),
        (lambda line: spoil(line, wall=-1, seed="x"), "seed: Input should be a valid integer"),
        (lambda line: spoil(line, edges=[{"source": 1, "target": 0, "kind": "agrees"}]), "2: record: edge 1->0"),
        (lambda line: line.replace('"tokens_in":40', '"tokens_in":-1'), "2: turns.0.tokens_in: "),
        (lambda line: line.replace('"name":"sum"', '"nome":"sum"'), "turns.0.tools.0.nome: unknown field"),
    ],
)
@pytest.mark.parametrize("reader", ["read", "write", "seal"])
def test_damaged_line_in_the_middle_is_named(recorded, tmp_path, damage, message, reader):
    lines = recorded.read_text().splitlines()
    damaged = damage(lines[1])
    assert damaged != lines[1]
    recorded.write_text("\n".join([lines[0], damaged, lines[2]]) + "\n")
    sealed = tmp_path / "runs.jsonl.gz"
    with pytest.raises(DataError) as caught:
        if reader == "seal":
            write_runs(read_runs(recorded), sealed)
        else:
            list(read_runs(recorded)) if reader == "read" else TraceWriter(recorded)
    said = str(caught.value)
    assert said.startswith(f"{recorded}:2: ")
    assert message in said
    assert "\n" not in said
    assert not list(tmp_path.glob("*.gz*")), "nothing half is left"


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip", "not text"])
def test_damaged_sealed_file_is_named(recorded, tmp_path, damage):
    sealed = tmp_path / "runs.jsonl.gz"
    write_runs(read_runs(recorded), sealed)
    data = bytearray(sealed.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2 :] = bytes(b ^ 0xFF for b in data[len(data) // 2 :])
    else:
        data = bytearray(b"plain text") if damage == "not gzip" else bytearray(gzip.compress(b"\xff\xfe\n"))
    sealed.write_bytes(data)
    with pytest.raises(DataError, match=r"runs\.jsonl\.gz: damaged file") as caught:
        list(read_runs(sealed))
    assert "\n" not in str(caught.value)


def test_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="record one with `soloist record`"):
        list(read_runs(tmp_path / "none.jsonl"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_is_one_line_also_when_the_writer_is_closed():
    with pytest.raises(ResourceError, match=r"\A/dev/full: the disk is full"), TraceWriter(Path("/dev/full")) as writer:
        writer.add(make_run())


KILLED = """
import os, pathlib, signal, sys
from soloist.toolchain.traces.store import TraceWriter, parse_line
first, second = pathlib.Path(sys.argv[2]).read_text().splitlines()
writer = TraceWriter(pathlib.Path(sys.argv[1]))
writer.add(parse_line(first, "first"))
os.write(writer._file.fileno(), second[:40].encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_loses_at_most_the_line_being_written(tmp_path):
    lines, out = tmp_path / "lines", tmp_path / "runs.jsonl"
    lines.write_text(format_line(make_run("one")) + format_line(make_run("two")))
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), str(lines)], check=False, cwd=tmp_path)
    assert done.returncode == -9
    with TraceWriter(out) as writer:
        assert writer.recovered_bytes == 40
        assert "one" in writer
        assert "two" not in writer
    assert list(read_runs(out)) == [make_run("one")]
