"""Standings: one revision a page, pages that belong together, and readings that are shared."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from core.errors import Refused
from core.ranking import member
from ingest import cursors
from ingest.boards import Shared
from ingest.cursors import Cursor
from service import metrics
from tests.ingest.world import EPOCH, NOW_US, World, bearer

STANDINGS = "/v1/boards/main/standings"


def fill(world: World, players: int) -> None:
    for number in range(players):
        world.stream.scores[f"u{number:03}"] = (players - number, NOW_US)


async def pages(world: World, limit: int, between: Any = None) -> list[httpx.Response]:
    found = [await world.client.get(f"{STANDINGS}?limit={limit}")]
    while found[-1].status_code == 200 and (after := found[-1].json()["next"]):
        if between is not None:
            between()
        found.append(await world.client.get(f"{STANDINGS}?limit={limit}&after={after}"))
    return found


async def test_pages_follow_each_other_without_gap_or_repeat(world: World) -> None:
    fill(world, 23)
    found = await pages(world, 5)
    entries = [entry for page in found for entry in page.json()["entries"]]

    assert [entry["rank"] for entry in entries] == list(range(1, 24))
    assert [entry["user_id"] for entry in entries] == [f"u{number:03}" for number in range(23)]
    assert len(found) == 5


async def test_later_pages_are_of_the_first_one_s_revision_while_the_board_moves(world: World) -> None:
    fill(world, 12)
    token = world.tokens.give("u011", "actions:write")
    number = 0

    def someone_scores() -> None:
        nonlocal number
        number += 1
        task = world.client.post(
            "/v1/actions",
            json={"action_id": f"a{number}", "type": "level_complete"},
            headers=bearer(token),
        )
        tasks.append(asyncio.ensure_future(task))

    tasks: list[Any] = []
    first = await world.client.get(f"{STANDINGS}?limit=5")
    someone_scores()
    await asyncio.gather(*tasks)
    second = await world.client.get(f"{STANDINGS}?limit=5&after={first.json()['next']}")
    someone_scores()
    await asyncio.gather(*tasks)
    third = await world.client.get(f"{STANDINGS}?limit=5&after={second.json()['next']}")
    entries = [entry for page in (first, second, third) for entry in page.json()["entries"]]

    assert [entry["user_id"] for entry in entries] == [f"u{number:03}" for number in range(12)]
    assert {page.json()["revision"] for page in (first, second, third)} == {1}
    assert {page.headers["trueboard-revision"] for page in (first, second, third)} == {"1"}
    assert third.json()["next"] is None


async def test_a_reading_counts_by_what_answered_it(world: World) -> None:
    fill(world, 9)
    token = world.tokens.give("u001", "actions:write")
    counted = {name: metrics.STANDINGS_READS.labels(name)._value for name in ("hit", "miss")}
    before = {name: count.get() for name, count in counted.items()}
    after = (await world.client.get(f"{STANDINGS}?limit=3")).json()["next"]
    await world.client.get(f"{STANDINGS}?limit=3&after={after}")
    await world.client.post(
        "/v1/actions", json={"action_id": "a", "type": "level_complete"}, headers=bearer(token)
    )
    past = await world.client.get(f"{STANDINGS}?limit=3&after={after}")

    assert past.json()["revision"] == 1
    assert {name: count.get() - before[name] for name, count in counted.items()} == {"hit": 2, "miss": 1}


async def test_a_page_is_held_for_five_minutes_and_within_its_history(world: World) -> None:
    fill(world, 12)
    after = (await world.client.get(f"{STANDINGS}?limit=5")).json()["next"]
    world.clock.advance(299)
    held = await world.client.get(f"{STANDINGS}?limit=5&after={after}")
    world.clock.advance(2)
    expired = await world.client.get(f"{STANDINGS}?limit=5&after={after}")
    after = (await world.client.get(f"{STANDINGS}?limit=5")).json()["next"]
    world.stream.epoch = "02" + EPOCH[2:]
    other_history = await world.client.get(f"{STANDINGS}?limit=5&after={after}")

    assert held.status_code == 200
    assert (expired.status_code, expired.json()["code"]) == (410, "page_expired")
    assert (other_history.status_code, other_history.json()["code"]) == (410, "page_expired")


async def test_a_later_page_holds_at_a_revision_at_which_the_period_did_not_move(world: World) -> None:
    fill(world, 12)
    world.stream.past[1] = world.stream.entries()
    world.stream.revision = 2
    first = (await world.client.get(f"{STANDINGS}?limit=5&at_least={EPOCH}-2")).json()
    held = await world.client.get(f"{STANDINGS}?limit=5&at_least={EPOCH}-2&after={first['next']}")
    world.stream.changed_at = 2
    moved = await world.client.get(f"{STANDINGS}?limit=5&at_least={EPOCH}-2&after={first['next']}")

    assert (first["revision"], held.status_code, held.json()["revision"]) == (1, 200, 1)
    assert (moved.status_code, moved.json()["code"]) == (410, "page_expired")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=abc",
        "limit=",
        "limit=1e2",
        "limit=%2B5",
        "limit=01",
        "limit=5&limit=6",
        "after=",
        "after=xx",
        "after=%00",
        "after=" + "A" * 2000,
        "at_least=7",
        "at_least=e-",
        "at_least=E-1",
        "window=",
        "window=a:b",
        "window=..",
        "other=1",
    ],
)
async def test_a_query_that_makes_no_sense_is_400(world: World, query: str) -> None:
    reply = await world.client.get(f"{STANDINGS}?{query}")

    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_field")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/boards/MAIN/standings",
        "/v1/boards/%00/standings",
        "/v1/boards/%ff/standings",
        "/v1/boards/{main}:x/standings",
        "/v1/boards/" + "a" * 5000 + "/standings",
        "/v1/boards/none/standings",
        "/v1/boards/main/standings?window=2026-W47",
        "/v1/boards/main/players/nobody",
        "/v1/boards/main/players/a%20b",
        "/v1/boards/main/players/a%2Fb",
    ],
)
async def test_what_is_not_there_is_404(world: World, path: str) -> None:
    reply = await world.client.get(path)

    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")


def test_a_cursor_of_another_window_or_altered_is_refused() -> None:
    good = Cursor("main:all-time", EPOCH, 5, 10, 3, member(7, NOW_US, "ann"), 1)
    far = [
        Cursor("main:2026-W47", EPOCH, 5, 10, 3, good.member, 1),
        Cursor("main:all-time", EPOCH, 5, 10, 3, b"short", 1),
        Cursor("main:all-time", EPOCH, 5, 10, 0, good.member, 1),
        Cursor("main:all-time", EPOCH, -5, 10, 3, good.member, 1),
        Cursor("main:all-time", EPOCH, 1 << 64 - 1, 10, 3, good.member, 1),
        Cursor("main:all-time", EPOCH, 5, 10, 3, member(7, 1 << 62, "ann"), 1),
        Cursor("main:all-time", EPOCH, 5, 10, 3, member(7, NOW_US, "no user"), 1),
        Cursor("main:all-time", "\0" + EPOCH[1:], 5, 10, 3, good.member, 1),
    ]
    text = cursors.write(good)

    assert cursors.read(text, "main:all-time") == good
    for each in far:
        with pytest.raises(Refused):
            cursors.read(cursors.write(each), "main:all-time")
    with pytest.raises(Refused):
        cursors.read(text[:-3], "main:all-time")


@pytest.mark.parametrize("tag", ['"{e}-1"', 'W/"{e}-1"', '"x", "{e}-1"', "*"])
async def test_what_the_client_has_is_not_sent_again(world: World, tag: str) -> None:
    reply = await world.client.get(STANDINGS, headers={"if-none-match": tag.format(e=EPOCH)})

    assert (reply.status_code, reply.content) == (304, b"")
    assert "content-length" not in reply.headers
    assert reply.headers["etag"] == f'"{EPOCH}-1"'


async def test_another_tag_is_answered_with_the_page(world: World) -> None:
    reply = await world.client.get(STANDINGS, headers={"if-none-match": f'"{EPOCH}-2"'})

    assert reply.status_code == 200


async def test_a_board_that_is_not_public_needs_a_token_that_may_read(world: World) -> None:
    path = "/v1/boards/secret/standings"
    may, may_not = world.tokens.give("ann", "boards:read"), world.tokens.give("bob")
    replies = [
        await world.client.get(path),
        await world.client.get(path, headers=bearer("bad")),
        await world.client.get(path, headers=bearer(may_not)),
        await world.client.get(path, headers=bearer(may)),
        await world.client.get("/v1/boards/secret/players/ann"),
    ]

    assert [reply.status_code for reply in replies] == [401, 401, 403, 200, 401]


async def test_a_bad_token_does_not_hide_a_public_board(world: World) -> None:
    reply = await world.client.get(STANDINGS, headers=bearer("bad"))

    assert reply.status_code == 200


async def test_a_board_that_cannot_be_read_is_503(world: World) -> None:
    world.stream.board_away = True
    token = world.tokens.give("ann", "boards:read")
    replies = [
        await world.client.get(STANDINGS),
        await world.client.get("/api/scores/top10"),
        await world.client.get("/api/leaderboard", headers=bearer(token)),
    ]

    assert [(reply.status_code, reply.json()["code"]) for reply in replies] == [(503, "board_rebuilding")] * 3


async def test_the_top_10_is_as_new_as_its_names(world: World) -> None:
    token = world.tokens.give("ann", "boards:read")
    fill(world, 2)
    first = (await world.client.get("/api/leaderboard", headers=bearer(token))).json()
    world.stream.names["u000"] = "New"
    second = (await world.client.get("/api/leaderboard", headers=bearer(token))).json()

    assert first["leaderboard"][0]["username"] == "u000"
    assert second["leaderboard"][0]["username"] == "New"


async def test_readers_at_once_share_a_reading_that_began_after_they_came() -> None:
    now, began = 0, []
    gate = asyncio.Event()

    async def read() -> int:
        began.append(now)
        at = now
        await gate.wait()
        return at

    shared = Shared(read)
    first = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    now = 1
    later = [asyncio.create_task(shared.get()) for _ in range(50)]
    await asyncio.sleep(0)
    gate.set()
    answers = await asyncio.gather(first, *later)

    assert answers == [0] + [1] * 50
    assert began == [0, 1]


async def test_a_reading_that_fails_fails_for_those_who_share_it_and_for_nobody_after() -> None:
    failing = True

    async def read() -> int:
        await asyncio.sleep(0)
        if failing:
            raise Refused("not_found", "-")
        return 7

    shared = Shared(read)
    answers = await asyncio.gather(*(shared.get() for _ in range(3)), return_exceptions=True)
    failing = False

    assert all(isinstance(each, Refused) for each in answers)
    assert await shared.get() == 7
