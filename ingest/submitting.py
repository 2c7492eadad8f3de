"""The one command behind every contract: publish an action, once, and say what became of it.

Look for the quick marker; without one publish and await Kafka's confirmation; mark; if somebody
wants to wait, wait for the stream's answer, and at the deadline look once into the ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from core import actions, receipts, words
from core.actions import SubmittedRecord
from core.errors import Refused, Unavailable
from core.receipts import Judged
from core.times import US, parse_us
from core.topics import SUBMITTED
from ingest.backlog import Backlog
from ingest.patience import within
from ingest.ports import Delivery, Markers, Position, Receipts, Replies, Standings
from service import failpoints
from service.tracing import Trace
from storage.redis.markers import Marker

WAIT_AFTER_CONFIRMATION_S: Final = 2.0
"""How long a specification's route waits for the stream, from Kafka's confirmation on."""

PUBLISH_AGAIN_AFTER_S: Final = 30.0
"""A marked action this old that nobody judged is published again: its record may be lost."""

_LEDGER_BUDGET_S = 0.5
_SCORE_BUDGET_S = 2.2
_FIRST_POLL_S = 0.1
_MOST_POLL_S = 0.8

_CE_VERSION: Final = ("ce_specversion", b"1.0")
_CE_SOURCE: Final = ("ce_source", b"/ingest")
_CE_TYPE: Final = ("ce_type", SUBMITTED.name.encode())
_CONTENT_TYPE: Final = ("content-type", b"application/json")


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of a submission: confirmed by Kafka, and judged where that is known.

    `record` is the one that counts under its action id, as far as the door knows; `waited` says
    that the verdict was waited for, come or not.
    """

    record: SubmittedRecord
    replayed: bool = False
    judged: Judged | None = None
    waited: bool = False

    def receipt(self) -> dict[str, Any]:
        if self.judged is not None:
            return receipts.judged_receipt(self.judged, replayed=self.replayed)
        record = self.record
        return receipts.submitted_receipt(
            record.user_id,
            record.action_id,
            record.type,
            record.received_at,
            record.fingerprint,
            replayed=self.replayed,
        )


def id_reused(action_id: str) -> Refused:
    return Refused(
        "id_reused",
        "The action id was used for an action with another type, points or instant; that one counts.",
        status_code=409,
        headers={"Trueboard-Action": action_id, "Location": f"/v1/actions/{action_id}"},
    )


