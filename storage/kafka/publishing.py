"""The topics as a follower: revision after revision, in order, through one cursor.

One publisher at a time, by an advisory lock of the session that also saves the cursor, so one that
lost its connection can save nothing any more. What was sent after the saved cursor is sent again
and says the same.

A topic that was made anew is sent again from the start, and nothing else may come before. Kafka's
producers write to a topic by its name, whichever log that is by now, so the ids are asked for before
what is sent (not more often than every 0.1 s), while it is not confirmed, and before the cursor is saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
import psycopg
from confluent_kafka import KafkaException, Producer

from core import events, topics, words
from core.errors import Unavailable
from core.leading import CAPACITY, Leading
from core.ranking import Entry
from core.times import format_us
from service import failpoints, logs
from storage.followers import At
from storage.kafka.delivery import hearing
from storage.kafka.topic_ids import TopicIds
from storage.postgres import arrays, connections, contents, deltas
from storage.postgres.connections import PUBLISHER_LOCK, Connection
from storage.postgres.contents import Content, PersonRow

SAVE_EVERY_S: Final = 1.0
FLUSH_S: Final = 10.0
LOOK_EVERY_S: Final = 10.0
"""How often it is asked whether the topics are still those that were published to, while there is nothing
to send."""

SENDING_LOOK_EVERY_S: Final = 0.1
"""How often at most while there is: of a busy board several steps fall into that."""

UNCONFIRMED_S: Final = 0.1
"""After how long without a confirmation it is asked whether the topics are still there: a producer would
go on trying, and write the middle of the history to topics made anew."""

_CURSOR: Final = "topics"
_FOLLOWED: Final = (topics.JUDGED, topics.PLAYER, topics.BOARD_CHANGED)

_log = logs.get("storage.kafka.publishing")


class Publisher:
    """The follower that keeps `action.judged`, `player` and `board.changed`."""

    name = "topics"

    def __init__(
        self,
        *,
        postgres_url: str,
        bootstrap: str,
        kind: str,
        kafka: Mapping[str, Any] | None = None,
        in_hand: Callable[[int], Content | None] = lambda _: None,
        held: Callable[[At], Content | None] = lambda _: None,
        prove: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """`in_hand(revision)` may give a revision's content without reading it back; `held(at)`
        that of one which was read, with what the ledger does not keep: its requests' traces.
        `prove` is given each new connection, to hold what is in hand against its ledger."""
        self._url, self._bootstrap = postgres_url, bootstrap
        self._extra = dict(kafka or {})
        self._ids = TopicIds(bootstrap, [topic.name for topic in _FOLLOWED], kind=kind, extra=self._extra)
        self._in_hand, self._held, self._prove = in_hand, held, prove
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._failed: list[str] = []
        self._at: At | None = None
        self._epoch = ""
        self._topic_ids: dict[str, str] = {}
        self._looked_at_s = 0.0
        self._leading: dict[str, Leading] = {}
        self._saved_at_s = 0.0
        self._saved: At | None = None

    # Being the one -------------------------------------------------------------------------

    def close(self) -> None:
        """Save the cursor if it may be, and let go of the lock."""
        if self._connection is not None and not self._connection.closed and self._at is not None:
            with suppress(Unavailable):
                self._save()
        self._let_go()

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._at, self._saved = None, None, None
        self._leading = {}
        if self._producer is not None:
            # All of it at once: were some given up and what follows them sent, a log would have a hole
            # until they are sent again.
            self._producer.purge()
            with suppress(KafkaException, SystemError):
                self._producer.flush(0)
            self._producer = None

    def position(self) -> At | None:
        return self._at

    def step(self, *, look: bool = True) -> bool:
        """Send the next revisions; False if there are none, or another process is the publisher.

        Raises:
            Unavailable: begin again from the cursor, after a while.
        """
        try:
            if self._at is None and not self._take_over():
                return False
            found = self._following(look)
            looked_s = time.monotonic() - self._looked_at_s
            if looked_s >= (SENDING_LOOK_EVERY_S if found else LOOK_EVERY_S):
                self._must_be_the_same_topics()
            if found:
                self._must_be_the_one()
            for content in found:
                with hearing():
                    self._send(content)
                self._must_not_have_failed()
            self._await_acknowledgements()
            failpoints.reach("topics.sent")
            if time.monotonic() - self._saved_at_s >= SAVE_EVERY_S:
                self._save()
            return bool(found)
        except BaseException:
            self._let_go()
            raise

    def build(self) -> None:
        """Send everything from the start, as for topics made anew."""
        with connections.unavailable():
            with connections.connect(self._url, name="topics", autocommit=True) as connection:
                connection.execute("DELETE FROM cursors WHERE follower = %s", (_CURSOR,))
        self._let_go()

    def _take_over(self) -> bool:
        with connections.unavailable():
            if self._connection is None or self._connection.closed:
                self._connection = connections.connect(self._url, name="publisher", timeout_ms=60_000)
                arrays.register(self._connection.adapters)
        with self._cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (PUBLISHER_LOCK,))
            row = cursor.fetchone()
            if row is None or not row[0]:
                return False
            self._prove(cursor.connection)
            ids = self._asked_ids()
            cursor.execute(
                "SELECT c.epoch, c.revision, c.topic_ids, encode(r.digest, 'hex')"
                " FROM cursors c LEFT JOIN revisions r USING (revision) WHERE follower = %s",
                (_CURSOR,),
            )
            saved = cursor.fetchone()
            self._topic_ids = ids
            self._epoch = deltas.epoch(cursor)
            if saved is None or saved[2] != ids:
                self._at = At("", 0, "")
            else:
                self._at = At(saved[0], saved[1], saved[3] or "")
            contents.summarise(cursor)
        self._producer = self._made()
        return True

    def _asked_ids(self) -> dict[str, str]:
        self._looked_at_s = time.monotonic()
        return self._ids.ask()

    def _must_be_the_same_topics(self) -> None:
        """Made anew while this one lives they lack all that was sent, and no send fails of it.

        The cursor that is saved names the topics that are gone: whoever takes over begins from the start.
        """
        if self._asked_ids() != self._topic_ids:
            raise Unavailable("Topics were made anew: everything is sent again from the start.")

    def _must_be_the_one(self) -> None:
        """What is in hand needs no connection, but its lock does: without it another one is the publisher."""
        with self._cursor() as cursor:
            cursor.execute("SELECT")

    def _following(self, look: bool) -> list[Content]:
        """The next revisions, some `contents.MOST_ROWS` rows of them; none where there are none."""
        assert self._at is not None
        found: list[Content] = []
        at, rows = self._at, 0
        while rows < contents.MOST_ROWS:
            content = self._in_hand(at.revision + 1)
            if content is None or not content.at.epoch == at.epoch == self._epoch:
                # What a lost history had under this number, or where an epoch begins.
                break
            found.append(content)
            at = content.at
            rows += len(content.rows) + 1
        if found or not look:
            return found
        with self._cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            return [self._held(one.at) or one for one in contents.read(cursor, at.revision)]

    def _save(self) -> None:
        if self._at is None or self._at == self._saved or not self._at.revision:
            return
        self._must_be_the_same_topics()
        with self._cursor() as cursor:
            cursor.execute(
                "INSERT INTO cursors (follower, epoch, revision, topic_ids, saved_at)"
                " VALUES (%s, %s, %s, %s::jsonb, clock_timestamp())"
                " ON CONFLICT (follower) DO UPDATE SET epoch = excluded.epoch,"
                "  revision = excluded.revision, topic_ids = excluded.topic_ids,"
                "  saved_at = excluded.saved_at",
                (_CURSOR, self._at.epoch, self._at.revision, msgspec.json.encode(self._topic_ids).decode()),
            )
        failpoints.reach("topics.saved")
        self._saved, self._saved_at_s = self._at, time.monotonic()

    # Sending -------------------------------------------------------------------------------

    def _made(self) -> Producer:
        self._failed = []
        return Producer(
            {
                "bootstrap.servers": self._bootstrap,
                "client.id": "trueboard-publisher",
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "linger.ms": 1,
                "message.max.bytes": topics.MAX_RECORD_BYTES,
                "queue.buffering.max.messages": 200_000,
                "queue.buffering.max.kbytes": 256 * 1024,
                # Never record by record: all that is not confirmed is given up at once, by `_let_go`.
                "message.timeout.ms": 0,
                # Only failures call back: what counts is that flush leaves nothing and none failed.
                "delivery.report.only.error": True,
                "on_delivery": self._on_failure,
                # Kafka keeps the order of several requests only from a producer it knows in the partition:
                # of a new one it takes the second where it has refused the first, and the first is lost
                # (`storage.kafka.delivery.offset_of`).
                "max.in.flight.requests.per.connection": 1,
                "log_level": 0,
                **self._extra,
            }
        )

    def _on_failure(self, error: Any, _message: Any) -> None:
        if error is not None:
            self._failed.append(str(error))

    def _must_not_have_failed(self) -> None:
        """Send nothing behind a record that was refused: it would come before it."""
        assert self._producer is not None
        with hearing():
            self._producer.poll(0)
        if self._failed:
            raise Unavailable(f"Kafka refuses what follows the ledger: {self._failed[0]}")

    def _send(self, content: Content) -> None:
        assert self._producer is not None
        produce = self._producer.produce
        failpoints.reach("topics.sending")
        epoch, revision = content.at.epoch, content.at.revision
        committed_at = format_us(content.committed_us)
        if content.continues is not None:
            self._send_continues(content, content.continues, committed_at)
        for person in content.people:
            event_id = f"{person.pid}/{epoch}/{revision}"
            produce(
                topics.PLAYER.name,
                key=person.pid,
                value=_player(person),
                headers=events.headers(
                    topics.PLAYER, event_id, committed_at, events.derived_traceparent(event_id)
                ),
            )
        for row in content.rows:
            event_id = f"{row.pid}/{row.action_id}/{row.seq}/{epoch}"
            received_at = format_us(row.received_us)
            produce(
                topics.JUDGED.name,
                key=row.pid,
                value=events.encode(
                    events.JudgedRecord(
                        row.pid,
                        row.action_id,
                        row.type,
                        row.verdict,
                        row.reason,
                        row.points,
                        format_us(row.occurred_us),
                        received_at,
                        row.catalogue_version,
                        epoch,
                        revision,
                        row.seq or msgspec.UNSET,
                    )
                ),
                headers=events.headers(
                    topics.JUDGED,
                    event_id,
                    committed_at,
                    row.traceparent or events.derived_traceparent(event_id),
                ),
            )
        self._send_periods(content, committed_at)
        self._at = content.at
        self._epoch = max(self._epoch, content.at.epoch)

    def _send_continues(self, content: Content, continues: tuple[str, int], committed_at: str) -> None:
        """Say on every partition of the judged topic that another epoch begins, and from where."""
        assert self._producer is not None
        value = events.encode(events.ContinuesRecord(content.at.epoch, content.at.revision, continues))
        listed = self._producer.list_topics(topics.JUDGED.name, timeout=FLUSH_S).topics[topics.JUDGED.name]
        if listed.error is not None:
            raise KafkaException(listed.error)
        for partition in sorted(listed.partitions):
            event_id = f"{content.at.epoch}/{content.at.revision}/{partition}"
            self._producer.produce(
                topics.JUDGED.name,
                partition=partition,
                value=value,
                headers=events.headers(
                    topics.JUDGED, event_id, committed_at, events.derived_traceparent(event_id)
                ),
            )

    def _send_periods(self, content: Content, committed_at: str) -> None:
        assert self._producer is not None
        revision = content.at.revision
        for part in content.periods:
            period = words.period_id(part.board, part.window)
            leading = self._leading.get(period)
            if leading is None:
                leading = self._load(period, revision - 1)
            leading.count = part.link.count
            changed = []
            if any(not change.user_id for change in part.changes):
                # Who was erased has no id to be found under.
                leading = self._load(period, revision)
            for change in part.changes:
                if not change.user_id:
                    continue
                name = change.username or change.user_id
                score, reached_us = change.new_score, change.new_reached_us
                if score is None or reached_us is None or not change.visible:
                    leading.change(change.user_id, None)
                    changed.append(events.changed_entry(change.user_id, name, None, None))
                else:
                    leading.change(change.user_id, Entry(change.user_id, name, score, reached_us))
                    changed.append(events.changed_entry(change.user_id, name, score, reached_us))
            top = leading.top(10)
            if top is None:
                leading = self._load(period, revision)
                top = leading.top(10) or []
            self._leading[period] = leading
            event_id = f"{period}/{content.at.epoch}/{revision}"
            self._producer.produce(
                topics.BOARD_CHANGED.name,
                key=period,
                value=events.encode(
                    events.BoardChanged(
                        part.board,
                        part.window,
                        content.at.epoch,
                        revision,
                        part.link.previous,
                        content.at.digest,
                        part.link.count,
                        changed,
                        events.ranked(top),
                    )
                ),
                headers=events.headers(
                    topics.BOARD_CHANGED,
                    event_id,
                    committed_at,
                    content.traceparent or events.derived_traceparent(event_id),
                ),
            )

    def _load(self, period: str, revision: int) -> Leading:
        """The leading entries as they were at this revision, from a snapshot of its own."""
        with connections.unavailable():
            with connections.connect(
                self._url, name="publisher's look back", timeout_ms=60_000
            ) as connection:
                arrays.register(connection.adapters)
                with connection.cursor(binary=True) as cursor:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    entries, count = contents.leading_at(cursor, period, revision, CAPACITY)
        return Leading(entries, count)

    def _await_acknowledgements(self) -> None:
        assert self._producer is not None
        until_s = time.monotonic() + FLUSH_S
        while True:
            with hearing():
                left = self._producer.flush(UNCONFIRMED_S)
            self._must_not_have_failed()
            if not left:
                return
            if time.monotonic() >= until_s:
                raise Unavailable(f"Kafka has not confirmed what follows the ledger: {left} left")
            self._must_be_the_same_topics()

    @contextmanager
    def _cursor(self) -> Iterator[psycopg.Cursor[tuple[Any, ...]]]:
        assert self._connection is not None
        with connections.unavailable():
            with self._connection.transaction(), self._connection.cursor(binary=True) as cursor:
                yield cursor


def _player(person: PersonRow) -> bytes | None:
    """A person's record; None for one who is erased."""
    if person.user_id is None:
        return None
    return events.encode(
        events.PlayerRecord(person.pid, person.user_id, person.username or person.user_id, person.hidden)
    )
