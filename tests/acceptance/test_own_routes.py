"""The calls under /v1, by the interface's letter: receipts, pages, caches, limits, order of checks."""

from __future__ import annotations

import re
import secrets
import socket
import time
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from openapi_spec_validator import validate

from tests.acceptance.world import (
    ENTRY_KEYS,
    INSTANT,
    JUDGED_KEYS,
    SUBMITTED_KEYS,
    ULID,
    World,
    fingerprint,
    is_problem,
    now,
    until,
)

pytestmark = pytest.mark.kafka

Body = dict[str, Any]
STANDINGS_KEYS = {"board", "window", "epoch", "revision", "count", "entries", "next"}
BOARD = "/v1/boards/main/standings"

ROUTES = {
    "/v1/actions": {"post"},
    "/v1/actions/batch": {"post"},
    "/v1/actions/{action_id}": {"get"},
    "/v1/boards/{board}/standings": {"get"},
    "/v1/boards/{board}/players/{user}": {"get"},
    "/v1/ws-ticket": {"post"},
    "/api/v0/scores/update": {"post"},
    "/update-score": {"post"},
    "/api/v1/scores/update": {"post"},
    "/api/scores/update": {"post"},
    "/api/scores/top10": {"get"},
    "/api/leaderboard": {"get"},
}


def an_action(**rest: Any) -> Body:
    return {"action_id": f"a-{secrets.token_hex(8)}", "type": "level_complete", **rest}


def points(user: str, count: int) -> Body:
    return {
        "action_id": f"p-{secrets.token_hex(8)}",
        "user_id": user,
        "type": "client_points",
        "points": count,
    }


# Submitting ------------------------------------------------------------------------------------


def test_an_action_is_taken_and_answered_with_a_receipt(world: World):
    user, action, at = world.user(), an_action(), now()
    action["occurred_at"] = at

    response = world.send("/v1/actions", action, world.token(user, "actions:write"))

    assert response.status_code == 202
    receipt = response.json()
    assert set(receipt) == SUBMITTED_KEYS
    assert receipt == receipt | {
        "action_id": action["action_id"],
        "user_id": user,
        "type": "level_complete",
        "status": "submitted",
        "replayed": False,
        "fingerprint": fingerprint("level_complete", None, at),
    }
    assert INSTANT.fullmatch(receipt["received_at"])
    assert response.headers["trueboard-action"] == action["action_id"]
    assert response.headers["location"] == f"/v1/actions/{action['action_id']}"
    assert "preference-applied" not in response.headers


def test_waiting_gets_the_verdict(world: World):
    user = world.user()
    action = an_action()

    response = world.send("/v1/actions", action, world.token(user), Prefer="wait=10")

    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=10"
    receipt = response.json()
    assert set(receipt) == JUDGED_KEYS
    assert receipt == receipt | {
        "status": "accepted",
        "points": 10,
        "reason": None,
        "score": 10,
        "replayed": False,
        "fingerprint": fingerprint("level_complete", None, None),
    }
    assert receipt["revision"] >= receipt["judged_revision"] > 1
    assert ULID.fullmatch(receipt["epoch"])
    assert isinstance(receipt["rank"], int)
    assert response.headers["trueboard-epoch"] == receipt["epoch"]
    assert int(response.headers["trueboard-revision"]) == receipt["revision"]
    entry = world.get(f"/v1/boards/main/players/{user}").json()["entry"]
    assert (entry["score"], entry["reached_at"]) == (10, receipt["received_at"])


def test_points_are_taken_from_who_may_send_them(world: World):
    user = world.user()
    action = {"action_id": "p-1", "type": "client_points", "points": 77}

    refused = world.send("/v1/actions", action, world.token(user, "actions:write"))
    taken = world.send("/v1/actions", action, world.token(user), Prefer="wait=10")

    assert is_problem(refused, 403, "forbidden")
    assert (taken.json()["score"], taken.json()["fingerprint"]) == (
        77,
        fingerprint("client_points", 77, None),
    )


