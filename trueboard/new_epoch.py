"""`trueboard new-epoch`: an operator says that the ledger lost revisions.

For a restore that leaves no trace: everything that could tell was restored or lost as well, but
readers outside have seen later revisions. Everybody goes over to the new epoch by himself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from core.errors import TrueboardError, Unavailable
from service import erasure_key
from service.settings import data_directory, read_settings
from storage.histories import Histories, Settled
from trueboard import options
from trueboard.endpoints import Endpoints

PATIENCE_S: Final = 30.0
"""How long another process that compares is waited for."""

_PAUSE_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSettings:
    """Servers that nobody's `trueboard up` has named; each field is the variable `TRUEBOARD_<FIELD>`."""

    postgres_url: str
    redis_url: str

    kafka: str
    """Bootstrap servers, `host:port[,…]`."""

    kafka_kind: str = "external"

    erasure_secret: str = ""


@dataclass(frozen=True, slots=True)
class _Secret:
    """Of these settings the one that a running stack's endpoints do not tell."""

    erasure_secret: str = ""


@click.command()
@options.data
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def command(data: Path | None, as_json: bool) -> None:
    """Say that the ledger lost revisions, and go on in a new epoch.

    After a restore from an older backup the services notice by themselves, from the topics and the
    copies in Redis, and begin a new epoch. Only where no trace is left (topics and Redis were lost or
    restored too) somebody has to say so, once, with everything running: this is how. Nothing is
    deleted: readers go over to the new epoch, and what Kafka still holds is judged again.

    \b
    - revisions keep counting; the new epoch sorts after every one that was seen
    - people who were erased after the backup are erased again (topic leaderboard.player.v1)
    - decisions that were lost are counted, and listed in the log of this command

    The servers are those of the running stack, else of TRUEBOARD_POSTGRES_URL, TRUEBOARD_REDIS_URL
    and TRUEBOARD_KAFKA. The exit code is 0 if a new epoch began, else 1.
    """
    directory = data_directory(os.environ, data)
    try:
        settled = begin(directory)
    except TrueboardError as error:
        click.echo(f"trueboard new-epoch: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    report = _report(settled)
    if as_json:
        click.echo(json.dumps(report))
        return
    from_epoch, from_revision = report["continues"]
    click.echo(f"epoch     {report['epoch']}, from revision {report['revision']} on")
    click.echo(f"continues {from_epoch}, up to revision {from_revision}: what was beyond it is void")
    click.echo(f"erased    {report['erased']} people again; {report['lost_decisions']} decisions were lost")


def begin(data: Path) -> Settled:
    """Begin a new epoch on the servers of this data directory, or those the settings name. Blocks.

    Raises:
        Refused: there is no ledger yet, or Postgres is a standby.
        Unavailable: a server does not answer.
        SettingsError: nothing runs there, and no settings name servers.
    """
    endpoints = _endpoints(data)
    histories = Histories(
        postgres_url=endpoints.postgres_url,
        bootstrap=endpoints.kafka,
        kafka_kind=endpoints.kafka_kind,
        redis_url=endpoints.redis_url,
        erasure_key=lambda: erasure_key.read(endpoints.erasure_secret, data / "keys"),
    )
    until_s = time.monotonic() + PATIENCE_S
    try:
        while True:
            settled = histories.settle(asked=True)
            if settled is not None and settled.begun is not None:
                return settled
            if time.monotonic() > until_s:
                raise Unavailable("another process is comparing the ledger with what follows it: ask again")
            time.sleep(_PAUSE_S)
    finally:
        histories.close()


def _endpoints(data: Path) -> EpochSettings:
    running = Endpoints.unless_named(data, os.environ)
    if running is None:
        return read_settings(EpochSettings, os.environ, data_dir=data)
    return EpochSettings(
        postgres_url=running.postgres,
        redis_url=running.redis,
        kafka=running.kafka,
        kafka_kind=running.kafka_kind,
        erasure_secret=read_settings(_Secret, os.environ, data_dir=data).erasure_secret,
    )


def _report(settled: Settled) -> dict[str, Any]:
    assert settled.begun is not None
    return {
        "epoch": settled.begun.at.epoch,
        "revision": settled.begun.at.revision,
        "continues": list(settled.begun.continues),
        "erased": settled.erased,
        "lost_decisions": settled.lost_decisions,
    }
