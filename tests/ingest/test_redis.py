"""The door's own ways through Redis, on a real Valkey: the line, markers and replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
import redis.asyncio
from redis import exceptions as redis_exceptions

from core.actions import SubmittedRecord, fingerprint
from core.errors import Unavailable
from core.receipts import Judged
from storage.redis.limits import Limits, Rule
from storage.redis.line import Line
from storage.redis.markers import Marker, Markers, key
from storage.redis.replies import Replies, channel, encode
from tests.ingest.world import EPOCH, at

pytestmark = pytest.mark.services


@pytest.fixture
async def line(redis_db_url: str) -> AsyncIterator[Line]:
    line = Line(redis_db_url, budget_s=1.0)
    await line.start()
    yield line
    await line.stop()


def record(action_id: str, type_: str = "commit") -> SubmittedRecord:
    return SubmittedRecord(
        user_id="ann",
        action_id=action_id,
        type=type_,
        occurred_at=at(0),
        received_at=at(0),
        contract="v1",
        client="ann",
        backfill=False,
        fingerprint=fingerprint(type_, None, None),
    )


def judged(action_id: str, type_: str = "commit") -> Judged:
    return Judged(
        user_id="ann",
        action_id=action_id,
        type=type_,
        received_at=at(1),
        fingerprint=fingerprint(type_, None, None),
        status="accepted",
        points=1,
        reason=None,
        judged_revision=2,
        epoch=EPOCH,
        revision=2,
        score=1,
        rank=1,
    )


# the line


async def test_answers_come_to_whom_they_belong(line: Line) -> None:
    answers = await asyncio.gather(*(line.execute("ECHO", f"{number}") for number in range(1000)))

    assert answers == [str(number).encode() for number in range(1000)]


async def test_an_error_is_its_command_s_alone(line: Line) -> None:
    bad, good = line.execute("NO-SUCH-COMMAND"), line.execute("ECHO", "x")

    with pytest.raises(redis_exceptions.ResponseError):
        await bad
    assert await good == b"x"


async def test_an_answer_that_is_late_fails_and_the_next_ones_are_still_right(redis_db_url: str) -> None:
    line = Line(redis_db_url, budget_s=0.05)
    await line.start()
    late = line.execute("BLPOP", "nothing", "0.3")
    with pytest.raises(redis_exceptions.TimeoutError):
        await late
    await asyncio.sleep(0.4)

    assert await line.execute("ECHO", "x") == b"x"
    await line.stop()


async def test_without_a_server_commands_fail_at_once() -> None:
    line = Line("redis://127.0.0.1:1")
    await line.start()

    with pytest.raises(redis_exceptions.ConnectionError):
        await line.execute("ECHO", "x")
    await line.stop()


async def test_a_lost_connection_is_made_again(line: Line, redis_db_url: str) -> None:
    mine = await line.execute("CLIENT", "ID")
    async with redis.asyncio.Redis.from_url(redis_db_url) as other:
        await other.client_kill_filter(_id=mine)
    for _ in range(100):
        await asyncio.sleep(0.02)
        if line.connected and (await asyncio.gather(line.execute("PING"), return_exceptions=True)) == [
            b"PONG"
        ]:
            break

    assert await line.execute("CLIENT", "ID") != mine


async def test_limits_are_decided_over_the_line(line: Line) -> None:
    limits = Limits(line)  # type: ignore[arg-type]
    rule = Rule("user", "ann", 1.0, 3)
    decisions = [await limits.take([rule]) for _ in range(4)]

    assert [each.allowed for each in decisions] == [True, True, True, False]
    assert not any(each.local for each in decisions)


# markers


async def test_a_marker_is_found_again_and_ends(line: Line) -> None:
    markers = Markers(line, ttl_s=100)
    markers.remember([record("a")])
    marker = await markers.found(markers.look("ann", "a"))

    assert marker == Marker(fingerprint("commit", None, None), "commit", at(0))
    assert 0 < await line.execute("TTL", key("ann", "a")) <= 100
    assert await markers.found(markers.look("bob", "a")) is None


async def test_the_first_marker_stays_until_it_is_corrected(line: Line) -> None:
    markers = Markers(line)
    markers.remember([record("a")])
    markers.remember([record("a", "level_complete")])
    first = await markers.found(markers.look("ann", "a"))
    await markers.correct(judged("a", "level_complete"))
    corrected = await markers.found(markers.look("ann", "a"))

    assert first is not None
    assert first.type == "commit"
    assert corrected == Marker(fingerprint("level_complete", None, None), "level_complete", at(1))


async def test_a_batch_is_marked_and_found_in_order(line: Line) -> None:
    markers = Markers(line)
    markers.remember([record("x", "level_complete")])
    markers.remember([record(f"a{number}") for number in range(500)] + [record("x")])
    wanted = [("ann", f"a{number}") for number in range(500)] + [("ann", "x"), ("ann", "none")]
    found = await markers.find_many(wanted)

    assert [marker.type if marker else None for marker in found] == ["commit"] * 500 + [
        "level_complete",
        None,
    ]
    assert await line.execute("TTL", key("ann", "a7")) > 80_000


async def test_what_is_no_marker_is_as_good_as_none(line: Line) -> None:
    await line.execute("SET", key("ann", "a"), "no marker")
    markers = Markers(line)

    assert await markers.found(markers.look("ann", "a")) is None


async def test_without_redis_there_are_no_markers_and_no_errors() -> None:
    line = Line("redis://127.0.0.1:1")
    await line.start()
    markers = Markers(line)
    markers.remember([record("a"), record("b")])
    await markers.correct(judged("a"))

    assert await markers.found(markers.look("ann", "a")) is None
    assert await markers.find_many([("ann", "a")]) == [None]
    with pytest.raises(Unavailable):
        await markers.found_for_certain(markers.look("ann", "a"))
    await line.stop()


# replies


async def test_a_reply_reaches_all_who_wait_for_it_and_nobody_else(redis_db_url: str) -> None:
    replies = Replies(redis_db_url, "here")
    await replies.start()
    async with asyncio.timeout(5):
        await replies.listening.wait()
    with (
        replies.wait_for("ann", "a") as one,
        replies.wait_for("ann", "a") as two,
        replies.wait_for("ann", "b") as other,
    ):
        with redis.Redis.from_url(redis_db_url) as stream:
            stream.execute_command("SPUBLISH", channel("elsewhere"), encode([judged("b")]))
            heard = stream.execute_command("SPUBLISH", channel("here"), encode([judged("a"), judged("c")]))
        answers = [await one.reply(2), await two.reply(2), await other.reply(0.05)]
    await replies.stop()

    assert heard == 1
    assert answers == [judged("a"), judged("a"), None]
    assert replies._waiting == {}


async def test_after_a_lost_connection_replies_are_heard_again(redis_db_url: str) -> None:
    replies = Replies(redis_db_url, "here")
    await replies.start()
    async with asyncio.timeout(5):
        await replies.listening.wait()
    async with redis.asyncio.Redis.from_url(redis_db_url) as other:
        await other.client_kill_filter(_type="pubsub")
        with replies.wait_for("ann", "a") as waiting:
            for _ in range(100):
                await asyncio.sleep(0.02)
                if await other.execute_command("SPUBLISH", channel("here"), encode([judged("a")])):
                    break
            answer = await waiting.reply(2)
    await replies.stop()

    assert answer == judged("a")


async def test_a_message_that_cannot_be_read_wakes_nobody(redis_db_url: str) -> None:
    replies = Replies(redis_db_url, "here")
    with replies.wait_for("ann", "a") as waiting:
        replies.dispatch(b'[{"user_id":"ann","action_id":"a"}]')
        replies.dispatch(b"\xff")
        answer = await waiting.reply(0.01)

    assert answer is None
