"""`trueboard setup`: makes servers ready that somebody else runs, and ends.

Schema, definitions and topics, in the order in which `trueboard up` brings them up to date, against
the Postgres and the Kafka that the settings name. It may be repeated, also at once by many. A server
that does not answer yet is waited for.
"""

from __future__ import annotations

import importlib.resources
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import click
import psycopg

from core.errors import Unavailable
from service.settings import data_directory, read_settings

KIND: Final = "external"
_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupSettings:
    """What to make ready, and how; each field is the variable `TRUEBOARD_<FIELD>`."""

    postgres_url: str

    kafka: str
    """Bootstrap servers, `host:port[,…]`."""

    partitions: int = 12
    """Partitions of each topic; fixed when the topics are made."""

    replication: int = 1
    """Replicas of each partition of a topic that is made here."""

    topics: Literal["make", "verify"] = "make"
    """`verify` where somebody else makes them, as an operator in Kubernetes does."""

    erasure_secret: str = ""
    """As of `stream_app`: the same for all that erase."""

    catalogue: Path | None = None
    """Action types, points and limits (TOML); by default those of the package."""

    data_dir: Path = Path(".trueboard")
    """Where the key of erased people is made, if no secret is set."""

    patience_s: float = 60.0
    """How long all of it may wait for servers that do not answer."""

    def __post_init__(self) -> None:
        if not 1 <= self.partitions <= 1000:
            raise ValueError("partitions must be 1..1000")
        if self.replication < 1:
            raise ValueError("replication must be 1 or more")
        if self.patience_s < 0:
            raise ValueError("patience_s must be 0 or more")


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where trueboard.toml is, if settings are kept there (default: $TRUEBOARD_DATA, else .trueboard).",
)
def command(data: Path | None) -> None:
    """Bring schema, definitions and topics of servers that run already up to date.

    For deployments in which the services are started one by one; `trueboard up` does this by
    itself. Settings are TRUEBOARD_POSTGRES_URL, TRUEBOARD_KAFKA, TRUEBOARD_PARTITIONS,
    TRUEBOARD_REPLICATION, TRUEBOARD_TOPICS (make or verify), TRUEBOARD_CATALOGUE and
    TRUEBOARD_PATIENCE_S.
    """
    settings = read_settings(SetupSettings, os.environ, data_dir=data_directory(os.environ, data))
    for done in prepare(settings):
        click.echo(f"{done} up to date")


def prepare(settings: SetupSettings, *, pause_s: float = _PAUSE_S) -> Iterator[str]:
    """Do the steps one by one; yields the name of each that is done.

    Raises:
        Refused: the catalogue or a topic is not as it must be.
        Unavailable: a server gave no answer for `patience_s`.
        click.ClickException: the catalogue cannot be read, or Postgres does not allow the schema.
    """
    deadline_s = time.monotonic() + settings.patience_s
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("schema", lambda: _schema(settings)),
        ("definitions", lambda: _definitions(settings)),
        ("topics", lambda: _topics(settings)),
    )
    for name, step in steps:
        _patiently(step, deadline_s, pause_s)
        yield name


def _patiently(step: Callable[[], None], deadline_s: float, pause_s: float) -> None:
    while True:
        try:
            step()
            return
        except Unavailable:
            if time.monotonic() + pause_s > deadline_s:
                raise
        except psycopg.Error as error:
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise click.ClickException(f"Postgres refuses: {problem}") from error
        time.sleep(pause_s)


def _schema(settings: SetupSettings) -> None:
    from storage.postgres import migrate

    migrate.apply(settings.postgres_url)


def _definitions(settings: SetupSettings) -> None:
    from service import erasure_key
    from storage.histories import Histories
    from storage.postgres import definitions

    catalogue_toml = _catalogue(settings.catalogue)
    # A restored ledger begins its new epoch before anything is written into it.
    histories = Histories(
        postgres_url=settings.postgres_url,
        bootstrap=settings.kafka,
        kafka_kind=KIND,
        redis_url=None,
        erasure_key=lambda: erasure_key.read(settings.erasure_secret, settings.data_dir / "keys"),
    )
    try:
        histories.settle()
    finally:
        histories.close()
    definitions.apply(settings.postgres_url, catalogue_toml)


def _catalogue(path: Path | None) -> bytes:
    if path is None:
        return (importlib.resources.files("core") / "catalogue.toml").read_bytes()
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.ClickException(f"the catalogue {path} cannot be read: {error.strerror}") from error


def _topics(settings: SetupSettings) -> None:
    from storage.kafka import topics

    if settings.topics == "verify":
        topics.verify(settings.kafka, kind=KIND, partitions=settings.partitions)
        return
    topics.declare(
        settings.kafka, kind=KIND, partitions=settings.partitions, replication=settings.replication
    )
