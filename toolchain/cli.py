"""The `soloist` command: a lazy group. Each command is a module of `commands/`, imported when it is called."""

from __future__ import annotations

import importlib
import keyword
import sys
from typing import Any

import click

from soloist.kernels.errors import SoloistError

# name -> one line of help; the module commands/<name>.py holds `command`
COMMANDS = {
    "run": "The main job: team, student, compiled files, comparison, report.",
    "record": "Record a team at work: questions to traces.",
    "assess": "Say before training whether distilling a team is likely to help.",
    "import": "Read traces that others recorded.",
    "distill": "Train one student on recorded traces.",
    "methods": "List the ways to distill, what they need and cost.",
    "plan": "Choose the bits of every part of a student for a budget.",
    "quantize": "Turn a student's weights into integers, once for all formats.",
    "export": "Compile a student to GGUF and ONNX, each file opened and checked.",
    "verify": "Compare a compiled file with the student it came from.",
    "bench": "Measure systems side by side on held-out questions.",
    "report": "Write the report page of a measurement again.",
    "chat": "Talk to a student in the terminal.",
    "teams": "List teams and topologies, or show a team file.",
    "knowledge": "Build a knowledge graph; verify traces against one.",
    "kernels": "List, check and compile the Triton kernels.",
    "devices": "List the devices that predictions know, or show one.",
    "predict": "Predict bytes, floor and time per token of a student on a device.",
    "doctor": "Say what this machine has and what is missing.",
}


class LazyGroup(click.Group):
    """Lists commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = cmd_name + "_" * keyword.iskeyword(cmd_name)  # Python keeps `import` for itself
        command: click.Command = importlib.import_module(f"soloist.toolchain.commands.{module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SoloistError as error:
            click.echo(f"soloist: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("soloist: interrupted; run the same command again to go on", err=True)
            ctx.exit(130)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="soloist", message="%(prog)s %(version)s")
def main() -> None:
    """Turn a team of LLM agents into one small model, and prove what was gained."""


if __name__ == "__main__":
    sys.exit(main())
