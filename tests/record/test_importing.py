from collections import Counter

import pytest

from soloist.kernels.errors import DataError, UsageError
from soloist.toolchain.record.importing import IMPORTERS, ImportOptions, import_traces

EPISODE = "Thought: t\nAction: finish[x]\nObservation: Episode finished, reward = True\n"
FIREACT = [{"instruction": f"q{i}?", "input": "", "output": EPISODE} for i in range(3)]
MAGDI = [{"question": "q1? ", "gold_answer": "1", "x_output_0": {"reasoning": "r", "answer": "1"}}]
DU = {"q?": [[[{"role": "user", "content": "u"}, {"role": "assistant", "content": "4"}]], "#### 4"]}


def test_files_of_several_formats_are_told_apart_by_content(write, load):
    write("b/one.json", FIREACT)
    write("c/two.json", MAGDI)
    write("d/gsm.json", DU)
    folder = write("a/LICENSE", "MIT").parent.parent
    imported = load(folder)
    assert {name: counts.kept for name, counts in imported.facts.formats.items()} == {
        "fireact": 3,
        "magdi": 0,
        "du": 1,
    }
    assert imported.facts.formats["magdi"].refused == {"the same question stands before": 1}  # q1, as text
    assert imported.facts.runs == 4
    assert imported.facts.benchmarks == {"GSM8K": "test"}
    assert imported.facts.files == 3
    assert len(imported.facts.origins) == 3


def test_importing_again_does_nothing_and_the_digest_is_the_contents(write, tmp_path):
    path = write("one.json", FIREACT)
    first = import_traces([path], tmp_path / "a")
    assert import_traces([path], tmp_path / "a").digest == first.digest == import_traces([path], tmp_path / "b").digest
    path.write_text(path.read_text().replace("q2", "q9"))
    assert import_traces([path], tmp_path / "a").digest != first.digest


def test_all_bad_files_are_named_at_once_and_nothing_is_written(write, tmp_path):
    write("one.json", FIREACT)
    write("two.json", "{")
    write("three.json", [{"some": "thing"}])
    folder = write("four.pkl", b"x").parent
    with pytest.raises(DataError) as refused:
        import_traces([folder], tmp_path / "out")
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines] == ["four.pkl", "three.json", "two.json"]
    assert "no trace format that is known" in lines[1]
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_what_cannot_be_is_refused(write, tmp_path):
    path = write("one.json", FIREACT)
    with pytest.raises(UsageError, match="--format nonsense: unknown; there are auto, dylan"):
        import_traces([path], tmp_path / "out", ImportOptions(format="nonsense"))
    with pytest.raises(DataError, match="no such file"):
        import_traces([tmp_path / "none"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.json or \.jsonl file in it"):
        import_traces([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(DataError, match=r"not one record could be kept:\n.*item 1: 'question' is missing"):
        import_traces([path], tmp_path / "out", ImportOptions(format="magdi"))
    with pytest.raises(DataError, match="no such question file"):
        import_traces([path], tmp_path / "out", ImportOptions(questions=tmp_path / "q.jsonl"))


def test_half_a_surrogate_pair_is_refused_not_written(write, load):
    rows = [FIREACT[0], {"instruction": "q \ud83d?", "input": "", "output": EPISODE}]
    assert load(write("one.json", rows)).counts.refused == {"a text that is no Unicode": 1}


def test_a_file_of_two_formats_has_to_be_named(write, load):
    both = FIREACT[0] | MAGDI[0]
    path = write("one.json", [both])
    with pytest.raises(DataError, match="looks like magdi and fireact; say which with --format"):
        load(path)
    assert load(path, format="magdi").format == "magdi"


def test_test_questions_are_trained_on_only_when_told_so(write, load):
    path = write("gsm.json", DU)
    assert load(path).run.question.split == "test"
    trained = load(path, train_on_test=True)
    assert (trained.run.question.split, trained.run.question.benchmark) == ("train", "GSM8K")
    assert trained.facts.benchmarks == {"GSM8K": "test"}
    assert trained.artifact.manifest["config"]["train_on_test"] is True
    named = load(write("one.json", FIREACT), benchmark="HotpotQA")
    assert {run.question.split for run in named.runs} == {"test"}
    assert named.facts.benchmarks == {"HotpotQA": "test"}


def test_every_importer_has_its_tests_and_says_what_it_is():
    from pathlib import Path

    tests = {path.stem.removeprefix("test_") for path in (Path(__file__).parent / "importers").glob("test_*.py")}
    for name, importer in IMPORTERS.items():
        assert importer.name == name
        assert importer.about
        assert importer.origin
        assert name.replace("-", "_") in tests


def test_imported_traces_train_through_the_same_selection(load, shared_data):
    """FireAct's searches and answers are what the main job's selection takes as training examples."""
    from soloist.toolchain.distill.data import conversation, reject

    runs = load(shared_data / "traces" / "fireact").runs
    assert {reject(run, "tools", lambda steps: True) for run in runs} == {None}
    messages = conversation(runs[0], "tools")
    assert messages[0]["content"] == runs[0].question.question
    assert messages[-1]["content"].startswith("finish[")
    assert not any("reward" in message["content"] for message in messages)


def test_training_refuses_a_benchmarks_test_questions(load, write):
    from soloist.toolchain.distill.data import select

    runs = load(write("one.json", FIREACT), benchmark="HotpotQA").runs
    with pytest.raises(DataError, match="split 'test' may not be trained on"):
        select(runs, None, check_steps=lambda steps: True)


def test_real_debates_are_graphs_that_methods_can_read(load, shared_data):
    from soloist.toolchain.traces.graph import graph_of

    runs = load(shared_data / "traces" / "dylan_math").runs
    graphs = [graph_of(run) for run in runs]
    assert sum(len(graph.nodes) for graph in graphs) == sum(len(run.turns) for run in runs)
    for run, graph in zip(runs, graphs, strict=True):
        assert all(node.attempt == node.turns[0].round and len(node.turns) == 1 for node in graph.nodes)
        assert {(link.source, link.target) for link in graph.links} == {(e.source, e.target) for e in run.edges}
    steps = Counter(
        graph.nodes[link.target].attempt - graph.nodes[link.source].attempt for graph in graphs for link in graph.links
    )
    assert set(steps) == {0, 1}
    assert steps[0] > 500  # speaking in turn, many read what was said in their own round
    assert sum(graph.corrective(i) for graph in graphs for i in range(len(graph.nodes))) > 50
