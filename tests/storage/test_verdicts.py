"""The verdicts on some users' actions, in the order of the ledger."""

from __future__ import annotations

import psycopg
import pytest

from core.errors import Unavailable
from core.times import US, format_us
from storage.postgres import verdicts
from storage.postgres.verdicts import VerdictReader
from storage.standings import Standings
from tests.stream_app.world import NOW_US, submitted
from trueboard.devstack.ports import free_port

pytestmark = pytest.mark.services


@pytest.fixture
async def reader(stream, redis_db_url):
    async with Standings.connect(redis_db_url, stream.url) as standings:
        yield VerdictReader(standings.pool)


async def test_verdicts_come_in_order_for_those_asked_for_and_nobody_else(reader, stream):
    before = await reader.position()
    first = stream.take(
        submitted("ada", "a1", "points", points=5, at_us=NOW_US, received_us=NOW_US + 3 * US),
        submitted("bob", "b1"),
        submitted("ada", "a2", "unheard_of"),
    )
    second = stream.take(submitted("cleo", "c1"), submitted("ada", "a3", "points", points=1))

    found = await reader.after(before[1], ["ada", "cleo", "nobody"])

    assert [(one.user_id, one.action_id) for one in found.judged] == [
        ("ada", "a1"),
        ("ada", "a2"),
        ("ada", "a3"),
        ("cleo", "c1"),
    ]
    assert [one.status for one in found.judged[:3]] == ["accepted", "rejected", "accepted"]
    assert [one.judged_revision for one in found.judged] == [
        first.position.revision,
        first.position.revision,
        second.position.revision,
        second.position.revision,
    ]
    assert found.judged[0].received_at == format_us(NOW_US + 3 * US)
    assert found.judged[1].reason.code == "unknown_type"
    assert found.upto == found.last[1] == second.position.revision
    assert await reader.position() == found.last == (second.position.epoch, second.position.revision)


async def test_what_was_read_is_not_read_again(reader, stream):
    stream.take(submitted("ada", "a1"))
    _, revision = await reader.position()

    nothing = await reader.after(revision, ["ada"])
    stream.take(submitted("ada", "a2"))
    later = await reader.after(revision, ["ada"])

    assert (nothing.judged, nothing.upto, nothing.last[1]) == ([], revision, revision)
    assert [one.action_id for one in later.judged] == ["a2"]


async def test_a_long_way_is_read_in_pieces_without_a_gap(reader, stream, monkeypatch):
    monkeypatch.setattr(verdicts, "REVISIONS_AT_ONCE", 2)
    _, revision = await reader.position()
    for n in range(5):
        stream.take(submitted("ada", f"a{n}"))

    seen = []
    while (found := await reader.after(revision, ["ada"])).upto > revision:
        assert found.upto - revision <= 2
        seen += [one.action_id for one in found.judged]
        revision = found.upto

    assert seen == ["a0", "a1", "a2", "a3", "a4"]
    assert revision == found.last[1]


async def test_a_decision_is_a_verdict_of_its_own_with_the_submissions_instant(reader, stream):
    stream.take(submitted("ada", "a1", "points", points=5))
    _, revision = await reader.position()
    stream.take(submitted("bob", "b1"))
    with psycopg.connect(stream.url) as connection:
        connection.execute(
            "INSERT INTO ledger (player, batch, points, occurred_at, received_at, seq, action_id, kind, type,"
            "  verdict, catalogue_version, fingerprint)"
            " SELECT player, (SELECT max(batch) FROM revisions), points, occurred_at,"
            "  received_at + interval '1 day', 1, action_id, 'decision', type, 'rejected', catalogue_version,"
            "  fingerprint FROM ledger WHERE action_id = 'a1'"
        )

    (decision,) = (await reader.after(revision, ["ada"])).judged

    assert (decision.action_id, decision.status) == ("a1", "rejected")
    assert decision.received_at == (await reader.after(revision - 1, ["ada"])).judged[0].received_at


async def test_without_postgres_nothing_is_said(redis_db_url):
    async with Standings.connect(redis_db_url, f"postgresql://x@127.0.0.1:{free_port()}/x") as standings:
        with pytest.raises(Unavailable):
            await VerdictReader(standings.pool).position()
