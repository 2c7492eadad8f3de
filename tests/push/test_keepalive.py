"""Each connection is visited once an interval, and one that answers no ping is closed."""

from __future__ import annotations

import asyncio
import itertools
import socket

import pytest

from core.words import MAIN_PERIOD
from push.keepalive import STOPS, Rounds
from tests.push.conftest import RunFeed, raw_reader


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Member:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.visits: list[float] = []

    def visit(self) -> None:
        self.visits.append(self._clock.now_s)


def _pass(rounds: Rounds, clock: Clock, duration_s: float, every_s: float = 0.25) -> None:
    until_s = clock.now_s + duration_s
    while clock.now_s < until_s:
        clock.now_s += every_s
        rounds.sweep()


def test_everybody_is_visited_once_an_interval() -> None:
    clock = Clock()
    rounds = Rounds(20.0, clock_s=clock)
    members = [Member(clock) for _ in range(3 * STOPS + 1)]
    for member in members:
        rounds.add(member)

    _pass(rounds, clock, 100.0)

    assert {len(member.visits) for member in members} == {5}
    for member in members:
        gaps = [after - before for before, after in itertools.pairwise(member.visits)]
        assert gaps == pytest.approx([20.0] * 4, abs=0.3)


def test_who_comes_at_once_is_not_visited_at_once() -> None:
    clock = Clock()
    rounds = Rounds(20.0, clock_s=clock)
    members = [Member(clock) for _ in range(1000)]
    for member in members:
        rounds.add(member)

    _pass(rounds, clock, 20.0)

    instants = [member.visits[0] for member in members]
    assert max(instants.count(instant) for instant in instants) <= 1000 / STOPS


def test_who_left_is_visited_no_more_even_within_the_round() -> None:
    clock = Clock()
    rounds = Rounds(1.0, clock_s=clock)
    one, other = Member(clock), Member(clock)
    for member in (one, other):
        rounds.add(member)

    rounds.remove(one)
    rounds.remove(one)
    _pass(rounds, clock, 2.0, every_s=0.01)

    assert not one.visits
    assert len(other.visits) == 2
    assert len(rounds) == 1


def test_after_a_pause_nobody_is_visited_twice_in_a_row() -> None:
    clock = Clock()
    rounds = Rounds(1.0, clock_s=clock)
    member = Member(clock)
    rounds.add(member)

    clock.now_s += 60.0
    rounds.sweep()
    rounds.sweep()

    assert len(member.visits) == 1


async def _next_frame(raw: socket.socket, opcode: int) -> bytes:
    """The payload of the next short frame with this opcode, whatever comes before it."""
    loop = asyncio.get_running_loop()
    received = b""
    async with asyncio.timeout(10):
        while True:
            received += await loop.sock_recv(raw, 1 << 16)
            at = received.find(bytes([0x80 | opcode]))
            while at >= 0:
                size = received[at + 1] if at + 1 < len(received) else 126
                if size < 126 and at + 2 + size <= len(received):
                    return received[at + 2 : at + 2 + size]
                at = received.find(bytes([0x80 | opcode]), at + 1)


def _masked(opcode: int, payload: bytes, mask: bytes) -> bytes:
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked


@pytest.mark.parametrize("pieces", [1, 2], ids=["whole", "in two pieces"])
async def test_who_answers_pings_stays(run_feed: RunFeed, pieces: int) -> None:
    async with run_feed(ping_interval_s=0.4) as running:
        raw, loop = await raw_reader(running.feed.port, "/ws/scores", "ada"), asyncio.get_running_loop()
        readers = running.feed.hub.channels[MAIN_PERIOD].readers
        pings = []
        for mask in (b"\0\0\0\0", b"\x01\x82\x03\x84", b"\xff\xff\xff\xff"):
            pings.append(await _next_frame(raw, 9))
            answer = _masked(10, pings[-1], mask)
            await loop.sock_sendall(raw, answer[: len(answer) // pieces])
            if pieces == 2:
                await asyncio.sleep(0.02)
                await loop.sock_sendall(raw, answer[len(answer) // 2 :])
        stayed = len(readers)
        raw.close()

    assert stayed == 1
    assert len(set(pings)) == 3, "an answer to an earlier ping is no answer to this one"


@pytest.mark.parametrize("answer", [b"", _masked(10, b"late", b"\0\0\0\0")], ids=["none", "another one"])
async def test_who_does_not_answer_is_closed(run_feed: RunFeed, answer: bytes) -> None:
    async with run_feed(ping_interval_s=0.4) as running:
        raw, loop = await raw_reader(running.feed.port, "/ws/scores", "ada"), asyncio.get_running_loop()
        await _next_frame(raw, 9)
        await loop.sock_sendall(raw, answer)
        close = await _next_frame(raw, 8)
        await running.until(lambda: not running.feed.hub.channels[MAIN_PERIOD].readers)
        raw.close()

    assert close[:2] == (1011).to_bytes(2)


async def _connected(port: int) -> socket.socket:
    raw, loop = await raw_reader(port, "/connection/websocket", "ada"), asyncio.get_running_loop()
    async with asyncio.timeout(10):
        assert b"\r\n\r\n" in await loop.sock_recv(raw, 1 << 16)
    await loop.sock_sendall(raw, _masked(1, b'{"id":1,"connect":{}}', b"\0\0\0\0"))
    return raw


async def _until_text(raw: socket.socket, text: bytes) -> None:
    received = b""
    async with asyncio.timeout(10):
        while b"\x81" + bytes([len(text)]) + text not in received:
            received += await asyncio.get_running_loop().sock_recv(raw, 1 << 16)


@pytest.mark.parametrize("pieces", [1, 2], ids=["whole", "in two pieces"])
async def test_a_centrifuge_client_that_answers_pings_stays(run_feed: RunFeed, pieces: int) -> None:
    async with run_feed(ping_interval_s=0.4) as running:
        raw, loop = await _connected(running.feed.port), asyncio.get_running_loop()
        for mask in (b"\0\0\0\0", b"\x01\x82\x03\x84", b"\xff\xff\xff\xff"):
            await _until_text(raw, b"{}")
            answer = _masked(1, b"{}", mask)
            await loop.sock_sendall(raw, answer[: len(answer) // pieces])
            if pieces == 2:
                await asyncio.sleep(0.02)
                await loop.sock_sendall(raw, answer[len(answer) // 2 :])
        await _until_text(raw, b"{}")
        raw.close()


async def test_a_centrifuge_client_that_answers_no_ping_is_closed(run_feed: RunFeed) -> None:
    async with run_feed(ping_interval_s=0.4) as running:
        raw = await _connected(running.feed.port)
        close = await _next_frame(raw, 8)
        raw.close()

    assert close[:2] == (3012).to_bytes(2)
