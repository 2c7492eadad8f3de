"""What the page says when there is nothing to show or something is away; the answers are made up here."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.acceptance.world import World
from tests.web.browser import Tab
from tests.web.conftest import Open

pytestmark = pytest.mark.kafka

EPOCH = "01kaj3zs0g0000000000000000"


def page_of(revision: int, *people: tuple[str, int | str]) -> dict[str, Any]:
    """A page of the standings with these names and scores."""
    entries = [
        {
            "rank": rank,
            "user_id": name,
            "username": name,
            "score": score,
            "reached_at": "2026-11-21T09:26:00.000000Z",
        }
        for rank, (name, score) in enumerate(people, 1)
    ]
    return {
        "board": "main",
        "window": "all-time",
        "epoch": EPOCH,
        "revision": revision,
        "count": len(entries),
        "entries": entries,
        "next": None,
    }


def problem(status: int, code: str, **headers: str) -> Callable[[Route], None]:
    body = json.dumps({"code": code, "detail": "", "status": status, "title": code})
    return lambda route: route.fulfill(
        status=status, body=body, headers={"content-type": "application/problem+json", **headers}
    )


def without_feed(tab: Tab, answer: Callable[[Route], None]) -> None:
    """Reads are answered by `answer`, and the feed's sockets are closed."""
    tab.page.route("**/v1/boards/**", answer)
    tab.page.route_web_socket("**/connection/websocket", lambda socket: socket.close())


def test_an_empty_board_invites_the_first_action(open_tab: Open):
    tab = open_tab()
    without_feed(tab, lambda route: route.fulfill(json=page_of(1)))

    tab.open()

    expect(tab.page.get_by_role("heading", name="Nobody has scored yet")).to_be_visible()
    expect(tab.page.locator("#skeleton")).to_be_hidden()
    expect(tab.page.locator("#count")).to_have_text("0 players")


def test_a_board_that_is_being_rebuilt_is_said_to_be_and_appears_by_itself(open_tab: Open):
    tab = open_tab()
    answers = [problem(503, "board_rebuilding", **{"retry-after": "1"})]
    without_feed(tab, lambda route: answers[-1](route))
    tab.open()
    expect(tab.page.get_by_role("heading", name="The board is being rebuilt")).to_be_visible()

    answers.append(lambda route: route.fulfill(json=page_of(7, ("Ada", 3))))

    expect(tab.page.locator("#rows tr")).to_have_count(1)
    answers.append(problem(503, "board_rebuilding", **{"retry-after": "1"}))
    expect(tab.page.locator("#banner")).to_contain_text(
        "The board is being rebuilt from the ledger. What you see is the board at revision 7."
    )
    expect(tab.page.locator("#rows tr")).to_have_count(1)


def test_without_any_answer_the_page_says_so_and_asks_again(open_tab: Open):
    tab = open_tab()
    answers: list[Callable[[Route], None]] = [lambda route: route.abort()]
    without_feed(tab, lambda route: answers[-1](route))
    tab.open()
    expect(tab.page.get_by_role("heading", name="The board cannot be read right now")).to_be_visible()
    expect(tab.page.locator("#banner")).to_contain_text("The service does not answer")

    answers.append(lambda route: route.fulfill(json=page_of(3, ("Ada", 3))))

    expect(tab.page.locator("#rows tr")).to_have_count(1)
    expect(tab.page.locator("#banner")).to_contain_text("The live feed is away")


def test_an_answer_of_an_earlier_revision_is_never_shown(open_tab: Open):
    tab = open_tab()
    answers = [page_of(9, ("Ada", 30)), page_of(8, ("Ada", 20)), page_of(10, ("Ada", 40))]
    without_feed(tab, lambda route: route.fulfill(json=answers.pop(0) if len(answers) > 1 else answers[0]))

    tab.open()

    expect(tab.page.locator("#rows .score")).to_have_text("40")
    assert tab.seen()["positions"] == [f"{EPOCH}-9", f"{EPOCH}-10"]


def test_scores_beyond_2_53_keep_all_their_digits(open_tab: Open):
    body = json.dumps(page_of(4, ("Ada", 9223372036854775807), ("Bob", 9007199254740993)))
    tab = open_tab()
    without_feed(tab, lambda route: route.fulfill(body=body, content_type="application/json"))

    tab.open()

    expect(tab.page.locator("#rows .score")).to_have_text(
        ["9,223,372,036,854,775,807", "9,007,199,254,740,993"]
    )


def test_names_are_text_whatever_they_hold(open_tab: Open):
    name = '<img src=x onerror="document.title=1"> "score":12345678901234567890'
    tab = open_tab()
    without_feed(tab, lambda route: route.fulfill(json=page_of(4, (name, 5))))

    tab.open()

    expect(tab.page.locator("#rows .name")).to_have_text(name)
    assert tab.page.locator("#rows img").count() == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(problem(429, "rate_limited", **{"retry-after": "60"}), "again in 60 seconds", id="429"),
        pytest.param(problem(503, "queue_unavailable", **{"retry-after": "60"}), "counts once", id="503"),
        pytest.param(lambda route: route.abort(), "There was no answer", id="no answer"),
        pytest.param(problem(403, "forbidden"), "does not allow this kind", id="403"),
        pytest.param(problem(409, "id_reused"), "already stands for another", id="409"),
    ],
)
def test_a_refusal_is_said_in_words(
    world: World, open_tab: Open, answer: Callable[[Route], None], words: str
):
    tab = open_tab().open(world.token(world.user()))
    tab.page.route("**/v1/actions", answer)

    tab.page.locator("#action").get_by_role("button", name="Send").click()

    expect(tab.page.locator("#verdicts li")).to_contain_text(words)


def test_an_action_without_an_answer_is_sent_again_under_its_id(world: World, open_tab: Open):
    user = world.user()
    tab = open_tab().open(world.token(user))
    sent: list[str] = []

    def lose_the_first_answer(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "")["action_id"])
        if len(sent) == 1:
            route.fetch()  # it arrives, and its answer is lost
            route.abort()
        else:
            route.continue_()

    tab.page.route("**/v1/actions", lose_the_first_answer)
    tab.page.locator("#action").get_by_label("Type").select_option("level_complete")
    tab.page.locator("#action").get_by_role("button", name="Send").click()

    expect(tab.page.locator("#verdicts li")).to_contain_text("Accepted")
    assert len(set(sent)) == 1
    assert world.score(user) == 10
