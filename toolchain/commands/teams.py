"""`soloist teams`: what ships, and what a team file says."""

from __future__ import annotations

import click


@click.command(short_help="List teams and topologies, or show a team file.")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """Without NAME list the teams and topologies that ship with Soloist; with it check a team file and show it."""
    from pydantic import ValidationError

    from soloist.kernels.errors import UsageError
    from soloist.toolchain.core.config import describe
    from soloist.toolchain.teams.config import load_team, shipped_teams
    from soloist.toolchain.teams.team import find_topology, topology_names
    from soloist.toolchain.tools.files import load_tools

    if name is None:
        click.echo("teams:      " + ", ".join(shipped_teams()))
        click.echo("topologies: " + ", ".join(topology_names()))
        return
    config = load_team(name)
    try:
        find_topology(config.topology).Options.model_validate(config.options)
    except ValidationError as error:
        raise UsageError(f"team '{config.name}': {describe(error, 'options.')}") from error
    load_tools(config.tools)
    click.echo(f"{config.name}: topology {config.topology}, engine {config.engine.kind} ({config.engine_model})")
    for agent in config.agents:
        click.echo(f"  {agent.name:14} {agent.role:12} {agent.prompt[:70]}")
