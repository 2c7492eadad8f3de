"""`trueboard revoke`: takes back a token before it runs out, or all of a user's.

It writes one row, and every process that takes tokens reads it within seconds: the door answers 401,
and sockets that were opened with it are closed. What was confirmed before stays and counts.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from core import words
from core.errors import TrueboardError
from core.times import EPOCH, US, format_us, parse_us
from service import keys
from service.settings import data_directory, read_settings
from service.tokens import Claims, InvalidToken, TokenVerifier
from storage.postgres import connections, revocations
from storage.postgres.connections import Connection
from storage.postgres.revocations import Recorded
from trueboard import options
from trueboard.endpoints import Endpoints

MARGIN_S: Final = 120
"""Kept so much longer than a token says it lives: clocks differ by up to 30 s, the issuer's, this one, that
of who takes it, and that one is lenient by as much."""

_JTI_CHARS: Final = 255
_REASON_CHARS: Final = 500
_BY_CHARS: Final = 255

_REFUSED_BECAUSE: Final = {
    "malformed": "that is no token",
    "too_large": "that is no token",
    "expired": "the token has run out: nobody takes it any more",
    "not_yet": "the token is not good yet: revoke it by --jti, or its user's by --user",
    "unknown_key": "the token's key is not among the issuer's, so nobody takes it",
    "signature": "the token was not signed by the issuer, so nobody takes it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeSettings:
    """How tokens are checked and where revocations are kept, where no stack runs on the data directory."""

    postgres_url: str = ""
    """Without one: that of the running stack."""

    jwks: str = ""
    """Only `--token` needs it: what it names is the token of somebody else if it was not signed."""

    issuer: str = "trueboard"
    audience: str = "trueboard"
    token_algorithms: tuple[str, ...] = ("ES256", "EdDSA")
    token_max_life_s: int = keys.LONGEST_LIFE_S


class CannotRevoke(TrueboardError):
    """Nothing was revoked; the sentence says why."""


class _Instant(click.ParamType):
    """RFC 3339 with an offset, as microseconds since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_us(str(value))
        except ValueError:
            self.fail("an instant is written as RFC 3339 has it: 2026-11-21T09:26:00Z", param, ctx)


@click.command()
@click.option("--token", metavar="TOKEN", help="This very token; `-` reads it from standard input.")
@click.option("--jti", metavar="JTI", help="The token with this `jti`.")
@click.option("--user", metavar="USER", help="All of this user's that were issued before now.")
@click.option(
    "--issued-before",
    "issued_before_us",
    type=_Instant(),
    help="With --user: those issued before this instant; one that is to come locks the user out until then.",
)
@click.option(
    "--until",
    "until_us",
    type=_Instant(),
    help="Until when, with --jti or --user; without, until no such token can be good any more.",
)
@click.option("--reason", metavar="TEXT", help="Why; kept with it.")
@click.option("--by", metavar="NAME", help="Who says so; kept with it (default: this account's name).")
@click.option("--list", "as_list", is_flag=True, help="Show what is in force, and revoke nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of sentences.")
@options.data
def command(
    token: str | None,
    jti: str | None,
    user: str | None,
    issued_before_us: int | None,
    until_us: int | None,
    reason: str | None,
    by: str | None,
    as_list: bool,
    as_json: bool,
    data: Path | None,
) -> None:
    """Take back a token, or all of a user's, before they run out.

    \b
    trueboard revoke --token -               one token, read from standard input
    trueboard revoke --jti 4f1c…             one token, by its `jti`
    trueboard revoke --user ada              all that ada has; one issued afterwards is good
    trueboard revoke --list                  what is in force

    Within seconds (TRUEBOARD_REVOCATIONS_INTERVAL_S) every process refuses them with 401, takes no
    ticket that was given for them, and closes the sockets that were opened with them. What they sent
    before stays and counts. A revocation is not taken back: its user gets a new token.
    """
    _check_options(token, jti, user, issued_before_us, until_us, reason, by, as_list)
    directory = data_directory(os.environ, data)
    settings = _settings(directory)
    if as_list:
        _show_list(connections.patiently(lambda: _in_force(settings)), as_json=as_json)
        return
    now_us = time.time_ns() // 1000
    if until_us is not None and until_us <= now_us:
        raise click.BadParameter("lies in the past", param_hint="--until")
    by = by or _account()
    if token is not None:
        claims = _read(settings, sys.stdin.read().strip() if token == "-" else token)
        done = _add(settings, jti=claims.jti, expires_at_us=_end_us(claims.exp_s * US), by=by, reason=reason)
    elif jti is not None:
        expires_at_us = until_us or _end_us(now_us + _longest_us(settings))
        done = _add(settings, jti=jti, expires_at_us=expires_at_us, by=by, reason=reason)
    else:
        before_us = now_us if issued_before_us is None else issued_before_us
        expires_at_us = until_us or _end_us(before_us + _longest_us(settings))
        if expires_at_us <= now_us:
            raise CannotRevoke(
                f"tokens issued before {format_us(before_us)} have all run out: nobody takes them any more"
            )
        done = _add(
            settings,
            user_id=user,
            issued_before_us=before_us,
            expires_at_us=expires_at_us,
            by=by,
            reason=reason,
        )
    if as_json:
        click.echo(json.dumps(_shown(done)))
    else:
        click.echo(f"revoked: {_sentence(done)}; every process goes by it within seconds")