def test_the_same_again_gets_the_same_receipt(world: World):
    user = world.user()
    action = an_action(occurred_at=now())

    first = world.send("/v1/actions", action, world.token(user), Prefer="wait=10").json()
    again = world.send("/v1/actions", action, world.token(user), Prefer="wait=10").json()
    unwaited = world.send("/v1/actions", action, world.token(user))

    assert again["replayed"] is True
    for name in ("action_id", "received_at", "fingerprint", "status", "points", "judged_revision", "score"):
        assert again[name] == first[name]
    assert unwaited.status_code in (200, 202)
    assert unwaited.json()["replayed"] is True
    assert unwaited.json()["received_at"] == first["received_at"]
    assert world.score(user) == 10


@pytest.mark.parametrize(
    "change",
    [{"type": "commit"}, {"occurred_at": "now"}, {"type": "client_points", "points": 3}],
    ids=["another type", "another instant", "points"],
)
def test_another_body_under_the_same_id_is_409_and_the_first_counts(world: World, change: Body):
    user = world.user()
    action = an_action()
    if "occurred_at" in change:
        change = {"occurred_at": now()}
    world.send("/v1/actions", action, world.token(user), Prefer="wait=10")

    response = world.send("/v1/actions", action | change, world.token(user), Prefer="wait=10")

    assert is_problem(response, 409, "id_reused")
    assert world.score(user) == 10
    shown = world.get(f"/v1/actions/{action['action_id']}", world.token(user)).json()
    assert shown["fingerprint"] == fingerprint("level_complete", None, None)


def test_an_action_id_belongs_to_its_user(world: World):
    one, two = world.user(), world.user()
    action = an_action()

    first = world.send("/v1/actions", action, world.token(one), Prefer="wait=10")
    second = world.send("/v1/actions", action, world.token(two), Prefer="wait=10")

    assert (first.json()["replayed"], second.json()["replayed"]) == (False, False)
    assert (world.score(one), world.score(two)) == (10, 10)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        pytest.param({"action_id": None}, 400, "invalid_field", id="action_id null"),
        pytest.param({"action_id": "a b"}, 400, "invalid_field", id="action_id with a space"),
        pytest.param({"action_id": "x" * 129}, 400, "invalid_field", id="action_id too long"),
        pytest.param({"action_id": 7}, 400, "invalid_field", id="action_id a number"),
        pytest.param({"type": "Level"}, 400, "invalid_field", id="type with a capital"),
        pytest.param({"type": "x" * 65}, 400, "invalid_field", id="type too long"),
        pytest.param({"type": ""}, 400, "invalid_field", id="type empty"),
        pytest.param({"user_id": "a b"}, 400, "invalid_field", id="user_id with a space"),
        pytest.param({"occurred_at": "2026-11-21T10:00:00"}, 400, "invalid_field", id="no offset"),
        pytest.param({"occurred_at": "soon"}, 400, "invalid_field", id="no instant"),
        pytest.param({"occurred_at": 1}, 400, "invalid_field", id="instant a number"),
        pytest.param({"bonus": 1}, 400, "invalid_field", id="a field too many"),
        pytest.param({"type": "nobody_knows"}, 422, "unknown_type", id="unknown type"),
        pytest.param({"type": "client_points", "points": 1001}, 400, "out_of_bounds", id="too many points"),
        pytest.param({"type": "client_points", "points": 0}, 400, "out_of_bounds", id="too few points"),
        pytest.param({"points": "1"}, 400, "invalid_field", id="points a string"),
        pytest.param({"points": 1.0}, 400, "invalid_field", id="points with a fraction"),
    ],
)
def test_a_wrong_field_is_named(world: World, change: Body, status: int, code: str):
    user = world.user()

    response = world.send("/v1/actions", an_action() | change, world.token(user))

    assert is_problem(response, status, code)
    if code == "invalid_field":
        assert next(iter(change)) in response.json()["detail"]
    assert world.score(user) == 0


