"""`trueboard resume-partition`: tells a partition that the stream has stopped to go on.

It looks at the log first, and does nothing that loses a record unless it is told to. What is lost
is said with numbers, and stands in the table `resumptions`. Workers take the partition up again
within seconds, without a restart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from core.errors import TrueboardError
from core.topics import SUBMITTED
from service.settings import data_directory, read_settings
from storage.kafka.log_ends import LogEnds
from storage.kafka.topic_ids import topic_id
from storage.postgres import resumptions
from storage.postgres.connections import patiently
from storage.postgres.ledger import Ledger, Progress
from storage.postgres.resumptions import Resumption
from stream_app.carry_out import record_fingerprint
from trueboard import options
from trueboard.endpoints import Endpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeSettings:
    """Which servers, where no stack runs on the data directory."""

    postgres_url: str

    kafka: str
    """Bootstrap servers, `host:port[,…]`."""

    kafka_kind: str = "external"
    """`jvm`, `external` or `memory`."""


class CannotResume(TrueboardError):
    """The partition is not told to go on; the sentence says why, and what would do it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A partition as the ledger and its log show it: the log begins at `low` and ends before `high`."""

    partition: int
    progress: Progress
    low: int
    high: int
    is_other: bool
    """Whether the log holds another record where the ledger read its last one."""

    @property
    def is_sound(self) -> bool:
        return self.low <= self.progress.next_offset <= self.high and not self.is_other


@click.command()
@click.argument("partition", type=click.IntRange(min=0))
@click.option("--from-offset", type=click.IntRange(min=0), help="Where to read on; earlier is always safe.")
@click.option("--skip-lost", is_flag=True, help="Go on with what the log still has.")
@click.option("--yes", is_flag=True, help="Also where records that the log still has will not be judged.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a sentence.")
@options.data
def command(
    partition: int, from_offset: int | None, skip_lost: bool, yes: bool, as_json: bool, data: Path | None
) -> None:
    """Tell a stopped partition to go on.

    Without an option it is looked at anew where it stands. Records that are judged already count
    once, however often they are read.
    """
    if from_offset is not None and skip_lost:
        raise click.UsageError("--from-offset and --skip-lost exclude each other")
    directory = data_directory(os.environ, data)
    running = Endpoints.unless_named(directory, os.environ)
    if running is not None:
        servers = (running.postgres, running.kafka, running.kafka_kind)
    else:
        settings = read_settings(ResumeSettings, os.environ, data_dir=directory)
        servers = (settings.postgres_url, settings.kafka, settings.kafka_kind)
    done = resume(*servers, partition, from_offset=from_offset, skip_lost=skip_lost, may_skip=yes)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "partition": done.partition,
                    "was": done.was,
                    "from_offset": done.from_offset,
                    "lost": done.lost,
                }
            )
        )
        return
    lost = f"offsets {done.was} to {done.from_offset - 1} are never judged ({done.lost} records)"
    click.echo(
        f"partition {done.partition} goes on from offset {done.from_offset}, it stood at {done.was}; "
        f"{lost if done.lost else 'nothing is lost by it'}"
    )


def resume(
    postgres_url: str,
    kafka: str,
    kind: str,
    partition: int,
    *,
    from_offset: int | None = None,
    skip_lost: bool = False,
    may_skip: bool = False,
) -> Resumption:
    """Let the partition go on from `from_offset`, else from what is left of its log, else where it stands.

    Raises:
        CannotResume: it would lose records without having been told to, or there is nothing to do.
        Unavailable: Postgres or Kafka does not answer.
    """
    with _opened(postgres_url, kafka) as (ledger, log):
        seen = _look(ledger, log, topic_id(kafka, SUBMITTED.name, kind=kind), partition)
        offset = _chosen(seen, from_offset, skip_lost, may_skip)
        fingerprint = seen.progress.fingerprint
        if offset != seen.progress.next_offset or not seen.is_sound:
            fingerprint = None
            if seen.low < offset:
                fingerprint = record_fingerprint(*log.records({partition: offset - 1})[partition])
        to = Progress(seen.progress.log, offset, fingerprint)

        def step() -> Resumption | None:
            with ledger.exclusive() as batch:
                return resumptions.resume(batch, partition, seen.progress, to)

        done = patiently(step)
    if done is None:
        raise CannotResume(f"partition {partition} has moved meanwhile: it is not stopped")
    return done


@contextmanager
def _opened(postgres_url: str, kafka: str) -> Iterator[tuple[Ledger, LogEnds]]:
    ledger, log = Ledger(postgres_url, name="resume"), LogEnds(kafka, SUBMITTED.name)
    try:
        yield ledger, log
    finally:
        log.close()
        ledger.close()


def _look(ledger: Ledger, log: LogEnds, present_id: str, partition: int) -> Seen:
    with ledger.batch([partition]) as batch:
        progress = batch.progress.get(partition)
        if progress is None:
            raise CannotResume(f"no worker has ever taken up partition {partition}")
        row = batch.execute("SELECT topic_id FROM logs WHERE log = %s", (progress.log,)).fetchone()
    if row is None or row[0] != present_id:
        raise CannotResume(
            f"partition {partition} was read from another log than topic {SUBMITTED.name} is now: "
            "workers take up a topic that was made anew by themselves",
        )
    low, high = log.ends({partition})[partition]
    last = progress.next_offset - 1
    is_other = False
    if progress.fingerprint is not None and low <= last < high:
        is_other = record_fingerprint(*log.records({partition: last})[partition]) != progress.fingerprint
    return Seen(partition, progress, low, high, is_other)


def _chosen(seen: Seen, from_offset: int | None, skip_lost: bool, may_skip: bool) -> int:
    """Where to go on.

    Raises:
        CannotResume: as `resume`.
    """
    stands, low, high = seen.progress.next_offset, seen.low, seen.high
    holds = f"the log holds offsets {low} to {high - 1}" if high > low else f"the log is empty, before {high}"
    if from_offset is not None:
        if not low <= from_offset <= high:
            raise CannotResume(f"offset {from_offset} is not in the log: {holds}")
        skipped = from_offset - max(stands, low)
        if skipped > 0 and not may_skip:
            raise CannotResume(
                f"{skipped} records that the log still has would never be judged, "
                f"offsets {max(stands, low)} to {from_offset - 1}: say --yes if that is meant",
            )
        return from_offset
    if seen.is_sound:
        if skip_lost:
            raise CannotResume(
                f"partition {seen.partition} has lost nothing: {holds}, it stands at {stands}",
            )
        return stands
    if skip_lost:
        # What was judged is found by its key, so all that is left may be read again.
        return low
    if low > stands:
        why = f"offsets {stands} to {low - 1} are gone ({low - stands} records that were never judged)"
    elif high < stands:
        why = f"the ledger has read up to {stands}, beyond the log's end"
    else:
        why = f"the log holds another record at offset {stands - 1} than the one that was read"
    raise CannotResume(
        f"partition {seen.partition} cannot go on where it stands: {why}; {holds}. "
        "--skip-lost goes on with all of what is left, --from-offset from one of them",
    )
