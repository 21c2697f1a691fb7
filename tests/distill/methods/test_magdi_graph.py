"""MAGDi's graphs: the grid and its edges, what is said and what only read, what is refused."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from soloist.kernels.errors import DataError, UsageError  # noqa: E402
from soloist.toolchain.distill.methods import magdi  # noqa: E402
from soloist.toolchain.distill.methods.magdi import ABSENT, CORRECT, WRONG, MagdiOptions, grid_edges  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, recheck  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.traces.schema import Edge, Run, Turn  # noqa: E402
from soloist.toolchain.traces.store import read_runs  # noqa: E402


def debate(number, grid, *, split="train", team="debate", texts=None):
    """A debate in rounds. `grid`: one string per agent, one letter a round: c(orrect) w(rong) u(ngraded) - (silent)."""
    turns, edges, before = [], [], []
    right = number + 3
    for column in range(max(map(len, grid))):
        now = []
        for agent, row in enumerate(grid):
            letter = row[column] if column < len(row) else "-"
            if letter == "-":
                continue
            answer = str(right if letter == "c" else right + 1 + agent)
            text = (texts or {}).get((agent, column), f"{number} and 3 make {answer}.")
            verdict = {"c": "correct", "w": "wrong", "u": "unknown"}[letter]
            turn = Turn(
                id=len(turns),
                agent=f"agent-{agent}",
                role="solver",
                round=column,
                text=text,
                model="m",
                answer=answer,
                verdict=verdict,
            )
            for other in before:
                kind = "continuity" if other.agent == turn.agent else "influence"
                edges.append(Edge(source=other.id, target=turn.id, kind=kind))
            turns.append(turn)
            now.append(turn)
        before = now
    question = Question(
        id=f"q{number}", question=f"What is {number} plus 3?", gold=str(right), split=split, scorer="number"
    )
    final = next((turn for turn in turns if turn.verdict == "correct"), turns[-1])
    return Run(
        question=question,
        team=team,
        turns=turns,
        edges=edges,
        path=(final.id,),
        answer=final.answer,
        verdict=final.verdict,
    )


def setup_of(tokenizer, *, mode="tools", max_length=512, variant="paper", check=recheck, **options):
    return Setup(tokenizer, check, mode, max_length, 0, variant, MagdiOptions(**options))


def said_by(example):
    return example.messages[-1]["content"]


# ---------------------------------------------------------------- grid and edges


@pytest.mark.parametrize(("agents", "rounds"), [(2, 1), (2, 2), (3, 4), (5, 3)])
def test_edges_of_the_grid_point_forward_and_are_all_there(agents, rounds):
    edges = grid_edges(agents, rounds)
    assert all(target % rounds == source % rounds + 1 for source, target in edges)
    assert len(edges) == len({tuple(e) for e in edges}) == agents * (rounds - 1) + agents * (agents - 1) * (rounds - 1)


def test_released_edges_are_the_27_with_nine_backward():
    released = {tuple(edge) for edge in grid_edges(3, 4, "released")}
    backward = {(1, 4), (1, 8), (5, 8), (2, 5), (2, 9), (6, 9), (3, 6), (3, 10), (7, 10)}
    assert backward == {(s, t) for s, t in released if t % 4 < s % 4}
    assert len(released) == 27
    assert {frozenset(edge) for edge in released} == {frozenset(edge) for edge in grid_edges(3, 4)}
    for cell in (0, 1, 2, 4, 5, 6, 8, 9, 10):  # of each agent, every round but the last
        assert (cell, cell + 1) in released


def test_cells_are_rounds_or_attempts_where_a_round_has_several(tokenizer):
    run = debate(4, ["-c", "ww"])
    (group,) = magdi.select([run], setup_of(tokenizer)).groups
    assert group.facts["labels"] == [ABSENT, CORRECT, WRONG, WRONG]
    turns = [turn.model_copy(update={"round": 0}) for turn in run.turns]
    again = run.model_copy(update={"turns": tuple(turns), "edges": ()})
    assert not magdi.Grid.of([magdi.graph_of(again)]).by_round
    (group,) = magdi.select([again], setup_of(tokenizer)).groups
    assert group.facts["labels"] == [CORRECT, ABSENT, WRONG, WRONG]


def test_the_grid_is_the_teams_or_the_runs(tokenizer):
    runs = [debate(1, ["cc", "wc", "wc"]), debate(2, ["c", "c"])]
    team = magdi.select(runs, setup_of(tokenizer)).groups[1]
    alone = magdi.select(runs, setup_of(tokenizer, grid="run")).groups[1]
    assert team.facts["labels"] == [CORRECT, ABSENT, CORRECT, ABSENT, ABSENT, ABSENT]
    assert len(team.facts["edges"]) == 9
    assert alone.facts["labels"] == [CORRECT, CORRECT]
    assert alone.facts["edges"] == []


def test_edges_of_the_run_are_who_saw_whom(tokenizer):
    run = debate(1, ["cc", "wc"])
    lone = run.model_copy(update={"edges": tuple(e for e in run.edges if e.kind == "continuity")})
    (group,) = magdi.select([lone], setup_of(tokenizer, edges="run")).groups
    assert group.facts["edges"] == [[0, 1], [2, 3]]


def test_edges_within_a_round_are_kept_by_the_run_and_unknown_to_the_grid(tokenizer):
    run = debate(1, ["cc", "wc"])  # turns: both of round 0, both of round 1
    in_turn = [e for e in run.edges if (e.source, e.target) != (0, 3)] + [Edge(source=2, target=3, kind="influence")]
    spoken = run.model_copy(update={"edges": tuple(in_turn)})
    (seen,) = magdi.select([spoken], setup_of(tokenizer, edges="run", grid="run")).groups
    assert sorted(seen.facts["edges"]) == [[0, 1], [1, 3], [2, 1], [2, 3]]  # cells: agent 0's two, then agent 1's
    (grid,) = magdi.select([spoken], setup_of(tokenizer)).groups
    assert grid.facts["edges"] == grid_edges(2, 2) == [[0, 1], [0, 3], [2, 1], [2, 3]]


def test_an_agent_that_spoke_without_an_answer_is_not_called_absent(tokenizer):
    run = debate(5, ["wc", "cc"])
    mute = run.turns[0].model_copy(update={"answer": None, "verdict": "unknown", "text": "Hard to say."})
    (group,) = magdi.select([run.model_copy(update={"turns": (mute, *run.turns[1:])})], setup_of(tokenizer)).groups
    assert group.facts["labels"] == [magdi.UNGRADED, CORRECT, CORRECT, CORRECT]
    assert said_by(group.examples[0]) == "Hard to say."
    assert not group.examples[0].targets


# ---------------------------------------------------------------- conversations


def test_only_correct_attempts_are_learned_to_say(tokenizer):
    chosen = magdi.select([debate(5, ["wc", "cw"])], setup_of(tokenizer))
    (group,) = chosen.groups
    learned = [said_by(e) for e in group.examples if e.targets]
    assert learned == ["5 and 3 make 8.\n#### 8"] * 2
    assert [e.targets > 0 for e in group.examples] == [False, True, True, False]
    assert chosen.counts.notes == {"nodes correct": 2, "nodes wrong": 2, "learned": 2}
    for example in group.examples:
        prompt = len(tokenizer.apply_chat_template(list(example.messages[:1]), add_generation_prompt=True)["input_ids"])
        assert not any(example.trained[:prompt])


def test_an_absent_agent_is_the_bare_question(tokenizer):
    (group,) = magdi.select([debate(5, ["wc", "w-"])], setup_of(tokenizer)).groups
    absent = group.examples[group.facts["nodes"][3]]
    assert said_by(absent) == ""
    assert not absent.targets
    assert "8" not in tokenizer.decode(absent.ids)
    assert "9" not in tokenizer.decode(absent.ids)


def test_all_absent_cells_share_one_conversation(tokenizer):
    (group,) = magdi.select([debate(5, ["wcw", "w--", "---"]), debate(6, ["w", "w", "w"])], setup_of(tokenizer)).groups
    assert group.facts["labels"].count(ABSENT) == 5
    assert len(group.examples) == 5


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("I agree with agent 1. It is 3.5 in all.", "It is 3.5 in all."),
        ("It is 8. I disagree that 3.5 fits! So 8.", "It is 8. So 8."),
        ("First 8.\nI agree", "First 8."),
        ("They say I agree. Yes.", "They say I agree. Yes."),
        ("I agreed on nothing.", "I agreed on nothing."),
    ],
)
def test_sentences_of_agreement_are_dropped(tokenizer, text, left):
    assert magdi.without_stance(text) == left
    run = debate(5, ["c", "w"], texts={(0, 0): text})
    (group,) = magdi.select([run], setup_of(tokenizer)).groups
    assert said_by(group.examples[0]).startswith(left)


def test_a_text_of_nothing_but_agreement_stays(tokenizer):
    run = debate(5, ["c", "w"], texts={(1, 0): "I agree."})
    run = run.model_copy(update={"turns": (run.turns[0], run.turns[1].model_copy(update={"answer": "I agree."}))})
    (group,) = magdi.select([run], setup_of(tokenizer)).groups
    assert "I agree." in said_by(group.examples[1])


def test_a_correct_attempt_of_nothing_but_agreement_is_not_learned(tokenizer):
    run = debate(5, ["c", "c"], texts={(0, 0): "I agree, it is 8."})
    (group,) = magdi.select([run], setup_of(tokenizer)).groups
    assert [e.targets > 0 for e in group.examples] == [False, True]
    assert group.facts["labels"] == [CORRECT, CORRECT]


def test_a_correct_attempt_whose_steps_do_not_recheck_is_read_not_learned(tokenizer):
    run = debate(5, ["c", "c"], texts={(0, 0): "5 + 3 = 9\nSo 8."})
    (group,) = magdi.select([run], setup_of(tokenizer)).groups
    assert [e.targets > 0 for e in group.examples] == [False, True]
    assert group.facts["labels"] == [CORRECT, CORRECT]


def test_a_long_attempt_is_cut_and_only_read(tokenizer):
    run = debate(5, ["c", "c"], texts={(0, 0): "well " * 60})
    (group,) = magdi.select([run], setup_of(tokenizer, max_length=120)).groups
    assert len(group.examples[0].ids) == 120
    assert [e.targets > 0 for e in group.examples] == [False, True]


def test_an_ungraded_attempt_is_a_node_without_label_or_pair(tokenizer):
    (group,) = magdi.select([debate(5, ["c", "u", "w"])], setup_of(tokenizer)).groups
    assert group.facts["labels"] == [1, magdi.UNGRADED, 0]
    assert group.facts["pairs"] == [[0, 2]]
    counts = magdi.GraphObjective(4, MagdiOptions()).counts([group])
    assert (counts["nodes"], counts["majority"]) == (2, 1)


def test_the_shorter_side_of_the_pairs_is_repeated(tokenizer):
    (group,) = magdi.select([debate(5, ["cw", "ww"])], setup_of(tokenizer)).groups
    assert group.facts["pairs"] == [[0, 1], [0, 2], [0, 3]]
    (group,) = magdi.select([debate(5, ["cc", "cc"])], setup_of(tokenizer)).groups
    assert group.facts["pairs"] == []


def test_released_also_trains_on_the_prompt(tokenizer):
    (group,) = magdi.select([debate(5, ["c", "w"])], setup_of(tokenizer, variant="released")).groups
    assert group.examples[0].trained == (False,) + (True,) * (len(group.examples[0].ids) - 1)
    assert not group.examples[1].targets


def test_the_ladder_takes_what_each_level_needs(tokenizer):
    run = debate(5, ["cc", "wc", "w-"])
    found = {level: magdi.select([run], setup_of(tokenizer, level=level)).groups[0] for level in (1, 2, 3, 4)}
    assert [len(group.examples) for group in found.values()] == [1, 3, 5, 6]
    assert [sorted(group.facts) for group in found.values()] == [
        ["question"],
        ["question"],
        ["pairs", "question"],
        ["edges", "labels", "nodes", "pairs", "question"],
    ]
    names = [magdi.GraphObjective(4, MagdiOptions(level=level)).names for level in (1, 2, 3, 4)]
    assert names == [("lm",), ("lm",), ("lm", "margin"), ("lm", "nodes", "margin")]


def test_recorded_desk_runs_make_groups_in_both_modes(tokenizer, recorded_runs):
    for mode in ("tools", "cot"):
        chosen = magdi.select(recorded_runs, setup_of(tokenizer, mode=mode, max_length=4096))
        assert len(chosen.groups) > 30
        assert sum(chosen.rejected.values()) + len(chosen.groups) == 60
        mixed = [g for g in chosen.groups if g.facts["pairs"]]
        assert mixed
        for group in chosen.groups:
            assert len(group.facts["labels"]) == len(group.facts["nodes"])
            assert CORRECT in group.facts["labels"]
            json.dumps(group.facts)


# ---------------------------------------------------------------- bad input


def test_one_agent_only_is_refused(tokenizer, run_of):
    with pytest.raises(DataError, match="magdi learns from several agents"):
        magdi.select([debate(5, ["cwc"]), debate(6, ["w"])], setup_of(tokenizer))
    with pytest.raises(DataError, match="several agents"):
        magdi.select([run_of(3)], setup_of(tokenizer))


def test_a_lone_run_among_debates_is_counted(tokenizer):
    chosen = magdi.select([debate(5, ["c", "w"]), debate(6, ["c"], team="solo")], setup_of(tokenizer))
    assert chosen.rejected == {"one agent only": 1}


def test_questions_without_a_correct_attempt_are_dropped(tokenizer):
    runs = [debate(5, ["c", "w"]), debate(6, ["w", "w"]), debate(7, ["u", "u"])]
    assert magdi.select(runs, setup_of(tokenizer)).rejected == {"no correct attempt": 1, "no graded attempt": 1}
    with pytest.raises(DataError, match=r"1 x no correct attempt, 1 x no graded attempt"):
        magdi.select(runs[1:], setup_of(tokenizer))
    with pytest.raises(DataError, match="no correct attempt in the first round"):
        magdi.select([debate(5, ["wc", "ww"])], setup_of(tokenizer, level=1))


def test_held_out_questions_and_too_short_lengths_are_refused(tokenizer):
    with pytest.raises(DataError, match="may not be trained on"):
        magdi.select([debate(5, ["c", "w"], split="test")], setup_of(tokenizer))
    with pytest.raises(DataError, match="of at most 20 tokens"):
        magdi.select([debate(5, ["c", "w"])], setup_of(tokenizer, max_length=20))


def test_an_edge_backwards_in_time_is_refused_by_its_line(tmp_path):
    lines = json.loads(debate(5, ["cc", "wc"]).model_dump_json(by_alias=True))
    lines["edges"][0] = {"source": 3, "target": 0, "kind": "influence"}
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps(lines) + "\n")
    with pytest.raises(DataError, match="does not point forward in time"):
        list(read_runs(file))


def test_no_weight_at_all_is_refused():
    with pytest.raises(UsageError, match="set alpha"):
        DistillConfig(method="magdi", options={"alpha": 0, "beta": 0, "gamma": 0}).settled()
