"""The ledger held against what followed it: Kafka's topics and the copies in Redis.

Done once for every run of a server before anybody reads or writes there (`connections.connect`), so
that a ledger restored from an older backup never goes on under numbers that were shown with other
content. What was lost with the revisions is made good as far as the topics tell: erasures are carried
out again, decisions are listed for the operator.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import redis

from core.errors import Unavailable
from core.times import US
from service import logs
from storage.followers import At
from storage.kafka.tails import Tails
from storage.postgres import arrays, connections, epochs
from storage.postgres.connections import COMPARING_LOCK, Connection
from storage.postgres.epochs import Begun, Present, Seen
from storage.postgres.ledger import Ledger
from storage.redis import boards, keys

CLOCKS_US: Final = 3_600 * US
"""How far the clocks of Postgres and of whoever wrote to Kafka may be apart."""

COMPARE_EVERY_S: Final = 60.0
"""How often a running worker compares though Postgres was not started anew: somebody else may have
written to a topic, and readers of it show nothing earlier any more."""

MOST_LISTED: Final = 1_000
"""Lost decisions that are listed one by one."""

_log = logs.get("storage.histories")


@dataclass(frozen=True, slots=True)
class Settled:
    """What a comparison came to: the epoch that holds now, and what was made good if it is a new one.

    `incarnation` is the run of the server that was compared, and the very tables.
    """

    epoch: str
    incarnation: str
    begun: Begun | None = None
    erased: int = 0
    lost_decisions: int = 0


class Histories:
    """Compares one ledger with what followed it. Blocks; one thread, but for `lost`."""

    def __init__(
        self,
        *,
        postgres_url: str,
        bootstrap: str,
        kafka_kind: str,
        redis_url: str | None,
        erasure_key: Callable[[], bytes],
    ) -> None:
        """Without `redis_url` no copy is looked at, and the ledger is not yet open to others then."""
        self._url, self._bootstrap, self._kind = postgres_url, bootstrap, kafka_kind
        self._redis_url, self._erasure_key = redis_url, erasure_key
        self._ledger = Ledger(postgres_url, name="epochs", before_compared=True)
        self._connection: Connection | None = None
        self._reported: list[Seen] = []
        self._lock = threading.Lock()
        self._compared_s: float | None = None

    def close(self) -> None:
        self._ledger.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def lost(self, at: At) -> None:
        """A copy, or a process's memory, names this position and the ledger has not got it.

        Raises:
            Unavailable: always: the step is to be repeated, once the comparison was made.
        """
        with self._lock:
            self._reported.append(Seen(at.epoch, at.revision, at.digest))
        raise Unavailable(
            f"revision {at.revision} of epoch {at.epoch} is not in the ledger any more",
            code="board_rebuilding",
        )

    def settle(self, *, asked: bool = False) -> Settled | None:
        """See that the ledger is compared; None if another process is at it.

        `asked`: an operator says that revisions were lost.

        Raises:
            Refused: an epoch cannot be begun (`epochs.begin`).
            Unavailable: Postgres, Kafka or Redis does not answer.
        """
        try:
            with connections.unavailable():
                return self._settled(asked)
        except (Unavailable, psycopg.Error):
            if self._connection is not None:
                self._connection.close()
            raise

    def _settled(self, asked: bool) -> Settled | None:
        if self._connection is None or self._connection.closed:
            self._connection = connections.connect(
                self._url, name="comparing", autocommit=True, before_compared=True, timeout_ms=0
            )
            arrays.register(self._connection.adapters)
        cursor = self._connection.cursor(binary=True)
        present = epochs.look(cursor)
        with self._lock:
            reported = list(self._reported)
        recently = self._compared_s is not None and time.monotonic() - self._compared_s < COMPARE_EVERY_S
        done = present.compared and present.same_server and not reported and recently
        if present.is_standby and not asked:
            return Settled(present.epoch or "", present.incarnation)
        if (done or present.epoch is None) and not asked:
            return Settled(present.epoch or "", present.incarnation)
        row = cursor.execute("SELECT pg_try_advisory_lock(%s)", (COMPARING_LOCK,)).fetchone()
        if row is None or not row[0]:
            is_settled = present.compared and present.same_server and not reported and not asked
            if not is_settled or self._compared_s is None:
                return None
            return Settled(present.epoch or "", present.incarnation)
        try:
            settled = self._compared(cursor, epochs.look(cursor), reported, asked)
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", (COMPARING_LOCK,))
        with self._lock:
            self._reported = [seen for seen in self._reported if seen not in reported]
        self._compared_s = time.monotonic()
        return settled

    def _compared(
        self, cursor: psycopg.Cursor[Any], present: Present, reported: list[Seen], asked: bool
    ) -> Settled:
        tails = Tails(self._bootstrap, kind=self._kind)
        try:
            sent = [Seen(*one) for one in tails.last()]
            shown = self._copies(cursor)
            begun = epochs.begin(self._ledger, [*sent, *shown, *reported], asked=asked, then_good=True)
            if begun is None and present.continues is None and _is_foreign(present, sent):
                # Topics of a ledger that is no more: their readers must be told that this is another.
                begun = epochs.begin(self._ledger, sent, asked=True, then_good=True)
            if begun is not None:
                _log.error(
                    "new_epoch",
                    epoch=begun.at.epoch,
                    revision=begun.at.revision,
                    continues=list(begun.continues),
                    sent=[[one.epoch, one.revision] for one in sent],
                    shown=[[one.epoch, one.revision] for one in shown],
                    asked=asked,
                )
            good = begun or (epochs.last_begun(cursor) if present.erasures_due else None)
            erased = lost = 0
            if good is not None:
                erased, lost = self._make_good(cursor, tails, good)
        finally:
            tails.close()
        if self._redis_url is not None:
            if good is not None:
                self._discard(cursor, good.at.epoch)
            epochs.made_good(cursor, present.incarnation)
        epoch = begun.at.epoch if begun is not None else present.epoch or ""
        return Settled(epoch, present.incarnation, begun, erased, lost)

    def _copies(self, cursor: psycopg.Cursor[Any]) -> list[Seen]:
        """Where the copies in Redis stand.

        A Redis that does not answer is not waited for: it shows nothing to anybody, and its keeper
        looks again when it is back.
        """
        found = []
        try:
            for _, _, at in self._each_copy(cursor):
                found.append(Seen(at.epoch, at.revision, at.digest))
        except (redis.RedisError, OSError) as error:
            _log.warning("copies_not_compared", detail=str(error)[:300])
        return found

    def _discard(self, cursor: psycopg.Cursor[Any], epoch: str) -> None:
        """Let nobody read copies of an earlier epoch any more: they are void where they are ahead."""
        try:
            for client, period, at in self._each_copy(cursor):
                if at.epoch < epoch and not epochs.has(cursor, at.epoch, at.revision):
                    client.delete(keys.board(period)[2])
        except (redis.RedisError, OSError) as error:
            _log.warning("copies_not_discarded", detail=str(error)[:300])

    def _each_copy(self, cursor: psycopg.Cursor[Any]) -> Iterator[tuple[redis.Redis, str, At]]:
        if self._redis_url is None:
            return
        periods = cursor.execute("SELECT period FROM periods").fetchall()
        with boards.connect(self._redis_url) as client:
            for (period,) in periods:
                at = boards.position_of(client, period)
                if at is not None:
                    yield client, period, at

    def _make_good(self, cursor: psycopg.Cursor[Any], tails: Tails, begun: Begun) -> tuple[int, int]:
        """Erase again who was erased after the fork, and list the decisions made after it.

        Who was told of since then is told of again: the name that the topic holds may be of a revision
        that was lost, and nothing that is judged again need change the ledger's.
        """
        since_us = begun.committed_before_us - CLOCKS_US
        people = tails.people_since(since_us)
        buried = people.buried
        epochs.tell_again(self._ledger, sorted(people.named))
        erased = 0
        if buried:
            user_ids = sorted({user_id for user_id in buried.values() if user_id is not None})
            erased = epochs.erase(self._ledger, self._erasure_key(), sorted(buried), user_ids)
        if erased:
            _log.error("erased_again", people=erased)
        lost = 0
        for decision in tails.decisions_since(since_us):
            if epochs.has(cursor, decision.epoch, decision.revision):
                continue
            lost += 1
            if lost <= MOST_LISTED:
                _log.error(
                    "decision_lost",
                    player=decision.player,
                    action_id=decision.action_id,
                    decision=decision.decision,
                    verdict=decision.verdict,
                    revision=decision.revision,
                )
        if lost:
            _log.error("decisions_lost", count=lost)
        return erased, lost


def _is_foreign(present: Present, sent: list[Seen]) -> bool:
    return any(one.epoch != present.epoch for one in sent)
