"""Reading standings: exact at a named revision, from Redis or from Postgres, and never backwards."""

from __future__ import annotations

import asyncio
import time

import pytest

from core.errors import Refused, Unavailable
from core.ranking import member
from core.times import US
from storage import standings as standings_module
from storage.redis import keys
from storage.standings import Page, Standings
from tests.acceptance import naive
from tests.storage.followers_conformance import PERIOD, Ledger, settle
from tests.storage.test_boards import BoardSubject, many
from tests.stream_app.world import NOW_US, submitted
from trueboard.devstack.ports import free_port

pytestmark = pytest.mark.services


@pytest.fixture
def ledger(stream):
    return Ledger(stream)


@pytest.fixture
def subject(stream, redis_db_url):
    made = BoardSubject(stream.url, redis_db_url)
    yield made
    made.close()


@pytest.fixture
async def reader(stream, redis_db_url):
    async with Standings.connect(redis_db_url, stream.url) as made:
        yield made


@pytest.fixture
async def without_redis(stream):
    async with Standings.connect(f"redis://127.0.0.1:{free_port()}/0", stream.url) as made:
        yield made


def shown(page: Page) -> list[tuple[int, str, int, int]]:
    return [(entry.rank, entry.user_id, entry.score, entry.reached_at_us) for entry in page.entries]


async def test_pages_one_after_the_other_are_the_whole_board_in_rank_order(reader, ledger, subject):
    for seed in range(6):
        ledger.grow(seed, 9)
    settle(subject.follower())
    truth = naive.ranked(ledger.at(10_000))
    found, after = [], None
    while True:
        page = await reader.page(PERIOD, limit=5, after=after)
        if not page.entries:
            break
        found += shown(page)
        last = page.entries[-1]
        after = member(last.score, last.reached_at_us, last.user_id)

    assert found == truth
    assert (page.source, page.count) == ("redis", len(truth))


async def test_a_page_names_its_players_as_they_are_called_or_by_their_id(reader, subject, stream):
    stream.take(submitted("ada", "a1", username="Ada ☃"), submitted("bob", "b1"))
    settle(subject.follower())
    page = await reader.page(PERIOD, limit=10)

    assert [entry.username for entry in page.entries] == ["Ada ☃", "bob"]


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_both_sources_give_the_same_page(reader, without_redis, ledger, subject, limit):
    for seed in range(5):
        ledger.grow(seed, 9)
    settle(subject.follower())
    from_redis = await reader.page(PERIOD, limit=limit)
    from_postgres = await without_redis.page(PERIOD, limit=limit)

    assert (from_redis.source, from_postgres.source) == ("redis", "postgres")
    assert shown(from_redis) == shown(from_postgres) == naive.ranked(ledger.at(10_000))[:limit]
    assert from_redis.at == from_postgres.at
    assert (from_redis.count, from_redis.digest) == (from_postgres.count, from_postgres.digest)
    assert [entry.username for entry in from_redis.entries] == [
        entry.username for entry in from_postgres.entries
    ]


async def test_both_sources_give_each_player_the_same_rank(reader, without_redis, ledger, subject):
    for seed in range(5):
        ledger.grow(seed, 9)
    settle(subject.follower())
    for rank, user_id, score, reached_us in naive.ranked(ledger.at(10_000)):
        for source in (reader, without_redis):
            page, entry = await source.player(PERIOD, user_id)

            assert (entry.rank, entry.score, entry.reached_at_us) == (rank, score, reached_us)
            assert page.revision == max(ledger.positions())


async def test_who_has_no_entry_has_none_at_a_named_revision(reader, without_redis, subject, stream):
    stream.take(submitted("ada", "a1"), submitted("bob", "b1", "unheard_of"))
    settle(subject.follower())
    for source in (reader, without_redis):
        for user_id in ("bob", "nobody"):
            page, entry = await source.player(PERIOD, user_id)

            assert (entry, page.revision, page.count) == (None, 2, 1)


async def test_equal_scores_are_ordered_by_instant_and_then_by_the_ids_bytes(
    reader, without_redis, subject, stream
):
    stream.take(
        *[submitted(user_id, "a1", "badge") for user_id in ("b", "B", "a", "_", "a-", "a.")],
        submitted("late", "a1", "badge", at_us=NOW_US + US),
        submitted("early", "a1", "badge", at_us=NOW_US - US),
    )
    settle(subject.follower())
    expected = ["early", *sorted(["b", "B", "a", "_", "a-", "a."], key=str.encode), "late"]

    for source in (reader, without_redis):
        page = await source.page(PERIOD, limit=10)

        assert [entry.user_id for entry in page.entries] == expected
        assert [entry.rank for entry in page.entries] == list(range(1, 9))