@pytest.mark.parametrize("ahead_s", [-24 * 3600 - 5, 70])
def test_an_instant_outside_the_window_is_422(world: World, ahead_s: float):
    response = world.send(
        "/v1/actions", an_action(occurred_at=now(ahead_s=ahead_s)), world.token(world.user())
    )

    assert is_problem(response, 422, "outside_window")


def test_a_backfill_may_lie_in_any_past_but_not_in_the_future(world: World):
    user = world.user()
    token = world.token(user, "actions:write", "actions:backfill")

    past = world.send(
        "/v1/actions", an_action(occurred_at="1999-12-31T23:59:59.5+02:00"), token, Prefer="wait=10"
    )
    future = world.send("/v1/actions", an_action(occurred_at=now(ahead_s=120)), token)

    assert (past.status_code, past.json()["status"]) == (200, "accepted")
    assert is_problem(future, 422, "outside_window")


def test_somebody_else_needs_the_right_for_it(world: World):
    user, other = world.user(), world.user()

    refused = world.send("/v1/actions", an_action(user_id=other), world.token(user))
    named = world.send("/v1/actions", an_action(username="Me"), world.token(user))
    own = world.send("/v1/actions", an_action(user_id=user), world.token(user))
    trusted = world.send(
        "/v1/actions", an_action(user_id=other, username="Zoë"), world.trusted(), Prefer="wait=10"
    )

    assert is_problem(refused, 403, "forbidden")
    assert is_problem(named, 403, "forbidden")
    assert own.status_code == 202
    assert trusted.json()["user_id"] == other
    entry = world.get(f"/v1/boards/main/players/{other}").json()["entry"]
    assert (entry["username"], entry["score"]) == ("Zoë", 10)


def test_a_username_is_the_latest_claim_else_the_user_id(world: World):
    user = world.user()

    def shown() -> str:
        name: str = world.get(f"/v1/boards/main/players/{user}").json()["entry"]["username"]
        return name

    world.send("/v1/actions", an_action(), world.token(user), Prefer="wait=10")
    unnamed = shown()
    world.send("/v1/actions", an_action(), world.token(user, name="First"), Prefer="wait=10")
    named = shown()
    world.send("/v1/actions", an_action(), world.token(user, name="Второй 🏆"), Prefer="wait=10")
    renamed = shown()
    world.send("/v1/actions", an_action(), world.token(user), Prefer="wait=10")
    kept = shown()

    assert (unnamed, named, renamed, kept) == (user, "First", "Второй 🏆", "Второй 🏆")


# Batches ---------------------------------------------------------------------------------------


def test_a_batch_answers_each_in_order(world: World):
    user = world.user()
    action = an_action()
    actions = [
        action,
        an_action(type="nobody_knows"),
        an_action(user_id="somebody-else"),
        {"type": "level_complete"},
        an_action(),
        an_action(occurred_at=now(ahead_s=600)),
        an_action(extra=1),
        7,
        action,
        action | {"type": "commit"},
    ]

    response = world.send("/v1/actions/batch", {"actions": actions}, world.token(user))

    assert response.status_code == 200
    assert set(response.json()) == {"results"}
    results = response.json()["results"]
    found = [
        (result["status"], result["receipt"]["replayed"] if "receipt" in result else result["error"]["code"])
        for result in results
    ]
    assert found == [
        (202, False),
        (422, "unknown_type"),
        (403, "forbidden"),
        (400, "invalid_field"),
        (202, False),
        (422, "outside_window"),
        (400, "invalid_field"),
        (400, "invalid_field"),
        (202, True),
        (409, "id_reused"),
    ]
    for result in results:
        assert set(result) == {"status", "receipt" if result["status"] == 202 else "error"}
        if "error" in result:
            assert result["error"]["type"] == f"/problems/{result['error']['code']}"
            assert result["error"]["status"] == result["status"]
        else:
            assert set(result["receipt"]) == SUBMITTED_KEYS
    world.judged(actions[4]["action_id"], user)  # type: ignore[index, call-overload]
    world.judged(action["action_id"], user)
    assert world.score(user) == 20


