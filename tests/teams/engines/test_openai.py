"""The engine for OpenAI-compatible endpoints: a real server, and servers that misbehave."""

from __future__ import annotations

import json
import runpy
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from soloist.kernels.errors import EngineError
from soloist.targets.base import Sampling
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams.config import OpenAIEngineConfig, TeamConfig
from soloist.toolchain.teams.engines.base import Ask
from soloist.toolchain.teams.team import Team
from soloist.toolchain.traces.store import format_line, parse_line

pytest.importorskip("openai")

KEY = "sk-test-0123456789"
QUESTION = Question(id="q1", question="What is 2 + 3?", gold="5", task="sums", scorer="number")
SERVER = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "llama_server.py")))


def sse(*chunks, done=True) -> bytes:
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([*lines, "data: [DONE]\n\n"] if done else lines).encode()


def chunk(text=None, finish=None, usage=None):
    delta = {} if text is None else {"content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}] if usage is None else []
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": usage,
    }


USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 4}}
GOOD = sse(chunk("2 + 3 = 5\n"), chunk("#### "), chunk("5"), chunk(finish="stop"), chunk(usage=USAGE))


class Server(ThreadingHTTPServer):
    """Does what its script says, one entry per call, the last one for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests, self.released = [], [], threading.Event()
        self.now, self.most, self.lock = 0, 0, threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.headers, body))
            server.now += 1
            server.most = max(server.most, server.now)
            action = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        try:
            action(self)
        finally:
            with server.lock:
                server.now -= 1

    def log_message(self, *_):
        pass


def reply(data, status=200, kind="text/event-stream", length=None):
    def act(handler):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(length or len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return act


def refuse(status, message=""):
    return reply(json.dumps({"error": {"message": message}}).encode(), status, "application/json")


def close(handler):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang(handler):
    handler.server.released.wait(20)
    handler.close_connection = True


def hang_halfway(handler):
    reply(sse(chunk("2 + 3"), done=False), length=10_000)(handler)
    handler.wfile.flush()
    hang(handler)


def slow(handler):
    time.sleep(0.1)
    reply(GOOD)(handler)


good = reply(GOOD)
stopped_early = reply(sse(chunk("2 + 3")))
broken_off = reply(sse(chunk("2 + 3"), done=False), length=10_000)


@pytest.fixture
def server():
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield found
        found.released.set()
        found.shutdown()
        thread.join()


@pytest.fixture
def engine(server, monkeypatch):
    """Make an engine on the server; waiting between retries is cut short."""
    from soloist.toolchain.teams.engines.openai import OpenAIEngine

    monkeypatch.setenv("SOLOIST_TEST_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    monkeypatch.setattr("soloist.toolchain.teams.engines.openai.FIRST_DELAY", 0.01)
    made = []

    def make(*script, **changes):
        server.script = list(script)
        given = {"model": "m", "base_url": server.url, "key_env": "SOLOIST_TEST_KEY", "retries": 2} | changes
        made.append(OpenAIEngine(OpenAIEngineConfig(kind="openai", **given)))
        return made[-1]

    yield make
    server.released.set()
    for each in made:
        each.close()


def ask(engine, number=1, **fields):
    return engine.ask([Ask([{"role": "user", "content": f"question {i}"}], Sampling(**fields)) for i in range(number)])


def test_reply_carries_text_tokens_and_times(engine, server):
    (got,) = ask(engine(good), temperature=0.5, top_p=0.9, max_tokens=7, seed=3, stop=("END",))
    assert (got.text, got.tokens_in, got.tokens_cached, got.tokens_out) == ("2 + 3 = 5\n#### 5", 11, 4, 3)
    assert got.finish == "stop"
    assert got.start < got.first_token <= got.end
    ((headers, body),) = server.requests
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["messages"] == [{"role": "user", "content": "question 0"}]
    assert body["model"] == "m"
    wanted = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 3, "stop": ["END"], "stream": True}
    assert {key: body[key] for key in wanted} == wanted


def test_reply_without_streaming(engine):
    answer = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "usage": USAGE,
        "choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "5"}}],
    }
    (got,) = ask(engine(reply(json.dumps(answer).encode(), kind="application/json"), stream=False))
    assert (got.text, got.tokens_in, got.tokens_out, got.finish) == ("5", 11, 3, "length")
    assert got.first_token == got.end


def test_grammar_is_sent_only_where_the_endpoint_takes_it(engine, server):
    call = Ask([{"role": "user", "content": "hi"}], Sampling(), grammar='root ::= "5"')
    engine(good).ask([call])
    engine(good, grammar=True).ask([call])
    assert ["grammar" in body for _, body in server.requests] == [False, True]


def test_calls_keep_their_order_and_the_limit_of_concurrency(engine, server):
    def echo(handler):
        time.sleep(0.1 if "question 0" in str(server.requests) else 0)
        reply(sse(chunk(server.requests[-1][1]["messages"][0]["content"]), chunk(finish="stop")))(handler)

    texts = [got.text for got in ask(engine(echo, concurrency=1), 3)]
    assert texts == ["question 0", "question 1", "question 2"]
    assert server.most == 1
    ask(engine(slow, concurrency=2), 5)
    assert server.most == 2


@pytest.mark.parametrize("trouble", [refuse(500), refuse(429), refuse(503), close, broken_off, stopped_early])
def test_trouble_that_passes_is_retried(engine, server, trouble):
    (got,) = ask(engine(trouble, trouble, good))
    assert got.text == "2 + 3 = 5\n#### 5"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "calls", "message"),
    [
        (refuse(500), 3, "answered HTTP 500 after 2 retries"),
        (refuse(429), 3, "answered HTTP 429 after 2 retries"),
        (refuse(401, f"Incorrect API key: {KEY}"), 1, "answered HTTP 401; is the key right"),
        (refuse(404), 1, "answered HTTP 404; is the model 'm' served there?"),
        (refuse(400, f"context of 2048\nis full; {KEY}"), 1, "answered HTTP 400: context of 2048 is full; <key>"),
        (close, 3, r"cannot be reached \(2 retries\): is the server running\?"),
        (broken_off, 3, r"broke off its answer \(2 retries\): does it take 4 calls at once\?"),
        (stopped_early, 3, "broke off its answer"),
        (hang, 3, r"did not answer within 0.3 s \(2 retries\)"),
        (hang_halfway, 3, r"did not answer within 0.3 s \(2 retries\)"),
        (reply(b"<html>Welcome</html>", kind="text/html"), 1, "sent no answer: is it an OpenAI-compatible endpoint"),
        (reply(sse(chunk(usage=USAGE))), 1, "sent no answer"),
        (reply(b"data: {broken\n\n"), 1, "sent an answer that is not JSON"),
        (reply(sse({"error": {"message": f"out of memory {KEY}"}})), 1, "out of memory <key>"),
    ],
)
def test_trouble_that_stays_is_one_line_without_the_key(engine, server, trouble, calls, message):
    with pytest.raises(EngineError, match=message) as caught:
        ask(engine(trouble, timeout=0.3))
    said = str(caught.value)
    assert said.startswith(server.url)
    assert "\n" not in said
    assert KEY not in said
    assert caught.value.exit_code == 5
    assert len(server.requests) == calls


def test_endpoint_that_is_not_there_is_one_line(engine):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(EngineError, match=rf"\A{url} cannot be reached \(1 retries\): is the server running\?\Z"):
            ask(engine(good, base_url=url, retries=1))


@pytest.mark.parametrize(
    ("changes", "variable"),
    [({"base_url": None, "key_env": None}, "OPENAI_API_KEY"), ({"key_env": "SOLOIST_NO_KEY"}, "SOLOIST_NO_KEY")],
)
def test_missing_key_names_the_variable(engine, monkeypatch, changes, variable):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(EngineError, match=f"no API key: set the environment variable {variable}"):
        engine(good, **changes)


def test_endpoint_of_ones_own_gets_no_key_that_is_not_meant_for_it(engine, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-meant-for-openai")
    ask(engine(good, key_env=None))
    ((headers, _),) = server.requests
    assert "sk-meant-for-openai" not in str(headers)


def team_config(url, **engine):
    agents = [{"name": name, "role": "debater", "sampling": {"max_tokens": 20}} for name in ("ann", "bob", "cleo")]
    given = {"kind": "openai", "base_url": url, "model": "local"} | engine
    return TeamConfig.model_validate(
        {
            "name": "three",
            "topology": "debate",
            "agents": agents,
            "engine": given,
            "options": {"rounds": 2, "stop_on_consensus": False},
        }
    )


def test_key_is_in_no_trace_and_a_failed_run_says_why(engine, server):
    server.script = [good]
    with Team(team_config(server.url, key_env="SOLOIST_TEST_KEY", retries=0)) as team:
        whole = team.answer(QUESTION)
        server.script = [refuse(500, KEY)]
        failed = team.try_answer(QUESTION)
    assert whole.verdict == "correct"
    assert len(whole.turns) == 6
    assert (failed.answer, failed.verdict) == (None, "absent")
    assert "HTTP 500" in failed.error
    assert KEY not in format_line(whole) + format_line(failed) + team.config.model_dump_json()


@pytest.fixture(scope="module")
def llama_server(base_gguf, tmp_path_factory):
    """llama.cpp's own server with the base model, on loopback."""
    if SERVER.missing():
        pytest.skip(f"llama.cpp's server needs {', '.join(SERVER.missing())}")
    with SERVER.serve(base_gguf, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.mark.parametrize("stream", [True, False])
def test_debate_runs_through_a_real_server(llama_server, stream, edges):
    with Team(team_config(llama_server, stream=stream)) as team:
        run = team.answer(QUESTION)
    assert [(turn.agent, turn.round) for turn in run.turns] == [(n, r) for r in (0, 1) for n in ("ann", "bob", "cleo")]
    assert len(edges(run, "influence")) == 6
    assert edges(run, "continuity") == [(0, 3), (1, 4), (2, 5)]
    assert len(edges(run, "agrees")) + len(edges(run, "disputes")) == 6
    for turn in run.turns:
        assert turn.model == "local"
        assert turn.text
        assert 0 < turn.tokens_out <= 20
        assert turn.finish in ("stop", "length")
        assert 0 <= turn.start < turn.first_token <= turn.end <= run.wall
        assert (turn.first_token < turn.end) is stream
        assert turn.tokens_in > 20
    assert "What is 2 + 3?" in run.turns[3].messages[0].content
    assert len(run.turns[3].messages) == 3
    assert run.answer
    assert run.verdict in ("correct", "wrong")
    assert run.path
    assert run.critical_path <= run.wall
    assert parse_line(format_line(run), "here") == run
