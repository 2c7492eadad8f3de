"""What every follower has to do, whatever it follows with: one suite, the same faults.

What a follower shows is the ledger at the position it names, exactly, after every single step and
after every fault; and when nothing is left to follow it is the ledger's end. A subject says how to
make its follower, what a reader of it sees, and how it can be harmed. The ledger rolled back is
`tests.acceptance.naive`'s fold of its deltas.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import Unavailable
from core.times import US
from storage.followers import At, Follower
from storage.postgres import connections, epochs
from storage.postgres import ledger as postgres_ledger
from storage.postgres.connections import NotCompared
from stream_app.hand import Hand
from tests.acceptance import naive
from tests.stream_app import world
from tests.stream_app.world import NOW_US, World, submitted

PERIOD = "main:all-time"


@dataclass(frozen=True)
class Seen:
    """What a reader of a follower sees: a position, and each user's score, instant and name."""

    at: At
    entries: dict[str, tuple[int, int, str]]


@dataclass(frozen=True)
class Fault:
    """One way to harm what a follower made, and who finds it.

    `found_by` is "reader" (who then sees nothing), "step" (the follower's next one) or "comparison"
    (with the ledger, entry by entry).
    """

    harm: Callable[[], None]
    found_by: Literal["reader", "step", "comparison"] = "reader"


class Subject:
    """One kind of follower, to be harmed."""

    def __init__(self, url: str) -> None:
        self.url = url

    def follower(self, hand: Hand | None = None) -> Follower:
        """One more follower of the same thing; with `hand` it need not read back what is there."""
        raise NotImplementedError

    def seen(self) -> Seen | None:
        """What a reader sees, None where it sees nothing. Raises AssertionError for what must not be."""
        raise NotImplementedError

    def faults(self) -> dict[str, Fault]:
        """How it can be harmed, by name."""
        raise NotImplementedError

    def compare(self, follower: Follower) -> None:
        """Look for what only a comparison finds, as the reconciler does."""

    def close(self) -> None:
        """Let go of everything."""


class Ledger:
    """A ledger that grows at random, and what it was at each revision."""

    def __init__(self, stream: World) -> None:
        self.stream, self.hand = stream, Hand()
        self._made = 0

    def grow(self, seed: int, size: int) -> None:
        """One more revision: accepted, rejected and renamed ones, some of them repeats."""
        rng = random.Random(seed)
        actions = []
        for _ in range(size):
            self._made += 1
            number = self._made if rng.random() > 0.1 else max(1, self._made - 1)
            actions.append(
                submitted(
                    f"u{rng.randrange(12):02}",
                    f"a{number}",
                    rng.choice(["points", "points", "points", "badge", "unheard_of"]),
                    points=rng.choice([1, 1, 2, 5, 900, -1, -40]),
                    at_us=NOW_US + rng.randrange(5) * US,
                    username=rng.choice([None, None, None, "Ada", "Zoë ☃"]),
                )
            )
        outcome = self.stream.take(*actions)
        if outcome.content is not None:
            self.hand.put(outcome.content)

    def at(self, revision: int) -> dict[str, tuple[int, int]]:
        with psycopg.connect(self.stream.url) as connection:
            return naive.folded_deltas(connection, until=revision)

    def positions(self) -> dict[int, tuple[str, str]]:
        """The period's revisions: number → (epoch, digest)."""
        return {
            row[0]: (row[1], row[2])
            for row in self.stream.rows(
                "SELECT revision, epoch, encode(r.digest, 'hex') FROM deltas JOIN revisions r"
                " USING (revision) WHERE period = %s",
                (PERIOD,),
            )
        }

    def names(self) -> dict[str, str]:
        return dict(self.stream.rows("SELECT user_id, coalesce(username, user_id) FROM players"))


def check(ledger: Ledger, seen: Seen | None, *, least: int = 0) -> None:
    """What is seen is the ledger at the position it names; names are those of then or later."""
    if seen is None:
        return
    positions = ledger.positions()
    assert positions.get(seen.at.revision) == (seen.at.epoch, seen.at.digest)
    assert seen.at.revision >= least
    shown = {user_id: entry[:2] for user_id, entry in seen.entries.items()}
    assert shown == ledger.at(seen.at.revision)
    if seen.at.revision == max(positions):
        names = ledger.names()
        assert {user_id: entry[2] for user_id, entry in seen.entries.items()} == {
            user_id: names[user_id] for user_id in seen.entries
        }


