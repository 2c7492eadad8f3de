"""Answers for those who wait: sent once the period's copy shows what they are told.

One message an ingest instance and round, not stored: who does not hear it in time looks into the
ledger.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import redis

from core import words
from core.ranking import read_key
from core.receipts import Judged, Reason
from core.times import format_us
from storage.redis import keys, replies, scripts
from storage.redis.boards import unavailable
from stream_app.carry_out import Outcome

KEPT_S: Final = 12.0
"""Longest that anybody waits for an answer, and a little more."""

_PLAYERS: Final = 200


@dataclass(frozen=True, slots=True)
class Due:
    """One answer that waits for the copy. `status` and the rest are final; score and rank are not known."""

    instance: str
    user_id: str
    action_id: str
    type: str
    received_at: str
    fingerprint: str
    status: str
    points: int
    reason: Reason | None
    judged_revision: int
    epoch: str
    queued_s: float


class Replier:
    """Answers that wait, filled by the judging thread and emptied by the one that keeps the copy."""

    def __init__(self, client: redis.Redis, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis, self._clock = client, clock
        self._players = client.register_script(scripts.source("board_players"))
        self._lock = threading.Lock()
        self._waiting: deque[Due] = deque(maxlen=50_000)

    def add(self, outcome: Outcome) -> bool:
        """Queue the answers of a group; whether there are any."""
        now_s = self._clock()
        due: list[Due] = []
        if outcome.position is not None:
            for item, judgement in outcome.asked:
                record = item.record
                due.append(
                    Due(
                        item.reply_to or "",
                        record.user_id,
                        record.action_id,
                        record.type,
                        record.received_at,
                        record.fingerprint,
                        judgement.verdict,
                        judgement.points,
                        judgement.reason,
                        outcome.position.revision,
                        outcome.position.epoch,
                        now_s,
                    )
                )
        for item in outcome.asked_again:
            row = outcome.answers.get((item.record.user_id, item.record.action_id))
            if row is not None:
                reason = None if row.reason is None else msgspec.convert(row.reason, Reason)
                due.append(
                    Due(
                        item.reply_to or "",
                        row.user_id,
                        row.action_id,
                        row.type,
                        format_us(row.received_us),
                        row.fingerprint,
                        row.verdict,
                        row.points,
                        reason,
                        row.revision,
                        row.epoch,
                        now_s,
                    )
                )
        if due:
            with self._lock:
                self._waiting.extend(due)
        return bool(due)

    def waiting(self) -> list[Due]:
        """Take all that wait, the late ones left out."""
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        oldest_s = self._clock() - KEPT_S
        return [due for due in taken if due.queued_s >= oldest_s]

    def put_back(self, left: Sequence[Due]) -> None:
        with self._lock:
            self._waiting.extendleft(reversed(left))

    def send(self, due: Sequence[Due]) -> None:
        """Answer these; the copy shows all of them.

        One judged in a history that was lost is not answered: whoever waits looks into the ledger.

        Raises:
            Unavailable: no Redis, or no copy.
        """
        messages: defaultdict[str, list[Judged]] = defaultdict(list)
        for begin in range(0, len(due), _PLAYERS):
            part = due[begin : begin + _PLAYERS]
            with unavailable():
                raw: Any = self._players(
                    keys=list(keys.board(words.MAIN_PERIOD)), args=[item.user_id for item in part]
                )
            for index, item in enumerate(part):
                if raw is None or raw[0].decode() <= item.epoch:
                    messages[item.instance].append(_answer(item, raw, index))
        with unavailable():
            for instance, judged in messages.items():
                self._redis.execute_command(  # type: ignore[no-untyped-call]
                    "SPUBLISH", replies.channel(instance), replies.encode(judged)
                )


def _answer(due: Due, raw: Any, index: int) -> Judged:
    """The answer, with score and rank from the copy; without a copy it has neither."""
    epoch, revision, score, rank = due.epoch, due.judged_revision, None, None
    if raw is not None:
        # The period may have changed last before the verdict; what it shows holds at the verdict too.
        epoch, revision = raw[0].decode(), max(int(raw[1]), due.judged_revision)
        if raw[4 + 2 * index]:
            rank = int(raw[4 + 2 * index])
            score, _ = read_key(raw[5 + 2 * index])
    return Judged(
        user_id=due.user_id,
        action_id=due.action_id,
        type=due.type,
        received_at=due.received_at,
        fingerprint=due.fingerprint,
        status=due.status,  # type: ignore[arg-type]
        points=due.points,
        reason=due.reason,
        judged_revision=due.judged_revision,
        epoch=epoch,
        revision=revision,
        score=score,
        rank=rank,
    )
