"""What the ledger says of one action, for as long as it lives."""

from __future__ import annotations

import psycopg
import pytest

from core.errors import Unavailable
from core.receipts import Reason
from core.times import US, format_us
from storage.postgres.receipts import Receipts
from storage.standings import Standings
from tests.stream_app.world import NOW_US, submitted

pytestmark = pytest.mark.services


@pytest.fixture
async def receipts(stream, redis_db_url):
    async with Standings.connect(redis_db_url, stream.url) as standings:
        yield Receipts(standings.pool)


async def test_a_verdict_is_found_by_user_and_action(receipts, stream):
    outcome = stream.take(
        submitted("ada", "a1", "points", points=5, at_us=NOW_US, received_us=NOW_US + 3 * US),
        submitted("ada", "a2", "unheard_of"),
    )
    accepted, rejected = await receipts.find("ada", "a1"), await receipts.find("ada", "a2")

    assert (accepted.status, accepted.points, accepted.reason) == ("accepted", 5, None)
    assert accepted.received_at == format_us(NOW_US + 3 * US)
    assert (accepted.judged_revision, accepted.epoch) == (outcome.position.revision, outcome.position.epoch)
    assert (rejected.status, rejected.points) == ("rejected", 0)
    assert rejected.reason == Reason("unknown_type", "types.unheard_of", "1")
    assert (accepted.score, accepted.rank) == (None, None)


async def test_neither_anothers_action_nor_an_unknown_one_is_found(receipts, stream):
    stream.take(submitted("ada", "a1"), submitted("bob", "b1"))

    assert await receipts.find("bob", "a1") is None
    assert await receipts.find("ada", "a2") is None
    assert await receipts.find("nobody", "a1") is None


async def test_of_two_submissions_the_first_is_what_the_receipt_shows(receipts, stream):
    stream.take(submitted("ada", "a1", "points", points=5))
    before = await receipts.find("ada", "a1")
    stream.take(submitted("ada", "a1", "points", points=9, received_us=NOW_US + US))

    assert await receipts.find("ada", "a1") == before


async def test_a_later_decision_is_the_verdict_and_the_first_submission_stays_named(receipts, stream):
    stream.take(submitted("ada", "a1", "points", points=5))
    before = await receipts.find("ada", "a1")
    with psycopg.connect(stream.url) as connection:
        connection.execute(
            "INSERT INTO ledger (player, batch, points, occurred_at, received_at, seq, action_id, kind, type,"
            "  verdict, catalogue_version, fingerprint)"
            " SELECT player, batch, points, occurred_at, received_at + interval '1 day', 1, action_id,"
            "  'decision', type, 'rejected', catalogue_version, fingerprint FROM ledger"
        )
    after = await receipts.find("ada", "a1")

    assert (before.status, after.status) == ("accepted", "rejected")
    assert after.received_at == before.received_at


async def test_without_postgres_nothing_is_said(redis_db_url):
    from trueboard.devstack.ports import free_port

    async with Standings.connect(redis_db_url, f"postgresql://x@127.0.0.1:{free_port()}/x") as standings:
        with pytest.raises(Unavailable):
            await Receipts(standings.pool).find("ada", "a1")