def end(ledger: Ledger, subject: Subject, follower: Follower) -> None:
    """Follow until there is nothing left, and see that the ledger's end is shown."""
    settle(follower)
    subject.compare(follower)
    settle(follower)
    seen = subject.seen()
    assert seen is not None
    assert seen.at.revision == max(ledger.positions()), (seen.at, follower.position(), ledger.positions())
    check(ledger, seen)


def settle(follower: Follower) -> None:
    for _ in range(200):
        try:
            if not follower.step():
                return
        except Unavailable:
            # What it held it lets go of, and Postgres needs a moment to hear of it: till then a step
            # that takes nothing on does not mean that there is nothing.
            time.sleep(0.2)
    raise AssertionError("it never comes to an end")


@contextmanager
def replaced(stream: World, subject: Subject, postgres_url: str) -> Iterator[Callable[[], None]]:
    """Keep the ledger as it is now; calling what this gives puts it back under all who follow it.

    Another database under the same name, as of a restore: every connection ends. What is on the log
    since then is read again.
    """
    name = stream.url.rsplit("/", 1)[1]

    def administer(*statements: str) -> None:
        stream.judge.ledger.close()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            for statement in statements:
                for one in (name, f"{name}_backup"):
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (one,)
                    )
                connection.execute(statement)

    administer(f"CREATE DATABASE {name}_backup TEMPLATE {name}")

    def put_back() -> None:
        shown = subject.seen()
        administer(
            f"ALTER DATABASE {name} RENAME TO {name}_lost",
            f"ALTER DATABASE {name}_backup RENAME TO {name}",
        )
        assert shown is not None
        _compared(stream.url, epochs.Seen(shown.at.epoch, shown.at.revision, shown.at.digest))
        for partition in list(stream.log.records):
            ((next_offset,),) = stream.rows(
                "SELECT next_offset FROM progress WHERE partition = %s", (partition,)
            )
            if next_offset < stream.log.end(partition):
                stream.judge.carry_out(stream.log.number, [stream.log.slice(partition, next_offset)])

    try:
        yield put_back
    finally:
        administer(f"DROP DATABASE IF EXISTS {name}_lost", f"DROP DATABASE IF EXISTS {name}_backup")


def _compared(url: str, shown: epochs.Seen) -> None:
    """What `storage.histories` does, with what the subject shows."""
    with pytest.raises(NotCompared):
        connections.connect(url, name="tests").close()
    ledger = postgres_ledger.Ledger(url, name="tests", before_compared=True)
    try:
        epochs.begin(ledger, [shown])
        with ledger.looking() as cursor:
            epochs.made_good(cursor, epochs.look(cursor).incarnation)
    finally:
        ledger.close()


def run(
    stream: World, make: Callable[[str], Subject], plan: list[tuple[str, Any]], *, with_hand: bool = True
) -> None:
    """Carry a plan out and look after every step."""
    ledger, subject = Ledger(stream), make(stream.url)
    try:
        followers = [subject.follower(ledger.hand if with_hand else None), subject.follower()]
        faults = subject.faults()
        hidden: set[str] = set()
        for what, argument in plan:
            if what == "grow":
                ledger.grow(*argument)
            elif what == "harm":
                fault = faults[sorted(faults)[argument % len(faults)]]
                fault.harm()
                hidden.add(fault.found_by)
            elif what == "compare":
                subject.compare(followers[0])
            else:
                with suppress(Unavailable):
                    getattr(followers[argument], what)()
                    hidden.discard("step")
            if hidden <= {"reader"}:
                check(ledger, subject.seen())
        ledger.grow(1, 3)
        end(ledger, subject, followers[0])
    finally:
        subject.close()


revisions = st.tuples(st.just("grow"), st.tuples(st.integers(0, 10_000), st.integers(1, 9)))
plans = st.lists(
    st.one_of(
        revisions,
        revisions,
        st.tuples(st.just("step"), st.integers(0, 1)),
        st.tuples(st.just("step"), st.just(0)),
        st.tuples(st.just("build"), st.integers(0, 1)),
        st.tuples(st.just("harm"), st.integers(0, 99)),
    ),
    min_size=4,
    max_size=14,
)


