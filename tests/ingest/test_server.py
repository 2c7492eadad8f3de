"""What a client may do with a connection, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable

import pytest

from ingest import server
from tests.ingest.world import World, bearer

QUICK_S = 0.4


class Listening:
    """The service on a port of this machine."""

    def __init__(self, world: World, running: server.Server, port: int) -> None:
        self.world, self.port = world, port
        self.connections = running.server_state.connections

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def say(self, raw: bytes, answers: int = 1) -> bytes:
        """What the service answers: so many whole answers, or what comes until it closes."""
        reader, writer = await self.open()
        writer.write(raw)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            async with asyncio.timeout(5):
                while _whole(answer) < answers and (chunk := await reader.read(65_536)):
                    answer += chunk
        writer.close()
        return answer

    async def say_in_two(self, raw: bytes, rest: bytes) -> bytes:
        """What comes until it closes, `rest` being said once the head of an answer is there."""
        reader, writer = await self.open()
        writer.write(raw)
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n\r\n")
            writer.write(rest)
            answer += await reader.read()
        writer.close()
        return answer


def _whole(answer: bytes) -> int:
    """How many whole answers these are, interim ones left out."""
    count = 0
    while b"\r\n\r\n" in answer:
        head, _, answer = answer.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 1"):
            continue
        length = re.search(rb"content-length: (\d+)", head)
        if length is None or len(answer) < int(length[1]):
            break
        answer = answer[int(length[1]) :]
        count += 1
    return count


async def started(running: server.Server) -> int:
    """The port it listens on, once it does."""
    while not running.started:  # noqa: ASYNC110 — uvicorn has no event for it
        await asyncio.sleep(0.01)
    port: int = running.servers[0].sockets[0].getsockname()[1]
    return port


@pytest.fixture
async def listening(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Listening]:
    monkeypatch.setattr(server, "RECEIVE_S", QUICK_S)
    monkeypatch.setattr(server, "READ_S", QUICK_S)
    running = server.Server(server.configure(world.app, "127.0.0.1", 0), on_stop=lambda: None)
    task = asyncio.create_task(running.serve())
    yield Listening(world, running, await started(running))
    running.should_exit = True
    await task


def post(body: bytes, *headers: str, token: str | None = None, length: int | None = None) -> bytes:
    lines = [
        "POST /v1/actions HTTP/1.1",
        "Host: test",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        *([f"Authorization: Bearer {token}"] if token else []),
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


GET = b"GET /api/scores/top10 HTTP/1.1\r\nHost: test\r\n"


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def only_problem(answer: bytes) -> int:
    """The status of the one problem that was answered. Raises if it is not whole or not alone."""
    told: int = json.loads(answer.partition(b"\r\n\r\n")[2])["status"]
    assert status(answer) == told
    return told


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(GET + b"\r\n", {200}, id="as it should be"),
        pytest.param(b"GET /api/scores/top10 HTTP/1.1\r\n\r\n", {400}, id="no Host"),
        pytest.param(GET + b"Host: other\r\n\r\n", {400}, id="two Hosts"),
        pytest.param(GET + b"X: " + b"a" * 8200 + b"\r\n\r\n", {431}, id="a header of 8 KiB"),
        pytest.param(GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", {431, 400}, id="a header of 70 KB"),
        pytest.param(GET + b"".join(b"X%d: a\r\n" % n for n in range(64)) + b"\r\n", {431}, id="65 headers"),
        pytest.param(GET + b"X: a\r\n b\r\n\r\n", {400}, id="a folded header"),
        pytest.param(GET + b"X: a\x00b\r\n\r\n", {400}, id="a NUL in a header"),
        pytest.param(GET.replace(b"\r\n", b"\n") + b"\n", {400}, id="bare line feeds"),
        pytest.param(b"GET /api/scores/top10\r\n\r\n", {400}, id="HTTP/0.9"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 405}, id="the preface of HTTP/2"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}, id="a TLS hello"),
        pytest.param(post(b"{}", "Transfer-Encoding: chunked"), {400}, id="a length and chunks"),
        pytest.param(post(b"{}", "Content-Length: 3"), {400}, id="two lengths"),
        pytest.param(post(b"", length=-1), {400}, id="a negative length"),
        pytest.param(post(b"", length=10_000_000_000), {413}, id="a length of 10 GB"),
        pytest.param(post(b"x" * 17_000), {413}, id="17 KB"),
        pytest.param(
            b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", {400, 414}, id="a long path"
        ),
        pytest.param(b"FOO /v1/actions HTTP/1.1\r\nHost: t\r\n\r\n", {400, 405}, id="no method of HTTP"),
        pytest.param(b"TRACE /v1/actions HTTP/1.1\r\nHost: t\r\n\r\n", {405}, id="TRACE"),
        pytest.param(b"TRACE /v1/actions/a HTTP/1.1\r\nHost: t\r\n\r\n", {405}, id="TRACE with a parameter"),
        pytest.param(b"CONNECT test:80 HTTP/1.1\r\nHost: t\r\n\r\n", {400, 404, 405}, id="CONNECT"),
        pytest.param(b"GET //v1//actions HTTP/1.1\r\nHost: t\r\n\r\n", {404}, id="two slashes"),
        pytest.param(b"GET /v1/actions/.. HTTP/1.1\r\nHost: t\r\n\r\n", {404}, id="a way up"),
        pytest.param(b"GET /v1/actions/%2e%2e HTTP/1.1\r\nHost: t\r\n\r\n", {404}, id="an encoded way up"),
        pytest.param(b"GET /api/scores/top10/ HTTP/1.1\r\nHost: t\r\n\r\n", {404}, id="a slash at the end"),
        pytest.param(GET + b"X-HTTP-Method-Override: POST\r\n\r\n", {200}, id="an override of the method"),
    ],
)
async def test_what_is_no_clear_request_is_refused(
    listening: Listening, raw: bytes, expected: set[int]
) -> None:
    answer = await listening.say(raw)
    head, _, body = answer.partition(b"\r\n\r\n")

    assert status(answer) in expected
    if status(answer) != 200:
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] == status(answer)
    assert b"server:" not in head.lower()
    assert not listening.world.records


async def test_a_chunked_body_is_counted_as_it_comes(listening: Listening) -> None:
    token = listening.world.tokens.give("ann", "actions:write")
    head = post(b"", "Transfer-Encoding: chunked", token=token).replace(b"Content-Length: 0\r\n", b"")
    small = b'{"action_id":"a","type":"commit"}'
    taken = await listening.say(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(small), small))
    refused = await listening.say(head + b"1000\r\n" + b" " * 4096 + (b"\r\n1000\r\n" + b" " * 4096) * 5)

    assert status(taken) == 202
    assert status(refused) == 413


async def test_what_comes_after_a_body_is_no_header(listening: Listening) -> None:
    token = listening.world.tokens.give("ann", "actions:write")
    head = post(b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    body = b'{"action_id":"a","type":"commit"}'
    trailer = f"Authorization: Bearer {token}\r\n\r\n".encode()

    assert status(await listening.say(head + b"%x\r\n%s\r\n0\r\n" % (len(body), body) + trailer)) == 401


@pytest.mark.parametrize(
    "rest", [b"0\r\na: " + b"b" * 2_000_000, b"2;" + b"a" * 2_000_000], ids=["trailer", "chunk"]
)
async def test_what_comes_around_a_body_is_given_up_before_it_takes_room(
    listening: Listening, rest: bytes
) -> None:
    """The parser puts a value together anew with each piece: 26 MB of one would take it many seconds."""
    head = post(b"", "Transfer-Encoding: chunked", token=listening.world.tokens.give("ann", "actions:write"))
    head = head.replace(b"Content-Length: 0\r\n", b"")

    assert status(await listening.say(head + b"2\r\n{}\r\n" + rest)) == 431


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(GET + b"a:b\r\n" * 20_000, 431), (b"GET /" + b"a" * 100_000, 414)],
    ids=["headers", "a path"],
)
async def test_a_head_without_end_is_given_up_before_it_takes_room(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, raw: bytes, expected: int
) -> None:
    monkeypatch.setattr(server, "RECEIVE_S", 60.0)

    assert status(await listening.say(raw)) == expected


@pytest.mark.parametrize(
    "behind", [GET + b"a:b\r\n" * 20_000, b"\x16\x03\x01\r\n\r\n"], ids=["a head", "no HTTP"]
)
async def test_what_is_given_up_is_no_answer_to_the_request_before(
    listening: Listening, behind: bytes
) -> None:
    token = listening.world.tokens.give("ann", "actions:write")
    waiting = post(b'{"action_id":"a","type":"commit"}', "Prefer: wait=2", token=token)

    answered = re.findall(rb"HTTP/1.1 (\d+)", await listening.say(waiting + behind, answers=2))
    assert answered in ([], [b"200"])


def test_long_addresses_are_not_kept() -> None:
    assert server.LONGEST_KEPT_URL_BYTES * server._parts_of.cache_info().maxsize < 1 << 20  # type: ignore[operator]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"GET /api", id="half a line"),
        pytest.param(GET, id="half a head"),
        pytest.param(post(b'{"action_id"', length=60), id="half a body"),
        pytest.param(post(b"", "Expect: 100-continue", length=60), id="nothing after Expect"),
    ],
)
async def test_a_request_that_does_not_come_is_cut_with_408(listening: Listening, raw: bytes) -> None:
    answer = await listening.say(raw)
    last = answer[answer.rindex(b"HTTP/1.1") :]

    assert status(last) == 408
    assert b"request_timeout" in last


async def test_who_connects_and_says_nothing_is_cut(listening: Listening) -> None:
    reader, writer = await listening.open()
    async with asyncio.timeout(3):
        rest = await reader.read()
    writer.close()

    assert rest == b""


async def test_who_dribbles_is_cut_while_others_are_served(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LINGER_S", QUICK_S)
    reader, writer = await listening.open()
    began_s = asyncio.get_running_loop().time()
    served = []
    while not reader.at_eof() and len(served) < 60:
        writer.write(b"G" if not served else b"E")
        served.append(status(await listening.say(GET + b"Connection: close\r\n\r\n")))
        await asyncio.sleep(0.05)
        if reader._transport.is_closing():  # type: ignore[attr-defined]
            break
    took_s = asyncio.get_running_loop().time() - began_s
    writer.close()

    assert took_s < 3
    assert set(served) <= {200, 429}


async def test_pipelined_requests_are_answered_in_order(listening: Listening) -> None:
    token = listening.world.tokens.give("server", "actions:write:any")
    requests = b"".join(
        post(b'{"action_id":"a%d","type":"commit"}' % number, token=token) for number in range(50)
    )
    answer = await listening.say(requests, answers=50)

    named = [line for line in answer.split(b"\r\n") if line.startswith(b"trueboard-action")]
    assert named == [b"trueboard-action: a%d" % number for number in range(50)]


async def test_a_body_is_not_late_that_was_not_let_in_while_the_request_before_was_in_work(
    listening: Listening,
) -> None:
    token = listening.world.tokens.give("ann", "actions:write")
    raw = b"".join(post(b'{"action_id":"%s","type":"commit"}' % name, token=token) for name in (b"a", b"b"))
    held: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    listening.world.delivery.send = lambda *_: held  # type: ignore[method-assign]
    reader, writer = await listening.open()
    writer.write(raw[:-1])
    await asyncio.sleep(QUICK_S + 0.6)
    held.set_result(0)
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.write(raw[-1:])
        while _whole(answer) < 2 and (chunk := await reader.read(65_536)):
            answer += chunk
    writer.close()

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"202"]


MANY = 4 * 1024 * 1024


def chunked(body: bytes, token: str) -> bytes:
    head = post(b"", "Transfer-Encoding: chunked", token=token).replace(b"Content-Length: 0\r\n", b"")
    return head + b"".join(
        b"%x\r\n%s\r\n" % (len(part), part)
        for part in (body[begin : begin + 65_536] for begin in range(0, len(body), 65_536))
    )


def say_all_then_listen(port: int, raw: bytes) -> bytes:
    """What a client has at the end that reads nothing before it has sent everything.

    Raises:
        OSError: the connection was reset, or nothing came or went for 10 s.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(raw)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
        return answer


