"""Once published, once counted: markers, repeats, verdicts that come, come late or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from core.actions import fingerprint
from core.times import US
from storage.redis.markers import Marker
from tests.ingest.world import NOW_US, World, at, bearer

OWN = "/v1/actions"


async def submit(world: World, token: str, *, wait_s: int = 0, **body: Any) -> httpx.Response:
    headers = bearer(token) | ({"prefer": f"wait={wait_s}"} if wait_s else {})
    return await world.client.post(OWN, json={"action_id": "a", "type": "commit", **body}, headers=headers)


@pytest.fixture
def ann(world: World) -> str:
    return world.tokens.give("ann", "actions:write", name="Ann")


async def test_what_is_published_is_a_cloud_event_with_its_trace(world: World, ann: str) -> None:
    sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await world.client.post(
        OWN, json={"action_id": "a", "type": "commit"}, headers={**bearer(ann), "traceparent": sent}
    )
    record = world.delivery.sent[0]

    assert record.topic == "leaderboard.action.submitted.v1"
    assert record.key == b"ann"
    assert record.headers["ce_id"] == b"ann/a"
    assert record.headers["ce_specversion"] == b"1.0"
    assert record.headers["ce_type"] == b"leaderboard.action.submitted.v1"
    assert record.headers["ce_time"] == at(0).encode()
    assert record.headers["content-type"] == b"application/json"
    assert record.headers["traceparent"].split(b"-")[1] == b"0af7651916cd43dd8448eb211c80319c"
    assert "reply_to" not in record.headers


async def test_who_waits_is_named_on_the_record(world: World, ann: str) -> None:
    await submit(world, ann, wait_s=1)

    assert world.delivery.sent[0].headers["reply_to"] == b"instance-1"


async def test_a_repeat_is_not_published_again(world: World, ann: str) -> None:
    first = await submit(world, ann)
    world.clock.advance(5)
    second = await submit(world, ann)

    assert (first.json()["replayed"], second.json()["replayed"]) == (False, True)
    assert first.json()["received_at"] == second.json()["received_at"]
    assert len(world.records) == 1


async def test_a_repeat_of_what_is_not_judged_yet_has_the_same_receipt(world: World, ann: str) -> None:
    world.stream.judging = False
    first = await submit(world, ann)
    world.clock.advance(5)
    second = await submit(world, ann)

    assert second.json() == {**first.json(), "replayed": True}


async def test_a_repeat_that_waits_gets_the_verdict_when_it_comes(world: World, ann: str) -> None:
    world.stream.judging = False
    await submit(world, ann)
    waiting = asyncio.create_task(submit(world, ann, wait_s=5))
    await asyncio.sleep(0.002)
    world.stream.judge_waiting()
    reply = await waiting

    assert (reply.status_code, reply.json()["status"], reply.json()["replayed"]) == (200, "accepted", True)
    assert len(world.records) == 1


async def test_a_marked_action_that_nobody_judged_is_published_again_as_it_was(
    world: World, ann: str
) -> None:
    world.stream.judging = False
    await submit(world, ann)
    world.clock.advance(31)
    reply = await submit(world, ann)
    first, second = world.records

    assert reply.json()["received_at"] == at(0)
    assert first == second


async def test_an_old_action_in_a_batch_is_published_again_as_it_was(world: World, ann: str) -> None:
    await submit(world, ann)
    world.clock.advance(31)
    reply = await world.client.post(
        "/v1/actions/batch", json={"actions": [{"action_id": "a", "type": "commit"}]}, headers=bearer(ann)
    )

    assert reply.json()["results"][0]["receipt"]["replayed"] is True
    assert world.records[0] == world.records[1]


async def test_without_markers_everything_is_published_and_the_ledger_tells_repeats(
    world: World, ann: str
) -> None:
    world.markers.away = True
    first = await submit(world, ann, wait_s=1)
    world.clock.advance(5)
    second = await submit(world, ann, wait_s=1)
    other = await submit(world, ann, wait_s=1, type="level_complete")

    assert (first.json()["replayed"], second.json()["replayed"]) == (False, True)
    assert second.json()["received_at"] == at(0)
    assert (other.status_code, other.json()["code"]) == (409, "id_reused")
    assert len(world.records) == 3


async def test_a_marker_that_says_otherwise_than_the_ledger_is_set_right(world: World, ann: str) -> None:
    await submit(world, ann)
    wrong = Marker(fingerprint("level_complete", None, None), "level_complete", at(1))
    world.markers.held["ann", "a"] = wrong
    refused = await submit(world, ann, type="level_complete")
    right = world.markers.held["ann", "a"]
    repeated = await submit(world, ann)

    assert refused.status_code == 409
    assert right == Marker(fingerprint("commit", None, None), "commit", at(0))
    assert repeated.json()["replayed"] is True


async def test_the_body_that_counts_is_known_again_behind_a_marker_of_another(world: World, ann: str) -> None:
    """The first marker was lost, and then came another body under the same id."""
    await submit(world, ann)
    other = Marker(fingerprint("level_complete", None, None), "level_complete", at(1))
    world.markers.held["ann", "a"] = other
    one = await submit(world, ann)
    world.markers.held["ann", "a"] = other
    actions = [{"action_id": "a", "type": "commit"}]
    many = await world.client.post(f"{OWN}/batch", json={"actions": actions}, headers=bearer(ann))
    refused = await submit(world, ann, type="level_complete")
    right = world.markers.held["ann", "a"]

    assert (one.status_code, one.json()["replayed"], one.json()["received_at"]) == (202, True, at(0))
    assert [answer["receipt"]["replayed"] for answer in many.json()["results"]] == [True]
    assert refused.status_code == 409
    assert right == Marker(fingerprint("commit", None, None), "commit", at(0))
    assert len(world.records) == 1


async def test_no_marker_is_left_of_what_was_not_confirmed(world: World, ann: str) -> None:
    world.delivery.down = True
    failed = await submit(world, ann)
    world.delivery.down = False
    again = await submit(world, ann)

    assert (failed.status_code, again.status_code) == (503, 202)
    assert failed.headers["trueboard-action"] == "a"
    assert int(failed.headers["retry-after"]) >= 1
    assert again.json()["replayed"] is False


async def test_when_the_reply_is_lost_the_ledger_is_looked_into_at_the_deadline(
    world: World, ann: str
) -> None:
    world.stream.replying = False
    reply = await submit(world, ann, wait_s=3)

    assert (reply.status_code, reply.json()["status"]) == (200, "accepted")
    assert world.clock.s() - 3 == pytest.approx(parse(at(0)))


async def test_without_ledger_and_stream_the_receipt_says_submitted(world: World, ann: str) -> None:
    world.stream.judging = False
    world.stream.away = True
    reply = await submit(world, ann, wait_s=3)
    repeat = await submit(world, ann)

    assert (reply.status_code, reply.json()["status"]) == (202, "submitted")
    assert (repeat.status_code, repeat.json()["replayed"]) == (202, True)


async def test_the_same_id_of_two_users_is_two_actions(world: World, ann: str) -> None:
    bob = world.tokens.give("bob", "actions:write")
    first, second = await submit(world, ann), await submit(world, bob, type="level_complete")

    assert (first.status_code, second.status_code) == (202, 202)
    assert [record.user_id for record in world.records] == ["ann", "bob"]


async def test_of_two_actions_of_one_id_in_a_batch_the_first_counts(world: World, ann: str) -> None:
    body = {
        "actions": [
            {"action_id": "a", "type": "commit"},
            {"action_id": "a", "type": "level_complete"},
            {"action_id": "a", "type": "commit"},
        ]
    }
    reply = await world.client.post("/v1/actions/batch", json=body, headers=bearer(ann))
    results = reply.json()["results"]

    assert [each["status"] for each in results] == [202, 409, 202]
    assert results[2]["receipt"]["replayed"] is True
    assert [record.type for record in world.records] == ["commit"]


async def test_of_a_batch_what_was_not_confirmed_is_503_by_itself(world: World, ann: str) -> None:
    world.delivery.refuses = {"b"}
    body = {"actions": [{"action_id": each, "type": "commit"} for each in "abc"]}
    reply = await world.client.post("/v1/actions/batch", json=body, headers=bearer(ann))

    assert [each["status"] for each in reply.json()["results"]] == [202, 503, 202]
    assert ("ann", "b") not in world.markers.held


async def test_a_receipt_before_its_verdict_comes_from_the_marker(world: World, ann: str) -> None:
    world.stream.judging = False
    first = await submit(world, ann)
    reply = await world.client.get(f"{OWN}/a", headers=bearer(ann))

    assert reply.json() == first.json()


async def test_a_receipt_names_a_revision_not_before_the_verdict_s(world: World, ann: str) -> None:
    world.stream.verdicts = {"r": ("rejected", "rate")}
    await submit(world, ann)
    await submit(world, ann, action_id="r")
    reply = await world.client.get(f"{OWN}/r", headers=bearer(ann))
    receipt = reply.json()

    assert (receipt["judged_revision"], receipt["revision"], receipt["score"]) == (3, 3, 1)
    assert receipt["reason"]["code"] == "rate"
    assert reply.headers["trueboard-revision"] == "3"


async def test_without_the_ledger_a_receipt_is_503(world: World, ann: str) -> None:
    world.stream.away = True
    reply = await world.client.get(f"{OWN}/a", headers=bearer(ann))

    assert reply.status_code == 503


async def test_what_a_store_says_of_itself_stays_inside(world: World, ann: str) -> None:
    world.stream.away = True
    reply = await world.client.get(f"{OWN}/a", headers=bearer(ann))

    assert "Postgres" not in reply.text


async def test_a_ticket_stands_for_what_the_token_says(world: World, ann: str) -> None:
    reply = await world.client.post("/v1/ws-ticket", headers=bearer(ann))
    world.tickets_away = True
    later = await world.client.post("/v1/ws-ticket", headers=bearer(ann))

    assert reply.status_code == 201
    assert reply.json() == {"ticket": "t" * 43, "expires_in_s": 30}
    (stands_for,) = world.tickets
    said = {"sub": "ann", "scopes": ["actions:write"], "jti": f"jti-{ann}", "iat_s": NOW_US // US}
    assert stands_for == said | {"exp_s": stands_for["exp_s"]}
    assert later.status_code == 503


async def test_every_attempt_is_counted_and_logged_without_token_or_body(world: World, ann: str) -> None:
    await submit(world, ann)
    await submit(world, ann, type="level_complete")
    await submit(world, "bad-token-7")
    await world.client.post(
        "/api/v0/scores/update", json={"user_id": "ann", "score_delta": 1, "authorization_token": "secret-8"}
    )
    lines = world.logged()

    assert [(each["contract"], each["status"], each["outcome"], each["code"]) for each in lines] == [
        ("v1", 202, "submitted", ""),
        ("v1", 409, "refused", "id_reused"),
        ("v1", 401, "refused", "invalid_token"),
        ("s0", 401, "refused", "invalid_token"),
    ]
    assert lines[0]["user_id"] == "ann"
    assert lines[0]["action_id"] == "a"
    written = msgspec.json.encode(lines)
    assert b"bad-token" not in written
    assert b"secret" not in written
    assert ann.encode() not in written


@pytest.mark.parametrize("path", [OWN, f"{OWN}/batch"])
async def test_the_line_of_a_body_that_cannot_be_read_names_who_sent_it(
    world: World, ann: str, path: str
) -> None:
    headers = {**bearer(ann), "content-type": "application/json"}
    await world.client.post(path, content=b"{", headers=headers)

    (line,) = world.logged()
    assert (line["client"], line["code"]) == ("ann", "invalid_json")


async def test_a_defect_is_500_with_nothing_of_it_and_is_logged(
    world: World, ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError("the secret of the defect")

    monkeypatch.setattr(world.markers, "found", fail)
    reply = await submit(world, ann)

    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert "secret" not in reply.text
    assert world.logged()[0]["outcome"] == "defect"


def parse(instant: str) -> float:
    from core.times import parse_us

    return parse_us(instant) / 1_000_000
