"""The page for everybody: by keyboard, by screen reader, at every width, in both themes, without motion."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.acceptance.world import World
from tests.web.browser import DESKTOP, PHONE, TABLET, faults
from tests.web.conftest import Open

pytestmark = pytest.mark.kafka

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def players(world: World) -> list[str]:
    """Twelve with points."""
    users = [world.user() for _ in range(12)]
    world.give(
        [
            {"action_id": f"player-{user}", "user_id": user, "type": "client_points", "points": 300 + 10 * n}
            for n, user in enumerate(users)
        ]
    )
    return users


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, TABLET, PHONE], ids=["desktop", "tablet", "phone"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    world: World, open_tab: Open, players: list[str], size: tuple[int, int], scheme: str
):
    # Contrast is of the colours at rest, so nothing moves.
    tab = open_tab(size, color_scheme=scheme, reduced_motion="reduce").open(world.token(players[3]))
    tab.connection("Live")
    tab.page.locator("#action").get_by_role("button", name="Send").click()
    expect(tab.page.locator("#verdicts")).to_contain_text("Accepted")

    assert faults(tab, AXE) == []
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.page.locator("#revision").click()
    tab.page.locator("#account").click()
    expect(tab.page.get_by_role("dialog")).to_be_visible()
    assert faults(tab, AXE) == []


def test_the_board_is_a_table_with_a_name_for_everything(world: World, open_tab: Open, players: list[str]):
    tab = open_tab().open(world.token(players[3], name="Mei"))
    tab.connection("Live")

    table = tab.page.get_by_role("table", name="Standings")
    expect(table.get_by_role("columnheader")).to_have_text(["Rank", "Player", "Points"])
    expect(table.get_by_role("row")).to_have_count(11)
    first = table.get_by_role("row").nth(1)
    leader = world.standings()["entries"][0]
    expect(first.get_by_role("cell").nth(0)).to_have_text(str(leader["rank"]))
    expect(first.get_by_role("button")).to_contain_text(leader["username"])
    expect(first.get_by_role("cell").nth(2)).to_contain_text(f"{leader['score']:,}")
    expect(tab.page.get_by_role("heading", level=1)).to_have_count(1)
    for name in ("Standings", "Your actions"):
        expect(tab.page.get_by_role("region", name=name)).to_be_visible()


def test_everything_is_reached_by_keyboard_in_the_order_in_which_it_is_read(
    world: World, open_tab: Open, players: list[str]
):
    tab = open_tab().open(world.token(players[3]))
    tab.connection("Live")
    expect(tab.page.locator("#rows tr")).to_have_count(10)
    expect(tab.page.locator("#type option")).not_to_have_count(0)
    reached = []
    for _ in range(10):
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate("document.activeElement.id || document.activeElement.className"))

    assert reached[:7] == ["skip", "theme", "account", "revision", "who", "depth", "type"]
    assert set(reached[7:]) >= {"primary"}


def test_arrow_keys_move_between_players_and_enter_shows_a_line(
    world: World, open_tab: Open, players: list[str]
):
    tab = open_tab().open()
    tab.connection("Live")
    rows = tab.page.locator("#rows tr")
    rows.nth(0).locator("button").focus()

    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("Enter")

    expect(rows.nth(2).locator("button")).to_be_focused()
    expect(rows.nth(2).locator("button")).to_have_attribute("aria-pressed", "true")
    expect(tab.page.locator("#player-title")).to_have_text(rows.nth(2).locator(".name").inner_text())
    assert tab.page.locator("#rows button[tabindex='0']").count() == 1


def test_the_focus_stays_on_a_player_whose_row_moves(world: World, open_tab: Open):
    ahead, behind = world.user(), world.user()
    for user in (ahead, behind):
        world.lift_to_the_top(user)
    first, second = (entry["user_id"] for entry in world.standings(limit=2)["entries"])
    tab = open_tab().open()
    tab.connection("Live")
    row = tab.page.locator("#rows tr").filter(has_text=second)
    row.locator("button").focus()

    gap = world.score(first) - world.score(second)
    for points in [1000] * (gap // 1000) + [gap % 1000 + 1]:
        receipt = world.act(second, "client_points", points=points)
    tab.shows(receipt["epoch"], receipt["judged_revision"])

    expect(tab.page.locator("#rows tr").nth(0)).to_contain_text(second)
    expect(row.locator("button")).to_be_focused()


def test_who_wants_no_motion_gets_none(world: World, open_tab: Open, players: list[str]):
    tab = open_tab(reduced_motion="reduce").open()
    tab.connection("Live")
    entries = world.standings()["entries"]

    receipt = world.act(entries[9]["user_id"], "client_points", points=1000)
    tab.shows(receipt["epoch"], receipt["judged_revision"])

    expect(tab.page.locator("#rows tr").filter(has_text=entries[9]["user_id"]).locator(".gain")).to_have_text(
        "+1,000"
    )
    assert tab.seen()["glides"] == 0
    assert tab.page.evaluate("document.getAnimations().length") == 0


def test_a_chosen_theme_stays(open_tab: Open):
    tab = open_tab(color_scheme="light").open()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.page.evaluate(ground)

    tab.page.get_by_role("button", name="Theme: system").click()
    tab.page.get_by_role("button", name="Theme: light").click()
    expect(tab.page.get_by_role("button", name="Theme: dark")).to_be_visible()
    tab.page.reload()

    expect(tab.page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert tab.page.evaluate(ground) != light
