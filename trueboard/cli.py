"""The command `trueboard` and its subcommands, each loaded when it is asked for.

A subcommand is a click command named `command` in a module of its own; one that cannot be loaded
does not keep the others from working.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Final

import click

from core.errors import TrueboardError

_COMMANDS: Final = {
    "up": ("trueboard.up", "Start everything on this machine and keep it running."),
    "setup": ("trueboard.setup", "Make Postgres and Kafka ready that somebody else runs."),
    "token": ("trueboard.token", "Print an access token of the development keys."),
    "simulate": ("trueboard.simulate", "Send seeded traffic and account for every action of it."),
    "replay": ("trueboard.replay", "Replay a history that exists, as that of a git repository."),
    "verify": ("trueboard.verify", "Recount the ledger and compare everything that follows it."),
    "new-epoch": ("trueboard.new_epoch", "Say that the ledger lost revisions, and go on in a new epoch."),
    "resume-partition": ("trueboard.resume", "Tell a partition that the stream has stopped to go on."),
    "revoke": ("trueboard.revoke", "Take back a token, or all of a user's, before they run out."),
    "doctor": ("trueboard.doctor", "Look at what runs, what answers, and which settings hold."),
}


class _Commands(click.Group):
    """A group that imports a subcommand's module when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = _COMMANDS.get(cmd_name)
        if known is None:
            return None
        module, _ = known
        try:
            command = importlib.import_module(module).command
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise click.ClickException(f"this installation does not have `trueboard {cmd_name}`") from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, help_) for name, (module, help_) in _COMMANDS.items() if _is_here(module)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _is_here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trueboard")
def trueboard() -> None:
    """A live leaderboard whose every rank can be explained, replayed and proven.

    Begin with `trueboard up`; in a second terminal try `trueboard token --user ada` and
    `trueboard simulate`. Every command takes --data DIR (default .trueboard), where `up` keeps
    what it holds and writes endpoints.json.
    """


def main() -> None:
    """Run the command; what is raised on purpose becomes one sentence and exit code 1."""
    try:
        trueboard(prog_name="trueboard")
    except TrueboardError as error:
        click.echo(f"trueboard: {error}", err=True)
        sys.exit(1)
