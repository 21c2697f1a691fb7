"""A team of one agent on another team's engine: what a team is compared with, and what it may be replaced by."""

from __future__ import annotations

from soloist.toolchain.teams.config import AgentConfig, TeamConfig

BASE_PROMPT = "Answer the question. End with '#### ' and the answer alone."


def lone(name: str, team: TeamConfig, agent: AgentConfig, *, topology: str = "solo", **options: object) -> TeamConfig:
    """`agent` alone on the engine of `team`, with the team's tools if it calls any."""
    engine = team.engine
    if engine.kind == "gguf":
        engine = engine.model_copy(update={"slots": 4, "context": 4096})
    tools = team.tools if agent.tools else ()
    return TeamConfig(name=name, topology=topology, engine=engine, agents=(agent,), tools=tools, options=dict(options))
