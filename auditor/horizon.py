"""How far the topics are known to be sent: the publisher's cursor, then where each partition ends.

The cursor and the ledger's last position are all that is read from the database, as signs of what is
confirmed and what there is; nothing is counted from them. They are read, as by everybody, only from a
ledger that was compared with what follows it. The cursor names the topics it speaks of by Kafka's ids:
a topic that was made anew under the same name is not the one, and then there is no horizon until the
publisher has taken it up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import psycopg
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from auditor.audit import Horizon
from auditor.records import BOARD_CHANGED, JUDGED, PLAYER
from core.errors import Unavailable
from storage.kafka.topic_ids import topic_id
from storage.postgres import connections

TOPICS: Final = (JUDGED, PLAYER, BOARD_CHANGED)
_TIMEOUT_S: Final = 5.0
_IDS_EVERY_S: Final = 10.0

_CURSOR: Final = (
    "SELECT c.epoch, c.revision, c.topic_ids, r.epoch, r.revision FROM cursors c,"
    " (SELECT epoch, revision FROM revisions ORDER BY revision DESC LIMIT 1) r"
    " WHERE follower = 'topics'"
)

Ends = Mapping[tuple[str, int], int]


class Horizons:
    """Asks for one horizon after the other. Not for several threads."""

    def __init__(self, postgres_url: str, bootstrap: str, kind: str) -> None:
        self._url, self._bootstrap, self._kind = postgres_url, bootstrap, kind
        self._connection: psycopg.Connection[Any] | None = None
        self._connected_s = 0.0
        self._admin: AdminClient | None = None
        self._partitions: list[tuple[str, int]] = []
        self._ids: dict[str, str] = {}
        self._ids_asked_s = 0.0

    def ask(self) -> Horizon | None:
        """The next horizon; None while nothing was published on the topics there are.

        Raises:
            Unavailable: Postgres or Kafka does not answer.
        """
        asked_s = time.monotonic()
        self._ask_ids()
        row = self._cursor()
        if row is None or row[2] != self._ids:
            return None
        ends = self.offsets(OffsetSpec.latest())
        epoch, revision, _, ledger_epoch, ledger_end = row
        return Horizon(epoch, revision, ledger_epoch, ledger_end, asked_s, self._connected_s, ends)

    def offsets(self, which: Any) -> Ends:
        """The first or last offset of every partition of the topics."""
        assert self._admin is not None
        asked = {TopicPartition(*partition): which for partition in self._partitions}
        try:
            told = self._admin.list_offsets(asked, request_timeout=_TIMEOUT_S)
            return {
                (place.topic, place.partition): future.result(timeout=_TIMEOUT_S).offset
                for place, future in told.items()
            }
        except (KafkaException, TimeoutError) as error:
            self._lose()
            raise Unavailable(f"Kafka: {error}") from error

    def _lose(self) -> None:
        """Ask another client the next time: this one may have lost every broker for good."""
        self._admin = None
        self.forget()

    def forget(self) -> None:
        """Ask for the topics' ids and partitions anew the next time."""
        self._ids_asked_s = 0.0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask_ids(self) -> None:
        now_s = time.monotonic()
        if self._ids_asked_s and now_s - self._ids_asked_s < _IDS_EVERY_S:
            return
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self._bootstrap, "log_level": 0})
        try:
            known = self._admin.list_topics(timeout=_TIMEOUT_S).topics
        except KafkaException as error:
            self._lose()
            raise Unavailable(f"Kafka: {error}") from error
        partitions: list[tuple[str, int]] = []
        for topic in TOPICS:
            if topic not in known or not known[topic].partitions:
                raise Unavailable(f"Kafka has no topic {topic}")
            partitions += [(topic, partition) for partition in sorted(known[topic].partitions)]
        self._ids = {topic: topic_id(self._bootstrap, topic, kind=self._kind) for topic in TOPICS}
        self._partitions, self._ids_asked_s = partitions, now_s

    def _cursor(self) -> tuple[Any, ...] | None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connections.connect(self._url, name="auditor", autocommit=True)
                self._connected_s = time.monotonic()
            return self._connection.execute(_CURSOR).fetchone()
        except psycopg.Error as error:
            self.close()
            raise Unavailable(f"Postgres: {error}") from error

    @property
    def ids(self) -> Mapping[str, str]:
        """The topics' ids as last asked for."""
        return dict(self._ids)
