"""What an analyst gets from Kafka: everything needed to count the board again, and nothing wrong.

Records that no door ever saw are produced directly, with a stock producer and librdkafka's own
partitioner: good ones count, twice sent ones once, unreadable ones are set aside.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.acceptance import naive
from tests.acceptance.topics import CHANGED, DEAD, JUDGED, PLAYER, SUBMITTED, Record, read
from tests.acceptance.world import (
    ENTRY_KEYS,
    INSTANT,
    REASON_KEYS,
    World,
    fingerprint,
    now,
    until,
)

pytestmark = pytest.mark.kafka

CLOUD_EVENT = {"ce_id", "ce_source", "ce_specversion", "ce_type"}


def published(world: World) -> int:
    """The board's revision once the topics have it too."""
    revision: int = world.standings()["revision"]

    def there() -> bool:
        return any(record.value["revision"] >= revision for record in read(world.endpoints.kafka, CHANGED))

    until(there, what=f"revision {revision} on {CHANGED}")
    return revision


def submission(user: str, **rest: Any) -> dict[str, Any]:
    at = now()
    return {
        "user_id": user,
        "action_id": f"direct-{secrets.token_hex(8)}",
        "type": "level_complete",
        "occurred_at": at,
        "received_at": at,
        "contract": "v1",
        "client": user,
        "backfill": False,
        "fingerprint": fingerprint("level_complete", None, at),
    } | rest


def produce(world: World, records: list[tuple[bytes | None, bytes | None]]) -> list[tuple[int, int]]:
    """Send records as a stranger would; (partition, offset) of each."""
    producer = Producer({"bootstrap.servers": world.endpoints.kafka})
    placed: dict[int, tuple[int, int]] = {}

    def delivered(n: int) -> Any:
        def called(error: Any, message: Any) -> None:
            assert error is None
            placed[n] = (message.partition(), message.offset())

        return called

    for n, (key, value) in enumerate(records):
        producer.produce(SUBMITTED, key=key, value=value, on_delivery=delivered(n))
    assert producer.flush(20) == 0
    return [placed[n] for n in range(len(records))]


def produce_submissions(world: World, *submissions: dict[str, Any]) -> None:
    produce(world, [(each["user_id"].encode(), json.dumps(each).encode()) for each in submissions])


# Counting again --------------------------------------------------------------------------------


def test_the_top_ten_is_rebuilt_from_two_topics_alone(world: World):
    users = [world.user() for _ in range(14)]
    world.give(
        [
            {
                "action_id": f"{user}-{n}",
                "user_id": user,
                "type": "client_points",
                "points": 100 + m,
                "username": f"Player {m}",
            }
            for m, user in enumerate(users)
            for n in range(3)
        ]
    )
    published(world)

    rebuilt = naive.top(
        [record.value for record in read(world.endpoints.kafka, JUDGED)],
        [((record.key or b"").decode(), record.value) for record in read(world.endpoints.kafka, PLAYER)],
        1_000_000,
    )

    shown = world.everybody()
    assert rebuilt[:10] == [
        (entry["user_id"], entry["username"], entry["score"]) for entry in world.standings()["entries"]
    ]
    assert rebuilt == [(entry["user_id"], entry["username"], entry["score"]) for entry in shown]


def test_a_judged_record_says_everything_of_a_verdict(world: World):
    user = world.user()
    good = world.act(user)
    world.give(
        [
            {"action_id": f"{user}-{n}", "user_id": user, "type": "client_points", "points": 1000}
            for n in range(6)
        ]
    )
    published(world)

    records = {record.value["action_id"]: record for record in read(world.endpoints.kafka, JUDGED)}

    accepted = records[good["action_id"]].value
    held = records[f"{user}-5"].value
    for value in (accepted, held):
        assert set(value) - {"decision"} == {
            "player",
            "action_id",
            "type",
            "verdict",
            "reason",
            "points",
            "occurred_at",
            "received_at",
            "catalogue_version",
            "epoch",
            "revision",
        }
        assert INSTANT.fullmatch(value["occurred_at"])
        assert INSTANT.fullmatch(value["received_at"])
    assert (accepted["verdict"], accepted["reason"], accepted["points"]) == ("accepted", None, 10)
    assert (accepted["epoch"], accepted["revision"]) == (good["epoch"], good["judged_revision"])
    assert accepted["received_at"] == good["received_at"]
    assert accepted["catalogue_version"] == "2026-11-21"
    assert (held["verdict"], held["points"]) == ("held", 1000)
    assert set(held["reason"]) == REASON_KEYS
    assert held["reason"]["code"] == "points_rate"
    assert held["player"] == accepted["player"]