async def test_there_is_no_page_of_a_window_that_is_not(reader):
    for ask in (reader.page("main:2031-W01", limit=1), reader.player("main:2031-W01", "ada")):
        with pytest.raises(Refused) as found:
            await ask

        assert (found.value.code, found.value.status_code) == ("not_found", 404)


async def test_without_a_copy_short_pages_and_players_are_answered_and_others_wait(reader, ledger):
    ledger.grow(1, 9)
    page = await reader.page(PERIOD, limit=100)
    assert page.source == "postgres"
    assert shown(page) == naive.ranked(ledger.at(10_000))

    for ask in (reader.page(PERIOD, limit=101), reader.page(PERIOD, limit=1, after=member(1, 1, "a"))):
        with pytest.raises(Unavailable) as found:
            await ask

        assert found.value.code == "board_rebuilding"


@pytest.mark.parametrize("key", [0, 1, 2])
async def test_a_copy_that_is_not_whole_is_not_read(reader, ledger, subject, key):
    ledger.grow(1, 9)
    settle(subject.follower())
    subject.redis.delete(keys.board(PERIOD)[key])
    page = await reader.page(PERIOD, limit=10)

    assert page.source == "postgres"
    assert shown(page) == naive.ranked(ledger.at(10_000))[:10]


async def test_a_key_of_another_kind_is_as_good_as_none(reader, ledger, subject):
    ledger.grow(1, 9)
    settle(subject.follower())
    z, _, meta = keys.board(PERIOD)
    for key in (z, meta):
        subject.redis.delete(key)
        subject.redis.set(key, "planted")

        assert (await reader.page(PERIOD, limit=10)).source == "postgres"


@pytest.mark.parametrize("epoch", [b"z" * 26, b"7" + b"z" * 25, b"\xff", b"01"])
async def test_a_copy_of_what_is_no_epoch_is_not_read_and_spoils_nothing(reader, ledger, subject, epoch):
    ledger.grow(1, 9)
    copy = subject.follower()
    settle(copy)
    subject.redis.hset(keys.board(PERIOD)[2], "epoch", epoch)

    assert (await reader.page(PERIOD, limit=10)).source == "postgres"
    settle(copy)
    assert (await reader.page(PERIOD, limit=10)).source == "redis"


async def test_a_reader_goes_over_to_a_new_epoch_by_itself(reader, ledger, subject, stream):
    """Also where it had shown more revisions than the new one has."""
    ledger.grow(1, 9)
    copy = subject.follower()
    settle(copy)
    first = await reader.page(PERIOD, limit=10)
    subject.redis.hset(keys.board(PERIOD)[2], "revision", 50)
    ahead = await reader.page(PERIOD, limit=10)
    settle(copy)
    page = await reader.page(PERIOD, limit=10)

    assert ahead.at == (first.epoch, 50)
    assert page.epoch > first.epoch
    assert page.revision == 3
    assert shown(page) == shown(first)
    assert (await reader.page(PERIOD, limit=10, at_least=(first.epoch, 49))).at == page.at


# at least -------------------------------------------------------------------------------------


async def test_one_who_has_written_reads_it_back_though_the_copy_lags(reader, ledger, subject):
    ledger.grow(1, 5)
    copy = subject.follower()
    settle(copy)
    ledger.grow(2, 5)
    newest = max(ledger.positions().items())
    page = await reader.page(PERIOD, limit=10, at_least=(newest[1][0], newest[0]))

    assert page.revision >= newest[0]
    assert shown(page) == naive.ranked(ledger.at(page.revision))[:10]


async def test_one_who_waits_gets_the_copy_as_soon_as_it_is_there(reader, ledger, subject):
    ledger.grow(1, 5)
    copy = subject.follower()
    settle(copy)
    ledger.grow(2, 5)
    epoch = ledger.positions()[2][0]

    async def follow() -> None:
        await asyncio.sleep(0.2)
        await asyncio.to_thread(copy.step)

    page, _ = await asyncio.gather(reader.page(PERIOD, limit=500, at_least=(epoch, 3)), follow())

    assert (page.source, page.revision) == ("redis", 3)


async def test_a_revision_that_left_the_period_as_it_was_is_shown_already(reader, subject, stream):
    stream.take(submitted("ada", "a1"))
    outcome = stream.take(submitted("ada", "a2", "unheard_of"))
    settle(subject.follower())
    begun_s = time.monotonic()
    page = await reader.page(PERIOD, limit=500, at_least=(outcome.position.epoch, outcome.position.revision))

    assert (page.source, page.revision, outcome.position.revision) == ("redis", 2, 3)
    assert time.monotonic() - begun_s < 1


