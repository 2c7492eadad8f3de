"""One action, judged: golden cases, laws, and agreement with the naive model."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import catalogue as catalogues
from core import rates
from core.rates import ALWAYS_US, FOREVER_US, UNWATCHED, Judgement, Recent, Row, Rules
from core.times import HIGHEST_US, LOWEST_US, US, parse_us
from tests.core import naive
from tests.core.examples import cases
from tests.core.naive import Action

CASES = cases("rates")
NOON_US = parse_us("2026-11-21T12:00:00Z")


@contextmanager
def small_rows(rows: int):
    """Have players looked through row by row up to this many rows, by an index beyond."""
    with mock.patch.object(rates, "SMALL_ROWS", rows):
        yield


def judge(rules: Rules, recent: Recent, action: Action) -> Judgement:
    return rules.judge(
        recent,
        occurred_us=action.occurred_us,
        received_us=action.received_us,
        backfill=action.backfill,
        type=action.type,
        client_points=action.client_points,
    )


def remember(rules: Rules, recent: Recent, action: Action) -> None:
    recent.add(
        action.occurred_us,
        action.received_us,
        action.backfill,
        rules.code(action.type),
        rules.catalogue.worth(action.type, action.client_points),
        action.accepted,
    )


def known(rules: Rules, history: list[Action]) -> Recent:
    recent = Recent()
    for action in history:
        remember(rules, recent, action)
    return recent


def from_json(row: dict) -> Action:
    return Action(
        type=row["type"],
        occurred_us=parse_us(row["occurred_at"]),
        received_us=parse_us(row.get("received_at", row["occurred_at"])),
        backfill=row.get("backfill", False),
        client_points=row.get("points"),
        accepted=row.get("accepted", True),
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("largest_small", [0, 24])
def test_the_golden_cases_are_judged_as_written(case, largest_small):
    rules = Rules(catalogues.from_body(case["catalogue"]))
    history = [from_json(row) for row in case["judged"] for _ in range(row.get("times", 1))]

    with small_rows(largest_small):
        judgement = judge(rules, known(rules, history), from_json(case["action"]))

    assert msgspec.to_builtins(judgement) == case["judgement"]


@pytest.mark.parametrize("case", CASES)
def test_the_naive_model_says_the_same_of_the_golden_cases(case):
    catalogue = catalogues.from_body(case["catalogue"])
    history = [from_json(row) for row in case["judged"] for _ in range(row.get("times", 1))]

    verdict, reason, points = naive.judge(catalogue, history, from_json(case["action"]))

    assert msgspec.to_builtins(Judgement(verdict, reason, points)) == case["judgement"]


# Instants on a coarse grid with neighbours a microsecond off it, so that equal instants and the
# edges of windows are common.
instants = st.builds(
    lambda half_seconds, off_us: NOON_US + half_seconds * US // 2 + off_us,
    st.integers(-10, 10),
    st.sampled_from([0, 0, 0, 0, -1, 1]),
)
bounds = st.one_of(
    st.tuples(st.integers(0, 4), st.none()),
    st.tuples(st.none(), st.integers(0, 5)),
    st.tuples(st.integers(0, 3), st.integers(3, 6)),
)


def _limit(window_s: int, soft_hard: tuple[int | None, int | None], factor: int) -> dict:
    soft, hard = soft_hard
    return {
        "window_s": window_s,
        **({} if soft is None else {"soft": soft * factor}),
        **({} if hard is None else {"hard": hard * factor}),
    }


@st.composite
def some_catalogues(draw):
    types = {}
    for name in ("a", "b", "sent"):
        worth = {"min": -20, "max": 20} if name == "sent" else {"points": draw(st.integers(-40, 40))}
        limits = draw(st.lists(st.builds(_limit, st.integers(1, 6), bounds, st.just(1)), max_size=2))
        types[name] = {
            **worth,
            "cooldown_s": draw(st.sampled_from([0, 0, 1, 3])),
            "min_gap_ms": draw(st.sampled_from([0, 0, 500, 1500])),
            "limits": draw(st.sampled_from([limits, []])),
        }
    types["free"] = {"points": 1}
    limits = {
        name: {"types": list(listed), **limit}
        for name, listed, limit in draw(
            st.lists(
                st.tuples(
                    st.sampled_from(["points", "more"]),
                    st.sampled_from([("a",), ("a", "sent"), ("sent", "a", "b")]),
                    st.builds(_limit, st.integers(1, 6), bounds, st.sampled_from([10, 30])),
                ),
                max_size=2,
                unique_by=lambda each: each[0],
            )
        )
    }
    return catalogues.from_body({"version": "v", "types": types, "limits": limits})


actions = st.builds(
    Action,
    type=st.sampled_from(["a", "a", "a", "b", "sent", "sent", "free", "unheard_of"]),
    occurred_us=instants,
    received_us=instants,
    backfill=st.sampled_from([False, False, False, True]),
    client_points=st.one_of(st.none(), st.integers(-25, 25), st.just(2**63 - 1)),
    accepted=st.booleans(),
)
histories = st.lists(actions, max_size=8) | st.lists(actions, max_size=40)
sizes = st.sampled_from([0, 3, 24])


@settings(max_examples=400, deadline=None)
@given(some_catalogues(), histories, actions, sizes)
def test_it_agrees_with_the_naive_model_on_any_history(catalogue, history, action, largest_small):
    rules = Rules(catalogue)

    with small_rows(largest_small):
        judgement = judge(rules, known(rules, history), action)

    verdict, reason, points = naive.judge(catalogue, history, action)
    assert judgement == Judgement(verdict, reason, points)


@settings(max_examples=100, deadline=None)
@given(some_catalogues(), histories, sizes)
def test_it_agrees_with_the_naive_model_when_each_verdict_is_part_of_the_next(
    catalogue, stream, largest_small
):
    rules, recent, history = Rules(catalogue), Recent(), []

    with small_rows(largest_small):
        for action in stream:
            judgement = judge(rules, recent, action)
            expected, reason, points = naive.judge(catalogue, history, action)

            assert judgement == Judgement(expected, reason, points)

            judged = Action(**{**action.__dict__, "accepted": expected == "accepted"})
            history.append(judged)
            remember(rules, recent, judged)


@settings(max_examples=100, deadline=None)
@given(some_catalogues(), histories, actions, st.data(), sizes)
def test_the_order_in_which_rows_came_to_be_known_does_not_matter(
    catalogue, history, action, data, largest_small
):
    rules = Rules(catalogue)
    shuffled = data.draw(st.permutations(history))

    with small_rows(largest_small):
        one, other = known(rules, history), known(rules, shuffled)

        assert judge(rules, one, action) == judge(rules, other, action)


@settings(max_examples=200, deadline=None)
@given(some_catalogues(), histories, actions, sizes)
def test_pruning_what_lies_before_the_needed_instants_changes_nothing(
    catalogue, history, action, largest_small
):
    rules = Rules(catalogue)
    needed = rules.needed_us(
        action.type,
        occurred_us=action.occurred_us,
        received_us=action.received_us,
        backfill=action.backfill,
    )
    before_us = HIGHEST_US if needed is None else needed[0]

    with small_rows(largest_small):
        whole, pruned = known(rules, history), known(rules, history)
        pruned.prune(before_us)

        assert judge(rules, pruned, action) == judge(rules, whole, action)


@settings(max_examples=200, deadline=None)
@given(histories, instants, sizes)
def test_a_pruned_player_keeps_every_row_it_claims_to_be_complete_for(history, before_us, largest_small):
    rules = Rules(catalogues.read(catalogues.shipped()))
    history = [Action(**{**action.__dict__, "type": "level_complete"}) for action in history]

    with small_rows(largest_small):
        recent = known(rules, history)
        whole = list(recent.rows())
        recent.prune(before_us)
        kept = list(recent.rows())

    since_us = recent.complete_since_us
    assert since_us in (ALWAYS_US, before_us)
    claimed = [
        row
        for row in whole
        if row.occurred_us >= since_us or (row.received_us >= since_us and not row.backfill)
    ]
    assert [row for row in kept if row in claimed] == claimed
    assert len(kept) <= max(largest_small, 2 * len(claimed)) or since_us == ALWAYS_US


@settings(max_examples=200, deadline=None)
@given(some_catalogues(), histories, actions)
def test_what_is_needed_is_found_by_an_index_on_occurred(catalogue, history, action):
    late_us, early_us = 5 * US, 2 * US

    def effective(each: Action) -> Action:
        backfill = rates.effective_backfill(
            each.occurred_us, each.received_us, each.backfill, late_us, early_us
        )
        return Action(**{**each.__dict__, "backfill": backfill})

    rules = Rules(catalogue)
    history, action = [effective(each) for each in history], effective(action)
    needed = rules.needed_us(
        action.type,
        occurred_us=action.occurred_us,
        received_us=action.received_us,
        backfill=action.backfill,
    )
    if needed is None:
        read = Recent(FOREVER_US, ALWAYS_US)
    else:
        low_us, high_us = rates.read_range_us(*needed, late_us, early_us)
        read = Recent(*needed)
        for each in history:
            if low_us <= each.occurred_us <= high_us:
                remember(rules, read, each)

    assert judge(rules, read, action) == judge(rules, known(rules, history), action)


def test_judging_adds_nothing():
    rules = Rules(catalogues.read(catalogues.shipped()))
    recent = Recent()

    judge(rules, recent, Action("level_complete", NOON_US, NOON_US, False, None))

    assert len(recent) == 0
    assert list(recent.rows()) == []


def test_rows_come_back_as_they_were_added():
    recent = Recent()
    recent.add(5, 9, True, 3, -(2**63 - 1), False)
    recent.add(-7, 2, False, 0, 2**63 - 1, True)

    assert list(recent.rows()) == [
        Row(5, 9, True, 3, -(2**63 - 1), False),
        Row(-7, 2, False, 0, 2**63 - 1, True),
    ]


def test_a_row_that_no_rule_looks_back_at_is_not_kept():
    rules = Rules(catalogues.read(catalogues.shipped()))
    recent = known(rules, [Action("commit", NOON_US, NOON_US, True, None, True)])

    assert rules.watched == {"level_complete", "client_points"}
    assert rules.code("commit") == rules.code("unheard_of") == UNWATCHED
    assert len(recent) == 0


def test_an_action_that_no_rule_looks_around_for_needs_no_rows_at_all():
    rules = Rules(catalogues.read(catalogues.shipped()))

    needed = rules.needed_us("commit", occurred_us=NOON_US, received_us=NOON_US, backfill=False)

    assert needed is None


@pytest.mark.parametrize(
    ("since_us", "until_us"),
    [
        pytest.param(NOON_US - 3600 * US + 1, FOREVER_US, id="known too late"),
        pytest.param(ALWAYS_US, NOON_US - 1, id="known not long enough"),
    ],
)
def test_too_few_rows_give_no_verdict(since_us, until_us):
    rules = Rules(catalogues.read(catalogues.shipped()))
    recent = Recent(since_us, until_us)
    action = Action("level_complete", NOON_US, NOON_US, False, None)

    with pytest.raises(ValueError, match="too few"):
        judge(rules, recent, action)


def test_exactly_the_needed_rows_give_a_verdict():
    rules = Rules(catalogues.read(catalogues.shipped()))
    action = Action("level_complete", NOON_US - 3 * US, NOON_US, False, None)

    needed = rules.needed_us(
        action.type, occurred_us=action.occurred_us, received_us=action.received_us, backfill=False
    )

    assert needed == (NOON_US - 3603 * US, NOON_US)
    assert Recent(*needed).covers(*needed)
    assert judge(rules, Recent(*needed), action).verdict == "accepted"


def test_the_window_by_received_of_a_late_action_must_be_known_too():
    rules = Rules(catalogues.read(catalogues.shipped()))
    recent = Recent(complete_since_us=NOON_US - 5 * 3600 * US, complete_until_us=NOON_US - US)
    late = Action("level_complete", NOON_US - 2 * 3600 * US, NOON_US, False, None)

    with pytest.raises(ValueError, match="too few"):
        judge(rules, recent, late)


@settings(max_examples=100, deadline=None)
@given(some_catalogues(), histories, histories, actions, sizes)
def test_a_rewound_player_is_judged_as_if_nothing_had_been_added(
    catalogue, history, undone, action, largest_small
):
    rules = Rules(catalogue)

    with small_rows(largest_small):
        recent = known(rules, history)
        length = len(recent)
        for each in undone:
            remember(rules, recent, each)
        recent.rewind(length)

        assert list(recent.rows()) == list(known(rules, history).rows())
        assert judge(rules, recent, action) == judge(rules, known(rules, history), action)


@pytest.mark.parametrize(
    ("occurred_us", "sent_as_backfill", "expected"),
    [
        pytest.param(0, False, False, id="now"),
        pytest.param(0, True, True, id="sent as one"),
        pytest.param(-rates.MAX_LATE_US, False, False, id="just not too late"),
        pytest.param(-rates.MAX_LATE_US - 1, False, True, id="too late"),
        pytest.param(rates.MAX_EARLY_US, False, False, id="just not too early"),
        pytest.param(rates.MAX_EARLY_US + 1, False, True, id="too early"),
    ],
)
def test_an_action_out_of_its_bounds_can_only_be_a_backfill(occurred_us, sent_as_backfill, expected):
    backfill = rates.effective_backfill(
        NOON_US + occurred_us, NOON_US, sent_as_backfill, rates.MAX_LATE_US, rates.MAX_EARLY_US
    )

    assert backfill is expected


def test_what_is_read_is_cut_to_instants_that_can_be_written():
    assert rates.read_range_us(LOWEST_US, HIGHEST_US) == (LOWEST_US, HIGHEST_US)
    assert rates.read_range_us(NOON_US, NOON_US) == (NOON_US - rates.READ_SLACK_US, NOON_US + 60 * US)


def test_five_rows_take_at_most_350_bytes():
    recent = Recent(complete_since_us=NOON_US)
    for second in range(5):
        recent.add(NOON_US + second * US, NOON_US + second * US, False, 1, 1000, True)

    parts = (recent, recent._rows, recent._magnitude, recent.complete_since_us)

    assert sum(map(sys.getsizeof, parts)) <= 350


def test_a_player_with_an_index_is_pruned_only_once_half_of_it_can_go():
    rules = Rules(catalogues.read(catalogues.shipped()))
    times_us = [NOON_US + second * US for second in range(100)]
    recent = known(rules, [Action("level_complete", at_us, at_us, False, None) for at_us in times_us])

    recent.prune(times_us[49])
    untouched = len(recent), recent.complete_since_us
    recent.prune(times_us[60])

    assert untouched == (100, ALWAYS_US)
    assert (len(recent), recent.complete_since_us) == (40, times_us[60])


def test_backfills_received_since_keep_a_player_with_an_index_from_no_pruning():
    rules = Rules(catalogues.read(catalogues.shipped()))
    later_us = NOON_US + 3600 * US
    recent = known(rules, [Action("level_complete", NOON_US, later_us, True, None)] * 100)

    recent.prune(later_us)

    assert len(recent) == 0


@pytest.mark.parametrize("largest_small", [0, 24])
@pytest.mark.parametrize("undo", ["prune", "rewind"])
def test_what_is_left_of_a_player_is_still_summed(undo, largest_small):
    rules = Rules(catalogues.read(catalogues.shipped()))
    old = Action("client_points", NOON_US - 7200 * US, NOON_US - 7200 * US, False, 1000)
    counted = Action("client_points", NOON_US, NOON_US, False, 1000)
    history = [old] * 10 + [counted] * 5 if undo == "prune" else [counted] * 5 + [old] * 10

    with small_rows(largest_small):
        recent = known(rules, history)
        recent.prune(NOON_US - 3600 * US) if undo == "prune" else recent.rewind(5)
        judgement = judge(rules, recent, Action("level_complete", NOON_US, NOON_US, False, None))

    assert len(recent) == 5
    assert judgement.verdict == "held"
    assert judgement.reason is not None
    assert judgement.reason.seen == 5010


def test_a_cooldown_is_part_of_what_is_needed_before_and_after():
    rules = Rules(catalogues.from_body({"version": "1", "types": {"jump": {"points": 1, "cooldown_s": 30}}}))

    needed = rules.needed_us("jump", occurred_us=NOON_US, received_us=NOON_US + 99, backfill=False)

    assert needed == (NOON_US - 30 * US, NOON_US + 30 * US)
    assert rules.horizon_us == rules.horizon_of_us("jump") == 30 * US
    assert rules.horizon_of_us("unheard_of") == 0
    with pytest.raises(ValueError, match="too few"):
        judge(rules, Recent(needed[0] + 1), Action("jump", NOON_US, NOON_US, False, None))
    with pytest.raises(ValueError, match="too few"):
        judge(rules, Recent(needed[0], needed[1] - 1), Action("jump", NOON_US, NOON_US, False, None))