@pytest.mark.parametrize(
    ("raw_of", "expected"),
    [
        pytest.param(lambda token: post(b" " * MANY, token=token), 413, id="a length"),
        pytest.param(lambda token: chunked(b" " * MANY, token) + b"0\r\n\r\n", 413, id="chunks"),
        pytest.param(lambda _: GET + b"a:b\r\n" * (MANY // 5), 431, id="headers"),
        pytest.param(lambda _: b"\x16" * MANY, 400, id="no HTTP"),
        pytest.param(
            lambda token: post(b" " * 17_000, token=token) + post(b" " * MANY, token=token),
            413,
            id="another request behind it",
        ),
    ],
)
async def test_a_refusal_reaches_who_reads_it_only_after_sending_all(
    listening: Listening, raw_of: Callable[[str], bytes], expected: int
) -> None:
    raw = raw_of(listening.world.tokens.give("ann", "actions:write"))
    for _ in range(20):
        answer = await asyncio.to_thread(say_all_then_listen, listening.port, raw)

        assert only_problem(answer) == expected


@pytest.mark.parametrize(
    ("name", "bound", "pause_s"),
    [("LINGER_S", QUICK_S, 0.01), ("MOST_THROWN_AWAY_BYTES", 1 << 20, 0.0)],
    ids=["in time", "in bytes"],
)
async def test_who_never_stops_sending_is_cut(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, name: str, bound: float, pause_s: float
) -> None:
    monkeypatch.setattr(server, "LINGER_S", 60.0)
    monkeypatch.setattr(server, name, bound)

    def send_on() -> None:
        with socket.create_connection(("127.0.0.1", listening.port), timeout=10) as connection:
            connection.sendall(post(b"", length=10_000_000_000))
            while True:
                connection.sendall(b" " * 16_384)
                time.sleep(pause_s)

    async with asyncio.timeout(8):
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await asyncio.to_thread(send_on)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(post(b"{", length=60).replace(b"application/json", b"text/plain"), 415, id="kept alive"),
        pytest.param(post(b"{", length=60_000), 413, id="the last one"),
    ],
)
async def test_a_body_that_does_not_come_after_its_answer_gets_no_second_one(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, raw: bytes, expected: int
) -> None:
    monkeypatch.setattr(server, "LINGER_S", QUICK_S)

    assert only_problem(await listening.say_in_two(raw, b" ")) == expected


