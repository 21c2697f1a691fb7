"""`soloist chat`: one question, or many from stdin, with the tools named beside the model."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("xllamacpp")


@pytest.fixture
def compiled(whole_job):
    """The folder of the student's F16 file, its tools beside it."""
    return whole_job.out / "compiled" / "gguf-f16"


@pytest.fixture
def file(compiled):
    (model,) = compiled.glob("*.gguf")
    return model


def call_in(output):
    """The call as it was streamed, and the line that repeats it with its outcome."""
    streamed, outcome, *answer = output.splitlines()
    return streamed.strip(), outcome, answer


def test_a_question_is_answered_by_a_call_and_its_result(soloist, file, one_thread):
    result = soloist("chat", file, "What is", "411 + 108?")
    assert result.exit_code == 0, result.output
    streamed, outcome, answer = call_in(result.stdout)
    assert streamed.startswith("calc(") and streamed.endswith(")"), "the grammar holds"
    assert outcome.startswith(f"  {streamed} = ")
    assert answer in (["no answer"], [outcome.removeprefix(f"  {streamed} = ")])


def test_text_is_streamed_piece_by_piece(file, one_thread, whole_job):
    from soloist.toolchain.student.ask import student_team
    from soloist.toolchain.tasks.base import Question
    from soloist.toolchain.teams.engines.student import StudentEngine
    from soloist.toolchain.teams.team import Team

    team = student_team(file, ["calc"], ["soloist.toolchain.desk.tools:desk_tools"])
    pieces = []
    with Team(team, engine=StudentEngine(team.engine, on_text=pieces.append)) as opened:
        run = opened.answer(Question(id="q", question="What is 411 + 108?", gold=None))
    assert len(pieces) > 2
    assert "".join(pieces) == run.turns[0].text


def test_questions_come_from_stdin_until_an_empty_line(soloist, file, one_thread):
    result = soloist("chat", file, stdin="What is 411 + 108?\nWhat is 402 + 45?\n\nWhat is 1 + 1?\n")
    assert result.exit_code == 0, result.output
    assert len([line for line in result.stdout.splitlines() if line.startswith("  calc(")]) == 2
    ended = soloist("chat", file, stdin="What is 411 + 108?")
    assert ended.exit_code == 0 and ended.stdout.count("\n") == 3, "a last line without an end is a question too"


def test_a_folder_of_a_job_means_its_smallest_file(soloist, whole_job, file, one_thread):
    assert soloist("chat", whole_job.out, "What is 402 + 45?").stdout.lstrip().startswith("calc(")
    from soloist.toolchain.student.find import find_model

    assert find_model(whole_job.out / "compiled").path.parent.name == "gguf-q8_0"
    assert find_model(file).path == file


def test_without_tools_a_student_answers_in_words(soloist, file, tmp_path, one_thread):
    alone = shutil.copy(file, tmp_path / "alone.gguf")
    result = soloist("chat", alone, "What is 411 + 108?")
    assert result.exit_code == 0, result.output
    assert not [line for line in result.stdout.splitlines() if line.startswith("  ")]
    given = soloist("chat", alone, "--tools", "soloist.toolchain.desk.tools:desk_tools", "What is 411 + 108?")
    assert given.exit_code == 0
    assert " = " in call_in(given.stdout)[1]


def test_the_torch_student_calls_the_tools_beside_it(soloist, whole_job, one_thread):
    result = soloist("chat", whole_job.out / "student", "What is 411 + 108?")
    assert result.exit_code == 0, result.output
    streamed, outcome, _ = call_in(result.stdout)
    assert streamed.startswith("calc(")
    assert outcome.startswith(f"  {streamed} = ")


def test_a_torch_student_whose_tools_nobody_names_is_refused_and_not_answered_without_them(
    refused, soloist, whole_job, tmp_path, one_thread
):
    student = shutil.copytree(whole_job.out / "student", tmp_path / "job" / "student")
    (student / "tools.json").unlink()
    assert refused(2, "chat", student, "What is 411 + 108?") == (
        f"{student}: this student calls tools (calc), and no tools.json beside it says where they are: "
        "name them with --tools MODULE:NAME"
    )
    given = soloist("chat", student, "--tools", "soloist.toolchain.desk.tools:desk_tools", "What is 411 + 108?")
    assert given.exit_code == 0
    assert "calc(" in given.stdout
    (student / "student.json").write_text("[]")
    message = refused(4, "chat", student, "What is 411 + 108?")
    assert message.startswith(f"{student / 'student.json'}: not a student's card of this version")


def test_a_quantized_student_calls_the_tools_of_the_one_it_was_made_from(soloist, whole_job, tmp_path, one_thread):
    from soloist.toolchain.quantize.stage import QuantizeConfig, quantize
    from soloist.toolchain.student.student import open_student

    student = open_student(whole_job.out / "student")
    made = quantize(QuantizeConfig(rounding="rtn", bits=8), student, tmp_path / "quantized").path
    given = soloist("chat", made, "What is 411 + 108?")
    assert given.exit_code == 0 and "  calc(" in given.stdout, given.output
    assert given.stderr.startswith("weights held as ")


def test_what_is_no_model_and_tools_that_are_gone_are_refused(refused, file, compiled, tmp_path):
    assert "no such file or folder" in refused(4, "chat", tmp_path / "none.gguf", "hi")
    assert "not a model" in refused(4, "chat", tmp_path, "hi")
    moved = shutil.copytree(compiled, tmp_path / "moved")
    tools = json.loads((moved / "tools.json").read_text())
    (moved / "tools.json").write_text(json.dumps(tools | {"entries": ["nowhere_at_all:tools"]}))
    message = refused(2, "chat", moved / file.name, "hi")
    assert message.endswith("if you trust them: --tools nowhere_at_all:tools")
    message = refused(2, "chat", moved / file.name, "--tools", "nowhere_at_all:tools", "hi")
    assert "'nowhere_at_all:tools' cannot be imported" in message
    (moved / "tools.json").write_text("{")
    message = refused(4, "chat", moved / file.name, "hi")
    assert "tools.json" in message