def test_a_batch_holds_one_to_five_hundred(world: World):
    user = world.user()
    token = world.trusted()
    actions = [points(user, 1) for _ in range(501)]

    most = world.send("/v1/actions/batch", {"actions": actions[:500]}, token)
    more = world.send("/v1/actions/batch", {"actions": actions}, token)
    none = world.send("/v1/actions/batch", {"actions": []}, token)
    other = world.send("/v1/actions/batch", {"actions": None}, token)
    extra = world.send("/v1/actions/batch", {"actions": actions[:1], "x": 1}, token)

    assert {result["status"] for result in most.json()["results"]} == {202}
    assert len(most.json()["results"]) == 500
    assert is_problem(more, 413, "too_large")
    assert is_problem(none, 400, "invalid_field")
    assert is_problem(other, 400, "invalid_field")
    assert is_problem(extra, 400, "invalid_field")
    until(lambda: world.score(user) == 500, what="500 points")


# Receipts --------------------------------------------------------------------------------------


def test_a_receipt_is_shown_to_whom_it_belongs(world: World):
    user, other = world.user(), world.user()
    receipt = world.act(user)
    path = f"/v1/actions/{receipt['action_id']}"

    own = world.get(path, world.token(user))
    trusted = world.get(path, world.trusted(), user_id=user)
    foreign = world.get(path, world.token(other))
    asked_for = world.get(path, world.token(other), user_id=user)
    unknown = world.get("/v1/actions/never-sent", world.token(user))
    nobody = world.get(path)

    assert own.status_code == 200
    assert set(own.json()) == JUDGED_KEYS
    assert own.json() | {"replayed": False} == receipt | {
        name: own.json()[name] for name in ("revision", "rank")
    }
    assert own.headers["trueboard-epoch"] == own.json()["epoch"]
    assert int(own.headers["trueboard-revision"]) == own.json()["revision"]
    assert trusted.json()["action_id"] == receipt["action_id"]
    assert is_problem(foreign, 404, "not_found")
    assert asked_for.status_code in (403, 404)
    assert is_problem(unknown, 404, "not_found")
    assert is_problem(nobody, 401, "invalid_token")


