"""A team, opened: its configuration, engine, tools and topology, ready to answer questions."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Protocol, cast

from pydantic import BaseModel, ValidationError

from soloist.kernels.errors import EngineError, UsageError
from soloist.toolchain.core.config import describe
from soloist.toolchain.core.entry_points import resolve_entry_point
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.teams import topologies
from soloist.toolchain.teams.config import GgufEngineConfig, StudentEngineConfig, TeamConfig
from soloist.toolchain.teams.engines.base import Engine
from soloist.toolchain.teams.session import Session
from soloist.toolchain.tools.base import Toolbox
from soloist.toolchain.tools.files import load_tools
from soloist.toolchain.traces.schema import Run


class Topology(Protocol):
    """What a topology module offers: one file in `topologies/`, named as in the team file, or any other module."""

    Options: type[BaseModel]

    def run(self, session: Session, options: BaseModel) -> Run:
        """Let the team work on `session.question`."""


def topology_names() -> list[str]:
    """The topologies that ship with Soloist."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(topologies.__path__))


def find_topology(name: str) -> Topology:
    """A topology by name, or `package:module` for that of a task of ours or the user's own. Raises UsageError."""
    if name in topology_names():
        module: ModuleType = importlib.import_module(f"{topologies.__name__}.{name.replace('-', '_')}")
        return cast(Topology, module)
    topology = resolve_entry_point(name, "topology", ", ".join(topology_names()))
    options = getattr(topology, "Options", None)
    if not callable(getattr(topology, "run", None)) or not hasattr(options, "model_validate"):
        raise UsageError(f"topology '{name}': needs a pydantic model `Options` and a function `run(session, options)`")
    return cast(Topology, topology)


def open_engine(config: TeamConfig) -> Engine:
    """The engine a team names."""
    if isinstance(config.engine, GgufEngineConfig):
        from soloist.toolchain.teams.engines.gguf import GgufEngine

        return GgufEngine(config.engine)
    if isinstance(config.engine, StudentEngineConfig):
        from soloist.toolchain.teams.engines.pair import open_student

        return open_student(config.engine)
    from soloist.toolchain.teams.engines.openai import OpenAIEngine

    return OpenAIEngine(config.engine)


class Team:
    """Answers questions one after the other. Use as a context manager, or close it."""

    def __init__(self, config: TeamConfig, *, engine: Engine | None = None) -> None:
        self.config = config
        self._topology = find_topology(config.topology)
        try:
            self._options = self._topology.Options.model_validate(config.options)
        except ValidationError as error:
            raise UsageError(f"team '{config.name}': {describe(error, 'options.')}") from error
        self.tools: Toolbox = load_tools(config.tools)
        for agent in config.agents:
            unknown = [name for name in agent.tools if name not in self.tools.tools]
            if unknown:
                raise UsageError(
                    f"team '{config.name}': agent '{agent.name}' names unknown tools: {', '.join(unknown)}"
                )
        self.engine = engine or open_engine(config)

    def answer(self, question: Question, *, seed: int = 0) -> Run:
        """Run the team on a question. An engine that fails raises EngineError: a run is whole or not there."""
        return self._topology.run(Session(self.config, self.engine, self.tools, question, seed), self._options)

    def try_answer(self, question: Question, *, seed: int = 0) -> Run:
        """As `answer`, but an engine failure becomes a run without an answer that says why."""
        session = Session(self.config, self.engine, self.tools, question, seed)
        try:
            return self._topology.run(session, self._options)
        except EngineError as error:
            return session.finish(None, error=str(error))

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