def _check_options(
    token: str | None,
    jti: str | None,
    user: str | None,
    issued_before_us: int | None,
    until_us: int | None,
    reason: str | None,
    by: str | None,
    as_list: bool,
) -> None:
    """Raises click.UsageError for what does not go together, or is not what it should be."""
    if sum(given is not None for given in (token, jti, user)) + as_list != 1:
        raise click.UsageError("say one of --token, --jti, --user and --list")
    if issued_before_us is not None and user is None:
        raise click.UsageError("--issued-before goes with --user")
    if until_us is not None and (token is not None or as_list):
        raise click.UsageError("--until goes with --jti or --user")
    if jti is not None and not (1 <= len(jti) <= _JTI_CHARS and _is_storable(jti)):
        raise click.BadParameter(f"a jti has 1 to {_JTI_CHARS} characters", param_hint="--jti")
    if user is not None and not words.is_user_id(user):
        raise click.BadParameter("a user id is 1 to 255 of A-Z a-z 0-9 . _ : @ -", param_hint="--user")
    if reason is not None and not (len(reason) <= _REASON_CHARS and _is_storable(reason)):
        raise click.BadParameter(f"at most {_REASON_CHARS} characters", param_hint="--reason")
    if by is not None and not (1 <= len(by) <= _BY_CHARS and _is_storable(by)):
        raise click.BadParameter(f"a name has 1 to {_BY_CHARS} characters", param_hint="--by")


def _settings(directory: Path) -> RevokeSettings:
    """Those of the running stack, else those of the environment."""
    settings = read_settings(RevokeSettings, os.environ, data_dir=directory)
    running = Endpoints.unless_named(directory, os.environ)
    if running is None:
        return settings
    return replace(
        settings,
        postgres_url=running.postgres,
        jwks=running.jwks,
        issuer=running.issuer,
        audience=running.audience,
    )


def _connected(settings: RevokeSettings) -> closing[Connection]:
    # It is no part of the ledger, so it does not wait until that was compared.
    return closing(
        connections.connect(settings.postgres_url, name="revoke", autocommit=True, before_compared=True)
    )


def _add(
    settings: RevokeSettings,
    *,
    jti: str | None = None,
    user_id: str | None = None,
    issued_before_us: int | None = None,
    expires_at_us: int,
    by: str,
    reason: str | None,
) -> Recorded:
    issued_before = None if issued_before_us is None else _moment(issued_before_us)
    expires_at = _moment(expires_at_us)

    def add() -> Recorded:
        with _connected(settings) as connection:
            return revocations.add(
                connection,
                jti=jti,
                user_id=user_id,
                issued_before=issued_before,
                expires_at=expires_at,
                by=by,
                reason=reason,
            )

    # A try that failed may have written all the same: revoked twice is revoked.
    return connections.patiently(add)


def _in_force(settings: RevokeSettings) -> list[Recorded]:
    with _connected(settings) as connection:
        return revocations.in_force(connection)


def _read(settings: RevokeSettings, token: str) -> Claims:
    """What a token says, checked as the door checks it: a forged one would name somebody else's.

    Raises:
        CannotRevoke: nobody takes it.
        Unavailable: the issuer's keys cannot be read.
    """
    if not settings.jwks:
        raise CannotRevoke("TRUEBOARD_JWKS says where the issuer's keys are: without them use --jti")

    def verify() -> Claims:
        verifier = TokenVerifier(
            settings.jwks,
            settings.issuer,
            settings.audience,
            algorithms=settings.token_algorithms,
            max_life_s=settings.token_max_life_s,
        )
        return asyncio.run(verifier.verify(token))

    try:
        claims = connections.patiently(verify)
    except InvalidToken as error:
        why = _REFUSED_BECAUSE.get(error.cause_word, f"nobody takes this token ({error.cause_word})")
        raise CannotRevoke(why) from None
    if not _is_storable(claims.jti):
        raise CannotRevoke(f"its jti cannot be kept: revoke all of its user's, --user {claims.sub}")
    return claims


def _longest_us(settings: RevokeSettings) -> int:
    """How long a token may live, for all this command knows: processes may have another setting."""
    return max(settings.token_max_life_s, keys.LONGEST_LIFE_S) * US


def _end_us(last_us: int) -> int:
    return last_us + MARGIN_S * US


def _moment(instant_us: int) -> datetime:
    try:
        return EPOCH + timedelta(microseconds=instant_us)
    except OverflowError:
        raise CannotRevoke("no calendar goes so far: name an earlier instant") from None


def _account() -> str:
    try:
        return getpass.getuser()[:_BY_CHARS]
    except (KeyError, OSError):
        # A container's user may have no name.
        return f"uid {os.getuid()}"


def _is_storable(text: str) -> bool:
    """Postgres keeps no NUL, and nothing that is not Unicode."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _shown(done: Recorded) -> dict[str, Any]:
    return {
        "revocation": done.number,
        "jti": done.jti,
        "user_id": done.user_id,
        "issued_before": None if done.issued_before is None else _written(done.issued_before),
        "expires_at": _written(done.expires_at),
        "by": done.by,
        "reason": done.reason,
        "revoked_at": _written(done.revoked_at),
    }


def _written(moment: datetime) -> str:
    return format_us((moment.astimezone(UTC) - EPOCH) // timedelta(microseconds=1))


def _sentence(done: Recorded) -> str:
    shown = _shown(done)
    if done.jti is not None:
        what = f"the token {done.jti}"
    else:
        what = f"tokens of {done.user_id} issued before {shown['issued_before']}"
    return f"{what}, until {shown['expires_at']}"


def _show_list(listed: list[Recorded], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"revocations": [_shown(each) for each in listed]}))
        return
    for each in listed:
        why = f": {each.reason}" if each.reason else ""
        click.echo(f"{each.number}  {_sentence(each)}  ({_written(each.revoked_at)} by {each.by}{why})")
    if not listed:
        click.echo("nothing is revoked")