# Standings -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(world: World) -> list[str]:
    """Thirty users with scores of 1 to 15, two each."""
    users = [world.user() for _ in range(30)]
    world.give([points(user, n // 2 + 1) for n, user in enumerate(users)])
    return users


@pytest.mark.usefixtures("crowd")
def test_standings_show_entries_in_rank_order(world: World):
    response = world.get(BOARD)
    body = response.json()
    whole = world.everybody()

    assert response.status_code == 200
    assert set(body) == STANDINGS_KEYS
    assert (body["board"], body["window"], len(body["entries"])) == ("main", "all-time", 10)
    assert body["count"] == len(whole) >= 30
    for entry in whole:
        assert set(entry) == ENTRY_KEYS
        assert INSTANT.fullmatch(entry["reached_at"])
    assert [entry["rank"] for entry in whole] == list(range(1, len(whole) + 1))
    assert body["entries"] == whole[:10]
    assert [entry["user_id"] for entry in whole] == [
        entry["user_id"]
        for entry in sorted(
            whole, key=lambda entry: (-entry["score"], entry["reached_at"], entry["user_id"].encode())
        )
    ]


@pytest.mark.usefixtures("crowd")
def test_pages_meet_without_gap_or_overlap(world: World):
    whole = world.standings(limit=1000)
    entries: list[Body] = []
    after: Body = {}
    while True:
        page = world.standings(limit=7, **after)
        entries += page["entries"]
        if page["next"] is None:
            break
        assert len(page["entries"]) == 7
        after = {"after": page["next"]}

    assert entries[: len(whole["entries"])] == whole["entries"]
    assert len(entries) == whole["count"]


def test_later_pages_are_those_of_the_first(world: World, crowd: list[str]):
    before = world.everybody()
    first = world.standings(limit=5)

    world.give([points(user, 1000) for user in crowd[:5]])
    newcomer = world.user()
    world.give([points(newcomer, 1000)])
    pages = [first]
    while pages[-1]["next"]:
        pages.append(world.standings(limit=5, after=pages[-1]["next"]))

    assert [entry for page in pages for entry in page["entries"]] == before
    assert {(page["epoch"], page["revision"], page["count"]) for page in pages} == {
        (first["epoch"], first["revision"], len(before))
    }
    assert world.standings()["revision"] > first["revision"]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": -1},
        {"limit": "ten"},
        {"limit": ""},
        {"after": "nonsense"},
        {"at_least": "nonsense"},
        {"at_least": "-5"},
    ],
    ids=str,
)
def test_a_wrong_query_is_400(world: World, query: Body):
    assert is_problem(world.get(BOARD, **query), 400, "invalid_field")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/boards/nobodys/standings",
        "/v1/boards/nobodys/players/u",
        "/v1/boards/main/players/never-seen",
        "/v1/boards/main/standings?window=2001-01-01",
        "/v1/boards/main/players/u?window=season-99",
        "/v1/boards",
        "/v2/actions",
        "/metrics",
        "/health/live",
        "/nowhere",
    ],
)
def test_what_is_not_there_is_a_404_problem(world: World, path: str):
    assert is_problem(world.get(path), 404, "not_found")


def test_a_player_is_shown_with_rank(world: World, crowd: list[str]):
    response = world.get(f"/v1/boards/main/players/{crowd[20]}")
    whole = world.everybody()

    body = response.json()
    assert set(body) == {"board", "window", "epoch", "revision", "count", "entry"}
    assert body["entry"] in whole
    assert (body["board"], body["window"], body["count"]) == ("main", "all-time", len(whole))
    assert response.headers["trueboard-epoch"] == body["epoch"]
    assert int(response.headers["trueboard-revision"]) == body["revision"]


def test_who_has_written_reads_it_back(world: World):
    user = world.user()
    token = world.token(user)

    for n in range(1, 11):
        receipt = world.send("/v1/actions", an_action(), token, Prefer="wait=10").json()
        at_least = f"{receipt['epoch']}-{receipt['judged_revision']}"
        shown = world.get(f"/v1/boards/main/players/{user}", at_least=at_least).json()
        board = world.get(BOARD, at_least=at_least).json()

        assert shown["entry"]["score"] == 10 * n
        assert shown["revision"] >= receipt["judged_revision"]
        assert board["revision"] >= receipt["judged_revision"]


def test_an_etag_saves_the_body_until_the_board_changes(world: World):
    world.act(world.user())
    first = world.get(BOARD)
    etag = first.headers["etag"]

    same = world.get(BOARD, headers={"If-None-Match": etag})
    among = world.get(BOARD, headers={"If-None-Match": f'"other", {etag}'})
    other = world.get(BOARD, headers={"If-None-Match": '"other"'})
    world.act(world.user())
    changed = world.get(BOARD, headers={"If-None-Match": etag})

    body = first.json()
    assert etag == f'"{body["epoch"]}-{body["revision"]}"'
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == etag
    assert among.status_code == 304
    assert other.status_code == 200
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_a_ticket_is_made_for_who_has_a_token(world: World):
    made = world.send("/v1/ws-ticket", b"", world.token(world.user()))
    other = world.send("/v1/ws-ticket", b"", world.token(world.user()))
    nobody = world.send("/v1/ws-ticket", b"")

    assert made.status_code == 201
    assert made.json() == {"ticket": made.json()["ticket"], "expires_in_s": 30}
    assert re.fullmatch(r"[A-Za-z0-9._~-]{16,}", made.json()["ticket"])
    assert made.json()["ticket"] != other.json()["ticket"]
    assert is_problem(nobody, 401, "invalid_token")


