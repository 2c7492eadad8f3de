"""What is accepted, refused, and with which code, without any I/O."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import scopes, words
from core.actions import check_words
from core.errors import Refused
from core.times import US, format_us
from ingest.submission import Offer, Tolerance, accept, split_action
from service.tokens import Claims
from tests.ingest.world import CATALOGUE, NOW_US, at

TOLERANCE = Tolerance(86_400 * US, 60 * US)


def claims(*held: str, name: str | None = None, sub: str = "ann") -> Claims:
    return Claims(sub, name, frozenset(held), 0, "j", 0)


def taken(offer: Offer, held: Claims) -> Any:
    return accept(offer, held, CATALOGUE, NOW_US, TOLERANCE, lambda: "fresh")


def refusal(offer: Offer, held: Claims) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        taken(offer, held)
    return refused.value.status_code, refused.value.code


def offer(type_: str = "commit", action_id: str | None = "a", **more: Any) -> Offer:
    return Offer("v1", type_, action_id, **more)


OWN = claims(scopes.ACTIONS_WRITE)
POINTS = claims(scopes.ACTIONS_WRITE, scopes.SCORES_WRITE)
TRUSTED = claims(scopes.ACTIONS_WRITE_ANY, scopes.SCORES_WRITE, sub="server")
BACKFILL = claims(scopes.ACTIONS_WRITE, scopes.ACTIONS_BACKFILL)


@pytest.mark.parametrize(
    ("offered", "held", "expected"),
    [
        pytest.param(offer("Commit"), OWN, (400, "invalid_field"), id="a type with a capital"),
        pytest.param(offer("commit\n"), OWN, (400, "invalid_field"), id="a type and a line end"),
        pytest.param(offer("x" * 65), OWN, (400, "invalid_field"), id="a type of 65 characters"),
        pytest.param(offer(action_id=""), OWN, (400, "invalid_field"), id="an empty action id"),
        pytest.param(offer(action_id="a b"), OWN, (400, "invalid_field"), id="an action id with a space"),
        pytest.param(offer(action_id="a" * 129), OWN, (400, "invalid_field"), id="a long action id"),
        pytest.param(offer(user_id="ä"), TRUSTED, (400, "invalid_field"), id="a user id with an umlaut"),
        pytest.param(offer(username="\x00"), TRUSTED, (400, "invalid_field"), id="a control character"),
        pytest.param(offer(username="ä" * 128), TRUSTED, (400, "invalid_field"), id="a name of 256 bytes"),
        pytest.param(offer(occurred_at="2026-11-21T09:26:00"), OWN, (400, "invalid_field"), id="no offset"),
        pytest.param(
            offer(occurred_at="2026-11-21T23:59:60Z"), OWN, (400, "invalid_field"), id="a leap second"
        ),
        pytest.param(offer(occurred_at="yesterday"), OWN, (400, "invalid_field"), id="no instant"),
        pytest.param(offer(occurred_at=at(-86_401)), OWN, (422, "outside_window"), id="too late"),
        pytest.param(offer(occurred_at=at(61)), OWN, (422, "outside_window"), id="too early"),
        pytest.param(offer(occurred_at=at(61)), BACKFILL, (422, "outside_window"), id="a future backfill"),
        pytest.param(offer("flying"), OWN, (422, "unknown_type"), id="an unknown type"),
        pytest.param(offer("client_points", points=0), POINTS, (400, "out_of_bounds"), id="too few points"),
        pytest.param(
            offer("client_points", points=1001), POINTS, (400, "out_of_bounds"), id="too many points"
        ),
        pytest.param(
            offer("client_points", points=1 << 64), POINTS, (400, "out_of_bounds"), id="beyond 64 bits"
        ),
        pytest.param(offer("flying", points=1 << 64), POINTS, (400, "invalid_field"), id="of no type"),
        pytest.param(offer("client_points"), POINTS, (400, "invalid_field"), id="points left out"),
        pytest.param(offer(points=1), POINTS, (400, "invalid_field"), id="points of the catalogue's"),
        pytest.param(offer("client_points", points=5), OWN, (403, "forbidden"), id="points without scope"),
        pytest.param(offer(), claims(), (403, "forbidden"), id="no scope"),
        pytest.param(offer(), claims(scopes.SCORES_WRITE), (403, "forbidden"), id="only points' scope"),
        pytest.param(offer(user_id="bob"), OWN, (403, "forbidden"), id="another user"),
        pytest.param(offer(username="Me"), OWN, (403, "forbidden"), id="a name of one's own"),
        # shape before rights before rules
        pytest.param(offer("x y", user_id="bob"), OWN, (400, "invalid_field"), id="shape before rights"),
        pytest.param(
            offer("client_points", points=0), OWN, (400, "out_of_bounds"), id="bounds before rights"
        ),
        pytest.param(offer("flying", user_id="bob"), OWN, (403, "forbidden"), id="rights before rules"),
        pytest.param(
            offer(occurred_at=at(61), user_id="bob"), OWN, (403, "forbidden"), id="rights before window"
        ),
    ],
)
def test_what_is_wrong_is_refused_by_its_code(
    offered: Offer, held: Claims, expected: tuple[int, str]
) -> None:
    assert refusal(offered, held) == expected


def test_without_an_instant_an_action_occurred_when_it_was_received() -> None:
    record = taken(offer(), OWN)

    assert record.occurred_at == record.received_at == format_us(NOW_US)


def test_an_instant_with_an_offset_is_the_same_in_utc() -> None:
    record = taken(offer(occurred_at="2026-11-21T10:25:00.5+01:00"), OWN)

    assert record.occurred_at == "2026-11-21T09:25:00.500000Z"


def test_a_backfill_may_be_of_any_time_before() -> None:
    record = taken(offer(occurred_at="1970-01-01T00:00:00Z"), BACKFILL)

    assert record.backfill


@pytest.mark.parametrize("late_s", [-60, 0, 86_400])
def test_the_edges_of_the_window_are_within_it(late_s: int) -> None:
    assert taken(offer(occurred_at=at(-late_s)), OWN).occurred_at == at(-late_s)


def test_the_name_is_the_token_s_for_oneself_and_the_body_s_for_others() -> None:
    own = taken(offer(), claims(scopes.ACTIONS_WRITE, name="Ann\x07 A."))
    others = taken(offer(user_id="bob", username="Bob"), TRUSTED)
    nameless = taken(offer(user_id="bob"), claims(scopes.ACTIONS_WRITE_ANY, name="The Server"))

    assert (own.username, others.username, nameless.username) == ("Ann A.", "Bob", None)
    assert (others.user_id, others.client) == ("bob", "server")


def test_points_without_their_own_scope_to_write_are_enough_with_scores_write() -> None:
    assert taken(offer("client_points", points=5), claims(scopes.SCORES_WRITE)).points == 5


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("commit", ("commit", None)),
        ("commit:1", ("commit", "commit:1")),
        ("commit:a:b", ("commit", "commit:a:b")),
        (":1", ("", ":1")),
        ("", ("", None)),
    ],
)
def test_an_action_is_named_by_type_and_instance(named: str, expected: tuple[str, str | None]) -> None:
    assert split_action(named) == expected


def test_one_user_type_and_timestamp_is_one_action_id() -> None:
    stamped = Offer("s4", "commit", occurred_at=at(-5), id_from_instant=True)

    assert taken(stamped, OWN).action_id == f"commit:{NOW_US - 5 * US}"


@given(
    type_=st.sampled_from([*CATALOGUE.types, "flying", "", "X"]) | st.text(max_size=70),
    action_id=st.none() | st.text(max_size=130) | st.from_regex(words.ACTION_ID, fullmatch=True),
    user_id=st.none() | st.text(max_size=300) | st.from_regex(words.USER_ID, fullmatch=True),
    points=st.none() | st.integers(),
    occurred_at=st.none() | st.text(max_size=40) | st.datetimes().map(lambda each: each.isoformat() + "Z"),
    username=st.none() | st.text(max_size=300),
    held=st.sets(st.sampled_from(sorted(scopes.ALL))),
)
def test_whatever_is_offered_becomes_a_readable_record_or_a_refusal(
    type_: str,
    action_id: str | None,
    user_id: str | None,
    points: int | None,
    occurred_at: str | None,
    username: str | None,
    held: set[str],
) -> None:
    offered = Offer("v1", type_, action_id, user_id, points, occurred_at, username)
    record, status = None, 202
    try:
        record = taken(offered, claims(*held, name="Ann"))
    except Refused as refused:
        status = refused.status_code

    assert status in (202, 400, 403, 422)
    if record is not None:
        check_words(record)
        assert record.user_id == "ann" or scopes.ACTIONS_WRITE_ANY in held
        assert record.points is None or scopes.SCORES_WRITE in held
