"""What is shown against what the standings say."""

from __future__ import annotations

import asyncio

import pytest

from core.errors import Refused, Unavailable
from core.words import MAIN_PERIOD
from push.comparison import Comparison
from push.protocols import leaderboard, scoreboard
from tests.push.conftest import Standings
from tests.push.views import LATER_EPOCH, page, view
from tests.push.world import World


def _compared(revision: int = 1, grace_s: float = 0.05) -> tuple[World, Standings, Comparison]:
    world, standings = World(), Standings(page(revision))
    return world, standings, Comparison(world.hub, standings, MAIN_PERIOD, grace_s=grace_s)


async def test_the_first_page_is_shown_without_waiting_for_kafka() -> None:
    world, _, comparison = _compared(4, grace_s=60)

    await asyncio.wait_for(comparison.compare(), 1)

    assert world.position[1] == 4
    assert comparison.loaded.is_set()


async def test_kafka_gets_a_moment_before_a_newer_page_is_shown() -> None:
    world, standings, comparison = _compared()
    await comparison.compare()
    standings.page_now = page(2)
    comparing = asyncio.create_task(comparison.compare())
    await asyncio.sleep(0.01)

    world.hub.publish(view(2))
    await comparing

    latest = world.hub.channels[MAIN_PERIOD].sequence.latest
    assert latest is not None
    assert latest.publication is not None, "the publication was shown, not the page"


async def test_without_kafka_only_the_first_page_waits() -> None:
    world, standings, comparison = _compared(grace_s=0.2)
    await comparison.compare()
    standings.page_now = page(2)
    await comparison.compare()
    standings.page_now = page(3)

    await asyncio.wait_for(comparison.compare(), 0.1)

    assert world.position[1] == 3


async def test_kafka_gets_its_moment_again_once_it_has_brought_news() -> None:
    world, standings, comparison = _compared()
    await comparison.compare()
    standings.page_now = page(2)
    await comparison.compare()
    world.hub.publish(view(3))
    comparison.kafka_brought_news()
    standings.page_now = page(4)
    comparing = asyncio.create_task(comparison.compare())
    await asyncio.sleep(0.01)

    shown_at_once = world.position[1] == 4
    await comparing

    assert not shown_at_once
    assert world.position[1] == 4


async def test_an_older_page_changes_nothing() -> None:
    world, standings, comparison = _compared(5)
    await comparison.compare()
    standings.page_now = page(4)

    await asyncio.wait_for(comparison.compare(), 0.04)

    assert world.position[1] == 5


async def test_a_page_of_a_later_epoch_is_shown_though_its_revision_is_smaller() -> None:
    world, standings, comparison = _compared(50)
    await comparison.compare()
    standings.page_now = page(3, epoch=LATER_EPOCH)

    await comparison.compare()

    assert world.position == (LATER_EPOCH, 3)


async def test_a_caught_up_scoreboard_names_who_changed_between_the_pages() -> None:
    world, standings, comparison = _compared()
    await comparison.compare()
    socket = world.join(scoreboard.DIALECT)
    world.pass_ms(200)
    standings.page_now = page(2, user_id="ben")

    await comparison.compare()

    assert socket.boards[-1]["data"]["user_id"] == "ben"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(Unavailable("x", code="board_rebuilding"), True, id="rebuilding"),
        pytest.param(Unavailable("x"), False, id="away"),
        pytest.param(Refused("not_found", "x", status_code=404), False, id="not there"),
    ],
)
async def test_standings_that_cannot_be_read_leave_what_is_shown(
    error: Refused | Unavailable, told: bool
) -> None:
    world, standings, comparison = _compared(5)
    await comparison.compare()
    socket = world.join(leaderboard.DIALECT)
    world.pass_ms(500)
    standings.error = error

    for _ in range(3):
        await comparison.compare()
        world.pass_ms(500)

    errors = [written.frame for written in socket.written if written.frame["type"] == "error"]
    assert len(errors) == (1 if told else 0)
    assert world.position[1] == 5


async def test_who_was_told_of_a_rebuilding_is_shown_the_board_when_it_is_over() -> None:
    world, standings, comparison = _compared(5)
    await comparison.compare()
    socket = world.join(leaderboard.DIALECT)
    world.pass_ms(500)

    for error in (Unavailable("x", code="board_rebuilding"), Unavailable("x"), None, None):
        standings.error = error
        await comparison.compare()
        world.pass_ms(500)

    kinds = [written.frame["type"] for written in socket.written]
    assert kinds == ["connection_success", "leaderboard_update", "error", "leaderboard_update"]


async def test_another_error_is_a_defect_and_is_seen() -> None:
    _, standings, comparison = _compared()
    standings.error = ZeroDivisionError()  # type: ignore[assignment]

    with pytest.raises(ZeroDivisionError):
        await comparison.run()