class Submitting:
    """Publishes submissions. `clock_us` is the wall clock in µs, `monotonic_s` a steady one."""

    def __init__(
        self,
        *,
        delivery: Delivery,
        markers: Markers,
        replies: Replies,
        found: Receipts,
        standings: Standings,
        backlog: Backlog,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._delivery, self._markers, self._replies = delivery, markers, replies
        self._found, self._standings, self._backlog = found, standings, backlog
        self._clock_us, self._monotonic_s = clock_us, monotonic_s

    def look(self, user_id: str, action_id: str) -> asyncio.Future[Any]:
        """Begin to look for the marker, beside whatever else is to be asked first."""
        return self._markers.look(user_id, action_id)

    async def submit(
        self,
        record: SubmittedRecord,
        trace: Trace,
        *,
        wait_s: float = 0.0,
        looking: asyncio.Future[Any] | None = None,
    ) -> Outcome:
        """Publish one action; with `wait_s` give its verdict if it comes in that time.

        Longest answer: 4.5 s plus `wait_s`.

        Raises:
            Refused: 409 `id_reused`.
            Unavailable: Kafka did not confirm it (it may be written all the same), or too many wait.
        """
        if looking is None:
            looking = self.look(record.user_id, record.action_id)
        marker = await self._markers.found(looking)
        if marker is not None:
            return await self._repeat(record, marker, trace, wait_s)
        self._backlog.check()
        if wait_s <= 0 or self._backlog.late:
            await self._publish(record, trace, reply=False)
            self._markers.remember((record,))
            return Outcome(record)
        with self._replies.wait_for(record.user_id, record.action_id) as waiting:
            await self._publish(record, trace, reply=True)
            deadline_s = self._monotonic_s() + wait_s
            self._markers.remember((record,))
            judged = await waiting.reply(deadline_s - self._monotonic_s())
        if judged is None:
            judged = await self.judged(record.user_id, record.action_id)
        if judged is None:
            return Outcome(record, waited=True)
        replayed = judged.received_at != record.received_at
        return await self._settled(record, judged, replayed=replayed, waited=True)

    async def submit_many(
        self, records: Sequence[SubmittedRecord], trace: Trace
    ) -> list[Outcome | Refused | Unavailable]:
        """Publish several actions; nobody waits for their verdicts.

        Returns, in order, what became of each. Two of one id are one action, if they are the same.
        """
        markers = await self._markers.find_many([(record.user_id, record.action_id) for record in records])
        answers: list[Outcome | Refused | Unavailable | None] = [None] * len(records)
        first: dict[tuple[str, str], int] = {}
        repeats: list[tuple[int, int]] = []
        others: list[tuple[int, Marker]] = []
        sending: list[tuple[int, SubmittedRecord, bool]] = []
        now_us = self._clock_us()
        for index, (record, marker) in enumerate(zip(records, markers, strict=True)):
            before = first.setdefault((record.user_id, record.action_id), index)
            if marker is None:
                if before == index:
                    sending.append((index, record, False))
                else:
                    repeats.append((index, before))
            elif marker.fingerprint != record.fingerprint:
                others.append((index, marker))
            else:
                known = _as_marked(record, marker)
                answers[index] = Outcome(known, replayed=True)
                if before == index and _age_s(marker, now_us) > PUBLISH_AGAIN_AFTER_S:
                    # Cheaper than to ask the ledger for each; what was judged is not judged again.
                    sending.append((index, known, True))
        looked_up = asyncio.gather(
            *(self._other_body(records[index], marker, trace) for index, marker in others)
        )
        await self._send_many(sending, answers, trace)
        for (index, _), answer in zip(others, await looked_up, strict=True):
            answers[index] = answer
        for index, before in repeats:
            answers[index] = _repeat_of(records[index], records[before], answers[before])
        return [answer for answer in answers if answer is not None]

    async def judged(self, user_id: str, action_id: str) -> Judged | None:
        """What the ledger says of an action, with score and rank.

        None also where a store does not answer in time: then nobody knows, for now.
        """
        try:
            return await self.from_ledger(user_id, action_id)
        except Unavailable:
            return None

    async def from_ledger(self, user_id: str, action_id: str) -> Judged | None:
        """As `judged`, but raises Unavailable where a store does not answer in time."""
        judged = await within(_LEDGER_BUDGET_S, self._find(user_id, action_id))
        return None if judged is None else await within(_SCORE_BUDGET_S, self.with_score(judged))

    async def _find(self, user_id: str, action_id: str) -> Judged | None:
        return await self._found.find(user_id, action_id)

    async def with_score(self, judged: Judged) -> Judged:
        """The same with the player's score and rank at a revision not before the verdict's.

        Raises:
            Unavailable: the standings cannot be read.
        """
        at_least: Position = (judged.epoch, judged.judged_revision)
        page, entry = await self._standings.player(words.MAIN_PERIOD, judged.user_id, at_least=at_least)
        # A period that did not change since then shows an earlier revision, and holds at this one.
        revision = page.revision
        if page.epoch == judged.epoch:
            revision = max(revision, judged.judged_revision)
        return msgspec.structs.replace(
            judged,
            epoch=page.epoch,
            revision=revision,
            score=None if entry is None else entry.score,
            rank=None if entry is None else entry.rank,
        )

    async def _repeat(self, record: SubmittedRecord, marker: Marker, trace: Trace, wait_s: float) -> Outcome:
        judged = await self.judged(record.user_id, record.action_id)
        # The body that counts is the ledger's, which may be this one: where a marker was lost, whoever
        # came next with another body left theirs.
        if judged is None and marker.fingerprint != record.fingerprint:
            raise id_reused(record.action_id)
        known = _as_marked(record, marker)
        if judged is None and _age_s(marker, self._clock_us()) > PUBLISH_AGAIN_AFTER_S:
            self._backlog.check()
            await self._publish(known, trace, reply=False)
        waited = wait_s > 0 and (judged is not None or not self._backlog.late)
        if judged is None and waited:
            judged = await self._wait_for_repeat(record, wait_s)
        if judged is None:
            return Outcome(known, replayed=True, waited=waited)
        return await self._settled(record, judged, replayed=True, waited=waited)

    async def _other_body(self, record: SubmittedRecord, marker: Marker, trace: Trace) -> Outcome | Refused:
        """One of a batch whose marker knows another body."""
        try:
            return await self._repeat(record, marker, trace, 0.0)
        except Refused as refused:
            return refused

    async def _wait_for_repeat(self, record: SubmittedRecord, wait_s: float) -> Judged | None:
        """The stream answers whoever sent the record, so a repeat looks into the ledger too."""
        deadline_s = self._monotonic_s() + wait_s
        pause_s = _FIRST_POLL_S
        with self._replies.wait_for(record.user_id, record.action_id) as waiting:
            while (left_s := deadline_s - self._monotonic_s()) > 0:
                if judged := await waiting.reply(min(pause_s, left_s)):
                    return judged
                if judged := await self.judged(record.user_id, record.action_id):
                    return judged
                pause_s = min(_MOST_POLL_S, 2 * pause_s)
        return None

    async def _settled(
        self, record: SubmittedRecord, judged: Judged, *, replayed: bool, waited: bool
    ) -> Outcome:
        """The answer by the ledger, which outranks what the door thought."""
        if replayed or judged.fingerprint != record.fingerprint:
            await self._markers.correct(judged)
        if judged.fingerprint != record.fingerprint:
            raise id_reused(record.action_id)
        return Outcome(record, replayed, judged, waited)

    async def _publish(self, record: SubmittedRecord, trace: Trace, *, reply: bool) -> None:
        key, value, headers = self._item(record, trace.header.encode(), reply=reply)
        failpoints.reach("ingest.publishing")
        await self._delivery.send(SUBMITTED.name, key, value, headers)
        failpoints.reach("ingest.published")

    async def _send_many(
        self,
        sending: Sequence[tuple[int, SubmittedRecord, bool]],
        answers: list[Outcome | Refused | Unavailable | None],
        trace: Trace,
    ) -> None:
        if not sending:
            return
        traceparent = trace.header.encode()
        failures: Sequence[Unavailable | None]
        try:
            self._backlog.check()
            failures = await self._delivery.send_many(
                SUBMITTED.name, [self._item(record, traceparent, reply=False) for _, record, _ in sending]
            )
        except Unavailable as error:
            failures = [error] * len(sending)
        for (index, record, replayed), failure in zip(sending, failures, strict=True):
            if failure is not None:
                answers[index] = failure
            elif not replayed:
                answers[index] = Outcome(record)
        confirmed = [
            record
            for (_, record, replayed), failure in zip(sending, failures, strict=True)
            if failure is None and not replayed
        ]
        if confirmed:
            self._markers.remember(confirmed)

    def _item(
        self, record: SubmittedRecord, traceparent: bytes, *, reply: bool
    ) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
        """Key, value and headers: CloudEvents in binary mode, the trace, and who waits."""
        user = record.user_id.encode()
        headers = [
            _CE_VERSION,
            ("ce_id", user + b"/" + record.action_id.encode()),
            _CE_SOURCE,
            _CE_TYPE,
            ("ce_time", record.received_at.encode()),
            _CONTENT_TYPE,
            ("traceparent", traceparent),
        ]
        if reply:
            headers.append(("reply_to", self._replies.instance.encode()))
        return user, actions.encode(record), headers


def _as_marked(record: SubmittedRecord, marker: Marker) -> SubmittedRecord:
    """The record as it was when it was first received: no repeat changes that instant."""
    if record.received_at == marker.received_at:
        return record
    occurred_at = record.occurred_at
    if occurred_at == record.received_at:
        # It was not sent, so it is the instant of arrival, the first one.
        occurred_at = marker.received_at
    return msgspec.structs.replace(record, received_at=marker.received_at, occurred_at=occurred_at)


def _age_s(marker: Marker, now_us: int) -> float:
    try:
        return (now_us - parse_us(marker.received_at)) / US
    except ValueError:
        return 0.0


def _repeat_of(
    record: SubmittedRecord, first: SubmittedRecord, answer: Outcome | Refused | Unavailable | None
) -> Outcome | Refused | Unavailable:
    """What becomes of an action that a batch holds a second time."""
    assert answer is not None
    if isinstance(answer, Outcome):
        if record.fingerprint != first.fingerprint:
            return id_reused(record.action_id)
        return msgspec.structs.replace(answer, replayed=True)
    return answer
