"""From what is known and a group of records to a plan."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import actions, digest
from core.rates import Recent, Rules
from core.times import US, format_us
from core.words import SCORE_MAX
from stream_app import judging
from stream_app.judging import Bounds, Incoming, Person
from tests.acceptance import naive
from tests.stream_app.world import DAY_US, NOW_US, catalogue, encoded, submitted

CATALOGUE = catalogue("v 1")
RULES = Rules(CATALOGUE)
ANY = Bounds(0)


def incoming(offset: int, action: naive.Submitted, partition: int = 0) -> Incoming:
    return Incoming(
        partition, offset, actions.decode(encoded(action)), action.occurred_us, action.received_us
    )


def known_as(*user_ids: str) -> dict[str, Person]:
    return {
        user_id: Person(number, str(uuid.UUID(int=number)), None, recent=Recent())
        for number, user_id in enumerate(user_ids, 1)
    }


def judged(
    *submissions: naive.Submitted,
    existing: frozenset[tuple[str, int]] = frozenset(),
    bounds: Bounds = ANY,
):
    people = known_as(*sorted({action.user_id for action in submissions}))
    items = [incoming(offset, action) for offset, action in enumerate(submissions)]
    return judging.judge(
        RULES, bounds, [people[action.user_id] for action in submissions], existing, items, 4
    )


def _action_ids(plan: judging.Plan) -> list[str]:
    return [row.action_id for row in plan.rows.rows]


def test_the_first_of_an_action_id_counts_and_the_others_repeat():
    plan = judged(
        submitted("ada", "a1", "points", points=1),
        submitted("bob", "a1", "points", points=2),
        submitted("ada", "a1", "points", points=3),
    )

    assert (list(plan.judged), plan.repeated) == ([0, 1], [2])
    assert plan.points == {1: 1, 2: 2}


def test_what_the_ledger_holds_already_is_judged_no_second_time():
    plan = judged(submitted("ada", "a1"), submitted("ada", "a2"), existing=frozenset({("a1", 1)}))

    assert (list(plan.judged), plan.repeated, _action_ids(plan)) == ([1], [0], ["a2"])


def test_a_repeat_counts_in_no_window():
    plan = judged(*[submitted("ada", "a1")] * 9, submitted("ada", "a2"), submitted("ada", "a3"))

    assert {judgement.verdict for judgement in plan.judged.values()} == {"accepted"}


def test_rows_are_sorted_by_action_id_and_player_bytewise():
    plan = judged(
        submitted("bob", "b"), submitted("bob", "B"), submitted("ada", "b"), submitted("bob", "a-1"),
        submitted("bob", "a.1"), submitted("bob", "a"),
    )  # fmt: skip

    keys = list(zip(_action_ids(plan), plan.rows.players, strict=True))

    assert keys == [("B", 2), ("a", 2), ("a-1", 2), ("a.1", 2), ("b", 1), ("b", 2)]
    assert plan.rows.offsets == [1, 5, 3, 4, 2, 0]


def test_actions_worth_nothing_make_an_entry_only_where_none_with_points_does():
    plan = judged(
        submitted("ada", "a1", "badge", at_us=NOW_US + 5),
        submitted("ada", "a2", "badge", at_us=NOW_US),
        submitted("bob", "b1", "badge"),
        submitted("bob", "b2", "level"),
    )

    assert (plan.presence, plan.points) == ({1: NOW_US + 5}, {2: 10})


def test_a_group_that_came_to_zero_points_still_changes_when_it_was_reached():
    plan = judged(
        submitted("ada", "a1", "points", points=5),
        submitted("ada", "a2", "points", points=-5, at_us=NOW_US + 3),
        bounds=Bounds(0, {1: 0}),
    )

    assert (plan.points, plan.reached_us, plan.presence) == ({1: 0}, {1: NOW_US + 3}, {})


def test_the_instant_is_the_latest_received_of_those_with_points():
    plan = judged(
        submitted("ada", "a1", at_us=NOW_US, received_us=NOW_US + 30 * US),
        submitted("ada", "a2", at_us=NOW_US + US, received_us=NOW_US + 2 * US),
        submitted("ada", "a3", "badge", at_us=NOW_US + 40 * US),
    )

    assert plan.reached_us == {1: NOW_US + 30 * US}


@pytest.mark.parametrize(
    ("score", "points", "code", "limit"),
    [
        pytest.param(SCORE_MAX - 5, 5, None, None, id="up to the end"),
        pytest.param(SCORE_MAX - 5, 6, "score_overflow", SCORE_MAX, id="beyond the end"),
        pytest.param(0, SCORE_MAX, None, None, id="all at once"),
        pytest.param(1, SCORE_MAX, "score_overflow", SCORE_MAX, id="all at once and one more"),
    ],
)
def test_a_score_is_never_clamped_or_wrapped(score, points, code, limit):
    plan = judged(submitted("ada", "a1", "huge", points=points), bounds=Bounds(0, {1: score}))
    judgement = plan.judged[0]

    assert (judgement.reason and judgement.reason.code) == code
    assert (judgement.reason and judgement.reason.limit) == limit
    assert judgement.points == points
    assert plan.points == ({} if code else {1: points})


def test_a_rejected_action_leaves_room_for_the_next():
    plan = judged(
        submitted("ada", "a1", "huge", points=9),
        submitted("ada", "a2", "huge", points=1),
        submitted("ada", "a3", "points", points=-2),
        bounds=Bounds(SCORE_MAX - 3, {1: SCORE_MAX - 2}),
    )

    assert [judgement.verdict for judgement in plan.judged.values()] == ["rejected", "accepted", "accepted"]


def test_a_backfill_is_written_as_one_even_if_only_its_instants_say_so():
    plan = judged(
        submitted("ada", "a1"),
        submitted("ada", "a2", at_us=NOW_US - DAY_US, received_us=NOW_US),
        submitted("ada", "a3", at_us=NOW_US - DAY_US - 1, received_us=NOW_US),
        submitted("ada", "a4", at_us=NOW_US + 60 * US + 1, received_us=NOW_US),
    )

    assert [bool(one) for one in plan.rows.backfill] == [False, False, True, True]


def test_groups_that_could_cross_a_bound_are_known_before():
    small, huge, below = (
        [incoming(0, submitted("ada", "a1", type_, points=points))]
        for type_, points in [("points", 1000), ("huge", judging.LEAP + 1), ("points", -1)]
    )

    assert not judging.could_cross(RULES, small)
    assert judging.could_cross(RULES, huge)
    assert judging.could_cross(RULES, below)


types = st.sampled_from(["level", "slow", "points", "badge", "huge", "unheard_of"])
submissions = st.builds(
    lambda user, number, type_, points, at_s, late_s, backfill: submitted(
        user,
        f"a{number}",
        type_,
        points=points,
        at_us=NOW_US + at_s * US,
        received_us=NOW_US + (at_s + late_s) * US,
        backfill=backfill,
    ),
    st.sampled_from(["ada", "bob"]),
    st.integers(0, 20),
    types,
    st.none() | st.integers(-200, 1100) | st.sampled_from([SCORE_MAX, SCORE_MAX // 2]),
    st.integers(0, 200),
    st.integers(-59, 4000),
    st.booleans(),
)


@given(st.lists(submissions, max_size=30), st.integers(0, 30))
def test_a_plan_says_of_each_action_what_the_interface_says_in_one_group_or_two(records, cut):
    model = naive.Judged()
    expected = {(action.action_id, action.user_id): model.take(CATALOGUE, action) for action in records}
    people = known_as("ada", "bob")
    said, existing, scores, leaves = {}, set(), dict.fromkeys((1, 2), 0), []
    for group in (records[:cut], records[cut:]):
        items = [incoming(offset, action) for offset, action in enumerate(group)]
        plan = judging.judge(RULES, Bounds(0, scores), [people[a.user_id] for a in group], existing, items, 1)
        for index, judgement in plan.judged.items():
            said[group[index].action_id, group[index].user_id] = judgement
        existing |= set(zip(_action_ids(plan), plan.rows.players, strict=True))
        for player, points in plan.points.items():
            scores[player] += points
        leaves += plan.leaves

    assert {key: (j.verdict, j.reason, j.points) for key, j in said.items()} == {
        key: (one.verdict, one.reason, one.points) for key, one in expected.items()
    }
    assert scores == {
        people[user].player: sum(
            one.points for (_, of), one in expected.items() if of == user and one.verdict == "accepted"
        )
        for user in ("ada", "bob")
    }
    assert sorted(leaves) == sorted(
        digest.row_leaf(
            people[user].pid, action_id, 0, "judged", one.action.type, one.verdict, one.points,
            one.action.occurred_us, one.action.received_us, "v 1",
        )
        for (action_id, user), one in expected.items()
    )  # fmt: skip


@given(st.lists(submissions, min_size=1, max_size=12))
def test_a_plans_leaves_are_canonical_and_stand_as_its_rows_do(records):
    plan = judged(*records)

    assert [json.loads(leaf)[2] for leaf in plan.leaves] == _action_ids(plan)
    assert all(naive.canonical(json.loads(leaf)) == leaf for leaf in plan.leaves)
    assert all(format_us(json.loads(leaf)[9]).endswith("Z") for leaf in plan.leaves)
