"""The age of the oldest unjudged action, and what follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Unavailable
from core.topics import SUBMITTED
from ingest.backlog import Backlog
from service import metrics
from tests.ingest.world import Clock, World, bearer


class Here:
    """A backlog, the offsets Kafka confirmed, and a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.confirmed: dict[tuple[str, int], int] = {}
        self.backlog = Backlog(self.confirmed, clock_s=self.clock.s)

    def confirm(self, offset: int, partition: int = 0) -> None:
        self.confirmed[SUBMITTED.name, partition] = offset

    def pass_time(self, seconds: float) -> None:
        """Time goes by with its notes."""
        for _ in range(round(seconds / 0.25)):
            self.clock.advance(0.25)
            self.backlog.note()


def test_nothing_confirmed_is_nothing_late() -> None:
    here = Here()
    here.pass_time(100)

    assert (here.backlog.oldest_s, here.backlog.late) == (0, False)


def test_what_is_judged_is_no_longer_counted() -> None:
    here = Here()
    here.confirm(9)
    here.pass_time(3)
    before_s = here.backlog.oldest_s
    here.backlog.judged_up_to({0: (1, 10)})

    assert 3 <= before_s <= 3.25
    assert here.backlog.oldest_s == 0


def test_the_oldest_of_what_is_left_counts() -> None:
    here = Here()
    here.confirm(9)
    here.pass_time(4)
    here.confirm(19)
    here.pass_time(2)
    here.backlog.judged_up_to({0: (1, 10)})

    assert 2 <= here.backlog.oldest_s <= 2.25


def test_the_slowest_partition_counts() -> None:
    here = Here()
    here.confirm(0, partition=3)
    here.pass_time(6)
    here.confirm(0, partition=4)
    here.backlog.note()
    here.backlog.judged_up_to({4: (1, 1)})

    assert here.backlog.oldest_s >= 6
    assert here.backlog.late


def test_above_a_minute_more_is_turned_away_until_it_is_worked_off() -> None:
    here = Here()
    here.confirm(999)
    here.pass_time(59)
    here.backlog.check()
    here.pass_time(2)
    with pytest.raises(Unavailable) as refused:
        here.backlog.check()
    here.backlog.judged_up_to({0: (1, 1000)})

    assert 1 <= refused.value.retry_after_s <= 60
    here.backlog.check()


def test_the_time_to_come_back_follows_from_the_pace() -> None:
    here = Here()
    here.confirm(9_999)
    here.pass_time(61)
    here.backlog.judged_up_to({0: (1, 1000)})
    here.clock.advance(1)
    here.backlog.judged_up_to({0: (1, 2000)})

    assert here.backlog.retry_after_s() == 8


def test_a_new_log_makes_the_old_one_s_offsets_void() -> None:
    here = Here()
    here.confirm(5_000)
    here.backlog.note()
    here.backlog.judged_up_to({0: (1, 4_000)})
    here.pass_time(30)
    here.backlog.judged_up_to({0: (2, 10)})
    void_s = here.backlog.oldest_s
    here.confirm(12)
    here.pass_time(1)

    assert void_s == 0
    assert here.backlog.oldest_s >= 1


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.sampled_from([0.25, 1.0, 5.0])), max_size=40)
)
def test_an_age_is_never_less_than_it_is(steps: list[tuple[int, int, float]]) -> None:
    here = Here()
    received: list[float] = []
    judged = 0
    for more, work, seconds in steps:
        received += [here.clock.s()] * more
        here.confirm(len(received) - 1)
        judged = min(len(received), judged + work)
        here.pass_time(seconds)
        here.backlog.judged_up_to({0: (1, judged)})

        oldest_s = here.clock.s() - received[judged] if judged < len(received) else 0.0
        assert here.backlog.oldest_s >= oldest_s - 1e-6


