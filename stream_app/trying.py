"""What becomes of records whose judging meets a defect, so that one of them cannot hold the others.

A group that raises is tried once more by a worker that remembers nothing, then in halves. A record
that raises alone, with nothing at hand, is set aside; a defect of what was at hand or of the group's
composition sets nothing aside. All of it in the same process: what a judge keeps is made anew
before each try, so a restart would find nothing else.

A record that ends the process leaves no exception. So the first try of a partition after it was
taken up is counted in Postgres, as is the first after one that raised: before the records are decoded
and before they are judged, and taken back after each. What else ends a process in the long rest of a
step, its waiting for locks and for Postgres, is not the records' doing. A count that is found says that
a process ended with them in hand. The records then go a few at a time, and from the third try on one by
one, each counted in its turn, but never more of them than the try before took together; one that has
ended `TRIES` processes is set aside untried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from core.errors import Unavailable
from service import logs, metrics
from stream_app.carry_out import Judge, Outcome, Slice, Stopped, record_fingerprint
from stream_app.intake import DeadLetter

TRIES: Final = 4
"""Counted tries that may end the process: in company, among a few, and twice alone."""

ALONE_FROM: Final = 3
"""The first of the tries that are alone."""

FEWER: Final = 32
"""How much less than a group is tried together the second time."""

DEFECT: Final = "defect"

T = TypeVar("T")

_log = logs.get("stream_app.trying")


class NotTheRecords(Exception):
    """What fails is this process's own work, whatever the records are; it ends of it."""


class Counting(Protocol):
    """Table `attempts`; `storage.postgres.attempts.Attempts` is it."""

    def known(self, log: int, partition: int, offset: int) -> int: ...

    def put(self, log: int, tries: Mapping[tuple[int, int], int]) -> None: ...

    def passed(self, log: int, next_offsets: Mapping[int, int]) -> None: ...

    def close(self) -> None: ...


class Setting(Protocol):
    """The dead-letter topic."""

    def send(self, letters: list[DeadLetter]) -> None: ...


@dataclass(frozen=True, slots=True)
class Run:
    """Records of one partition in a row, and the event that brought them."""

    event: Any
    records: Sequence[Any]

    @property
    def partition(self) -> int:
        return int(self.records[0].partition)


@dataclass(slots=True)
class Piece:
    """What is tried together: a group, or a part of it.

    `failed` counts what raised of it and of those it is a part of, `waited` how often it could not
    be carried out for what may be its own size, `aside` is why its one record is not to be judged.
    """

    runs: list[Run]
    failed: int = 0
    waited: int = 0
    aside: str = ""

    @property
    def size(self) -> int:
        return sum(len(run.records) for run in self.runs)

    def firsts(self) -> dict[int, int]:
        """The first offset of each partition."""
        found: dict[int, int] = {}
        for run in self.runs:
            found.setdefault(run.partition, run.records[0].offset)
        return found

    def of(self, partitions: set[int]) -> Piece:
        return Piece([run for run in self.runs if run.partition in partitions], self.failed)

    def records_of(self, partition: int) -> int:
        return sum(len(run.records) for run in self.runs if run.partition == partition)

    def cut(self, most: int, until: int) -> list[Piece]:
        """In order, pieces of at most so many records, each of one event, up to an offset; and the rest.

        Of one partition.
        """
        pieces, rest = [], []
        for run in self.runs:
            here = sum(record.offset < until for record in run.records)
            pieces += [
                Piece([Run(run.event, run.records[begin : min(begin + most, here)])], self.failed)
                for begin in range(0, here, most)
            ]
            if here < len(run.records):
                rest.append(Run(run.event, run.records[here:]))
        return [*pieces, Piece(rest, self.failed)] if rest else pieces

    def halves(self) -> list[Piece]:
        """Smaller ones that together are this: by partition, or one partition's records cut in two."""
        partitions = self.firsts()
        if len(partitions) > 1:
            return [self.of({partition}) for partition in partitions]
        left, parts = self.size // 2, ([], [])  # type: tuple[int, tuple[list[Run], list[Run]]]
        for run in self.runs:
            if head := run.records[:left]:
                parts[0].append(Run(run.event, head))
            if tail := run.records[left:]:
                parts[1].append(Run(run.event, tail))
            left = max(0, left - len(run.records))
        return [Piece(part, self.failed) for part in parts if part]


