from __future__ import annotations

import asyncio
import random
import time

import pytest

from core.errors import Unavailable
from service.revocations import Revocation, Revocations

NOW_S = 1_800_000_000
PAGE = 3


class Table:
    """What Postgres keeps, read in small pages; `away` says that it does not answer."""

    def __init__(self) -> None:
        self.rows: list[Revocation] = []
        self.away = False
        self.reads = 0

    def token(self, jti: str, *, for_s: int = 900) -> None:
        self._append(jti, None, None, for_s)

    def user(self, user_id: str, *, before_s: int = NOW_S, for_s: int = 900) -> None:
        self._append(None, user_id, before_s, for_s)

    def _append(self, jti: str | None, user_id: str | None, before_s: int | None, for_s: int) -> None:
        number = len(self.rows) + 1
        at_us = random.getrandbits(50)
        self.rows.append(Revocation(number, at_us, jti, user_id, before_s, NOW_S + for_s))

    async def read(self, first: int) -> list[Revocation]:
        self.reads += 1
        if self.away:
            raise Unavailable("Postgres: away")
        return [row for row in self.rows if row.number >= first][:PAGE]


class Clock:
    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(table: Table, clock: Clock) -> Revocations:
    return Revocations(table.read, interval_s=0.01, clock_s=clock, monotonic_s=clock)


async def until(holds) -> None:
    deadline_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come to hold"
        await asyncio.sleep(0.005)


async def test_a_token_is_covered_by_its_jti_alone(table: Table, view: Revocations):
    table.token("j1")
    await view.refresh()

    assert view.cover("j1", "ada", NOW_S)
    assert not view.cover("j2", "ada", NOW_S)


async def test_a_users_tokens_are_covered_up_to_an_instant(table: Table, view: Revocations):
    table.user("ada", before_s=NOW_S)
    await view.refresh()

    assert view.cover("j1", "ada", NOW_S - 1)
    assert not view.cover("j1", "ada", NOW_S)
    assert not view.cover("j1", "ben", NOW_S - 1)


async def test_before_they_were_read_nobody_can_say(table: Table, view: Revocations):
    assert not view.known
    with pytest.raises(Unavailable):
        view.cover("j1", "ada", NOW_S)

    table.away = True
    with pytest.raises(Unavailable):
        await view.refresh()
    with pytest.raises(Unavailable):
        view.cover("j1", "ada", NOW_S)

    table.away = False
    await view.refresh()
    assert view.known
    assert not view.cover("j1", "ada", NOW_S)


async def test_what_is_known_holds_while_postgres_is_away(table: Table, clock: Clock, view: Revocations):
    table.token("j1")
    await view.refresh()
    table.token("j2")
    table.away = True
    clock.now_s += 300
    with pytest.raises(Unavailable):
        await view.refresh()

    assert view.cover("j1", "ada", NOW_S)
    assert not view.cover("j2", "ada", NOW_S)
    assert view.age_s == 300

    table.away = False
    await view.refresh()
    assert view.cover("j2", "ada", NOW_S)
    assert view.age_s == 0


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 4 * PAGE])
async def test_all_pages_are_read_and_then_only_what_is_new(table: Table, view: Revocations, count: int):
    for n in range(count):
        table.token(f"old-{n}")
    await view.refresh()
    for n in range(count):
        table.token(f"new-{n}")
    await view.refresh()
    table.reads = 0
    await view.refresh()

    assert len(view) == 2 * count
    assert all(view.cover(f"{age}-{n}", "ada", 0) for age in ("old", "new") for n in range(count))
    assert table.reads == 1, "one query while nothing is new"


async def test_of_a_table_that_was_restored_all_is_read_and_nothing_is_taken_back(
    table: Table, view: Revocations
):
    for jti in ("j1", "j2", "j3"):
        table.token(jti)
    await view.refresh()
    # From a backup with the first alone; then others took the numbers that were lost.
    del table.rows[1:]
    for jti in ("k2", "k3", "k4"):
        table.token(jti)
    await view.refresh()

    assert all(view.cover(jti, "ada", NOW_S) for jti in ("j1", "j2", "j3", "k2", "k3", "k4"))

    table.rows.clear()
    await view.refresh()
    assert view.cover("j1", "ada", NOW_S)
    table.token("m1")
    await view.refresh()
    assert view.cover("m1", "ada", NOW_S)


async def test_whoever_listens_hears_of_what_is_new_and_only_of_that(table: Table, view: Revocations):
    heard: list[bool] = []
    view.listen(lambda: heard.append(view.cover("j1", "ada", NOW_S)))
    await view.refresh()
    table.token("j1")
    await view.refresh()
    await view.refresh()

    assert heard == [True]


async def test_what_has_expired_is_forgotten(table: Table, clock: Clock, view: Revocations):
    table.token("short", for_s=10)
    table.token("long", for_s=1000)
    table.user("ada", before_s=NOW_S, for_s=20)
    running = asyncio.create_task(view.run())
    await until(lambda: len(view) == 3)

    table.rows.clear()
    clock.now_s = NOW_S + 11
    await until(lambda: len(view) == 2)
    assert not view.cover("short", "x", NOW_S)
    assert view.cover("j", "ada", NOW_S - 1)
    clock.now_s = NOW_S + 21
    await until(lambda: len(view) == 1)
    assert not view.cover("j", "ada", NOW_S - 1)
    assert view.cover("long", "x", NOW_S)
    running.cancel()


async def test_of_several_about_one_user_each_holds_as_long_as_it_says(
    table: Table, clock: Clock, view: Revocations
):
    rng = random.Random(5)
    said = [(NOW_S - rng.randrange(100), rng.randrange(10, 100)) for _ in range(40)]
    for before_s, for_s in said:
        table.user("ada", before_s=before_s, for_s=for_s)
    running = asyncio.create_task(view.run())
    await until(lambda: view.known)
    assert len(view) < len(said), "what says no more than another is not kept"

    for passed_s in (0, 9, 30, 60, 98, 99):
        table.rows = [row for row in table.rows if row.expires_at_s > NOW_S + passed_s]
        clock.now_s = NOW_S + passed_s
        seen = table.reads
        await until(lambda seen=seen: table.reads > seen + 2)
        for issued_at_s in range(NOW_S - 101, NOW_S + 1):
            covered = any(issued_at_s < before_s and for_s > passed_s for before_s, for_s in said)
            assert view.cover("j", "ada", issued_at_s) == covered
    running.cancel()


async def test_it_goes_on_by_itself_after_postgres_was_away(table: Table, view: Revocations):
    table.away = True
    running = asyncio.create_task(view.run())
    await until(lambda: table.reads >= 2)
    assert not view.known
    table.token("j1")
    table.away = False
    await until(lambda: view.known)

    assert view.cover("j1", "ada", NOW_S)
    running.cancel()


async def test_a_defect_ends_it(table: Table):
    async def broken(first: int) -> list[Revocation]:
        raise TypeError("a defect")

    with pytest.raises(TypeError):
        await Revocations(broken, interval_s=0.01).run()


@pytest.mark.parametrize("interval_s", [0, -1, 60.5, float("nan")])
def test_an_interval_that_would_break_the_promise_is_refused(table: Table, interval_s: float):
    with pytest.raises(ValueError, match="revocations_interval_s"):
        Revocations(table.read, interval_s=interval_s)
