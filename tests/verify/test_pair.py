"""A student of two models, verified again: the folder of an export, and a folder of both by itself."""

import json
import shutil

import pytest
from click.testing import CliRunner

for package in ("torch", "transformers", "gguf", "xllamacpp"):
    pytest.importorskip(package)

from safetensors.torch import load_file, save_file  # noqa: E402

from soloist.targets.open import PARTS, parts  # noqa: E402
from soloist.toolchain.cli import main  # noqa: E402
from soloist.toolchain.core.artifact import stage  # noqa: E402
from soloist.toolchain.export.stage import export  # noqa: E402
from soloist.toolchain.student.student import open_student  # noqa: E402
from soloist.toolchain.verify.process import Prompts  # noqa: E402
from soloist.toolchain.verify.verdict import FILE, ExportFacts, Verdict  # noqa: E402

ASKED = "What is 12 + 30?"
PROMPTS = Prompts([[{"role": "user", "content": ASKED}]], ["The sum of 12 and 30 is 42."])
GATE, USAGE = 6, 2


pytestmark = pytest.mark.usefixtures("warm_workers")  # one thread, here and in the subprocesses


@pytest.fixture(scope="module")
def compiled(tiny, tmp_path_factory, write_card):
    """A decomposer, and a solver with weights of its own, as files in 8 bits."""
    folder = tmp_path_factory.mktemp("pair")

    def build(made):
        shutil.copytree(tiny, made / "decomposer")
        shutil.copytree(tiny, made / "solver")
        tensors = load_file(made / "solver" / "model.safetensors")
        for name in tensors:
            if name.endswith("down_proj.weight"):
                tensors[name] = -tensors[name]
        save_file(tensors, made / "solver" / "model.safetensors", metadata={"format": "pt"})
        write_card(made, "tools")
        return {}

    student = open_student(stage("distill", folder / "student", {}, [], build))
    return export(student, folder / "compiled", ["gguf-q8_0"], PROMPTS)


@pytest.fixture
def verify(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"id": "sum", "question": ASKED, "answer": "42", "scorer": "number"}) + "\n")

    def call(*arguments):
        return CliRunner().invoke(main, ["verify", *map(str, arguments), "--prompts", str(asked)])

    call.asked = asked
    return call


def test_both_models_are_compared_and_asked_as_one(compiled, verify):
    done = verify(compiled.path, "--questions", verify.asked)
    assert done.exit_code == 0 and "pass" in done.output, done.output
    verdict = Verdict.model_validate(json.loads((compiled.path / "gguf-q8_0" / FILE).read_text())["verdict"])
    assert set(verdict.parts) == set(PARTS)
    assert compiled.read(ExportFacts).formats["gguf-q8_0"].path == "gguf-q8_0"
    assert verdict.drift.kl_mean == max(part.drift.kl_mean for part in verdict.parts.values()) > 0
    assert verdict.accuracy.questions == 1 and verdict.accuracy.file == verdict.accuracy.student


def test_models_that_changed_places_are_refused(compiled, verify, tmp_path):
    files = parts(compiled.path / "gguf-q8_0")
    for part, other in zip(PARTS, reversed(PARTS), strict=True):
        (tmp_path / "swapped" / part).mkdir(parents=True)
        shutil.copy(files[other], tmp_path / "swapped" / part)
    student = compiled.path.parent / "student"
    options = ("--student", student, "--format", "gguf-q8_0")
    done = verify(tmp_path / "swapped", *options)
    assert done.exit_code == GATE and "swapped: decomposer: drifted from the student" in done.output
    assert verify(compiled.path / "gguf-q8_0", *options).exit_code == 0
    done = verify(files["solver"], *options)
    assert done.exit_code == USAGE and "a student of two models is compared with a folder of two" in done.output
