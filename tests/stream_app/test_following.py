"""Followers' threads: what makes one look into the ledger, and when copies are compared with it."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from core.errors import Unavailable
from service import metrics
from storage.redis.boards import PAGE
from stream_app import following
from stream_app.following import COMPARED_PAGES, Following, Keeping, Listening


class Follower(Following):
    """Notes for each round whether it looks into the ledger."""

    def __init__(self) -> None:
        super().__init__("follower", _raise)
        self.looks: list[bool] = []
        self.went = threading.Condition()

    def round(self, *, look: bool) -> None:
        with self.went:
            self.looks.append(look)
            self.went.notify_all()

    def close(self) -> None: ...

    def after(self, rounds: int) -> list[bool]:
        with self.went:
            assert self.went.wait_for(lambda: len(self.looks) >= rounds, 30)
            return self.looks[:rounds]


def _raise(error: BaseException) -> None:
    raise error


def test_what_is_in_hand_makes_no_follower_look_into_the_ledger(monkeypatch):
    monkeypatch.setattr(following, "TIMER_S", 3600.0)
    follower = Follower()
    follower.start()
    try:
        follower.after(1)
        follower.wake(in_hand=True)
        follower.after(2)
        follower.wake()

        assert follower.after(3) == [True, False, True]
    finally:
        follower.end()
        follower.join()


def test_the_timer_makes_a_follower_look(monkeypatch):
    monkeypatch.setattr(following, "TIMER_S", 0.001)
    follower = Follower()
    follower.start()
    try:
        assert follower.after(3) == [True, True, True]
    finally:
        follower.end()
        follower.join()


def test_who_is_never_let_sleep_by_what_is_in_hand_looks_all_the_same(monkeypatch):
    """Or one that stands where the hand does not reach back to would stand there under any steady load."""
    monkeypatch.setattr(following, "TIMER_S", 0.2)
    follower = Follower()
    follower.start()
    try:
        follower.after(1)
        until_s = time.monotonic() + 30
        while not (any(follower.looks[1:]) and False in follower.looks):
            assert time.monotonic() < until_s
            follower.wake(in_hand=True)
            time.sleep(0.01)
    finally:
        follower.end()
        follower.join()


def test_a_look_that_was_asked_for_is_not_lost_to_what_is_in_hand(monkeypatch):
    monkeypatch.setattr(following, "TIMER_S", 3600.0)
    follower = Follower()
    follower.wake()
    follower.wake(in_hand=True)
    follower.start()
    try:
        assert follower.after(2) == [True, True]
    finally:
        follower.end()
        follower.join()


def test_only_what_is_in_nobodys_hand_here_is_heard_of():
    woken: list[int] = []
    listening = Listening("", [SimpleNamespace(wake=lambda: woken.append(1))], {7, 8}.__contains__)  # type: ignore[list-item]

    for payload in ("7", "8"):
        listening.heard(payload)
    assert woken == []
    for payload in ("9", "", "not a number"):
        listening.heard(payload)
    assert len(woken) == 3


class Copy:
    """A copy of so many pages, one of which differs."""

    period = "main:all-time"

    def __init__(self, pages: int, differs_on: int = -1) -> None:
        self.pages, self.differs_on = pages, differs_on
        self.compared: list[int] = []
        self.done: list[str] = []
        self._page = 0

    @property
    def is_being_compared(self) -> bool:
        return self._page > 0

    def compare(self, *, most: int) -> int:
        self.compared.append(most // PAGE)
        differing = 0
        for _ in range(most // PAGE):
            differing += self._page == self.differs_on
            self._page = (self._page + 1) % self.pages
            if not self._page:
                break
        return differing

    def discard(self) -> None:
        self.done.append("discarded")

    def close(self) -> None:
        self.done.append("closed")

    def step(self) -> None:
        self.done.append("built")


class Lagging(Copy):
    """One that nothing can be brought to, so many revisions behind; None where nobody can say."""

    def __init__(self, lag: int | None) -> None:
        super().__init__(pages=1)
        self._lag = lag

    def step(self, *, look: bool) -> bool:
        raise Unavailable("Redis: away")

    def lag(self) -> int:
        if self._lag is None:
            raise Unavailable("Postgres: away")
        return self._lag


def keeping(copy: Copy, every_s: float = 10.0) -> tuple[Keeping, float]:
    """Whoever keeps this copy, and the instant it began."""
    kept: Any = Keeping([copy], None, _raise, postgres_url="", reconcile_every_s=every_s)  # type: ignore[arg-type, list-item]
    return kept, kept._look_began_s


def test_the_pages_of_a_look_are_spread_over_its_interval():
    copy = Copy(pages=1000)
    kept, began_s = keeping(copy)
    for tenth in range(100):
        kept.compare_due(began_s + 10.0 + tenth / 10)

    assert set(copy.compared) == {1}
    assert COMPARED_PAGES - 2 <= sum(copy.compared) <= COMPARED_PAGES


def test_pages_that_came_due_while_nobody_was_there_are_made_good_at_once():
    copy = Copy(pages=1000)
    kept, began_s = keeping(copy)
    for later_s in (10.0, 11.01, 100.0):
        kept.compare_due(began_s + later_s)

    assert copy.compared == [1, 2, COMPARED_PAGES]


def test_a_copy_that_was_looked_through_is_left_alone_until_the_next_interval():
    copy = Copy(pages=2)
    kept, began_s = keeping(copy)
    for later_s in (5.0, 10.0, 11.0, 12.0, 19.0, 20.0):
        kept.compare_due(began_s + later_s)

    assert copy.compared == [1, 2, 1]


def test_a_copy_that_differs_is_built_anew_at_once():
    copy = Copy(pages=3, differs_on=1)
    kept, began_s = keeping(copy)
    for later_s in (10.0, 10.6):
        kept.compare_due(began_s + later_s)

    assert copy.done == ["discarded", "built"]


def test_a_keeper_asks_for_its_lock_once_a_second_and_at_once_when_it_lost_it(monkeypatch):
    asked: list[str] = []

    class Session:
        closed = False

        def execute(self, *_: Any) -> Any:
            asked.append("lock")
            return SimpleNamespace(fetchone=lambda: (True,))

        def close(self) -> None:
            self.closed = True

    sessions: list[Session] = []

    def connect(*_: Any, **__: Any) -> Session:
        sessions.append(Session())
        return sessions[-1]

    now_s = time.monotonic()
    monkeypatch.setattr(following.connections, "connect", connect)
    monkeypatch.setattr(following.time, "monotonic", lambda: now_s)
    kept, _ = keeping(Copy(pages=1))

    assert kept._is_keeper()
    assert kept._is_keeper()
    assert len(asked) == 1
    now_s += following.TIMER_S
    assert kept._is_keeper()
    assert len(asked) == 2
    sessions[-1].closed = True
    assert kept._is_keeper()
    assert (len(asked), len(sessions)) == (3, 2)


@pytest.mark.parametrize("error", [Unavailable("no table yet"), psycopg.errors.QueryCanceled()])
def test_nobody_keeps_copies_before_what_is_in_hand_was_held_against_the_ledger(monkeypatch, error):
    class Session:
        closed = False

        def execute(self, *_: Any) -> Any:
            return SimpleNamespace(fetchone=lambda: (True,))

        def close(self) -> None:
            self.closed = True

    asked: list[Any] = []

    def prove(connection: Any) -> None:
        asked.append(connection)
        if len(asked) < 3:
            raise error

    monkeypatch.setattr(following.connections, "connect", lambda *_, **__: Session())
    copy = Copy(pages=1)
    kept: Any = Keeping([copy], None, _raise, postgres_url="", reconcile_every_s=9.0, prove=prove)  # type: ignore[arg-type, list-item]
    for _ in range(2):
        with pytest.raises(Unavailable):
            kept._is_keeper()

    assert kept._is_keeper()
    assert kept._is_keeper()
    assert len(asked) == 3
    assert copy.done == ["closed"] * 3


@pytest.mark.parametrize(("lag", "told"), [(7, 7.0), (None, 3.0)])
def test_how_far_a_copy_falls_behind_is_told_while_it_cannot_follow(monkeypatch, lag, told):
    kept, _ = keeping(Lagging(lag))
    monkeypatch.setattr(kept, "_is_keeper", lambda: True)
    monkeypatch.setattr(kept, "_replier", SimpleNamespace(waiting=list, put_back=lambda waiting: None))
    gauge = metrics.PROJECTION_LAG_REVISIONS.labels(Lagging.period)
    gauge.set(3)

    with pytest.raises(Unavailable):
        kept.round(look=True)

    assert gauge._value.get() == told
    monkeypatch.setattr(kept._copies[0], "step", lambda *, look: False)
    kept.round(look=True)
    assert gauge._value.get() == 0
