"""One frame, many readers: what each of them sees, and when."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from prometheus_client import REGISTRY

from core.words import MAIN_PERIOD
from push.channels import BURST, Dialect
from push.close_codes import CloseCode
from push.protocols import centrifuge, leaderboard, scoreboard, scores
from push.server import DIALECTS
from tests.push.views import EPOCH, LATER_EPOCH, empty_view, view
from tests.push.world import Socket, World

SCORES, SCOREBOARD, LEADERBOARD = scores.DIALECT, scoreboard.DIALECT, leaderboard.DIALECT


def _world(revision: int = 1) -> World:
    world = World()
    world.hub.publish(view(revision))
    return world


def _revisions(socket: Socket) -> list[int]:
    return [frame["revision"] for frame in socket.boards]


def _metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# connecting


@pytest.mark.parametrize("dialect", [SCORES, SCOREBOARD], ids=lambda d: d.name)
def test_a_new_reader_is_sent_the_current_board_at_once(dialect: Dialect) -> None:
    socket = _world(7).join(dialect)

    assert _revisions(socket) == [7]


def test_a_new_reader_of_the_leaderboard_is_welcomed_before_the_board() -> None:
    world = _world(7)
    socket = world.join(LEADERBOARD)

    world.pass_ms(200)

    assert [written.frame["type"] for written in socket.written] == [
        "connection_success",
        "leaderboard_update",
    ]
    assert socket.written[0].frame["data"] == {"userId": "ada"}


def test_an_empty_board_greets_nobody_on_the_scoreboard_and_everybody_else() -> None:
    world = World()
    world.hub.publish(empty_view(1))
    sockets = {dialect.name: world.join(dialect) for dialect in DIALECTS}

    world.pass_ms(300)

    assert {name: len(socket.boards) for name, socket in sockets.items()} == {
        "scores": 1,
        "scoreboard": 0,
        "leaderboard": 1,
    }


def test_a_board_that_becomes_empty_is_shown_to_those_who_watch() -> None:
    world = _world(1)
    socket = world.join(SCOREBOARD)
    world.pass_ms(200)

    world.hub.publish(empty_view(2))

    assert socket.boards[-1]["data"] == {"user_id": None, "new_score": None, "rankings": []}


# the latest, and never back


def test_what_is_older_or_equal_is_not_shown_whoever_brings_it() -> None:
    world = _world(7)
    socket = world.join(SCORES)
    world.pass_ms(200)

    taken = [world.hub.publish(v) for v in (view(6), view(7), empty_view(7), view(8), view(8))]

    assert taken == [False, False, False, True, False]
    assert _revisions(socket) == [7, 8]


def test_a_later_epoch_is_newer_whatever_its_revision() -> None:
    world = _world(700)
    socket = world.join(SCORES)
    world.pass_ms(200)

    world.hub.publish(view(3, epoch=LATER_EPOCH))
    world.pass_ms(200)
    world.hub.publish(view(701, epoch=EPOCH))
    world.pass_ms(200)

    assert [written.position for written in socket.written] == [(EPOCH, 700), (LATER_EPOCH, 3)]


def test_a_period_nobody_serves_is_left_alone() -> None:
    other = view(9)
    world = _world(1)

    taken = world.hub.publish(type(other)("other:all-time", other.position, 0, ()))

    assert not taken


def test_of_a_flood_each_reader_gets_the_latest_ten_times_a_second() -> None:
    world = _world(1)
    socket = world.join(SCORES)
    before = _metric("trueboard_frames_merged_total")

    for revision in range(2, 1002):
        world.hub.publish(view(revision))
        world.pass_ms(1)
    world.pass_ms(200)

    gaps = [b.at_ms - a.at_ms for a, b in itertools.pairwise(socket.written)]
    assert min(gaps) >= 100
    assert 9 <= len(socket.written) <= 12
    assert _revisions(socket)[-1] == 1001
    merged = _metric("trueboard_frames_merged_total") - before
    assert merged == 1001 - len(socket.written)


def test_a_flood_costs_turns_by_time_not_by_publications() -> None:
    world = _world(1)
    for _ in range(100):
        world.join(SCORES)
        world.pass_ms(1)
    world.turns = 0

    for revision in range(2, 2002):
        world.hub.publish(view(revision))
        world.pass_ms(0.5)

    assert world.turns <= 1000 / 10 + 5


def test_readers_that_were_sent_the_same_are_served_as_one() -> None:
    world = _world(1)
    sockets = [world.join(SCORES) for _ in range(50)]
    world.pass_ms(500)
    world.hub.publish(view(2))
    world.pass_ms(500)

    full, served = sockets[7].reader, len(world.hub.channels[MAIN_PERIOD].idle)
    assert full is not None
    world.hub.block(full)
    world.hub.publish(view(3))
    world.pass_ms(500)
    world.hub.publish(view(4))
    world.pass_ms(500)
    world.drain(sockets[7])
    world.pass_ms(500)
    world.hub.publish(view(5))
    world.pass_ms(500)

    assert served == 1
    assert _revisions(sockets[7]) == [1, 2, 4, 5]
    assert {tuple(_revisions(socket)) for socket in sockets if socket.reader is not full} == {(1, 2, 3, 4, 5)}
    assert len(world.hub.channels[MAIN_PERIOD].idle) == 1


def test_a_reader_is_looked_at_once_for_every_frame_it_gets() -> None:
    world = _world(1)
    sockets = [world.join(SCORES) for _ in range(50)]
    looked_at, serve = 0, world.hub._serve

    def counting(*arguments: Any) -> int:
        nonlocal looked_at
        looked_at += 1
        return serve(*arguments)

    world.hub._serve = counting  # type: ignore[method-assign]
    for revision in range(2, 1002):
        world.hub.publish(view(revision))
        world.pass_ms(1)

    sent = sum(len(socket.written) for socket in sockets)
    assert looked_at <= sent + len(sockets)


def test_who_reads_publications_shares_ticks_with_whoever_came_at_another_time() -> None:
    world = _world(1)
    sockets = []
    for revision in range(2, 202):
        if len(sockets) < 5:
            sockets.append(world.follow(centrifuge.dialect("board:main", delta=False)))
        world.hub.publish(view(revision))
        world.pass_ms(7)

    times = [[written.at_ms for written in socket.written] for socket in sockets]
    lately = [[at_ms for at_ms in each if at_ms > times[-1][1]] for each in times]
    assert all(each == lately[0] for each in lately)
    assert len(lately[0]) == pytest.approx(200 * 7 / 50, abs=2)


def test_more_readers_than_a_burst_are_all_served() -> None:
    world = _world(1)
    sockets = [world.join(SCORES) for _ in range(2 * BURST + 7)]
    world.pass_ms(500)

    world.hub.publish(view(2))
    at_once = sum(len(socket.written) == 2 for socket in sockets)
    world.pass_ms(5)

    assert at_once == BURST
    assert all(_revisions(socket) == [1, 2] for socket in sockets)


# slow readers


def test_a_full_socket_is_left_alone_and_gets_the_latest_when_it_drains() -> None:
    world = _world(1)
    slow, quick = world.join(SCORES, room=2), world.join(SCORES)

    for revision in range(2, 50):
        world.pass_ms(150)
        world.hub.publish(view(revision))
    world.drain(slow)

    assert _revisions(slow) == [1, 2, 49]
    assert _revisions(quick) == list(range(1, 50))


def test_nobody_joins_a_reader_whose_socket_another_of_its_channels_has_just_filled() -> None:
    world = World()
    shared, filling = world.join(SCORES), world.join(LEADERBOARD)
    world.hub.publish(view(1))
    world.pass_ms(500)
    other = world.join(SCORES)
    # Alone, as one that was blocked is; then everybody is served in one turn, `shared` first.
    for socket in (shared, other):
        assert socket.reader is not None
        world.hub.block(socket.reader)
    world.pass_ms(500)
    give = filling.give

    def fills(frame: bytes) -> int:
        assert shared.reader is not None
        world.hub.block(shared.reader)
        return give(frame)

    filling.give = fills  # type: ignore[method-assign]
    turn, world.hub.turn = world.hub.turn, lambda: None  # type: ignore[method-assign]
    world.drain(shared)
    world.hub.publish(view(2))
    world.drain(other)
    world.hub.turn = turn  # type: ignore[method-assign]
    world.hub.turn()
    filling.give = give  # type: ignore[method-assign]
    world.pass_ms(500)
    world.hub.publish(view(3))
    world.pass_ms(500)
    world.drain(shared)
    world.hub.publish(view(4))
    world.pass_ms(500)

    assert _revisions(other)[-2:] == [3, 4]
    assert _revisions(shared)[-1] == 4


def test_a_reader_that_stays_stalled_is_closed_as_slow() -> None:
    world = _world(1)
    stalled, slow = world.join(SCORES, room=1), world.join(SCORES, room=1)

    for _ in range(21):
        world.pass_ms(500)
        world.drain(slow, room=1)
        world.hub.sweep(world.now_s)

    assert (stalled.closed, slow.closed) == (CloseCode.SLOW, None)


def test_who_left_is_forgotten_and_counted_out() -> None:
    world = _world(1)
    before = _metric("trueboard_websocket_connections", dialect="scores")
    socket = world.join(SCORES)
    during = _metric("trueboard_websocket_connections", dialect="scores")
    assert socket.reader is not None

    world.hub.leave(socket.reader)
    world.hub.leave(socket.reader)
    world.hub.publish(view(2))
    world.pass_ms(500)
    world.hub.block(socket.reader)
    world.hub.unblock(socket.reader)

    assert _revisions(socket) == [1]
    assert during == before + 1
    assert _metric("trueboard_websocket_connections", dialect="scores") == before
    assert not world.hub.channels[MAIN_PERIOD].readers


# errors


def test_a_token_that_expires_says_so_and_closes() -> None:
    world = _world(1)
    socket = world.join(LEADERBOARD, expires_in_s=5)
    world.pass_ms(4_900)
    world.hub.sweep(world.now_s)
    open_before = socket.closed is None

    world.pass_ms(200)
    world.hub.publish(view(2))
    world.hub.sweep(world.now_s)
    world.pass_ms(300)
    world.hub.publish(view(3))
    world.pass_ms(300)

    assert open_before
    assert socket.closed is CloseCode.UNAUTHENTICATED
    assert socket.written[-1].frame["data"]["code"] == "token_expired"


def test_a_stalled_reader_whose_token_expires_is_closed_without_waiting() -> None:
    world = _world(1)
    socket = world.join(LEADERBOARD, room=1, expires_in_s=1)

    world.pass_ms(1_100)
    world.hub.sweep(world.now_s)

    assert socket.closed is CloseCode.UNAUTHENTICATED


def test_nothing_is_said_after_a_token_has_expired() -> None:
    world = _world(1)
    socket = world.join(LEADERBOARD, expires_in_s=0.01)
    assert socket.reader is not None
    world.pass_ms(20)

    world.hub.sweep(world.now_s)
    world.hub.tell(socket.reader, "unreadable_message", "why")
    world.hub.publish(view(2))
    world.pass_ms(500)

    codes = [written.frame["data"].get("code") for written in socket.written]
    assert codes == [None, "token_expired"]
    assert socket.closed is CloseCode.UNAUTHENTICATED


def test_an_error_goes_to_the_one_it_concerns() -> None:
    world = _world(1)
    one, other = world.join(LEADERBOARD), world.join(LEADERBOARD)
    world.pass_ms(500)
    assert one.reader is not None

    world.hub.tell(one.reader, "unreadable_message", "why")

    assert one.written[-1].frame["data"] == {"code": "unreadable_message", "message": "why"}
    assert all(written.frame["type"] != "error" for written in other.written)


def test_errors_repeated_faster_than_they_can_be_sent_do_not_hide_the_board() -> None:
    world = _world(1)
    socket = world.join(LEADERBOARD)
    world.pass_ms(500)
    assert socket.reader is not None

    for revision in range(2, 102):
        world.hub.tell(socket.reader, "unreadable_message", "why")
        world.hub.publish(view(revision))
        world.pass_ms(10)
    world.pass_ms(300)

    kinds = [written.frame["type"] for written in socket.written]
    assert 3 <= kinds.count("error") <= 7
    assert _revisions(socket)[-1] == 101


def test_a_board_being_rebuilt_is_told_to_all_and_shown_again_after() -> None:
    world = _world(1)
    named, plain = world.join(LEADERBOARD), world.join(SCORES)
    world.pass_ms(500)

    world.hub.tell_all(MAIN_PERIOD, "board_rebuilding", "why")
    world.pass_ms(500)
    world.hub.repeat(MAIN_PERIOD)
    world.pass_ms(500)

    assert [w.frame["type"] for w in named.written][2:] == ["error", "leaderboard_update"]
    assert _revisions(plain) == [1]


# any history


class AnyHistory(RuleBasedStateMachine):
    """Readers come, go, stall and drain while publications arrive in any order."""

    readers = Bundle("readers")

    @initialize(revision=st.integers(1, 3))
    def begin(self, revision: int) -> None:
        self.world = World()
        self.world.hub.publish(view(revision))
        self.everybody: list[Socket] = []
        self.left: set[int] = set()
        self.seen: dict[tuple[str, tuple[str, int]], str] = {}

    @rule(target=readers, dialect=st.sampled_from(DIALECTS), room=st.sampled_from([math.inf, 1, 2]))
    def join(self, dialect: Dialect, room: float) -> Socket:
        socket = self.world.join(dialect, room=room)
        self.everybody.append(socket)
        return socket

    @rule(socket=consumes(readers))
    def leave(self, socket: Socket) -> None:
        assert socket.reader is not None
        self.world.hub.leave(socket.reader)
        self.left.add(id(socket))

    @rule(socket=readers)
    def stall(self, socket: Socket) -> None:
        assert socket.reader is not None
        self.world.hub.block(socket.reader)

    @rule(socket=readers, room=st.sampled_from([math.inf, 1]))
    def drain(self, socket: Socket, room: float) -> None:
        self.world.drain(socket, room)

    @rule(socket=readers)
    def misunderstand(self, socket: Socket) -> None:
        assert socket.reader is not None
        self.world.hub.tell(socket.reader, "unreadable_message", "why")

    @rule(revision=st.integers(1, 60), epoch=st.sampled_from([EPOCH, EPOCH, EPOCH, LATER_EPOCH]))
    def publish(self, revision: int, epoch: str) -> None:
        self.world.hub.publish(view(revision, epoch=epoch))

    @rule(revisions=st.integers(1, 5))
    def go_on(self, revisions: int) -> None:
        epoch, revision = self.world.position
        for step in range(revisions):
            self.world.hub.publish(view(revision + step + 1, epoch=epoch))

    @rule(duration_ms=st.sampled_from([0.4, 3, 10, 50, 99, 100, 101, 250]))
    def wait(self, duration_ms: float) -> None:
        self.world.pass_ms(duration_ms)

    @invariant()
    def nothing_goes_back_or_comes_too_soon(self) -> None:
        for socket in self.everybody:
            for one, next_one in itertools.pairwise(socket.written):
                assert next_one.at_ms - one.at_ms >= 100
                assert next_one.position >= one.position
            boards = [written for written in socket.written if written.is_board]
            for one, next_one in itertools.pairwise(boards):
                assert next_one.position > one.position
            for written in socket.written:
                assert written.position == written.latest

    @invariant()
    def bookkeeping_is_bounded_by_readers(self) -> None:
        hub = self.world.hub
        open_readers = len(self.everybody) - len(self.left)
        channel = hub.channels[MAIN_PERIOD]
        assert len(channel.readers) == open_readers
        waiting = len(hub._due) + sum(map(len, hub._wheel.values())) + len(channel.idle)
        assert waiting <= len(self.everybody)
        assert all(cohort.readers.keys() <= channel.readers.keys() for cohort in channel.idle)
        assert all(reader in reader.cohort.readers for reader in channel.readers)
        assert all(len(reader.notices) <= 2 for reader in channel.readers)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        staying = [socket for socket in self.everybody if id(socket) not in self.left]
        for socket in staying:
            self.world.drain(socket)
        self.world.pass_ms(1_000)
        self.nothing_goes_back_or_comes_too_soon()
        for socket in staying:
            boards = [written for written in socket.written if written.is_board]
            assert boards[-1].position == self.world.position
        assert not self.world.hub._wheel
        assert not self.world.hub._due


AnyHistory.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase
