"""A model by what a user names, with the tools it calls; what came with a model makes us import nothing."""

import json
import sys

import pytest

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.llama_quantize import IMPORTANCE
from soloist.toolchain.student.find import RECOMMENDED, find_model
from soloist.toolchain.tools.files import SHIPPED
from soloist.toolchain.tools.tool_list import FILE, ToolList


@pytest.fixture
def file(tmp_path):
    model = tmp_path / "export" / "gguf" / "student.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"GGUF")
    return model


def test_the_tools_that_lie_beside_a_file_are_its_tools(file):
    ToolList.of([SHIPPED]).subset(["calc", "legs"]).write(file.parent)
    model = find_model(file)
    assert (model.path, model.tools, model.entries) == (file, ("calc", "legs"), (SHIPPED,))
    assert model.team.tools == (SHIPPED,)


def test_code_that_is_not_ours_is_imported_only_where_the_user_names_it(file, tmp_path, monkeypatch):
    (tmp_path / "planted_by_a_model.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    ToolList.undeclared(["steal"]).model_copy(update={"entries": ("planted_by_a_model:tools",)}).write(file.parent)
    with pytest.raises(UsageError, match=r"steal.*not part of Soloist.*--tools planted_by_a_model:tools"):
        find_model(file)
    assert "planted_by_a_model" not in sys.modules
    assert find_model(file, ["mine:tools"]).entries == ("mine:tools",)


def test_a_student_that_calls_tools_nobody_gave_it_is_refused(tmp_path, write_card):
    write_card(tmp_path, "tools", ["calc"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"calls tools \(calc\).*name them with --tools MODULE:NAME"):
        find_model(tmp_path)
    assert find_model(tmp_path, [SHIPPED]).entries == (SHIPPED,)


def test_a_student_that_answers_in_words_needs_none(tmp_path, write_card):
    write_card(tmp_path, "cot")
    (tmp_path / "config.json").write_text("{}")
    assert find_model(tmp_path).tools == ()


def test_a_list_of_tools_that_is_none_is_named(file):
    for content in ("{", json.dumps({"tools": [{"function": {}}]}), json.dumps({"format": "smoke signals"})):
        (file.parent / FILE).write_text(content)
        with pytest.raises(ArtifactError, match=r"tools\.json: not a list of tools of ours"):
            find_model(file)


def test_a_jobs_folder_stands_for_the_file_it_recommends(file):
    job = file.parents[2]
    other = job / "compiled" / "q4.gguf"
    other.parent.mkdir()
    other.write_bytes(b"G")
    (job / "quantized").mkdir()
    (job / "quantized" / IMPORTANCE).write_bytes(b"")
    assert find_model(job).path == other, "without a recommendation the smallest that is a model"
    (job / RECOMMENDED).write_text("export/gguf/student.gguf\n")
    assert find_model(job).path == file
    for outside in ("../elsewhere.gguf", "/etc/hostname", "gone.gguf"):
        (job / RECOMMENDED).write_text(outside)
        assert find_model(job).path == other, "never out of the folder"