@dataclass(frozen=True, slots=True)
class Done:
    """A piece that was carried out."""

    outcome: Outcome
    slices: list[Slice]


class Trials:
    """Tries pieces and says what to try next. In the judging thread, but for `taken_up`."""

    def __init__(
        self,
        step: Callable[[int, Piece], Done],
        judge: Judge,
        dead_letters: Setting,
        attempts: Counting,
        *,
        group_records: int,
        defects_in_a_row: int,
    ) -> None:
        """`step` carries a piece of log `log` out, with `watched` around what the records could end;
        `group_records` is the most that one may hold."""
        self._step, self._judge = step, judge
        self._dead_letters, self._attempts = dead_letters, attempts
        self._group_records, self._in_a_row_most = group_records, defects_in_a_row
        self._proven: set[int] = set()
        self._begun: dict[tuple[int, int], tuple[int, int]] = {}
        """By place of what is tried: how many tries were counted before this one, and with it."""
        self._in_hand: list[tuple[int, int]] = []
        self._careful: dict[int, tuple[int, int]] = {}
        self._in_a_row: dict[int, int] = {}
        self._log = 0
        self._begins_anew = False

    def taken_up(self) -> None:
        """Partitions were assigned and looked at: who had them before may have died of them."""
        self._begins_anew = True

    def attempt(self, log: int, piece: Piece) -> Done | list[Piece]:
        """Carry a piece out, or say into what it is to be taken apart first.

        Raises:
            Unavailable, OutOfStep, Stopped: as `Judge.carry_out`.
            Exception: a defect; `after` says what to do.
        """
        if self._begins_anew:
            self._begins_anew = False
            self._proven.clear()
            self._careful.clear()
            self._in_a_row.clear()
        if log != self._log:
            self._log = log
            self._begun.clear()
        if not piece.aside and (parts := self._begin(piece)):
            return parts
        if piece.aside:
            return self._set_aside(piece)
        if piece.failed and piece.size == 1:
            self._judge.forget()
        self._in_hand = [place for place in piece.firsts().items() if place in self._begun]
        done = self._step(log, piece)
        for part in done.slices:
            if part.incoming:
                self._in_a_row.pop(part.partition, None)
        self._passed(done.slices)
        return done

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs, an end of this process is laid on the records that are in hand."""
        if not self._in_hand:
            yield
            return
        self._put(1)
        try:
            yield
        except MemoryError:
            # It ends this process, and the records are what it grew of.
            raise
        except Exception:
            try:
                self._put(0)
            except (Unavailable, NotTheRecords) as error:
                _log.warning("tries_not_withdrawn", detail=str(error)[:300])
            raise
        self._put(0)

    def _put(self, which: int) -> None:
        tries = {place: self._begun[place][which] for place in self._in_hand}
        self._table(lambda: self._attempts.put(self._log, tries))

    @staticmethod
    def _table(use: Callable[[], T]) -> T:
        try:
            return use()
        except Unavailable:
            raise
        except Exception as error:
            raise NotTheRecords("tries cannot be counted") from error

    def after(self, piece: Piece, error: Exception) -> list[Piece]:
        """What to try in the place of a piece that raised.

        Raises:
            Exception: the error, where this process cannot be trusted to go on.
        """
        metrics.DEFECTS.inc()
        _log.error(
            "defect_in_group",
            offsets={str(partition): first for partition, first in piece.firsts().items()},
            records=piece.size,
            failed=piece.failed + 1,
            error=f"{type(error).__name__}: {error}"[:300],
            exc_info=None if piece.failed else error,
        )
        if piece.aside or isinstance(error, NotTheRecords | MemoryError):
            raise error
        self._judge.forget()
        failed = piece.failed + 1
        if not piece.failed:
            return [Piece(piece.runs, failed)]
        if piece.size == 1:
            return [Piece(piece.runs, failed, aside=f"{type(error).__name__}: {error}")]
        return [Piece(part.runs, failed) for part in piece.halves()]

    def close(self) -> None:
        self._attempts.close()

    def _begin(self, piece: Piece) -> list[Piece]:
        """Count the try if there is reason to; the parts to be tried in its place, if any."""
        firsts = piece.firsts()
        if not piece.failed and not self._careful and self._proven.issuperset(firsts):
            return []
        for partition, first in firsts.items():
            level, until = self._careful.get(partition, (1, 0))
            if first >= until:
                level = 1
                if partition in self._proven and not piece.failed:
                    continue
            if piece.records_of(partition) <= self._most(level) and (partition, first) not in self._begun:
                # What a neighbour has ended is not to be laid on this one.
                self._count(partition, first, min(level, ALONE_FROM))
        apart = {
            partition
            for partition, first in firsts.items()
            if first < self._careful.get(partition, (1, 0))[1]
            and piece.records_of(partition) > self._most(self._careful[partition][0])
        }
        if apart:
            others = piece.of(firsts.keys() - apart)
            parts = [others] if others.runs else []
            for partition in sorted(apart):
                level, until = self._careful[partition]
                parts += piece.of({partition}).cut(self._most(level), until)
            return parts
        if piece.size == 1:
            (place,) = firsts.items()
            _, tries = self._begun.get(place, (0, 0))
            if tries > TRIES:
                piece.aside = f"{tries - 1} processes ended while they judged it"
        return []

    def _most(self, tries: int) -> int:
        """How many records of a partition are tried together, the so-manieth time."""
        if tries <= 1:
            return self._group_records
        return max(1, self._group_records // FEWER) if tries < ALONE_FROM else 1

    def _count(self, partition: int, first: int, least: int) -> None:
        known = self._table(lambda: self._attempts.known(self._log, partition, first))
        tries = max(known + 1, least)
        self._begun[partition, first] = (known, tries)
        if tries > least:
            _log.error("tried_before", partition=partition, offset=first, tries=tries)
            # What ended a process began here, and was no more than is tried together that time.
            self._careful[partition] = (tries, first + self._most(tries - 1))

    def _set_aside(self, piece: Piece) -> Done:
        """Put the one record of a piece on the dead-letter topic, and the ledger past it.

        Raises:
            Stopped: too many in a row to be the records' own fault.
        """
        ((record,),) = [run.records for run in piece.runs]
        partition, offset = record.partition, record.offset
        # What fails without any record is not this record's fault, and ends the process.
        self._judge.carry_out(self._log, [Slice(partition, offset, offset - 1, [], {}, b"")])
        in_a_row = self._in_a_row.get(partition, 0) + 1
        if in_a_row > self._in_a_row_most:
            raise Stopped(
                partition,
                f"{in_a_row} records in a row meet a defect, up to offset {offset}: "
                f"then it is not the records; the last says {piece.aside}",
            )
        letter = DeadLetter(
            record.topic,
            partition,
            offset,
            record.key,
            record.value,
            record.headers,
            DEFECT,
            piece.aside,
        )
        self._dead_letters.send([letter])
        fingerprint = record_fingerprint(record.key, record.value)
        part = Slice(partition, offset, offset, [], {offset: DEFECT}, fingerprint)
        done = Done(self._judge.carry_out(self._log, [part]), [part])
        self._in_a_row[partition] = in_a_row
        metrics.DEAD_LETTERS.labels(DEFECT).inc()
        _log.error("set_aside", topic=letter.topic, partition=partition, offset=offset, detail=piece.aside)
        self._passed(done.slices)
        return done

    def _passed(self, slices: Sequence[Slice]) -> None:
        """These have come to their end: what was counted of them is void."""
        for part in slices:
            self._proven.add(part.partition)
            _, until = self._careful.get(part.partition, (0, 0))
            if 0 < until <= part.last + 1:
                del self._careful[part.partition]
        if not self._begun:
            return
        ends = {part.partition: part.last + 1 for part in slices if part.partition not in self._careful}
        passed = [place for place in self._begun if place[1] < ends.get(place[0], 0)]
        for place in passed:
            del self._begun[place]
        if passed:
            try:
                self._attempts.passed(self._log, {partition: ends[partition] for partition, _ in passed})
            except Unavailable as error:
                # They lie before where the partition is read on, where nobody looks.
                _log.warning("tries_not_forgotten", detail=str(error)[:300])
