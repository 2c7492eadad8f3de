"""The proxy does to bytes what its words say, and nothing otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.faults.proxy import Link
from trueboard.devstack.ports import free_port

OPEN: list[asyncio.StreamWriter] = []
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    """A link in front of a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = Link("echo", free_port(), server.sockets[0].getsockname()[:2])
    await link.listen()
    yield link
    while OPEN:
        OPEN.pop().transport.abort()
    await link.close()
    server.close()


async def connect(link: Link) -> Ends:
    ends = await asyncio.open_connection("127.0.0.1", link.port)
    OPEN.append(ends[1])
    return ends


async def answer(ends: Ends, sent: bytes, *, within_s: float = 10.0) -> bytes:
    reader, writer = ends
    writer.write(sent)
    await writer.drain()
    return await asyncio.wait_for(reader.readexactly(len(sent)), within_s)


async def nothing_comes(ends: Ends, sent: bytes) -> None:
    with pytest.raises(TimeoutError):
        await answer(ends, sent, within_s=0.3)


async def is_reset(ends: Ends) -> None:
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(ends[0].readexactly(1), 10)


async def test_as_made_it_hands_everything_on(link: Link):
    content = bytes(range(256)) * 4000

    assert await answer(await connect(link), content) == content
    assert link.seen.passed == {"up": len(content), "down": len(content)}


async def test_cut_ends_what_is_open_and_refuses_the_next(link: Link):
    ends = await connect(link)
    await answer(ends, b"before")

    link.cut()

    await is_reset(ends)
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await connect(link)
    await link.heal()
    assert await answer(await connect(link), b"after") == b"after"


async def test_a_reset_ends_what_is_open_and_takes_the_next(link: Link):
    ends = await connect(link)
    await answer(ends, b"before")

    assert link.reset() == 1

    await is_reset(ends)
    assert await answer(await connect(link), b"after") == b"after"


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_what_falls_into_a_black_hole_is_gone_and_the_connection_with_it(link: Link, direction: str):
    ends = await connect(link)
    await answer(ends, b"before")

    link.set([direction], blackhole=True)  # type: ignore[list-item]

    await nothing_comes(ends, b"lost")
    assert link.seen.dropped[direction] == 4  # type: ignore[index]
    await link.heal()
    await is_reset(ends)


async def test_a_frozen_link_keeps_what_was_sent(link: Link):
    ends = await connect(link)
    await answer(ends, b"before")
    link.set(["up", "down"], frozen=True)
    await nothing_comes(ends, b"later")

    await link.heal()

    assert await asyncio.wait_for(ends[0].readexactly(5), 10) == b"later"


async def test_a_limit_resets_after_so_many_bytes(link: Link):
    link.set(["up"], limit_bytes=1000)
    ends = await connect(link)
    assert await answer(ends, b"x" * 900) == b"x" * 900

    ends[1].write(b"x" * 900)

    await is_reset(ends)
    assert link.seen.resets == 1


async def test_slow_and_in_pieces_everything_arrives_in_order(link: Link):
    link.set(["up", "down"], latency_ms=20, jitter_ms=20, slice_bytes=7, bandwidth_kib_s=200)
    content = bytes(range(256)) * 8
    loop = asyncio.get_running_loop()
    begun_s = loop.time()

    assert await answer(await connect(link), content) == content
    assert loop.time() - begun_s > 2 * len(content) / 1024 / 200
