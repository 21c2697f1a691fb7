"""`soloist knowledge build` and `verify`, as a user calls them."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner

from soloist.targets.base import Reply
from soloist.toolchain.cli import main
from soloist.toolchain.knowledge.files import load_graph
from soloist.toolchain.knowledge.prompts import PROMPTS
from soloist.toolchain.knowledge.triples import Triple
from soloist.toolchain.knowledge.verify import LOYAL
from soloist.toolchain.traces.store import TraceWriter, write_runs


@pytest.fixture
def soloist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        result = CliRunner().invoke(main, ["knowledge", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.output

    return call


def test_the_desks_graph(soloist, tmp_path):
    said = soloist("build", "desk", "-o", "desk.json")
    graph = load_graph(tmp_path / "desk.json")
    assert said == f"desk.json: graph {graph.digest}, {len(graph)} facts\n"
    assert Triple("spider", "has legs", "8") in graph
    assert graph.records()[0]["source"] == "table of the tool legs"


def test_sources_come_together_with_aliases(soloist, tmp_path):
    (tmp_path / "a.tsv").write_text("crab\thas legs\t10\n")
    rows = [
        {"head": "the crab", "relation": "has legs", "tail": "10"},
        {"head": "lobster", "relation": "has legs", "tail": "10", "source": "book"},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "names.tsv").write_text("crab\tbrachyuran\n")
    said = soloist("build", "a.tsv", "b.jsonl", "--aliases", "names.tsv", "--single-valued", "has legs", "-o", "g.json")
    graph = load_graph(tmp_path / "g.json")
    assert "2 facts" in said
    assert Triple("Brachyuran", "has legs", "10") in graph
    assert graph.against(Triple("brachyuran", "has legs", "8")) == Triple("crab", "has legs", "10")
    assert graph.records()[1]["source"] == "book"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.tsv"], 3, "none.tsv: not a text file that can be read"),
        (["none.txt"], 3, "none.txt: no such file"),
        (["zoo.txt"], 2, "zoo.txt: a document needs agents that read it: --team"),
        (["empty.tsv"], 3, "empty.tsv: no fact found"),
    ],
)
def test_bad_sources_are_one_line(soloist, tmp_path, arguments, code, message):
    (tmp_path / "zoo.txt").write_text("Crabs have ten legs.")
    (tmp_path / "empty.tsv").write_text("# nothing yet\n")
    said = soloist("build", *arguments, "-o", "g.json", code=code)
    assert said.startswith(f"soloist: {message}")
    assert said.count("\n") == 1
    assert not (tmp_path / "g.json").exists()


def test_documents_are_read_by_a_team(soloist, tmp_path, monkeypatch):
    class Engine:
        model = "roles"

        def ask(self, asks):
            now = time.perf_counter()
            return [Reply(self.say(ask.messages), 1, 0, 1, now, now, now, "stop") for ask in asks]

        def say(self, messages):
            text = messages[-1]["content"]
            if messages[0]["content"] == PROMPTS["master"]:
                return "(crab, has legs, 10)" if "Crabs" in text else "(moon, is made of, cheese)"
            return "No." if "moon" in text else LOYAL

        def close(self):
            (tmp_path / "closed").touch()

    (tmp_path / "zoo.txt").write_text("Crabs have ten legs.\n\nThe moon is far.")
    roles = ["entity-extractor", "relation-extractor", "master", "verifier"]
    agents = "".join(f"  - {{name: {role}, role: {role}}}\n" for role in roles)
    (tmp_path / "team.yaml").write_text(
        f"name: t\ntopology: kg\nengine: {{kind: gguf, model: none}}\nagents:\n{agents}"
    )
    monkeypatch.setattr("soloist.toolchain.teams.graph_builder.open_engine", lambda config: Engine())
    said = soloist("build", "zoo.txt", "--team", "team.yaml", "--rounds", "2", "-o", "g.jsonl")
    assert "1 facts, 1 of 2 passages dropped" in said
    assert (tmp_path / "closed").exists()
    assert load_graph(tmp_path / "g.jsonl").records() == [
        {"head": "crab", "relation": "has legs", "tail": "10", "source": "zoo.txt, passage 1"}
    ]


def test_traces_are_annotated_and_counted(soloist, tmp_path, told, called, use):
    runs = [called(use("legs(2 spiders)")), told("(spider, has legs, 6)"), told("Eight.")]
    runs = [
        run.model_copy(update={"question": run.question.model_copy(update={"id": f"q{i}", "question": f"Q{i}?"})})
        for i, run in enumerate(runs)
    ]
    write_runs(runs, tmp_path / "traces.jsonl.gz")
    said = soloist("verify", tmp_path, "--graph", "desk", "-o", "verdicts.jsonl").splitlines()
    assert said[0].endswith("3 runs, 2 without an unverified triple, 1 without any")
    assert said[1] == "triples 3: verified 2, unverified 0, contradicted 1"
    assert said[2] == "fact-verification rate 66.7%, unsupported-triple rate 33.3%"
    rows = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == ["q0", "q1", "q2"]
    assert rows[2]["triples"] == []
    assert rows[1]["triples"] == [
        {
            "triple": ["spider", "has legs", "6"],
            "verdict": "contradicted",
            "how": "none",
            "reason": "the graph says (spider, has legs, 8)",
        }
    ]


def test_a_plain_recording_without_triples_has_no_rate(soloist, tmp_path, told):
    with TraceWriter(tmp_path / "t.jsonl") as writer:
        writer.add(told("Eight."))
    said = soloist("verify", "t.jsonl", "--graph", "desk")
    assert "triples 0" in said
    assert "rate" not in said


def test_an_empty_graph_is_refused(soloist, tmp_path, told):
    write_runs([told("Eight.")], tmp_path / "t.jsonl.gz")
    (tmp_path / "none.tsv").write_text("")
    said = soloist("verify", "t.jsonl.gz", "--graph", "none.tsv", code=3)
    assert said.startswith("soloist: the knowledge graph is empty")
    assert said.count("\n") == 1


def test_the_embedded_recording_verifies_whole(soloist):
    from importlib.resources import files

    said = soloist("verify", str(files("soloist.toolchain.desk.recorded")), "--graph", "desk")
    assert "unverified 0, contradicted 0" in said
    assert "fact-verification rate 100.0%" in said
