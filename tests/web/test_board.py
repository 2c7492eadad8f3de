"""The live board in a real browser, on a whole stack: what a person sees when others play."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.acceptance.stacks import kill, replaced
from tests.acceptance.world import World, until
from tests.web.browser import PHONE
from tests.web.conftest import Open

pytestmark = pytest.mark.kafka


def named(world: World, name: str) -> str:
    """A user with this name and some points at the top of the board."""
    user = world.user()
    world.lift_to_the_top(user)
    world.give([{"action_id": f"name-{user}", "user_id": user, "type": "level_complete", "username": name}])
    return user


@pytest.fixture(scope="module")
def rivals(world: World) -> tuple[str, str]:
    """Two who lead: Ivy with 20 points more than Olga."""
    olga, ivy = world.user(), world.user()
    world.lift_to_the_top(olga)
    top = world.score(olga)
    world.lift_to_the_top(ivy)
    behind = world.score(ivy) - top
    world.give(
        [
            {
                "action_id": "olga-0",
                "user_id": olga,
                "type": "client_points",
                "points": behind,
                "username": "Olga",
            },
            {"action_id": "ivy-0", "user_id": ivy, "type": "client_points", "points": 20, "username": "Ivy"},
        ]
    )
    return ivy, olga


def test_the_board_moves_when_somebody_scores(world: World, open_tab: Open, rivals: tuple[str, str]):
    ivy, olga = rivals
    tab = open_tab().open()
    tab.connection("Live")
    rows = tab.page.locator("#rows tr")
    expect(rows.nth(0).locator(".name")).to_have_text("Ivy")
    rows.nth(1).evaluate("row => { row.itself = true }")

    receipt = world.act(olga, "client_points", points=30)
    tab.shows(receipt["epoch"], receipt["judged_revision"])

    expect(rows.nth(0).locator(".name")).to_have_text("Olga")
    assert rows.nth(0).evaluate("row => row.itself"), "another row was put there instead of moving it"
    assert tab.seen()["glides"] >= 2
    expect(rows.nth(0).locator(".gain")).to_have_text("+30")
    expect(rows.nth(0).get_by_role("img", name="up 1 place")).to_be_visible()
    expect(rows.nth(1).get_by_role("img", name="down 1 place")).to_be_visible()
    expect(tab.page.get_by_role("status").filter(has_text="Olga leads now")).to_have_count(1)
    world.act(ivy, "client_points", points=30)
    tab.check_conduct()


def test_what_is_shown_is_the_board_at_the_revision_that_is_shown(world: World, open_tab: Open):
    tab = open_tab().open()
    tab.connection("Live")
    board = world.standings()
    tab.shows(board["epoch"], board["revision"])

    assert tab.position() == (board["epoch"], board["revision"])
    assert tab.rows() == [
        {"rank": entry["rank"], "username": entry["username"], "score": entry["score"]}
        for entry in board["entries"]
    ]
    expect(tab.page.locator("#revision-number")).to_have_text(f"{board['revision']:,}")
    expect(tab.page.locator("#count")).to_contain_text(f"{board['count']:,} player")


def test_two_tabs_agree(world: World, open_tab: Open, rivals: tuple[str, str]):
    tabs = [open_tab().open(), open_tab(PHONE).open()]
    for tab in tabs:
        tab.connection("Live")

    receipts = [world.act(user, "client_points", points=7) for user in rivals]
    for tab in tabs:
        tab.shows(receipts[-1]["epoch"], receipts[-1]["judged_revision"])

    assert tabs[0].position() == tabs[1].position()
    assert tabs[0].rows() == tabs[1].rows()
    for tab in tabs:
        tab.check_conduct()


def test_offline_and_online_again_nothing_is_missing(world: World, open_tab: Open, rivals: tuple[str, str]):
    ivy, _ = rivals
    tab = open_tab().open()
    tab.connection("Live")
    tab.page.get_by_role("button", name="Ivy").click()
    expect(tab.page.get_by_role("heading", name="Ivy")).to_be_visible()

    tab.context.set_offline(True)
    tab.connection("Offline")
    expect(tab.page.locator("#banner")).to_contain_text("You are offline")
    receipts = [world.act(ivy, "client_points", points=points) for points in (3, 4, 5)]
    before = tab.position()
    tab.context.set_offline(False)
    tab.connection("Live")
    tab.shows(receipts[-1]["epoch"], receipts[-1]["judged_revision"])

    assert before < tab.position()
    expect(tab.page.locator("#banner")).to_be_hidden()
    expect(tab.page.locator("#chart-summary")).to_contain_text(
        # Revisions that come together are one change to whoever watches.
        re.compile(r"\+12 points in ([23] steps|1 step) since")
    )
    tab.check_conduct(network_was_away=True)


def test_without_the_feed_the_board_is_read_and_with_it_again_it_is_live(
    world: World, open_tab: Open, rivals: tuple[str, str]
):
    ivy, _ = rivals
    tab = open_tab().open()
    tab.connection("Live")

    pid = kill(world, "push")
    tab.connection("Reconnecting")
    receipt = world.act(ivy, "client_points", points=2)
    tab.shows(receipt["epoch"], receipt["judged_revision"])
    replaced(world, "push", pid)
    world.again()
    tab.connection("Live")
    receipt = world.act(ivy, "client_points", points=2)
    tab.shows(receipt["epoch"], receipt["judged_revision"])

    tab.check_conduct(network_was_away=True)


def test_ones_own_place_is_pinned_also_far_down_the_board(world: World, open_tab: Open):
    world.give(
        [
            {"action_id": f"far-{n}", "user_id": world.user(), "type": "client_points", "points": 900}
            for n in range(11)
        ]
    )
    user = world.user()
    tab = open_tab().open(world.token(user, name="Mei"))
    own = tab.page.get_by_role("group", name="Your own place")
    expect(own).to_contain_text("No points yet")

    receipt = world.act(user, "client_points", points=1)

    expect(own.locator(".own-rank")).to_have_text(f"{receipt['rank']:,}")
    expect(own.locator(".score")).to_have_text("1")
    expect(own).to_contain_text("behind the top ten")
    tab.page.get_by_label("Show").select_option("100")
    expect(tab.page.locator("#rows tr").nth(11)).to_be_visible()
    assert len(tab.rows()) == min(100, world.standings()["count"])
    tab.check_conduct()


def test_an_action_is_sent_judged_and_sent_again_without_counting_twice(world: World, open_tab: Open):
    user = world.user()
    tab = open_tab().open(world.token(user))
    form, verdicts = tab.page.locator("#action"), tab.page.locator("#verdicts li")
    form.get_by_label("Type").select_option("level_complete")

    form.get_by_role("button", name="Send").click()
    expect(verdicts).to_have_count(1)
    expect(verdicts.first).to_contain_text(re.compile("Accepted, .* with 10 at revision"))
    verdicts.first.get_by_role("button", name="Send again").click()
    expect(verdicts.first).to_contain_text("counted once")

    assert world.score(user) == 10
    expect(tab.page.locator("#own .score")).to_have_text("10")
    tab.check_conduct()


def test_points_are_asked_for_where_the_type_has_none_and_kept_within_its_bounds(
    world: World, open_tab: Open
):
    user = world.user()
    tab = open_tab().open(world.token(user))
    form = tab.page.locator("#action")
    form.get_by_label("Type").select_option("client_points")

    form.get_by_label("Points").fill("5000")
    form.get_by_role("button", name="Send").click()
    assert form.get_by_label("Points").evaluate("field => field.validity.rangeOverflow")
    form.get_by_label("Points").fill("44")
    form.get_by_role("button", name="Send").click()

    expect(tab.page.locator("#verdicts li")).to_contain_text("+44")
    until(lambda: world.score(user) == 44)


def test_a_verdict_says_which_limit_it_met_wherever_the_action_was_sent(world: World, open_tab: Open):
    user = world.user()
    world.give([{"action_id": f"many-{n}", "user_id": user, "type": "level_complete"} for n in range(30)])
    tab = open_tab().open(world.token(user))
    tab.connection("Live")

    world.act(user)

    verdict = tab.page.locator("#verdicts li").filter(has_text="Held for review")
    expect(verdict).to_contain_text("31 actions of this type within 1 minute; the limit is 30.")
    tab.check_conduct()


def test_a_token_leaves_the_address_at_once_and_goes_to_nobody_in_one(world: World, open_tab: Open):
    token = world.token(world.user(), name="Noor")
    tab = open_tab()

    tab.open(token)
    tab.connection("Live")

    expect(tab.page.get_by_role("button", name="Noor")).to_be_visible()
    assert tab.page.evaluate("location.href") == f"{world.endpoints.http}/"
    assert tab.page.evaluate("history.length") <= 2
    assert tab.page.evaluate("sessionStorage.getItem('trueboard.token')") == token
    assert tab.page.evaluate("localStorage.length") == 0
    assert not any(token in url for url in tab.requests)
    assert not any(token in log.read_text() for log in (world.data / "logs").glob("*.log"))
    tab.page.reload()
    expect(tab.page.get_by_role("button", name="Noor")).to_be_visible()
    tab.check_conduct()


def test_without_a_token_the_board_is_public_and_a_token_can_be_given(world: World, open_tab: Open):
    tab = open_tab().open()
    tab.connection("Live")
    expect(tab.page.locator("#action")).to_be_hidden()
    expect(tab.page.locator("#own")).to_be_hidden()

    tab.page.locator("#account").click()
    dialog = tab.page.get_by_role("dialog", name="Use a token")
    dialog.get_by_label("Access token").fill("not.a.token")
    dialog.get_by_role("button", name="Use it").click()
    expect(dialog.get_by_role("alert")).to_contain_text("This is no token")
    dialog.get_by_label("Access token").fill(world.token(world.user(), name="Noor"))
    dialog.get_by_role("button", name="Use it").click()

    expect(dialog).to_be_hidden()
    expect(tab.page.get_by_role("button", name="Noor")).to_be_visible()
    expect(tab.page.locator("#action")).to_be_visible()
    tab.page.locator("#account").click()
    dialog.get_by_role("button", name="Forget it").click()
    expect(tab.page.locator("#action")).to_be_hidden()
    assert tab.page.evaluate("sessionStorage.length") == 0
    tab.check_conduct()


def test_a_token_that_runs_out_leaves_the_public_board_and_says_so(world: World, open_tab: Open):
    tab = open_tab().open(world.token(world.user(), ttl_s=4))

    expect(tab.page.locator("#banner")).to_contain_text("The token has expired")
    expect(tab.page.locator("#action")).to_be_hidden()
    tab.connection("Live")
    tab.check_conduct()


def test_a_token_that_is_not_accepted_is_put_away(world: World, open_tab: Open):
    head, body, signature = world.token(world.user(), name="Mallory").split(".")
    tab = open_tab().open(f"{head}.{body}.{signature[::-1]}")

    expect(tab.page.locator("#rows tr")).not_to_have_count(0)
    tab.connection("Live")
    if tab.page.locator("#action").is_visible():
        tab.page.locator("#action").get_by_role("button", name="Send").click()

    expect(tab.page.locator("#banner")).to_contain_text("not accepted")
    expect(tab.page.locator("#action")).to_be_hidden()
    tab.check_conduct(network_was_away=True)
