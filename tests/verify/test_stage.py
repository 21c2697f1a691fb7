"""An export verified again, its student's questions asked of it."""

import json
import shutil

import pytest

for package in ("torch", "transformers", "gguf", "xllamacpp"):
    pytest.importorskip(package)

from soloist.kernels.errors import ArtifactError, UsageError  # noqa: E402
from soloist.toolchain.core.artifact import Artifact, stage  # noqa: E402
from soloist.toolchain.export.stage import export  # noqa: E402
from soloist.toolchain.student.student import open_student  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.verify.process import prompts_of  # noqa: E402
from soloist.toolchain.verify.stage import verify_export  # noqa: E402
from soloist.toolchain.verify.verdict import FILE, Verdict  # noqa: E402

QUESTIONS = [
    Question(id="sum", question="What is 12 + 30?", gold="42", scorer="number"),
    Question(id="legs", question="How many legs do three cats and two birds have?", gold="17", scorer="number"),
]
PROMPTS = prompts_of(QUESTIONS)


pytestmark = pytest.mark.usefixtures("warm_workers")  # one thread, here and in the subprocesses


@pytest.fixture(scope="module")
def compiled(tiny, tmp_path_factory, write_card) -> Artifact:
    def build(made):
        shutil.copytree(tiny, made, dirs_exist_ok=True)
        write_card(made, "cot")
        return {}

    folder = tmp_path_factory.mktemp("job")
    student = open_student(stage("distill", folder / "student", {}, [], build))
    return export(student, folder / "compiled", ["gguf-q8_0"], PROMPTS)


def test_an_export_is_verified_with_its_questions_and_the_verdict_lies_beside_it(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ((format, latest),) = verify_export(compiled.path, PROMPTS, tmp_path / "scratch", questions=QUESTIONS)
    content = json.loads((compiled.path / "gguf-q8_0" / FILE).read_text())
    verdict = latest.verdict
    assert format == "gguf-q8_0" and verdict.verdict == "pass"
    assert Verdict.model_validate(content["verdict"]) == verdict
    assert verdict.limits.seconds == 900
    accuracy = verdict.accuracy
    assert (accuracy.student, accuracy.file, accuracy.questions, accuracy.points) == (1, 1, 2, 0)
    worst = verdict.drift.worst
    assert worst.kl >= verdict.drift.kl_p99 and worst.prompt in (0, 1) and worst.expected.text
    assert worst.prompt_text.startswith("<|im_start|>user") and 0 <= worst.expected.file <= 1
    assert len(list((tmp_path / "cache").rglob("answers/*.json"))) == 1
    assert Artifact.open(compiled.path).digest == compiled.digest


def test_what_is_not_there_or_not_what_it_was_is_named(compiled, tmp_path):
    with pytest.raises(UsageError, match="has no format onnx; it has gguf-q8_0"):
        list(verify_export(compiled.path, PROMPTS, tmp_path, ["onnx"]))
    moved = shutil.copytree(compiled.path, tmp_path / "moved" / "compiled")
    with pytest.raises(ArtifactError, match="the student it was made from is not at"):
        list(verify_export(moved, PROMPTS, tmp_path))
    job = shutil.copytree(compiled.path.parent, tmp_path / "job")
    (file,) = (job / "compiled").rglob("*.gguf")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"Q8_0\.gguf: changed after it was made"):
        list(verify_export(job / "compiled", PROMPTS, tmp_path))