async def test_when_scores_are_late_nobody_is_kept_waiting(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    world.backlog.late = True
    began_s = world.clock.s()
    reply = await world.client.post(
        "/v1/actions",
        json={"action_id": "a", "type": "commit"},
        headers={**bearer(token), "prefer": "wait=10"},
    )

    assert reply.status_code == 202
    assert "preference-applied" not in reply.headers
    assert world.clock.s() == began_s
    assert "reply_to" not in world.delivery.sent[0].headers


async def test_when_scores_are_very_late_new_actions_are_turned_away_and_known_ones_answered(
    world: World,
) -> None:
    token = world.tokens.give("ann", "actions:write")
    world.stream.judging = False
    body = {"action_id": "a", "type": "commit"}
    await world.client.post("/v1/actions", json=body, headers=bearer(token))
    world.backlog.note()
    world.clock.advance(20)
    world.backlog.note()
    world.clock.advance(45)
    world.backlog.note()
    new = await world.client.post("/v1/actions", json={**body, "action_id": "b"}, headers=bearer(token))
    batch = await world.client.post(
        "/v1/actions/batch", json={"actions": [{**body, "action_id": "c"}]}, headers=bearer(token)
    )
    other = await world.client.post("/v1/actions", json={**body, "type": "x"}, headers=bearer(token))

    assert (new.status_code, new.json()["code"]) == (503, "queue_unavailable")
    assert int(new.headers["retry-after"]) >= 1
    assert batch.status_code == 503
    assert other.status_code == 422
    assert len(world.records) == 1


def test_a_lower_offset_confirmed_is_where_the_log_stands_now() -> None:
    here = Here()
    here.confirm(99)
    here.pass_time(3)
    here.confirm(90)
    here.pass_time(1)
    before_s = here.backlog.oldest_s
    here.backlog.judged_up_to({0: (1, 91)})

    assert 4 <= before_s <= 4.5
    assert here.backlog.oldest_s == 0


def test_confirmed_actions_that_the_log_lost_are_said_and_no_longer_waited_for() -> None:
    here = Here()
    here.confirm(9)
    here.pass_time(3)
    here.confirm(19)
    here.pass_time(3)
    lost = metrics.LOST_RECORDS._value.get()
    waiting = here.backlog.waiting(5)
    here.backlog.ended(waiting, {0: 15})
    left_s = here.backlog.oldest_s
    here.backlog.judged_up_to({0: (1, 15)})

    assert waiting == {0: 19}
    assert metrics.LOST_RECORDS._value.get() - lost == 5
    assert 6 <= left_s <= 6.5
    assert here.backlog.oldest_s == 0
    here.backlog.check()


def test_a_log_that_holds_what_was_confirmed_or_was_written_on_meanwhile_has_lost_nothing() -> None:
    here = Here()
    here.confirm(19)
    here.confirm(19, partition=1)
    here.pass_time(6)
    lost = metrics.LOST_RECORDS._value.get()
    waiting = here.backlog.waiting(5)
    here.confirm(25, partition=1)
    here.backlog.ended(waiting, {0: 20, 1: 15})

    assert metrics.LOST_RECORDS._value.get() == lost
    assert here.backlog.waiting(5) == {0: 19, 1: 19}


def test_a_log_is_looked_at_only_where_actions_wait_for_long() -> None:
    here = Here()
    here.confirm(19)
    here.pass_time(4)

    assert here.backlog.waiting(5) == {}


def test_a_stopped_partition_turns_nobody_away_while_the_others_move() -> None:
    here = Here()
    here.backlog.judged_up_to({0: (1, 0), 1: (1, 0)})
    here.confirm(9, partition=0)
    for second in range(100):
        here.confirm(second, partition=1)
        here.pass_time(1)
        here.backlog.judged_up_to({0: (1, 0), 1: (1, second + 1)})

    here.backlog.check()

    assert here.backlog.oldest_s > 99
    assert not here.backlog.late


def test_when_nothing_moves_any_more_more_are_turned_away() -> None:
    here = Here()
    for second in range(30):
        here.confirm(second, partition=1)
        here.pass_time(1)
        here.backlog.judged_up_to({0: (1, 0), 1: (1, second + 1)})
    here.confirm(9, partition=0)
    here.confirm(99, partition=1)
    for _ in range(70):
        here.pass_time(1)
        here.backlog.judged_up_to({0: (1, 0), 1: (1, 30)})

    with pytest.raises(Unavailable):
        here.backlog.check()
