"""The copies in Redis: the followers' suite, and what only Redis can do to them."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest
import redis

from core.errors import Unavailable
from core.ranking import member, order_key, read_key, read_member
from core.times import US
from storage.followers import At
from storage.postgres import deltas
from storage.redis import boards, keys
from storage.redis.boards import BoardCopy
from storage.standings import Standings
from stream_app.hand import Hand
from tests.acceptance import naive
from tests.storage.followers_conformance import (
    PERIOD,
    Fault,
    FollowersConformance,
    Ledger,
    Seen,
    Subject,
    check,
    end,
    settle,
)
from tests.stream_app.world import NOW_US, submitted

pytestmark = pytest.mark.services

Z, M, META = keys.board(PERIOD)


class BoardSubject(Subject):
    """A copy in Redis, read as the scripts for readers read it, but all of it."""

    def __init__(self, url: str, redis_url: str) -> None:
        super().__init__(url)
        self.redis = redis.Redis.from_url(redis_url)
        self.redis.flushall()
        self._redis_url = redis_url
        self._copies: list[BoardCopy] = []
        self._earlier: dict[str, bytes | None] = {}

    def follower(self, hand: Hand | None = None) -> BoardCopy:
        given = {} if hand is None else {"in_hand": hand.link_after}
        copy = BoardCopy(
            PERIOD, postgres_url=self.url, client=boards.connect(self._redis_url, timeout_s=5), **given
        )
        step = copy.step

        def remembered(**how: bool) -> bool:
            self._earlier = {key: self.redis.dump(key) for key in (Z, M, META)}
            return step(**how)

        copy.step = remembered  # type: ignore[method-assign]
        self._copies.append(copy)
        return copy

    def seen(self) -> Seen | None:
        pipe = self.redis.pipeline(transaction=True)
        pipe.hgetall(META)
        try:
            meta = pipe.hgetall(M).zrange(Z, 0, -1, withscores=True).execute()
        except redis.ResponseError:
            return None
        at, held, members = meta
        if not {b"epoch", b"revision", b"digest", b"count"} <= at.keys():
            return None
        if not (len(held) == len(members) == _whole(at[b"count"])):
            return None
        entries = {}
        for raw, score in members:
            assert score == 0
            user_id, points, reached_us = read_member(raw)
            if held.get(user_id.encode(), b"")[:16] != raw[:16]:
                return None
            name = held[user_id.encode()][16:].decode()
            entries[user_id] = (points, reached_us, name or user_id)
        return Seen(
            At(
                at[b"epoch"].decode(errors="replace"),
                int(at[b"revision"]),
                at[b"digest"].decode(errors="replace"),
            ),
            entries,
        )

    def faults(self) -> dict[str, Fault]:
        client = self.redis
        return {
            "flushed": Fault(lambda: client.flushall()),
            "an older copy put back": Fault(self._put_back),
            "z deleted": Fault(lambda: client.delete(Z)),
            "m deleted": Fault(lambda: client.delete(M)),
            "meta deleted": Fault(lambda: client.delete(META)),
            "z and m deleted": Fault(lambda: client.delete(Z, M)),
            "z and meta deleted": Fault(lambda: client.delete(Z, META)),
            "another digest": Fault(self._set("digest", b"00" * 32), "step"),
            "a digest that is none": Fault(self._set("digest", b"\xff\xfe"), "step"),
            "a revision beyond the ledger's": Fault(self._set("revision", b"999999"), "step"),
            "a revision that is no number": Fault(self._set("revision", b"many"), "step"),
            "a revision before the first": Fault(self._set("revision", b"-3"), "step"),
            "an earlier epoch": Fault(self._set("epoch", b"0" * 26), "step"),
            "an epoch that is none": Fault(self._set("epoch", b"zz\xff"), "step"),
            "no epoch": Fault(lambda: client.hdel(META, "epoch")),
            "another count": Fault(self._set("count", b"100000")),
            "a count that is no number": Fault(self._set("count", b"several")),
            "no count": Fault(lambda: client.hdel(META, "count")),
            "z of another kind": Fault(self._of_another_kind(Z)),
            "m of another kind": Fault(self._of_another_kind(M)),
            "meta of another kind": Fault(self._of_another_kind(META)),
            "a member lost": Fault(lambda: client.zremrangebyrank(Z, 0, 0)),
            "a stranger in z": Fault(lambda: client.zadd(Z, {member(1, 1, "stranger"): 0})),
            "a stranger in both": Fault(self._stranger),
            "a player's score edited": Fault(self._edit_score, "comparison"),
            "a name edited": Fault(self._edit_name, "comparison"),
            "somebody else in a player's place": Fault(self._replace_player, "comparison"),
            "half a build left behind": Fault(self._half_a_build),
        }

    def compare(self, follower: Any) -> None:
        # As the reconciler does, which is the same thread.
        with suppress(Unavailable):
            if follower.compare(most=100_000):
                follower.discard()

    def close(self) -> None:
        for copy in self._copies:
            copy.close()
        self.redis.close()

    def _put_back(self) -> None:
        self.redis.delete(Z, M, META)
        for key, value in self._earlier.items():
            if value is not None:
                self.redis.restore(key, 0, value, replace=True)

    def _set(self, name: str, value: bytes) -> Any:
        def harm() -> None:
            if self.redis.type(META) == b"hash":
                self.redis.hset(META, name, value)

        return harm

    def _of_another_kind(self, key: str) -> Any:
        def harm() -> None:
            self.redis.delete(key)
            self.redis.set(key, "planted")

        return harm

    def _stranger(self) -> None:
        if self.redis.exists(Z, M) == 2:
            self.redis.zadd(Z, {member(1, 1, "stranger"): 0})
            self.redis.hset(M, "stranger", order_key(1, 1))

    def _any_player(self) -> tuple[bytes, bytes] | None:
        if self.redis.type(M) != b"hash" or self.redis.type(Z) != b"zset":
            return None
        held = sorted(self.redis.hgetall(M).items())
        return held[0] if held else None

    def _edit_score(self) -> None:
        if (found := self._any_player()) is not None:
            user_id, content = found
            score, reached_us = read_key(content)
            edited = order_key(score + 1, reached_us)
            if self.redis.zrem(Z, content[:16] + user_id):
                self.redis.zadd(Z, {edited + user_id: 0})
                self.redis.hset(M, user_id, edited + content[16:])

    def _edit_name(self) -> None:
        if (found := self._any_player()) is not None:
            user_id, content = found
            self.redis.hset(M, user_id, content[:16] + b"Somebody else")

    def _replace_player(self) -> None:
        if (found := self._any_player()) is not None:
            user_id, content = found
            if self.redis.zrem(Z, content[:16] + user_id):
                self.redis.hdel(M, user_id)
                self.redis.zadd(Z, {content[:16] + b"stranger": 0})
                self.redis.hset(M, "stranger", content)

    def _half_a_build(self) -> None:
        """What a builder leaves that was killed: pages, and no lease once that has expired."""
        z, m, meta = keys.building(PERIOD, "dead")
        self.redis.zadd(z, {member(1, 1, "stranger"): 0})
        self.redis.hset(m, "stranger", order_key(1, 1))
        self.redis.hset(meta, "pages", 1)


def _whole(count: bytes) -> int:
    try:
        return int(count)
    except ValueError:
        return -1


class TestBoards(FollowersConformance):
    plans_tried = 25

    @pytest.fixture
    def make(self, redis_db_url):
        return lambda url: BoardSubject(url, redis_db_url)


@pytest.fixture
def subject(stream, redis_db_url):
    made = BoardSubject(stream.url, redis_db_url)
    yield made
    made.close()


@pytest.fixture
def ledger(stream):
    return Ledger(stream)


def test_sizes_and_count_agree_after_every_step(subject, ledger):
    copy = subject.follower(ledger.hand)
    for seed in range(10):
        ledger.grow(seed, 7)
        settle(copy)
        count = int(subject.redis.hget(META, "count"))

        assert subject.redis.hlen(M) == subject.redis.zcard(Z) == count == len(ledger.at(10_000))


def test_hand_and_ledger_give_the_same_bytes(ledger, stream, redis_db_url):
    found = []
    for with_hand in (True, False):
        subject = BoardSubject(stream.url, redis_db_url)
        copy = subject.follower(ledger.hand if with_hand else None)
        copy.build()
        if not found:
            for seed in range(8):
                ledger.grow(seed, 8)
                copy.step()
        settle(copy)
        found.append((subject.redis.zrange(Z, 0, -1), subject.redis.hgetall(M), subject.redis.hgetall(META)))
        subject.close()

    assert found[0] == found[1]


def test_a_copy_that_cannot_be_reached_says_how_far_it_is_behind(subject, ledger, monkeypatch):
    copy = subject.follower()
    ledger.grow(1, 3)
    settle(copy)
    assert copy.lag() == 0
    for seed in (2, 3):
        ledger.grow(seed, 3)
    behind = copy.lag()
    monkeypatch.setattr(boards, "MOST_LAG", 1)

    assert behind == 2
    assert copy.lag() == 1


def test_scores_beyond_a_floats_reach_stay_in_order(subject, ledger, stream):
    stream.take(
        submitted("ada", "a1", "huge", points=2**53 + 1),
        submitted("bob", "b1", "huge", points=2**53 + 2),
        submitted("cyd", "c1", "huge", points=2**63 - 1),
        submitted("dee", "d1", "huge", points=2**63 - 2),
    )
    settle(subject.follower())

    order = [read_member(raw)[0] for raw in subject.redis.zrange(Z, 0, -1)]

    assert order == ["cyd", "dee", "bob", "ada"]
    check(ledger, subject.seen())


# building -------------------------------------------------------------------------------------


def many(ledger: Ledger, players: int) -> None:
    """So many entries, 500 a revision."""
    for begin in range(0, players, 500):
        ledger.stream.take(
            *[
                submitted(f"p{number:05}", f"m{number}", "points", points=1 + number % 7)
                for number in range(begin, min(begin + 500, players))
            ]
        )


def test_what_is_committed_during_a_build_is_in_it_or_is_stepped_to(subject, ledger, monkeypatch):
    monkeypatch.setattr(boards, "PAGE", 3)
    pages = deltas.entries_page

    def with_commits(cursor, period, after, limit):
        found = pages(cursor, period, after, limit)
        ledger.grow(1000 + after, 4)
        return found

    for seed in range(4):
        ledger.grow(seed, 9)
    copy = subject.follower()
    monkeypatch.setattr(deltas, "entries_page", with_commits)
    copy.build()
    monkeypatch.setattr(deltas, "entries_page", pages)
    seen = subject.seen()

    assert seen is not None
    check(ledger, seen)
    end(ledger, subject, copy)


def test_a_build_beside_more_revisions_than_are_read_at_a_time_shows_one_of_them(
    subject, ledger, monkeypatch
):
    monkeypatch.setattr(deltas, "_MOST_REVISIONS", 3)
    head, begun = deltas.head, []

    def and_then_many(cursor, period):
        found = head(cursor, period)
        if not begun:
            begun.append(found)
            for seed in range(10):
                ledger.grow(seed, 1 + seed % 3)
        return found

    # Everybody is there, so that no count gives a wrong score away.
    while len(ledger.at(10_000)) < 12:
        ledger.grow(ledger._made, 9)
    copy = subject.follower()
    monkeypatch.setattr(deltas, "head", and_then_many)
    with suppress(Unavailable):
        copy.build()

    check(ledger, subject.seen())
    end(ledger, subject, copy)


@pytest.mark.parametrize("script", ["_fill", "_catch_up", "_swap"])
def test_a_builder_killed_on_the_way_leaves_what_readers_see(subject, ledger, script, monkeypatch):
    ledger.grow(1, 9)
    copy = subject.follower()
    settle(copy)
    before = subject.seen()
    ledger.grow(2, 9)
    killed = subject.follower()
    begun = deltas.head

    def and_one_more(cursor, period):
        found = begun(cursor, period)
        ledger.grow(3, 5)
        return found

    def dies(**_: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(deltas, "head", and_one_more)
    monkeypatch.setattr(killed, script, dies)
    monkeypatch.setattr(subject.redis.__class__, "unlink", lambda *_: 0)
    with pytest.raises(KeyboardInterrupt):
        killed.build()
    monkeypatch.undo()

    assert subject.seen() == before
    subject.redis.delete(keys.build_lease(PERIOD))
    end(ledger, subject, copy)


def test_while_a_builder_has_the_lease_no_other_builds(subject, ledger):
    ledger.grow(1, 5)
    subject.redis.set(keys.build_lease(PERIOD), "somebody", ex=30)

    with pytest.raises(Unavailable):
        subject.follower().build()

    assert subject.seen() is None
    assert subject.redis.get(keys.build_lease(PERIOD)) == b"somebody"


def test_a_build_without_all_of_its_pages_is_not_swapped_in(subject, ledger, monkeypatch):
    monkeypatch.setattr(boards, "PAGE", 3)
    for seed in range(3):
        ledger.grow(seed, 9)
    copy = subject.follower()
    fill, pages = copy._fill, []

    def loses_a_page(**given: Any) -> bytes:
        pages.append(given)
        return b"ok" if len(pages) == 2 else fill(**given)

    monkeypatch.setattr(copy, "_fill", loses_a_page)
    with pytest.raises(Unavailable):
        copy.build()

    assert len(pages) >= 3
    assert subject.seen() is None


def test_a_builder_that_lost_its_lease_swaps_nothing_in(subject, ledger, monkeypatch):
    ledger.grow(1, 5)
    copy = subject.follower()
    swap = copy._swap

    def after_the_lease_went(**given: Any) -> bytes:
        subject.redis.set(keys.build_lease(PERIOD), "another")
        return swap(**given)

    monkeypatch.setattr(copy, "_swap", after_the_lease_went)
    with pytest.raises(Unavailable):
        copy.build()

    assert subject.seen() is None
    assert subject.redis.get(keys.build_lease(PERIOD)) == b"another"


def test_a_build_that_was_overtaken_by_a_newer_copy_gives_way(subject, ledger, monkeypatch):
    ledger.grow(1, 5)
    stepper, builder = subject.follower(), subject.follower()
    settle(stepper)
    swap = builder._swap

    def after_a_newer_one(**given: Any) -> bytes:
        ledger.grow(2, 5)
        stepper.step()
        return swap(**given)

    monkeypatch.setattr(builder, "_swap", after_a_newer_one)
    builder.build()

    assert subject.seen().at.revision == max(ledger.positions())
    check(ledger, subject.seen())


def test_a_copy_of_a_later_epoch_makes_the_ledger_go_on_in_one_after_it(subject, ledger, stream):
    """Also one that a wrong clock planted in the future."""
    ledger.grow(1, 5)
    copy = subject.follower()
    settle(copy)
    later = b"7" + subject.redis.hget(META, "epoch")[1:]
    subject.redis.hset(META, "epoch", later)
    end(ledger, subject, copy)

    assert subject.redis.hget(META, "epoch") > later
    assert stream.rows("SELECT cause FROM revisions ORDER BY revision DESC LIMIT 1") == [("new_epoch",)]


def test_keys_of_a_build_go_by_themselves_if_the_builder_dies(subject, ledger, monkeypatch):
    ledger.grow(1, 5)
    copy = subject.follower()
    left: dict[bytes, int] = {}

    def look(**_: Any) -> bytes:
        for key in subject.redis.scan_iter("tb:*:build:*"):
            left[key] = subject.redis.ttl(key)
        raise Unavailable("enough")

    monkeypatch.setattr(copy, "_swap", look)
    with pytest.raises(Unavailable):
        copy.build()

    assert len(left) == 4
    assert all(0 < ttl <= boards.LIFETIME_S for ttl in left.values())


def test_a_swapped_in_copy_does_not_expire(subject, ledger):
    ledger.grow(1, 5)
    settle(subject.follower())

    assert [subject.redis.ttl(key) for key in (Z, M, META)] == [-1, -1, -1]


# readers --------------------------------------------------------------------------------------


async def test_a_reader_never_sees_part_of_a_board(subject, ledger, stream, redis_db_url, monkeypatch):
    monkeypatch.setattr(boards, "PAGE", 50)
    many(ledger, 1500)
    copy, over = subject.follower(), threading.Event()

    def keeps_building() -> None:
        for round_ in range(6):
            with suppress(Unavailable):
                copy.build()
            if round_ % 2:
                subject.redis.delete((Z, M, META)[round_ // 2])
            ledger.grow(round_, 3)
            with suppress(Unavailable):
                copy.step()
        over.set()

    thread = threading.Thread(target=keeps_building)
    pages = []
    async with Standings.connect(redis_db_url, stream.url) as standings:
        thread.start()
        while not over.is_set():
            with suppress(Unavailable):
                pages.append(await standings.page(PERIOD, limit=100))
    thread.join()

    assert {page.source for page in pages} >= {"redis"}
    truth = {
        page.at[1]: naive.ranked(ledger.at(page.at[1])) for page in {page.at: page for page in pages}.values()
    }
    for page in pages:
        assert [
            (entry.rank, entry.user_id, entry.score, entry.reached_at_us) for entry in page.entries
        ] == truth[page.revision][:100]
        assert page.count == len(truth[page.revision])
    assert [page.at for page in pages] == sorted(page.at for page in pages)


# comparing ------------------------------------------------------------------------------------


def test_a_comparison_goes_on_where_the_last_one_ended(subject, ledger, monkeypatch):
    monkeypatch.setattr(boards, "PAGE", 100)
    many(ledger, 450)
    copy = subject.follower()
    settle(copy)
    user_id, content = sorted(subject.redis.hgetall(M).items())[-1]
    subject.redis.hset(M, user_id, content[:16] + b"Edited")

    assert [copy.compare(most=100) for _ in range(6)].count(1) == 1
    assert sum(copy.compare(most=100) for _ in range(12)) >= 2


def test_what_changed_since_the_copys_revision_is_no_difference(subject, ledger):
    for seed in range(4):
        ledger.grow(seed, 9)
    copy = subject.follower()
    settle(copy)
    for seed in range(10, 14):
        ledger.grow(seed, 9)

    assert copy.compare(most=100_000) == 0


def test_a_copy_with_nothing_in_it_is_a_copy(subject, ledger, stream):
    stream.take(submitted("ada", "a1", "unheard_of", at_us=NOW_US + US))
    copy = subject.follower()
    settle(copy)

    assert subject.redis.hget(META, "count") == b"0"
    assert subject.seen().entries == {}
    assert copy.compare(most=10) == 0
