"""Config and team files: every fault at once, each with file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from soloist.kernels.errors import UsageError
from soloist.toolchain.core.config import Config, describe, load_yaml
from soloist.toolchain.teams.config import GgufEngineConfig, TeamConfig, load_team, shipped_teams
from soloist.toolchain.teams.team import Team, find_topology, topology_names


class Optimizer(Config):
    name: str
    rate: float = Field(default=1e-3, gt=0)


class Plan(Config):
    steps: int
    optimizers: tuple[Optimizer, ...] = ()
    seed: int = 0


def faults(path: Path, text: str, model=Plan) -> list[str]:
    """The messages for a file, the file's name cut off."""
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_yaml(path, model)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    assert caught.value.exit_code == 2
    return [line.removeprefix(f"{path}:") for line in lines]


def test_faults_of_a_record_are_one_line_and_a_foreign_file_does_not_flood_it():
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate({"steps": "many", "step": 3, "optimizers": [{"name": "adam", "rate": 0}]})
    assert describe(caught.value, "options.") == (
        "options.steps: Input should be a valid integer, unable to parse string as an integer; "
        "options.optimizers.0.rate: Input should be greater than 0; options.step: unknown field"
    )
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate({"steps": 1, "optimizers": [{}] * 25})
    faults = describe(caught.value).split("; ")
    assert len(faults) == 21
    assert faults[19] == "optimizers.19.name: Field required"
    assert faults[20] == "and 5 more"
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate(7)
    assert describe(caught.value).startswith("record: Input should be a valid dictionary")


def test_good_file_becomes_a_frozen_config(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("steps: 10\noptimizers:\n  - {name: adam, rate: 1e-4}\n")
    plan = load_yaml(path, Plan)
    assert plan == Plan(steps=10, optimizers=(Optimizer(name="adam", rate=1e-4),))
    with pytest.raises(ValueError, match="frozen"):
        plan.steps = 11


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps: 10\nstep: 3\n", ["2: step: unknown key"]),
        ("seed: 1\n", ["1: steps: Field required"]),
        ("", ["1: steps: Field required"]),
        ("# a comment\n\nsteps: many\n", ["3: steps: Input should be a valid integer"]),
        ("- steps\n", ["1: file: Input should be a valid dictionary or instance of Plan"]),
        ("steps: 3\noptimizers:\n- name: adam\n- name: sgd\n  rate: 0\n", ["5: optimizers.1.rate: Input should be"]),
        ("steps: 3\noptimizers: [{rate: 1}]\n", ["2: optimizers.0.name: Field required"]),
        ("steps: 3\nsteps: 4\n", ["2: steps: stands here twice"]),
        ("steps: 3\noptimizers:\n- name: adam\n  name: sgd\n", ["4: name: stands here twice"]),
        (
            "steps: many\nsteps: many\nspeed: 1\noptimizers:\n- name: [adam]\n  rate: -1\n",
            [
                "2: steps: stands here twice",
                "1: steps: ",
                "5: optimizers.0.name: ",
                "6: optimizers.0.rate: ",
                "3: speed: unknown key",
            ],
        ),
    ],
)
def test_faults_are_told_all_at_once_with_line_and_field(tmp_path, text, expected):
    described = faults(tmp_path / "plan.yaml", text)
    assert len(described) == len(expected)
    for line, want in zip(described, expected, strict=True):
        assert line.startswith(want)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("steps: [1, 2\nseed: 3\n", "2"),
        ("steps: 1\n\tseed: 3\n", "2"),
        ("a: !!python/object:os.system {}\n", "1"),
        ("steps: *nothing\n", "1"),
        ("steps: 2023-02-31\n", ""),
        ("steps: \x00\n", ""),
    ],
)
def test_what_is_not_yaml_is_one_line(tmp_path, text, line):
    (fault,) = faults(tmp_path / "plan.yaml", text)
    assert "not YAML: " in fault
    assert fault.split(": ")[0].strip() in (line, "not YAML")


def test_alias_onto_itself_is_refused_and_not_followed_forever(tmp_path):
    assert faults(tmp_path / "plan.yaml", "steps: 1\noptimizers: &a [*a]\n")


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_unreadable_file_is_one_line(tmp_path, kind):
    path = tmp_path / "plan.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError) as caught:
        load_yaml(path, Plan)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


TEAM = """\
name: pair
topology: debate
engine:
  kind: gguf
  model: smollm2-135m
agents:
  - {name: ann, role: debater}
  - name: bob
    role: debater
    sampling: {temperature: 0.7}
options:
  rounds: 2
"""


def test_team_file_loads(tmp_path):
    path = tmp_path / "pair.yaml"
    path.write_text(TEAM)
    team = load_team(str(path))
    assert isinstance(team.engine, GgufEngineConfig)
    assert team.agents[1].sampling.temperature == 0.7


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: bob", "name: ann", "1: file: agent names must differ; twice: ann"),
        ("kind: gguf", "kind: gpt", "3: engine: Input tag 'gpt'"),
        ("  model: smollm2-135m", "  model: m\n  slots: 0", "6: engine.slots: Input should be greater than or equal"),
        ("  model: smollm2-135m", "  model: m\n  threds: 2", "6: engine.threds: unknown key"),
        ("temperature: 0.7", "temprature: 0.7", "10: agents.1.sampling.temprature: unknown key"),
        ("temperature: 0.7", "temperature: .nan", "10: agents.1.sampling.temperature: "),
        ("role: debater}", "}", "7: agents.0.role: Field required"),
        ("  rounds: 2", "  - rounds", "11: options: Input should be a valid dictionary"),
    ],
)
def test_team_file_faults_name_line_and_field(tmp_path, old, new, expected):
    assert old in TEAM
    (fault,) = faults(tmp_path / "pair.yaml", TEAM.replace(old, new, 1), TeamConfig)
    assert fault.startswith(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topology": "debat"}, "unknown topology 'debat': use one of " + ", ".join(topology_names())),
        ({"topology": "nowhere:topology"}, "topology 'nowhere:topology' cannot be imported"),
        ({"topology": "json:loads"}, "topology 'json:loads': needs a pydantic model `Options`"),
        ({"options": {"rounds": 0, "round": 1}}, "options.rounds: Input should be greater.*; options.round: unknown"),
        ({"tools": ["nowhere:tools"]}, "nowhere:tools"),
        ({"agents": [{"name": "ann", "role": "debater", "tools": ["abacus"]}]}, "'ann' names unknown tools: abacus"),
    ],
)
def test_team_that_cannot_work_is_refused_before_its_engine_is_opened(tmp_path, change, message):
    path = tmp_path / "pair.yaml"
    path.write_text(TEAM.replace("smollm2-135m", "/nowhere/model.gguf"))
    config = TeamConfig.model_validate(load_team(str(path)).model_dump() | change)
    with pytest.raises(UsageError, match=message) as caught:
        Team(config)
    assert "\n" not in str(caught.value)


def test_team_is_found_by_path_or_name_and_an_unknown_one_lists_those_that_ship(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"pair\.yaml: no such file; teams that ship with Soloist: .*desk"):
        load_team("pair")
    (tmp_path / "pair.yaml").write_text(TEAM)
    assert load_team("pair") == load_team("pair.yaml") == load_team(str(tmp_path / "pair"))


@pytest.mark.parametrize("name", shipped_teams())
def test_shipped_team_loads_and_its_topology_takes_its_options(name):
    team = load_team(name)
    assert team.name == name
    find_topology(team.topology).Options.model_validate(team.options)
