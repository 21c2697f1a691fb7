import json
from collections import Counter

import pytest

ALGORITHM = {
    "is_correct": False,
    "question": "How many?",
    "question_ID": "4d51c4bf-4b0e-4f3d-897b-3f6687a7d9f2",
    "level": "2",
    "ground_truth": "8",
    "mistake_agent": "Excel_Expert",
    "mistake_step": "2",
    "mistake_reason": "...",
    "system_prompt": {"Excel_Expert": "You know Excel."},
    "history": [
        {"content": "I run code.", "role": "assistant", "name": "Excel_Expert"},
        {"content": "exitcode: 0", "role": "user", "name": "Computer_terminal"},
        {"content": "It is 7.", "role": "assistant", "name": "Excel_Expert"},
        {"content": "Agreed, 7.", "role": "user", "name": "Checker"},
    ],
}
HAND = {
    "is_corrected": False,
    "question": "Where?",
    "question_ID": "6e" * 32,
    "ground_truth": "Here",
    "mistake_agent": "WebSurfer",
    "mistake_step": "3",
    "mistake_reason": "...",
    "history": [
        {"content": "Where?", "role": "human"},
        {"content": "Plan.", "role": "Orchestrator (thought)"},
        {"content": "Go.", "role": "Orchestrator (-> WebSurfer)"},
        {"content": "There.", "role": "WebSurfer"},
        {"content": "Done.", "role": "Orchestrator (thought)"},
    ],
}


def test_steps_before_the_mistake_are_right_and_after_it_unknown(write, load, edges):
    imported = load(write("1.json", ALGORITHM))
    run = imported.run
    assert imported.format == "who-and-when"
    assert [t.verdict for t in run.turns] == ["correct", "correct", "wrong", "unknown"]
    assert [t.model is None for t in run.turns] == [False, True, False, False]
    assert edges(run, "influence") == [(0, 1), (1, 2), (2, 3)]
    assert edges(run, "continuity") == [(0, 2)]
    assert run.verdict == "wrong"
    assert run.question.gold == "8"
    assert run.question.benchmark == "GAIA"
    assert run.turns[0].messages[0].content == "You know Excel."
    assert not run.turns[3].messages


def test_the_hand_crafted_dialect_has_its_agents_in_roles(write, load):
    run = load(write("1.json", HAND)).run
    assert [(t.agent, t.role, t.verdict) for t in run.turns] == [
        ("human", "user", "unknown"),
        ("Orchestrator", "thought", "correct"),
        ("Orchestrator", "-> WebSurfer", "correct"),
        ("WebSurfer", "agent", "wrong"),
        ("Orchestrator", "thought", "unknown"),
    ]
    assert run.question.benchmark == "AssistantBench"
    assert run.turns[0].model is None


@pytest.mark.parametrize(
    ("change", "verdicts", "why"),
    [
        ({"mistake_agent": "Checker"}, ["correct", "correct", "wrong", "unknown"], "not a step of mistake_agent"),
        ({"mistake_step": "4"}, ["unknown"] * 4, "outside the history"),
        ({"mistake_step": "-1"}, ["unknown"] * 4, "outside the history"),
        ({"mistake_step": "soon"}, ["unknown"] * 4, "outside the history"),
        ({"mistake_step": None}, ["unknown"] * 4, "outside the history"),
    ],
)
def test_labels_that_do_not_fit_are_repaired_and_counted(write, load, change, verdicts, why):
    imported = load(write("1.json", ALGORITHM | change))
    assert [t.verdict for t in imported.run.turns] == verdicts
    assert list(imported.counts.repaired.values()) == [1]
    assert why in next(iter(imported.counts.repaired))


def test_a_history_that_is_none_is_refused(write, load):
    path = write("all.json", [ALGORITHM, HAND | {"history": []}, HAND | {"history": [{"role": "x", "content": None}]}])
    assert load(path).counts.refused == {"'history' is no list, or empty": 1, "'content' is missing": 1}


def test_the_real_files_import_whole(load, shared_data):
    folder = shared_data / "traces" / "who_and_when"
    imported = load(folder)
    files = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert imported.counts.kept == len(files) == 16
    assert imported.counts.refused == {}
    for run, file in zip(imported.runs, files, strict=True):
        assert [t.text for t in run.turns] == [m["content"] for m in file["history"]]
        wrong = [t for t in run.turns if t.verdict == "wrong"]
        assert [t.id for t in wrong] == [int(file["mistake_step"])]
    mismatched = sum(
        run.turns[int(file["mistake_step"])].agent != file["mistake_agent"]
        for run, file in zip(imported.runs, files, strict=True)
    )
    assert sum(imported.counts.repaired.values()) == mismatched
    assert Counter(run.verdict for run in imported.runs) == {"wrong": 16}
    assert set(imported.facts.benchmarks) == {"GAIA", "AssistantBench"}