# Framing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/actions", {"POST"}),
        ("DELETE", "/v1/actions/x", {"GET"}),
        ("POST", BOARD, {"GET"}),
        ("GET", "/update-score", {"POST"}),
        ("PUT", "/api/scores/update", {"POST"}),
        ("POST", "/api/leaderboard", {"GET"}),
        ("GET", "/v1/ws-ticket", {"POST"}),
    ],
)
def test_another_method_is_405_and_told_which(world: World, method: str, path: str, allowed: set[str]):
    response = world.http.request(method, path)

    assert is_problem(response, 405, "method_not_allowed")
    assert (
        allowed
        <= {word.strip() for word in response.headers["allow"].split(",")}
        <= allowed
        | {
            "HEAD",
            "OPTIONS",
        }
    )


@pytest.mark.parametrize("path", ["/v1/actions", "/v1/actions/batch", "/update-score"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_another_content_type_is_415(world: World, path: str, kind: str):
    user = world.user()
    response = world.send(path, an_action(), world.token(user), Content_Type=kind)

    assert is_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_a_content_type_may_be_written_otherwise(world: World, kind: str):
    response = world.send("/v1/actions", an_action(), world.token(world.user()), Content_Type=kind)

    assert response.status_code == 202


def _answer_to_length(world: World, length: int, token: str) -> str:
    """The status line a server gives to a request that announces so many bytes and sends none."""
    address = urlsplit(world.endpoints.http)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(
            (
                f"POST /v1/actions HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            ).encode()
        )
        return connection.recv(4096).split(b"\r\n", 1)[0].decode()


def test_a_body_too_large_is_413_before_it_is_sent(world: World):
    assert " 413 " in _answer_to_length(world, 64 * 2**20, world.token(world.user()))


def test_a_body_too_large_is_413_also_in_chunks(world: World):
    token = world.token(world.user())

    response = world.http.post(
        "/v1/actions",
        content=(b" " * 2**16 for _ in range(1024)),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )

    assert is_problem(response, 413, "too_large")


# Order of checks -------------------------------------------------------------------------------


def _spent(world: World) -> str:
    """A user who has sent more than one may."""
    user = world.user()
    token = world.token(user)
    for _ in range(80):
        if world.send("/v1/actions", an_action(), token).status_code == 429:
            return user
    raise AssertionError("80 actions at once were within the limit")


def test_each_check_answers_before_the_next(world: World):
    """Pairs of faults in one request: the earlier check's answer wins."""
    user = world.user()
    token = world.token(user)
    used = an_action()
    world.send("/v1/actions", used, token, Prefer="wait=10")
    narrow = world.token(user, "boards:read")

    def sent(body: Any, token: str) -> httpx.Response:
        return world.send("/v1/actions", body, token)

    assert " 413 " in _answer_to_length(world, 64 * 2**20, "bad-token")
    assert is_problem(sent(b"{", "bad-token"), 401, "invalid_token")
    assert is_problem(sent(b"{", narrow), 400, "invalid_json")
    assert is_problem(sent(an_action(user_id="other", bonus=1), token), 400, "invalid_field")
    assert is_problem(sent(an_action(bonus=1), narrow), 400, "invalid_field")
    assert is_problem(sent(an_action(user_id="other", type="nobody_knows"), token), 403, "forbidden")
    assert is_problem(sent(an_action(type="nobody_knows"), narrow), 403, "forbidden")
    assert is_problem(sent(used | {"type": "nobody_knows"}, token), 422, "unknown_type")
    assert is_problem(sent(used | {"occurred_at": now(ahead_s=600)}, token), 422, "outside_window")
    assert is_problem(sent(used | {"type": "commit"}, token), 409, "id_reused")


def test_limits_come_after_tokens_and_before_shapes(world: World):
    user = _spent(world)
    token = world.token(user)

    def sent(body: Any, token: str = token) -> httpx.Response:
        return world.send("/v1/actions", body, token)

    assert is_problem(sent(an_action(), "bad-token"), 401, "invalid_token")
    assert is_problem(sent(b"{"), 400, "invalid_json")
    for body in (an_action(bonus=1), an_action(user_id="other"), an_action(type="nobody_knows")):
        # Where this machine is slower than the limit refills, it is spent again.
        answers = (sent(body) for _ in range(100))
        limited = next((answer for answer in answers if answer.status_code == 429), None)
        assert limited is not None
        assert is_problem(limited, 429, "rate_limited")


def test_a_token_in_the_body_comes_before_the_shape_of_the_body(world: World):
    body = {"user_id": "a b", "score_delta": "x", "bonus": 1}

    s0 = world.send("/api/v0/scores/update", body | {"authorization_token": "bad"})
    s3 = world.send("/api/scores/update", body | {"auth_token": "bad"})

    assert (s0.status_code, s0.json()["code"]) == (401, "invalid_token")
    assert is_problem(s3, 401, "invalid_token")


# Limits ----------------------------------------------------------------------------------------


def test_a_user_may_do_thirty_at_once_and_five_a_second(world: World):
    user = world.user()
    token = world.token(user)
    begun_s = time.monotonic()
    answers = [world.send("/v1/actions", an_action(), token) for _ in range(60)]
    took_s = time.monotonic() - begun_s

    taken = sum(answer.status_code == 202 for answer in answers)
    refused = [answer for answer in answers if answer.status_code != 202]
    assert 30 <= taken <= 30 + 5 * (took_s + 1)
    assert all(answer.status_code == 202 for answer in answers[:30])
    assert refused, "60 at once were all taken"
    for answer in refused:
        assert is_problem(answer, 429, "rate_limited")
        assert int(answer.headers["retry-after"]) >= 1
    for answer in answers:
        assert answer.headers["ratelimit"]
        assert answer.headers["ratelimit-policy"]

    time.sleep(int(refused[-1].headers["retry-after"]))
    assert world.send("/v1/actions", an_action(), token).status_code == 202


def test_one_users_limit_is_nobody_elses(world: World):
    _spent(world)

    assert world.send("/v1/actions", an_action(), world.token(world.user())).status_code == 202


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        (
            "/api/v0/scores/update",
            lambda user, token: {"user_id": user, "score_delta": 1, "authorization_token": token},
            {"status": "failure", "code": "rate_limited"},
        ),
        (
            "/api/v1/scores/update",
            lambda user, token: {"userId": user, "scoreIncrement": 1, "authToken": token},
            {"success": False, "code": "rate_limited"},
        ),
    ],
    ids=["S0", "S2"],
)
def test_every_contract_says_429_in_its_own_shape(world: World, path: str, body: Any, shape: Body):
    for _ in range(10):
        user = _spent(world)
        answer = world.send(path, body(user, world.token(user)))
        # On a slow machine there may be room for one again by then.
        if answer.status_code != 200:
            break

    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json() == {**shape, "message": answer.json()["message"]}


# The description -------------------------------------------------------------------------------


def test_the_description_is_valid_and_lists_what_is_served(world: World):
    description = world.get("/openapi.json").json()

    validate(description)
    listed = {
        path: {method for method in item if method in ("get", "post", "put", "patch", "delete")}
        for path, item in description["paths"].items()
    }
    assert {path: listed.get(path) for path in ROUTES} == ROUTES
    for path in set(listed) - set(ROUTES):
        # Whatever else it lists is there, and open to everybody.
        assert world.get(path).status_code == 200, path


def test_every_route_that_is_listed_is_served(world: World):
    for path, methods in ROUTES.items():
        filled = path.format(action_id="x", board="main", user="nobody-at-all")
        for method in methods:
            response = world.http.request(method, filled)

            if response.status_code == 404:
                assert "{" in path
                assert response.json()["code"] == "not_found"
                assert "nobody-at-all" in filled
            assert response.status_code != 405


class _Loaded(HTMLParser):
    """Addresses a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name == "src" or (tag == "link" and name == "href")):
                self.addresses.append(value)


def test_the_page_of_the_reference_loads_nothing_from_elsewhere(world: World):
    page = world.get("/docs")
    reader = _Loaded()
    reader.feed(page.text)

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    base = world.endpoints.http + "/docs"
    for address in reader.addresses:
        assert address.startswith("data:") or urljoin(base, address).startswith(world.endpoints.http + "/")
        if not address.startswith("data:"):
            part = world.get(urljoin(base, address))
            assert part.status_code == 200
            assert not re.search(r"import\s*\(?\s*['\"]https?://", part.text)
    assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", page.text)
    assert not re.search(r"(?:import|fetch|importScripts)\s*\(?\s*['\"](?:https?:)?//", page.text)


def test_the_keys_are_public_and_private_parts_are_not(world: World):
    keys = world.http.get(world.endpoints.jwks).json()["keys"]

    assert world.endpoints.jwks == f"{world.endpoints.http}/.well-known/jwks.json"
    assert {key["alg"] for key in keys} == {"ES256", "EdDSA"}
    assert all("d" not in key for key in keys)


@pytest.mark.parametrize(
    ("service", "names"),
    [
        (
            "ingest",
            (
                "trueboard_submissions_total",
                "trueboard_standings_reads_total",
                "trueboard_oldest_unjudged_seconds",
            ),
        ),
        (
            "stream_app",
            (
                "trueboard_score_updates_total",
                "trueboard_stream_lag_records",
                "trueboard_projection_lag_revisions",
                "trueboard_projection_drift_entries",
                "trueboard_dead_letters_total",
                "trueboard_partition_stopped",
            ),
        ),
        ("push", ("trueboard_websocket_connections", "trueboard_frames_merged_total")),
    ],
)
def test_metrics_are_there_by_name_on_a_port_of_their_own(world: World, service: str, names: tuple[str, ...]):
    address = world.endpoints.metrics[service]
    page = world.http.get(address).text
    live = world.http.get(urljoin(address, "/health/live"))
    ready = world.http.get(urljoin(address, "/health/ready"))

    for name in names:
        assert re.search(rf"^# TYPE {name.removesuffix('_total')}(_total)? ", page, re.M), name
    assert (live.status_code, ready.status_code) == (200, 200)


def test_submissions_and_verdicts_are_counted(world: World):
    user = world.user()

    def counted() -> tuple[float, float]:
        page = world.http.get(world.endpoints.metrics["ingest"]).text
        refused = sum(
            float(line.rsplit(" ", 1)[1])
            for line in page.splitlines()
            if line.startswith("trueboard_submissions_total{")
            and 'contract="s4"' in line
            and 'code="unknown_type"' in line
        )
        page = world.http.get(world.endpoints.metrics["stream_app"]).text
        accepted = sum(
            float(line.rsplit(" ", 1)[1])
            for line in page.splitlines()
            if line.startswith("trueboard_score_updates_total{") and 'verdict="accepted"' in line
        )
        return refused, accepted

    before = counted()
    world.send("/api/scores/update", {"actionId": "nobody_knows", "timestamp": now()}, world.token(user))
    world.act(user)
    after = until(lambda: (found := counted())[1] > before[1] and found, what="a counted verdict")

    assert after == (before[0] + 1, before[1] + 1)
