"""What specialists are shown: fields, demonstrations of each, and what tells their questions apart."""

from __future__ import annotations

import numpy as np
import pytest

from soloist.kernels.errors import UsageError
from soloist.toolchain.desk import questions as desk
from soloist.toolchain.desk.specialties import Discriminant, Specialties, load_specialties
from soloist.toolchain.teams.config import load_team

pytest.importorskip("reasoning_gym", reason="the desk's demonstrations come from reasoning-gym")


def test_the_discriminant_ignores_directions_in_which_a_field_varies_anyway():
    rng = np.random.default_rng(0)
    noise = [4.0, 0.1, 0.1]  # the first coordinate is loud and says nothing
    states = {
        name: (np.array([0, *at]) + noise * rng.normal(size=(40, 3))).astype(np.float32)
        for name, at in {"a": (1, 0), "b": (0, 1)}.items()
    }
    told = Discriminant(states)
    assert told.ranked(np.array([9.0, 0.7, 0.2], np.float32)) == ["a", "b"]
    assert told.ranked(np.array([-9.0, 0.2, 0.7], np.float32)) == ["b", "a"]


def test_the_discriminant_of_one_demonstration_a_field_is_the_nearest_mean():
    told = Discriminant({"a": np.array([[1.0, 0.0]], np.float32), "b": np.array([[0.0, 1.0]], np.float32)})
    assert told.ranked(np.array([0.6, 0.5], np.float32)) == ["a", "b"]


def test_a_discriminant_is_made_once_for_each_model():
    known = Specialties(desk, desk.toolbox(), ("gcd", "lcm"))
    seen = []

    def embed(text, scale):
        seen.append(scale)
        return np.array([scale * ("divi" in text), len(text)], np.float32)

    one = known.discriminant(lambda text: embed(text, 1), 2, model="one")
    assert known.discriminant(lambda text: embed(text, 1), 2, model="one") is one
    assert seen == [1] * 4
    other = known.discriminant(lambda text: embed(text, 5), 2, model="other")
    assert other is not one
    assert seen == [1] * 4 + [5] * 4


def test_hidden_states_of_known_weights_are_read_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen = []

    def embed(text):
        seen.append(text)
        return np.array(["divi" in text, len(text)], np.float32)

    def ranked(digest):
        known = Specialties(desk, desk.toolbox(), ("gcd", "lcm"))  # a process of its own, as far as memory goes
        return known.discriminant(embed, 2, model="m", digest=digest).ranked(np.array([1.0, 60.0], np.float32))

    first = ranked("aa")
    assert len(seen) == 4
    assert ranked("aa") == first
    assert len(seen) == 4, "from the cache"
    ranked("bb")
    assert len(seen) == 8, "other weights are other states"
    ranked(None)
    assert len(seen) == 12, "nobody knows what these weights are"
    assert len(list(tmp_path.rglob("states/*.npz"))) == 2


def test_kinds_are_fields_of_their_own_and_only_the_last_step_shows_them():
    known = load_specialties(families=("sorting", "equation-then", "gcd"))
    assert known.names == (
        "sorting:ascending",
        "sorting:descending",
        "equation-then:times",
        "equation-then:plus",
        "equation-then:minus",
        "gcd",
    )
    reader = load_team("desk").agents[1]
    last = known.demonstrations(reader, "equation-then:plus", 1)
    assert all(" + " in message["content"] for message in last if message["role"] == "assistant")
    assert known.demonstrations(reader, "equation-then:plus", 0) == known.demonstrations(
        reader, "equation-then:times", 0
    )


def test_the_shipped_desk_names_families_and_agents_that_exist():
    config = load_team("desk")
    names = load_specialties(families=tuple(config.options["families"])).names
    assert (len(config.options["families"]), len(names)) == (15, 20), "README says so"
    two_calls = [name for name in names if len(load_specialties().tools(name)) == 2]
    assert len(two_calls) >= 2
    assert len([agent for agent in config.agents if agent.role == "reader"]) >= 3


@pytest.mark.parametrize(
    ("name", "families", "reason"),
    [
        ("no_such_module_at_all", (), "'no_such_module_at_all' offers no specialties: No module named"),
        ("soloist.toolchain.desk.tools", ("gcd",), "offers no specialties: .* has no attribute 'FAMILIES'"),
        ("soloist.toolchain.desk.questions", ("gcd", "poems"), "has no family poems; it has equations, sums"),
    ],
)
def test_a_module_without_the_families_asked_for_is_refused(name, families, reason):
    with pytest.raises(UsageError, match=reason):
        load_specialties(name, families)
