"""The leaders kept up by changes: right, or known not to be known."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from core.leading import CAPACITY, Leading
from core.ranking import Entry

users = st.sampled_from([f"u{number}" for number in range(12)])
standings = st.tuples(st.integers(-3, 6), st.integers(0, 3))
changes = st.lists(st.tuples(users, st.none() | standings), max_size=60)


def sorted_truth(truth: dict[str, Entry]) -> list[Entry]:
    return sorted(truth.values(), key=lambda e: (-e.score, e.reached_at_us, e.user_id.encode()))


@settings(max_examples=400)
@given(st.dictionaries(users, standings), changes, st.integers(1, 6), st.integers(0, 5), st.booleans())
def test_the_top_is_exactly_the_sorted_truth_or_not_known(begin, steps, capacity, limit, reload):
    truth = {user: Entry(user, user.upper(), *standing) for user, standing in begin.items()}
    leading = Leading(sorted_truth(truth)[:capacity], len(truth), capacity=capacity)
    limit = min(limit, capacity)
    for user, standing in steps:
        after = None if standing is None else Entry(user, user.upper(), *standing)
        if after is None:
            truth.pop(user, None)
        else:
            truth[user] = after
        leading.count = len(truth)
        leading.change(user, after)
        found = leading.top(limit)

        assert found is None or found == sorted_truth(truth)[:limit]

        if found is None and reload:
            leading = Leading(sorted_truth(truth)[:capacity], len(truth), capacity=capacity)

            assert leading.top(limit) == sorted_truth(truth)[:limit]


@given(st.dictionaries(users, standings), changes)
def test_a_period_that_fits_is_always_known(begin, steps):
    truth = {user: Entry(user, user, *standing) for user, standing in begin.items()}
    leading = Leading(truth.values(), len(truth))
    for user, standing in steps:
        truth.pop(user, None)
        if standing is not None:
            truth[user] = Entry(user, user, *standing)
        leading.count = len(truth)
        leading.change(user, truth.get(user))

        assert leading.top(10) == sorted_truth(truth)[:10]


def test_leaders_who_leave_are_made_up_for_until_too_many_have_left():
    truth = {f"u{n:03}": Entry(f"u{n:03}", "", -n, 0) for n in range(CAPACITY + 50)}
    leading = Leading(sorted_truth(truth)[:CAPACITY], len(truth))
    left = []
    for entry in sorted_truth(truth)[: CAPACITY - 9]:
        del truth[entry.user_id]
        leading.count = len(truth)
        leading.change(entry.user_id, None)
        left.append(leading.top(10))

    assert all(found is not None for found in left[:-1])
    assert left[-1] is None


def test_a_rename_of_a_leader_shows():
    leading = Leading([Entry("ada", "Ada", 5, 1)], 1)

    leading.change("ada", Entry("ada", "Countess", 5, 1))

    assert leading.top(10) == [Entry("ada", "Countess", 5, 1)]
