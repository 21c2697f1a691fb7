import json

import pytest

from soloist.toolchain.core.artifact import Artifact, stage
from soloist.toolchain.traces.recording import TraceFacts
from soloist.toolchain.verify.verdict import ExportFacts, FormatFacts, Verdict

USAGE, DATA, ARTIFACT = 2, 3, 4
EPISODE = (
    "Thought: t\nAction: search[y]\nObservation: x\nAction: finish[x]\nObservation: Episode finished, reward = 1\n"
)


@pytest.fixture
def episodes(tmp_path):
    rows = [{"instruction": f"q{i}?", "input": "", "output": EPISODE} for i in range(4)]
    path = tmp_path / "fireact.json"
    path.write_text(json.dumps([*rows, rows[0], {"instruction": "q?", "output": "Thought: no Action:"}]))
    return path


def test_import_prints_counts_and_what_was_refused_where(soloist, episodes, tmp_path):
    result = soloist("import", episodes, "-o", tmp_path / "traces")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "fireact kept 4" in words
    assert "refused 1 the same question stands before" in words
    assert "4 runs from 1 files, 4 with a right answer" in words
    assert f"refused  {episodes}: item 6: " in result.stderr
    assert Artifact.open(tmp_path / "traces", stage="import").read(TraceFacts).runs == 4
    again = soloist("import", episodes, "-o", tmp_path / "traces")
    assert again.exit_code == 0
    assert again.stdout == result.stdout


def test_test_questions_are_announced(soloist, episodes, tmp_path):
    shown = soloist("import", episodes, "-o", tmp_path / "a", "--benchmark", "HotpotQA").stdout
    assert "HotpotQA: these are its test questions, marked as such" in shown
    shown = soloist("import", episodes, "-o", tmp_path / "b", "--benchmark", "HotpotQA", "--train-on-test").stdout
    assert "no student of these traces is ever reported on HotpotQA" in shown


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.json", b"{", "x.json: not JSON"),
        ("x.json", b"", "x.json: empty file"),
        ("x.json", b"[1]", "x.json: no trace format that is known"),
        ("x.pkl", b"abc", "x.pkl: a pickle, which Soloist never opens"),
        ("x.json", b"\x80\x04", "x.json: a pickle, which Soloist never opens"),
    ],
)
def test_bad_files_are_one_line(refused, tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    message = refused(DATA, "import", tmp_path / name, "-o", tmp_path / "traces")
    assert why in message
    assert not (tmp_path / "traces").exists()


def test_other_mistakes_have_their_codes(refused, episodes, tmp_path):
    assert "no such file" in refused(DATA, "import", tmp_path / "none", "-o", tmp_path / "traces")
    assert "unknown; there are" in refused(USAGE, "import", episodes, "-o", tmp_path / "t", "--format", "csv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    assert "is no artifact of ours" in refused(ARTIFACT, "import", episodes, "-o", tmp_path / "mine")


def test_bench_refuses_the_benchmark_that_a_file_descends_from(refused, soloist, episodes, tmp_path):
    def build(folder):
        (folder / "gguf-f16").mkdir()
        (folder / "gguf-f16" / "model.gguf").write_bytes(b"weights")
        passed = FormatFacts(path="gguf-f16/model.gguf", verdict=Verdict(verdict="pass"))
        return ExportFacts(formats={"gguf-f16": passed})

    soloist("import", episodes, "-o", tmp_path / "traces", "--benchmark", "HotpotQA", "--train-on-test")
    stage("export", tmp_path / "compiled", {}, [Artifact.open(tmp_path / "traces")], build)
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"question": "Who?", "answer": "me", "benchmark": "HotpotQA"}) + "\n")
    message = refused(DATA, "bench", tmp_path / "compiled" / "gguf-f16" / "model.gguf", "--questions", test)
    assert "the student was trained on test questions of HotpotQA" in message