def test_records_carry_cloud_event_headers_and_keys(world: World):
    user = world.user()
    action_id = world.act(user)["action_id"]
    published(world)

    def of(topic: str) -> Record:
        return next(
            record for record in read(world.endpoints.kafka, topic) if record.value["action_id"] == action_id
        )

    submitted, judged = of(SUBMITTED), of(JUDGED)
    for record in (submitted, judged):
        assert set(record.headers) >= CLOUD_EVENT
        assert record.header("ce_specversion") == "1.0"
        assert record.header("ce_id")
        assert record.header("traceparent")
    assert submitted.key == user.encode()
    assert (judged.key or b"").decode() == judged.value["player"]
    assert {
        name: submitted.value[name] for name in ("user_id", "type", "contract", "client", "backfill")
    } == {
        "user_id": user,
        "type": "level_complete",
        "contract": "v1",
        "client": user,
        "backfill": False,
    }
    assert submitted.value["fingerprint"] == fingerprint("level_complete", None, None)
    assert set(submitted.value) - {"points", "username"} == {
        "user_id",
        "action_id",
        "type",
        "occurred_at",
        "received_at",
        "contract",
        "client",
        "backfill",
        "fingerprint",
    }


@pytest.mark.parametrize("topic", [SUBMITTED, JUDGED])
def test_records_carry_the_trace_of_the_request_they_come_from(world: World, topic: str):
    traces = {f"traced-{secrets.token_hex(8)}": secrets.token_hex(16) for _ in range(30)}
    token = world.trusted()
    for action_id, trace_id in traces.items():
        response = world.send(
            "/v1/actions",
            {"action_id": action_id, "type": "level_complete", "user_id": world.user()},
            token,
            Prefer="wait=10",
            traceparent=f"00-{trace_id}-{secrets.token_hex(8)}-01",
        )
        assert response.status_code == 200
    published(world)

    found = {
        record.value["action_id"]: record.header("traceparent").split("-")[1]
        for record in read(world.endpoints.kafka, topic)
        if record.value["action_id"] in traces
    }

    assert found == traces


@pytest.mark.parametrize(
    ("contract", "path", "body"),
    [
        (
            "s0",
            "/api/v0/scores/update",
            lambda user, token: {"user_id": user, "score_delta": 1, "authorization_token": token},
        ),
        ("s1", "/update-score", lambda user, token: {"userId": user, "actionId": "level_complete"}),
        (
            "s2",
            "/api/v1/scores/update",
            lambda user, token: {"userId": user, "scoreIncrement": 1, "authToken": token},
        ),
        (
            "s3",
            "/api/scores/update",
            lambda user, token: {"user_id": user, "score_delta": 1, "auth_token": token},
        ),
        ("s4", "/api/scores/update", lambda user, token: {"actionId": "level_complete", "timestamp": now()}),
    ],
)
def test_a_submission_names_its_contract_and_holds_no_token(
    world: World, contract: str, path: str, body: Any
):
    user = world.user()
    token = world.token(user, name="Named")
    response = world.send(path, body(user, token), token if contract in ("s1", "s4") else None)

    record = next(
        record
        for record in read(world.endpoints.kafka, SUBMITTED)
        if record.value["action_id"] == response.headers["trueboard-action"]
        and record.value["user_id"] == user
    )

    assert record.value["contract"] == contract
    assert record.value["username"] == "Named"
    assert token.encode() not in (record.raw or b"")
    assert all(token.encode() not in (value or b"") for value in record.headers.values())


def test_every_record_of_a_kind_is_in_revision_order_and_has_an_id_of_its_own(world: World):
    world.give(
        [
            {
                "action_id": f"order-{n}-{secrets.token_hex(4)}",
                "user_id": world.user(),
                "type": "level_complete",
            }
            for n in range(40)
        ]
    )
    published(world)

    for topic in (JUDGED, CHANGED):
        records = read(world.endpoints.kafka, topic)
        by_partition: dict[int, list[int]] = {}
        contents: dict[str, bytes | None] = {}
        for record in records:
            by_partition.setdefault(record.partition, []).append(record.value["revision"])
            # The same id again may only say the same again.
            assert contents.setdefault(record.header("ce_id"), record.raw) == record.raw
        assert all(revisions == sorted(revisions) for revisions in by_partition.values())
        assert len(contents) == len({record.raw for record in records})