async def test_a_body_that_cannot_be_read_after_its_answer_gets_no_second_one(listening: Listening) -> None:
    token = listening.world.tokens.give("ann", "actions:write")
    raw = chunked(b"{", token).replace(b"application/json", b"text/plain")

    assert only_problem(await listening.say_in_two(raw, b"no chunk")) == 415


async def test_a_connection_is_idle_once_a_refused_body_has_come(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", QUICK_S)
    raw = post(b"{", length=2).replace(b"application/json", b"text/plain")

    assert only_problem(await listening.say_in_two(raw, b"}")) == 415


async def test_a_connection_is_not_idle_if_a_request_came_with_the_end_of_a_refused_body(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", QUICK_S)
    token = listening.world.tokens.give("ann", "actions:write")
    held: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    listening.world.delivery.send = lambda *_: held  # type: ignore[method-assign]
    reader, writer = await listening.open()
    writer.write(post(b"{", length=2).replace(b"application/json", b"text/plain"))
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"}" + post(b'{"action_id":"a","type":"commit"}', token=token))
        await asyncio.sleep(QUICK_S + 0.6)
        held.set_result(0)
        answer += await reader.read()
    writer.close()

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"415", b"202"]


@pytest.mark.parametrize("late", [False, True], ids=["already there", "yet to come"])
async def test_no_request_is_taken_after_the_last_answer(listening: Listening, late: bool) -> None:
    token = listening.world.tokens.give("ann", "actions:write")
    raw = post(b" " * 17_000, token=token) + post(b'{"action_id":"a","type":"commit"}', token=token)
    held_back = 1000 if late else 0
    reader, writer = await listening.open()
    writer.write(raw[: len(raw) - held_back])
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.write(raw[len(raw) - held_back :])
    await asyncio.sleep(0.2)
    writer.close()

    assert only_problem(answer) == 413
    assert not listening.world.records


