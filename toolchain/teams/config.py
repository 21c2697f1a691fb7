"""What a team file may say. One YAML file: agents, topology, engine, tools.

What YAML cannot say is a Python entry point (`module:attribute`): a topology, a tool, a scorer. A team that ships
with Soloist is a folder of the toolchain that holds a `team.yaml`; its folder's name is its name.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from soloist.kernels.errors import UsageError
from soloist.targets.providers import Provider
from soloist.toolchain.core.config import Config, load_yaml


class SamplingConfig(Config):
    """How an agent draws tokens."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    seed: int = 0


class Followup(Config):
    """What a demonstration's call returned, and what a good reply to that says."""

    result: str
    reply: str


class Demonstration(Config):
    """One worked example an agent is shown: what is asked, what a good reply says, and what follows a tool's result."""

    question: str
    reply: str
    then: tuple[Followup, ...] = ()


class DemonstrationSource(Config):
    """Demonstrations that the topology draws from its task: `count` of each family, `seed` apart per agent."""

    count: int = Field(default=6, ge=1)
    seed: int = 0


class AgentConfig(Config):
    """One agent. `prompt` is its system message; empty means none of ours."""

    name: str
    role: str
    prompt: str = ""
    model: str | None = None
    demonstrations: tuple[Demonstration, ...] | DemonstrationSource = ()
    tools: tuple[str, ...] = ()
    sampling: SamplingConfig = SamplingConfig()


class GgufEngineConfig(Config):
    """In-process llama.cpp. `model` is a path or a known name (`smollm2-135m`).

    `weights: q8_0` runs the same model re-written in 8 bits, which many processors multiply faster than
    the precision it came in.
    """

    kind: Literal["gguf"]
    model: str
    weights: Literal["as-is", "q8_0", "f16"] = "as-is"
    slots: int = Field(default=8, ge=1, le=256)
    context: int = Field(default=2048, ge=128)
    threads: int | None = Field(default=None, ge=1)


class OpenAIEngineConfig(Config):
    """Any OpenAI-compatible chat-completions endpoint.

    The key is read from the environment variable `key_env`, never stored. Without `key_env` it is
    OPENAI_API_KEY, but only where no `base_url` is given: no endpoint gets a key that is not meant for it.
    """

    kind: Literal["openai"]
    model: str
    base_url: str | None = None
    key_env: str | None = None
    concurrency: int = Field(default=4, ge=1)
    timeout: float = Field(default=120, gt=0)
    retries: int = Field(default=4, ge=0)
    grammar: bool = False
    stream: bool = True


class StudentEngineConfig(Config):
    """A compiled student or a Hugging Face folder; `format` is found out, `provider` is what computes an ONNX model."""

    kind: Literal["student"]
    path: str
    format: str | None = None
    provider: Provider = "auto"


EngineConfig = Annotated[GgufEngineConfig | OpenAIEngineConfig | StudentEngineConfig, Field(discriminator="kind")]


class TeamConfig(Config):
    """A whole team."""

    name: str
    topology: str
    engine: EngineConfig
    agents: tuple[AgentConfig, ...] = Field(min_length=1)
    tools: tuple[str, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def engine_model(self) -> str:
        """What answers, in words."""
        return self.engine.path if isinstance(self.engine, StudentEngineConfig) else self.engine.model

    @model_validator(mode="after")
    def _names(self) -> TeamConfig:
        names = [agent.name for agent in self.agents]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"agent names must differ; twice: {', '.join(twice)}")
        return self


def shipped_teams() -> dict[str, Path]:
    """The team files that ship with Soloist, by the team's name."""
    team_files = sorted(Path(str(files("soloist.toolchain"))).glob("*/team.yaml"))
    return {file.parent.name: file for file in team_files}


def load_team(name: str) -> TeamConfig:
    """A team by path, or by the name of one that ships with Soloist. Raises UsageError."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        shipped = shipped_teams()
        path = shipped.get(name, Path(f"{name}.yaml"))
        if not path.is_file():
            raise UsageError(f"{path}: no such file; teams that ship with Soloist: {', '.join(shipped)}")
    return load_yaml(path, TeamConfig)