async def test_a_revision_that_never_comes_is_not_waited_for_long(reader, subject, stream):
    outcome = stream.take(submitted("ada", "a1"))
    settle(subject.follower())
    begun_s = time.monotonic()
    with pytest.raises(Unavailable) as found:
        await reader.page(PERIOD, limit=10, at_least=(outcome.position.epoch, 99))

    assert found.value.code == "board_rebuilding"
    assert time.monotonic() - begun_s < standings_module.AT_LEAST_WAIT_S + 1.5


async def test_a_later_epoch_than_there_is_is_not_shown(reader, subject, stream):
    stream.take(submitted("ada", "a1"))
    settle(subject.follower())
    with pytest.raises(Unavailable):
        await reader.page(PERIOD, limit=10, at_least=("7" + "z" * 25, 1))


# never backwards ------------------------------------------------------------------------------


async def test_a_copy_behind_what_was_shown_is_not_believed(reader, ledger, subject):
    ledger.grow(1, 5)
    copy = subject.follower()
    settle(copy)
    older = {key: subject.redis.dump(key) for key in keys.board(PERIOD)}
    ledger.grow(2, 5)
    settle(copy)
    assert (await reader.page(PERIOD, limit=10)).revision == 3
    for key, value in older.items():
        subject.redis.restore(key, 0, value, replace=True)

    page = await reader.page(PERIOD, limit=10)
    behind, _ = await reader.player(PERIOD, "u00")

    assert (page.revision, behind.revision) == (3, 3)
    assert shown(page) == naive.ranked(ledger.at(3))[:10]


async def test_an_answer_that_took_long_does_not_come_after_a_later_one(reader, ledger, subject, monkeypatch):
    ledger.grow(1, 5)
    copy = subject.follower()
    settle(copy)
    await reader.page(PERIOD, limit=10)
    script, first = reader._script, asyncio.Event()

    async def slow_at_first(*given):
        answer = await script(*given)
        if not first.is_set():
            first.set()
            await asyncio.sleep(0.3)
        return answer

    monkeypatch.setattr(reader, "_script", slow_at_first)
    slow = asyncio.create_task(reader.page(PERIOD, limit=10))
    await first.wait()
    ledger.grow(2, 5)
    settle(copy)
    quick = await reader.page(PERIOD, limit=10)

    assert quick.revision == 3
    assert (await slow).revision == 3


async def test_many_readers_beside_a_growing_board_see_it_only_grow(reader, ledger, subject):
    many(ledger, 300)
    copy = subject.follower(ledger.hand)
    settle(copy)
    seen: list[Page] = []
    over = asyncio.Event()

    async def read() -> None:
        while not over.is_set():
            seen.append(await reader.page(PERIOD, limit=20))
            await asyncio.sleep(0)

    def grow() -> None:
        for seed in range(25):
            ledger.grow(seed, 4)
            copy.step()
            if seed % 6 == 5:
                subject.redis.delete(keys.board(PERIOD)[seed % 3])

    readers = [asyncio.create_task(read()) for _ in range(4)]
    await asyncio.to_thread(grow)
    over.set()
    await asyncio.gather(*readers)

    assert [page.at for page in seen] == sorted(page.at for page in seen)
    for page in {page.at: page for page in seen}.values():
        assert shown(page) == naive.ranked(ledger.at(page.revision))[:20]


# what is away ---------------------------------------------------------------------------------


async def test_a_dead_redis_costs_one_time_out_not_one_a_request(without_redis, ledger):
    ledger.grow(1, 5)
    await without_redis.page(PERIOD, limit=10)
    begun_s = time.monotonic()
    for _ in range(50):
        await without_redis.page(PERIOD, limit=10)

    assert time.monotonic() - begun_s < 2


async def test_readers_of_one_moment_share_one_scan(without_redis, ledger, monkeypatch):
    ledger.grow(1, 5)
    scan, scans = without_redis._scan_top, []

    async def counted(period: str) -> Page:
        scans.append(period)
        return await scan(period)

    monkeypatch.setattr(without_redis, "_scan_top", counted)
    pages = await asyncio.gather(*[without_redis.page(PERIOD, limit=10) for _ in range(40)])

    assert len(scans) == 1
    assert len({page.at for page in pages}) == 1


async def test_without_postgres_a_copy_is_still_read(redis_db_url, stream, ledger, subject):
    ledger.grow(1, 5)
    settle(subject.follower())
    async with Standings.connect(redis_db_url, stream.url) as reader:
        first = await reader.page(PERIOD, limit=10)
        await reader.pool.close()

        assert (await reader.page(PERIOD, limit=10)) == first


async def test_a_board_that_nobody_defined_yet_is_said_to_be_missing(redis_db_url, database):
    async with Standings.connect(redis_db_url, database) as reader:
        with pytest.raises((Refused, Unavailable)):
            await reader.page(PERIOD, limit=10)
