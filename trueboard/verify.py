"""`trueboard verify`: recount the ledger and compare everything that follows it, on the live system.

It only reads. What reads the ledger alone reads one moment of it; copies and logs go on meanwhile
and are compared at positions of their own. Exit code 0: equal, 1: different, 2: could not look,
130: interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import redis
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from core.errors import TrueboardError
from service.settings import data_directory
from trueboard import options
from trueboard.endpoints import Endpoints
from trueboard.output import telling
from trueboard.verification import deltas, digest_chain, ledger_sums, progress, projection, verdicts
from trueboard.verification.progress import Log
from trueboard.verification.report import Check, Step
from trueboard.verification.snapshots import Connection, one, periods, snapshot

DIFFERENT: Final = 1
COULD_NOT_LOOK: Final = 2
INTERRUPTED: Final = 130

_POLL_S: Final = 0.1

_MEANINGS: Final = {
    "ledger_sums": "entries are the sums of the ledger's accepted actions",
    "deltas": "deltas, folded, come to the entries",
    "projection": "Redis shows each period as the ledger had it at the copy's position",
    "digest_chain": "every revision has the digest of its rows",
    "progress": "every record up to each partition's next offset is accounted for",
    "verdicts": "verdicts are those the rules give",
}

Watch = Callable[[str], Step]
"""Called with a check's name when it begins; gives what is to be told of its steps."""


@click.command()
@options.data
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="First wait up to so long until every record is judged and Redis shows the last revision.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=500,
    show_default=True,
    help="How many verdicts are judged again.",
)
def command(data: Path | None, as_json: bool, wait_s: float, sample: int) -> None:
    """Recount the ledger and compare everything that follows it.

    Reads the running system and changes nothing. The checks:

    \b
    ledger_sums   entries against the sums of the ledger's accepted actions
    deltas        each period's deltas, folded, against its entries
    projection    the copies in Redis against Postgres, at the copies' own positions
    digest_chain  every revision's digest, made again from its rows
    progress      each partition's next offset against the ledger and Kafka
    verdicts      a sample of verdicts, judged again by the rules they name

    The exit code is 0 if all is equal, 1 if something differs, 2 if it could not look.
    """
    try:
        endpoints = Endpoints.read(data_directory(os.environ, data))
        with _watching() as watch:
            report = verify(endpoints, wait_s=wait_s, sample=sample, watch=watch)
    except TrueboardError as error:
        click.echo(f"trueboard verify: {' '.join(str(error).split())}", err=True)
        sys.exit(COULD_NOT_LOOK)
    except KeyboardInterrupt:
        click.echo("trueboard verify: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Exception:
        # Exit code 1 would say that something differs.
        traceback.print_exc()
        sys.exit(COULD_NOT_LOOK)
    with telling("verify", could_not=COULD_NOT_LOOK):
        if as_json:
            click.echo(json.dumps(report))
        else:
            _tell(report)
    sys.exit(0 if report["ok"] else DIFFERENT)


def verify(
    endpoints: Endpoints, *, wait_s: float = 0.0, sample: int = 500, watch: Watch | None = None
) -> dict[str, Any]:
    """The report, as `docs/interfaces.md` §8 writes it. Blocks.

    Raises:
        Unavailable: Postgres, Redis or Kafka does not answer.
    """
    client = projection.connect(endpoints.redis)
    log = Log(endpoints.kafka, kind=endpoints.kafka_kind)
    try:
        with projection.unavailable():
            client.ping()
        log.topic_id()
        if wait_s:
            _wait(endpoints.postgres, client, log, wait_s)
        return _checked(endpoints.postgres, client, log, sample, watch or (lambda _: lambda _: None))
    finally:
        log.close()
        client.close()


def _checked(url: str, client: redis.Redis, log: Log, sample: int, watch: Watch) -> dict[str, Any]:
    checks: list[Check] = []

    def begun(name: str) -> Check:
        check = Check(name, step=watch(name))
        checks.append(check)
        return check

    with snapshot(url) as connection:
        epoch, revision, digest = _head(connection)
        ledger_sums.check(connection, begun("ledger_sums"))
        deltas.check(connection, begun("deltas"))
        digest_chain.check(connection, begun("digest_chain"))
        verdicts.check(connection, begun("verdicts"), sample)
    projection.check(url, client, begun("projection"))
    # A snapshot of its own: the younger it is, the less of the log has grown old and gone meanwhile.
    with snapshot(url) as connection:
        progress.check(connection, log, begun("progress"))
    checks.sort(key=lambda check: list(_MEANINGS).index(check.name))
    return {
        "ok": all(check.ok for check in checks),
        "epoch": epoch,
        "revision": revision,
        "digest": digest,
        "checks": [check.body() for check in checks],
    }


def _head(connection: Connection) -> tuple[str | None, int, str]:
    """The last position; before the first revision there is no epoch, and the digest is zeros."""
    row = connection.execute(
        "SELECT epoch, revision, encode(digest, 'hex') FROM revisions ORDER BY revision DESC LIMIT 1"
    ).fetchone()
    return (row[0], row[1], row[2]) if row else (None, 0, bytes(32).hex())


def _wait(url: str, client: redis.Redis, log: Log, wait_s: float) -> None:
    """Wait until Redis shows what the ledger has and the ledger has what Kafka has, or the time is up."""
    until_s = time.monotonic() + wait_s
    while not _is_still(url, client, log) and time.monotonic() < until_s:
        time.sleep(_POLL_S)


def _is_still(url: str, client: redis.Redis, log: Log) -> bool:
    with snapshot(url) as connection:
        offsets = dict(
            connection.execute(
                "SELECT partition, next_offset FROM progress WHERE log = (SELECT max(log) FROM logs)"
            ).fetchall()
        )
        heads = {
            period: one(
                connection, "SELECT coalesce(max(revision), 0) FROM deltas WHERE period = %s", (period,)
            )[0]
            for period in periods(connection)
        }
    if any(log.ends(partition)[1] != offsets.get(partition, 0) for partition in log.partitions()):
        return False
    for period, revision in heads.items():
        looked = projection.look(client, period, [])
        if looked is None or looked[0].revision != revision:
            return False
    return True


@contextmanager
def _watching() -> Iterator[Watch]:
    """A line for each check on a terminal's stderr, while they run."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:>12,.0f} compared"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as shown:

        def watch(name: str) -> Step:
            for task in shown.tasks:
                shown.update(task.id, total=max(1, task.completed), completed=max(1, task.completed))
            task_id = shown.add_task(name, total=None)
            return lambda count: shown.advance(task_id, count)

        yield watch


def _tell(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(f"revision {report['revision']} of epoch {report['epoch']}", soft_wrap=True)
    console.print(f"digest   {report['digest']}", style="dim", soft_wrap=True)
    for check in report["checks"]:
        mark = "[green]✓[/]" if check["ok"] else "[red]✗[/]"
        told = f"{mark} {check['name']:<13} {check['compared']:>12,} compared"
        if check["ok"]:
            told += f"   [dim]{_MEANINGS[check['name']]}[/]"
        else:
            told += f"   [red]{check['differences']:,} differ[/]"
        console.print(told, soft_wrap=True)
        if check["first"] is not None:
            witness = json.dumps(check["first"], ensure_ascii=False)
            console.print(f"    first: {witness}", markup=False, soft_wrap=True)
