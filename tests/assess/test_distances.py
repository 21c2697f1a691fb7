"""Distances between runs, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from soloist.toolchain.assess.distances import output_distances, output_of, trace_distances, trace_of
from soloist.toolchain.traces.schema import Run, Turn


def test_output_is_the_path_and_the_answer_and_nothing_after_it(run_of):
    run = run_of([("calc(2 + 3) then", "5"), ("calc(5 * 2)", "10")])
    scribe = Turn(id=2, agent="sam", role="scribe", text="long prose", model="script")
    assert output_of(run.model_copy(update={"turns": (*run.turns, scribe)})) == "calc(2 + 3) then\ncalc(5 * 2)\n10"
    assert output_of(run_of([("calc(2 +)", None)])) == ""


def test_output_distances_count_tokens(run_of):
    runs = [run_of([("calc(2 + 3)", "5")]), run_of([("calc(2 + 4)", "6")]), run_of([("calc(", None)])]
    distances = output_distances(runs)
    assert distances[0, 1] == pytest.approx(2 / 7)  # calc ( 2 + 3 ) 5: the 3 and the 5
    assert distances[0, 2] == 1
    assert distances.diagonal().tolist() == [0, 0, 0]
    assert (distances == distances.T).all()


def test_trace_is_roles_and_calls(run_of):
    run = run_of([("calc(2 + 3) then", "5"), ("calc(5 * 2)", "10")])
    assert trace_of(run) == (
        ("role", "reader"),
        ("call", "calc(2 + 3) then"),
        ("role", "reader"),
        ("call", "calc(5 * 2)"),
    )


def test_trace_distances_see_calls_and_extra_turns(run_of):
    one, two = run_of([("calc(2 + 3)", "5")]), run_of([("calc(3 + 2)", "5")])
    longer = run_of([("calc(2 + 3)", "5"), ("calc(2 + 3)", "5")])
    distances = trace_distances([one, two, longer])
    assert distances[0, 1] == pytest.approx(1 / 2)
    assert distances[0, 2] == pytest.approx(2 / 4)


class Angles:
    """Shows a text as a direction; counts what it was asked."""

    def __init__(self, angles):
        self.angles, self.seen = angles, []

    def embed(self, text):
        self.seen.append(text)
        angle = self.angles[text]
        return 7 * np.array([np.cos(angle), np.sin(angle)], np.float32), 1


def test_hidden_states_give_one_minus_the_cosine_and_equal_texts_nothing(run_of):
    a, b = run_of([("calc(1)", "1")]), run_of([("calc(2)", "2")])
    states = Angles({"calc(1)\n1": 0.3, "calc(2)\n2": 0.3 + np.pi / 3})
    distances = output_distances([a, b, a, run_of([("calc(", None)])], states)
    assert distances[0, 1] == pytest.approx(0.5, abs=1e-6)
    assert distances[0, 2] == 0
    assert distances[1, 3] == 1
    assert sorted(states.seen) == ["calc(1)\n1", "calc(2)\n2"], "each text once, and never an empty one"


def test_runs_without_turns_do_not_differ(question):
    runs = [Run(question=question(1), team="t", verdict="absent")] * 2
    assert output_distances(runs).max() == trace_distances(runs).max() == 0