class FollowersConformance:
    """The suite. A subclass says how many plans are tried, and gives `make`."""

    plans_tried = 12

    @pytest.fixture
    def make(self) -> Callable[[str], Subject]:
        raise NotImplementedError

    def test_it_shows_the_ledger_at_its_position_after_every_step_and_fault(
        self, make, postgres_url, request
    ):
        template = request.getfixturevalue("_template")

        @settings(
            max_examples=self.plans_tried,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(plans, st.booleans())
        def any_plan(plan, with_hand):
            with world.fresh_database(postgres_url, template) as url, world.opened(url) as stream:
                run(stream, make, plan, with_hand=with_hand)

        any_plan()

    def test_it_heals_from_each_of_its_faults(self, make, stream):
        ledger, subject = Ledger(stream), make(stream.url)
        follower = subject.follower(ledger.hand)
        try:
            for number, name in enumerate(sorted(subject.faults())):
                ledger.grow(number, 6)
                settle(follower)
                ledger.grow(number + 100, 4)
                subject.faults()[name].harm()
                end(ledger, subject, follower)
        finally:
            subject.close()

    def test_harmed_and_with_nothing_to_follow_it_heals_too(self, make, stream):
        ledger, subject = Ledger(stream), make(stream.url)
        follower = subject.follower(ledger.hand)
        ledger.grow(7, 8)
        settle(follower)
        try:
            for name in sorted(subject.faults()):
                subject.faults()[name].harm()
                end(ledger, subject, follower)
        finally:
            subject.close()

    def test_one_that_was_overtaken_changes_nothing(self, make, stream):
        ledger, subject = Ledger(stream), make(stream.url)
        slow, quick = subject.follower(ledger.hand), subject.follower()
        try:
            for seed in range(6):
                ledger.grow(seed, 5)
                with suppress(Unavailable):
                    slow.step()
                check(ledger, subject.seen())
                settle(quick)
                check(ledger, subject.seen())
            end(ledger, subject, slow)
        finally:
            subject.close()

    def test_an_empty_ledger_is_shown_as_one(self, make, stream):
        subject = make(stream.url)
        follower = subject.follower()
        try:
            settle(follower)
            seen = subject.seen()

            assert seen is not None
            assert (seen.at.revision, seen.entries) == (1, {})
        finally:
            subject.close()

    @pytest.mark.parametrize(
        ("before", "after"), [(4, 0), (3, 1), (1, 5)], ids=["shorter", "about as long", "longer"]
    )
    def test_a_history_replaced_under_it_gives_way_and_never_comes_back(
        self, make, stream, postgres_url, before, after
    ):
        ledger, subject = Ledger(stream), make(stream.url)
        kept, plain = subject.follower(ledger.hand), subject.follower()
        ledger.grow(1, 6)
        settle(kept)
        shown: list[Seen] = []

        def followed() -> None:
            settle(kept)
            seen = subject.seen()
            assert seen is not None
            shown.append(seen)

        try:
            with replaced(stream, subject, postgres_url) as put_back:
                for seed in range(before):
                    ledger.grow(10 + seed, 6)
                    followed()
                put_back()
                for seed in range(after):
                    ledger.grow(100 + seed, 6)
                    followed()
                end(ledger, subject, kept)
                followed()
                end(ledger, subject, plain)
        finally:
            subject.close()

        positions = [(seen.at.epoch, seen.at.revision) for seen in shown]
        assert positions == sorted(positions)
        assert positions[-1][0] > positions[0][0]
        said: dict[tuple[str, int], Seen] = {}
        for seen in shown:
            assert said.setdefault((seen.at.epoch, seen.at.revision), seen) == seen

    def test_what_is_in_hand_is_what_would_be_read(self, make, stream):
        ledger = Ledger(stream)
        kept, read = make(stream.url), None
        try:
            follower = kept.follower(ledger.hand)
            for seed in range(8):
                ledger.grow(seed, 6)
                settle(follower)
            with_hand = kept.seen()
            plain = kept.follower()
            plain.build()
            settle(plain)
            read = kept.seen()
        finally:
            kept.close()

        assert with_hand is not None
        assert with_hand == read
