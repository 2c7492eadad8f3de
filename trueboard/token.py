"""`trueboard token`: an access token of this data directory's own keys, and nothing else on the output."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import click

from core import scopes, words
from core.errors import TrueboardError
from service import keys
from service.settings import above_zero, data_directory, read_settings
from trueboard import options

_DEFAULT_TTL_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """What those who take the token ask of it."""

    issuer: str = "trueboard"
    audience: str = "trueboard"
    token_max_life_s: int = keys.LONGEST_LIFE_S

    def __post_init__(self) -> None:
        above_zero(self, "token_max_life_s")


@click.command("token", help="Print an access token signed by the keys of the data directory.")
@options.data
@click.option("--user", required=True, help="The user id the token speaks for.")
@click.option("--name", default=None, help="The name to show on boards.")
@click.option(
    "--scope",
    "scope",
    multiple=True,
    type=click.Choice(sorted(scopes.ALL)),
    metavar="SCOPE",
    help=f"What it allows; may be given again. Without: {' '.join(scopes.DEFAULT)}.",
)
@click.option(
    "--ttl",
    "ttl_s",
    type=click.IntRange(1, keys.LONGEST_LIFE_S),
    default=None,
    show_default=f"{_DEFAULT_TTL_S}, or TRUEBOARD_TOKEN_MAX_LIFE_S if that is less",
    help="Seconds it lives.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the token inside a JSON object.")
def command(
    data: Path | None, user: str, name: str | None, scope: tuple[str, ...], ttl_s: int | None, as_json: bool
) -> None:
    if not words.is_user_id(user):
        raise click.BadParameter("a user id is 1 to 255 of A-Z a-z 0-9 . _ : @ -", param_hint="--user")
    if name is not None and not words.is_username(name):
        raise click.BadParameter("a name is 1 to 255 bytes without control characters", param_hint="--name")
    directory = data_directory(os.environ, data)
    granted = scope or scopes.DEFAULT
    now_s = int(time.time())
    try:
        settings = read_settings(TokenSettings, os.environ, data_dir=directory)
        issuer, audience = _issuer_and_audience(directory, settings)
        ttl_s = _life_s(ttl_s, settings.token_max_life_s)
        keys.ensure(directory / "keys")
        token = keys.issue(
            directory / "keys",
            user=user,
            name=name,
            scopes=granted,
            ttl_s=ttl_s,
            issuer=issuer,
            audience=audience,
            now_s=now_s,
        )
    except TrueboardError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        shown = {"token": token, "user_id": user, "scope": " ".join(granted), "exp": now_s + ttl_s}
        click.echo(json.dumps(shown))
    else:
        click.echo(token)


def _life_s(asked_s: int | None, longest_s: int) -> int:
    """The seconds asked for, else what is usual, cut to what is taken."""
    if asked_s is None:
        return min(_DEFAULT_TTL_S, longest_s)
    if asked_s > longest_s:
        raise click.BadParameter(
            f"TRUEBOARD_TOKEN_MAX_LIFE_S is {longest_s}: nobody takes a token that lives longer",
            param_hint="--ttl",
        )
    return asked_s


def _issuer_and_audience(data: Path, settings: TokenSettings) -> tuple[str, str]:
    """Those of the running system, else those it would be started with."""
    try:
        endpoints = json.loads((data / "endpoints.json").read_bytes())
        return str(endpoints["issuer"]), str(endpoints["audience"])
    except FileNotFoundError:
        return settings.issuer, settings.audience
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"endpoints.json in {data} cannot be read") from error