async def test_a_client_that_does_not_read_is_cut(listening: Listening) -> None:
    world = listening.world
    world.stream.scores = {f"{'u' * 200}{number}": (number, 0) for number in range(1000)}
    token = world.tokens.give("ann")
    ask = b"GET /v1/boards/main/standings?limit=1000 HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer "
    reader, writer = await listening.open()
    writer.write((ask + token.encode() + b"\r\n\r\n") * 60)
    await asyncio.sleep(2.5)
    answer, cut = b"", False
    try:
        async with asyncio.timeout(5):
            while chunk := await reader.read(1 << 20):
                answer += chunk
    except ConnectionResetError:
        cut = True
    writer.close()

    assert cut or _whole(answer) < 60


async def test_a_client_that_does_not_read_its_last_answer_is_cut(listening: Listening) -> None:
    world = listening.world
    world.stream.scores = {f"{'u' * 250}{number}": (number, 0) for number in range(1000)}
    ask = "GET /v1/boards/main/standings?limit=1000 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", listening.port))
        for there in (True, False):
            async with asyncio.timeout(8):
                while bool(listening.connections) != there:  # noqa: ASYNC110 — uvicorn has no event for it
                    await asyncio.sleep(0.01)
            for connection in listening.connections:
                # Or the kernel takes it all, and nobody here is left waiting.
                serving = connection.transport.get_extra_info("socket")
                serving.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                client.sendall(ask.encode())