def test_board_changed_is_a_chain_with_the_ledgers_digests(world: World):
    world.act(world.user())
    published(world)
    records = [
        record.value for record in read(world.endpoints.kafka, CHANGED) if record.key == b"main:all-time"
    ]
    with world.ledger() as connection:
        digests = dict(connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions").fetchall())

    held: dict[str, int] = {}
    previous = records[0]["previous"]
    assert previous == 0
    for record in records:
        assert set(record) == {
            "board",
            "window",
            "epoch",
            "revision",
            "previous",
            "digest",
            "count",
            "changed",
            "top",
        }
        assert record["previous"] == previous
        previous = record["revision"]
        assert record["digest"] == digests[previous]
        for row in record["changed"]:
            assert set(row) == {"user_id", "username", "score", "reached_at"}
            held[row["user_id"]] = row["score"]
        assert len(held) == record["count"]
        assert all(set(entry) == ENTRY_KEYS for entry in record["top"])
        assert [entry["score"] for entry in record["top"]] == sorted(held.values(), reverse=True)[:10]
        assert all(held[entry["user_id"]] == entry["score"] for entry in record["top"])
    assert records[-1]["top"] == world.standings()["entries"]
    assert records[-1]["revision"] == world.standings()["revision"]


def test_a_player_record_is_keyed_by_a_random_name(world: World):
    user = world.user()
    world.send(
        "/v1/actions",
        {"action_id": "one", "type": "level_complete"},
        world.token(user, name="Somebody"),
        Prefer="wait=10",
    )
    published(world)

    record = next(
        record
        for record in reversed(read(world.endpoints.kafka, PLAYER))
        if record.value and record.value["user_id"] == user
    )

    player = record.value["player"]
    assert record.value == {"player": player, "user_id": user, "username": "Somebody", "hidden": False}
    assert record.key == player.encode()
    for judged in read(world.endpoints.kafka, JUDGED):
        assert user.encode() not in (judged.raw or b"")


# Records no door has seen ----------------------------------------------------------------------


def test_a_record_from_a_stock_producer_counts_whatever_its_partition(world: World):
    users = [world.user() for _ in range(12)]
    submissions = [submission(user) for user in users]

    produce_submissions(world, *submissions)
    receipts = [world.judged_later(each["action_id"], each["user_id"]) for each in submissions]

    assert {receipt["status"] for receipt in receipts} == {"accepted"}
    assert [world.score(user) for user in users] == [10] * 12


def test_records_twice_and_out_of_order_count_once(world: World):
    user = world.user()
    instants = [now(ahead_s=-ahead_s) for ahead_s in (5, 20, 10)]
    submissions = [submission(user, occurred_at=at, received_at=at) for at in instants]

    produce_submissions(world, *submissions, *reversed(submissions), submissions[1])
    marker = submission(world.user())
    produce_submissions(world, marker, {**marker, "action_id": "last", "user_id": user})
    world.judged_later("last", user)

    entry = world.get(f"/v1/boards/main/players/{user}").json()["entry"]
    last = world.judged_later("last", user)
    assert entry["score"] == 40
    assert entry["reached_at"] == max(*instants, last["received_at"])


def test_a_repeated_record_brings_no_old_name_back_and_makes_no_revision(world: World):
    user = world.user()
    old, new = submission(user, username="Old"), submission(user, username="New")

    produce_submissions(world, old, new)
    world.judged_later(new["action_id"], user)
    named = world.get(f"/v1/boards/main/players/{user}").json()
    with world.ledger() as connection:
        before = connection.execute("SELECT max(revision) FROM revisions").fetchone()
        offsets = connection.execute("SELECT sum(next_offset)::bigint FROM progress").fetchone()
    produce_submissions(world, old)

    def taken() -> bool:
        with world.ledger() as connection:
            moved = connection.execute("SELECT sum(next_offset)::bigint FROM progress").fetchone()
        assert moved
        assert offsets
        return bool(moved[0] > offsets[0])

    until(taken, what="the repeated record")
    with world.ledger() as connection:
        after = connection.execute("SELECT max(revision) FROM revisions").fetchone()
    shown = world.get(f"/v1/boards/main/players/{user}").json()
    assert named["entry"]["username"] == "New"
    assert after == before
    assert shown == named


def test_the_first_record_of_an_action_counts_and_the_receipt_shows_it(world: World):
    user = world.user()
    at = now()
    first = submission(
        user, type="client_points", points=7, fingerprint=fingerprint("client_points", 7, at), occurred_at=at
    )
    second = first | {"points": 900, "fingerprint": fingerprint("client_points", 900, at)}

    produce_submissions(world, first, second)
    produce_submissions(world, submission(user, action_id="after"))
    world.judged_later("after", user)

    assert world.score(user) == 17
    receipt = world.judged_later(first["action_id"], user)
    assert (receipt["points"], receipt["fingerprint"]) == (7, first["fingerprint"])


@pytest.mark.parametrize(
    ("change", "code", "points"),
    [
        ({"type": "nobody_knows"}, "unknown_type", 0),
        ({"type": "client_points", "points": 1001}, "out_of_bounds", 1001),
        ({"type": "client_points", "points": -5}, "out_of_bounds", -5),
    ],
    ids=["unknown type", "too many", "negative"],
)
def test_what_the_door_would_refuse_gets_a_verdict(
    world: World, change: dict[str, Any], code: str, points: int
):
    user = world.user()
    sent = submission(user, **change)

    produce_submissions(world, sent)
    receipt = world.judged_later(sent["action_id"], user)

    assert (receipt["status"], receipt["reason"]["code"], receipt["points"]) == ("rejected", code, points)
    assert world.score(user) == 0


def test_unreadable_records_are_set_aside_and_the_others_go_on(world: World):
    user = world.user()
    key = user.encode()
    good = submission(user)
    poison: list[tuple[bytes | None, bytes | None]] = [
        (key, b""),
        (key, None),
        (key, b"\xff\xfe not text"),
        (key, b"{"),
        (key, b"[]"),
        (key, b"null"),
        (key, b"{}"),
        (key, json.dumps(submission(user, user_id="not a user id")).encode()),
        (key, json.dumps(submission(user, action_id="")).encode()),
        (key, json.dumps(submission(user, points="7")).encode()),
        (key, json.dumps(submission(user, points=2**64)).encode()),
        (key, json.dumps(submission(user, occurred_at="yesterday")).encode()),
        (key, b'{"user_id": ' + b"[" * 20_000),
        (key, json.dumps(submission(user, username="x" * 300)).encode()),
    ]

    places = produce(world, poison)
    produce_submissions(world, good)
    receipt = world.judged_later(good["action_id"], user)

    def dead() -> dict[str, Record]:
        found = {(record.key or b"").decode(): record for record in read(world.endpoints.kafka, DEAD)}
        return found if all(_name(place) in found for place in places) else {}

    aside = until(dead, what="every unreadable record on the dead-letter topic")
    for place, (_, value) in zip(places, poison, strict=True):
        record = aside[_name(place)]
        assert (record.raw or b"") == (value or b"")
        assert record.header("reason")
        assert record.header("detail")
        assert record.header("origin_topic") == SUBMITTED
        assert (int(record.header("origin_partition")), int(record.header("origin_offset"))) == place
    assert receipt["status"] == "accepted"
    assert world.score(user) == 10
    with world.ledger() as connection:
        rows = connection.execute('SELECT "partition", record_offset FROM set_aside').fetchall()
    assert set(places) <= set(rows)


@pytest.mark.parametrize("key", [None, b"", b"somebody-else"], ids=repr)
def test_a_record_under_another_key_is_not_lost(world: World, key: bytes | None):
    user = world.user()
    sent = submission(user)

    [place] = produce(world, [(key, json.dumps(sent).encode())])

    def accounted_for() -> bool:
        known = world.get(f"/v1/actions/{sent['action_id']}", world.trusted(), user_id=user)
        return known.status_code == 200 or any(
            record.key == _name(place).encode() for record in read(world.endpoints.kafka, DEAD)
        )

    assert until(accounted_for, what="a verdict or a dead letter")


def _name(place: tuple[int, int]) -> str:
    return f"{SUBMITTED}-{place[0]}-{place[1]}"