async def test_what_is_in_hand_is_finished_when_told_to_stop(world: World) -> None:
    running = server.Server(server.configure(world.app, "127.0.0.1", 0), on_stop=lambda: None)
    task = asyncio.create_task(running.serve())
    port = await started(running)
    token = world.tokens.give("ann", "actions:write")
    held: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    world.delivery.send = lambda *_: held  # type: ignore[method-assign]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post(b'{"action_id":"a","type":"commit"}', token=token))
    await asyncio.sleep(0.2)
    running.should_exit = True
    await asyncio.sleep(0.3)
    held.set_result(0)
    async with asyncio.timeout(3):
        answer = await reader.read()
        await task
    writer.close()

    assert status(answer) == 202


@pytest.mark.parametrize(
    ("first", "rest", "expected"),
    [(17_500, 0, 413), (1000, 0, 408), (1000, 16_500, 413)],
    ids=["refused before", "given up before", "refused after"],
)
async def test_who_has_the_last_answer_does_not_delay_a_stop(
    world: World, monkeypatch: pytest.MonkeyPatch, first: int, rest: int, expected: int
) -> None:
    monkeypatch.setattr(server, "RECEIVE_S", QUICK_S)
    monkeypatch.setattr(server, "LINGER_S", 60.0)
    running = server.Server(server.configure(world.app, "127.0.0.1", 0), on_stop=lambda: None)
    task = asyncio.create_task(running.serve())
    port = await started(running)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = chunked(b" " * 20_000, world.tokens.give("ann", "actions:write"))
    writer.write(raw[:first])
    async with asyncio.timeout(5):
        if not rest:
            answer = await reader.read()
            assert running.server_state.connections
        running.should_exit = True
        if rest:
            await asyncio.sleep(0.3)
            writer.write(raw[first : first + rest])
            answer = await reader.read()
    async with asyncio.timeout(2):
        await task
    writer.close()

    assert only_problem(answer) == expected


async def test_a_signal_ends_the_process_with_status_0() -> None:
    program = """
        import asyncio
        from ingest import server

        async def app(scope, receive, send):
            raise AssertionError

        async def main():
            stopping = []
            config = server.configure(app, "127.0.0.1", 0)
            await server.Server(config, on_stop=lambda: stopping.append(1)).serve()
            assert stopping == [1]
            print("stopped")

        print("begun", flush=True)
        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    await asyncio.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        rest = await process.stdout.read()
        code = await process.wait()

    assert (code, rest) == (0, b"stopped\n")


async def test_a_host_that_is_not_ours_is_refused() -> None:
    from ingest.settings import Settings

    world = World(Settings(kafka="-", redis_url="-", postgres_url="-", jwks="-", hosts=("test",)))
    ours = await world.client.get("/api/scores/top10", headers={"host": "TEST:8080"})
    other = await world.client.get("/api/scores/top10", headers={"host": "evil", "x-forwarded-host": "test"})

    assert (ours.status_code, other.status_code) == (200, 400)


async def test_a_foreign_origin_is_not_let_in(world: World) -> None:
    reply = await world.client.options(
        "/v1/actions", headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )
    token = world.tokens.give("ann", "actions:write")
    sent = await world.client.post(
        "/v1/actions",
        json={"action_id": "a", "type": "commit"},
        headers={**bearer(token), "origin": "https://evil.example"},
    )

    assert reply.status_code == 405
    assert not [name for name in (*reply.headers, *sent.headers) if name.startswith("access-control")]
