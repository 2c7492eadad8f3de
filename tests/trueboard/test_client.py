from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from core.errors import Unavailable
from service import keys
from tests.stream_app.world import submitted
from tests.trueboard.ledgers import written
from trueboard.client import (
    LONGEST_PAUSE_S,
    Answer,
    ByReceipt,
    Client,
    InLedger,
    NoAnswer,
    Tokens,
    Verdict,
    pause_s,
    verdicts,
)
from trueboard.endpoints import Endpoints


def endpoints(
    http: str = "http://127.0.0.1:1", postgres: str = "postgresql://u:p@127.0.0.1:1/x"
) -> Endpoints:
    return Endpoints(
        http=http,
        feed=http,
        kafka="127.0.0.1:1",
        kafka_kind="memory",
        postgres=postgres,
        redis="redis://127.0.0.1:1/0",
        jwks=f"{http}/.well-known/jwks.json",
        issuer="trueboard",
        audience="trueboard",
        metrics={},
        processes={},
    )


Handler = Callable[[str, str, dict[str, str], bytes], tuple[int, dict[str, str], bytes] | None]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """An HTTP server of a few lines; a handler that gives None hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                headers = {}
                while (header := (await reader.readline()).decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = handler(method, path, headers, body)
                if answer is None:
                    return
                status, more, content = answer
                lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}"]
                lines += [f"{name}: {value}" for name, value in more.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + content)
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def asked(handler: Handler, token: str = "t") -> Answer:
    async with serving(handler) as url, Client(endpoints(url)) as client:
        return await client.post("/v1/actions", b"{}", token=token, headers={"Prefer": "wait=2"})


async def test_it_sends_json_with_the_token() -> None:
    seen: list[Any] = []

    def handler(*request: Any) -> Any:
        seen.append(request)
        return 202, {}, b'{"status": "submitted"}'

    answer = await asked(handler)

    ((method, path, headers, body),) = seen
    assert (method, path, body) == ("POST", "/v1/actions", b"{}")
    assert headers["authorization"] == "Bearer t"
    assert (headers["content-type"], headers["prefer"]) == ("application/json", "wait=2")
    assert (answer.status, answer.body, answer.passes) == (202, {"status": "submitted"}, False)


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("3", 3.0),
        ("", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("-1", 0.0),
        ("nan", 0.0),
        ("1e999", 0.0),
    ],
)
async def test_retry_after_is_read_as_seconds(retry_after: str, seconds: float) -> None:
    answer = await asked(lambda *_: (503, {"Retry-After": retry_after}, b""))

    assert (answer.status, answer.body, answer.retry_after_s) == (503, None, seconds)


async def test_a_body_that_is_no_json_is_none() -> None:
    answer = await asked(lambda *_: (502, {}, b"<html>"))

    assert (answer.body, answer.passes, answer.detail) == (None, True, "502")


async def test_a_problem_is_told_in_a_line() -> None:
    problem = json.dumps({"code": "out_of_bounds", "detail": "points are outside 1..2"}).encode()

    answer = await asked(lambda *_: (400, {}, problem))

    assert answer.detail == "400 out_of_bounds: points are outside 1..2"


async def test_a_hang_up_is_no_answer() -> None:
    with pytest.raises(NoAnswer):
        await asked(lambda *_: None)


async def test_nobody_there_is_no_answer() -> None:
    async with Client(endpoints()) as client:
        with pytest.raises(NoAnswer):
            await client.get("/")


@pytest.mark.parametrize(
    ("attempt", "asked_s", "waits_s"),
    [
        (0, 0.0, 0.1),
        (1, 0.0, 0.2),
        (3, 0.0, 0.8),
        (50, 0.0, LONGEST_PAUSE_S),
        (0, 2.0, 2.0),
        (0, 99.0, LONGEST_PAUSE_S),
    ],
)
def test_a_pause_is_what_was_asked_for_or_ever_longer(attempt: int, asked_s: float, waits_s: float) -> None:
    assert pause_s(attempt, Answer(503, None, asked_s)) == waits_s


def test_a_token_is_made_anew_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.ensure(tmp_path / "keys")
    tokens = Tokens(tmp_path, endpoints(), user="u", scopes=("actions:write",))
    now_s = [1000.0]
    monkeypatch.setattr("trueboard.client.time.monotonic", lambda: now_s[0])

    first = tokens.current()
    now_s[0] += 400
    same = tokens.current()
    now_s[0] += 100
    other = tokens.current()

    assert first == same != other


def test_a_token_lives_no_longer_than_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.ensure(tmp_path / "keys")
    lives = []
    for longest_s in (60, 3600):
        monkeypatch.setenv("TRUEBOARD_TOKEN_MAX_LIFE_S", str(longest_s))
        token = Tokens(tmp_path, endpoints(), user="u", scopes=("actions:write",)).current()
        claims = jwt.decode(token, options={"verify_signature": False})
        lives.append(claims["exp"] - claims["iat"])

    assert lives == [60, 900]


RECEIPT = {
    "action_id": "a/1",
    "user_id": "u",
    "type": "level",
    "received_at": "1970-01-01T00:00:01.000000Z",
    "fingerprint": "0",
    "status": "held",
    "replayed": False,
    "points": 10,
    "reason": {"code": "rate"},
    "judged_revision": 5,
    "epoch": "e",
    "revision": 6,
}


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    keys.ensure(tmp_path / "keys")
    return Tokens(tmp_path, endpoints(), user="u", scopes=("actions:write",))


async def test_receipts_tell_verdicts_where_the_ledger_is_out_of_reach(tokens: Tokens) -> None:
    paths = []

    def handler(method: str, path: str, *_: Any) -> Any:
        paths.append(path)
        if "judged" in path:
            return 200, {}, json.dumps(RECEIPT).encode()
        if "open" in path:
            return 200, {}, json.dumps(RECEIPT | {"status": "submitted"}).encode()
        return 404, {}, b"{}"

    async with serving(handler) as url, Client(endpoints(url)) as client:
        found = await verdicts(endpoints(url), client, tokens)
        told = await found.of([("u@x", "judged"), ("u@x", "open"), ("u@x", "gone")])

    assert isinstance(found, ByReceipt)
    assert told == {("u@x", "judged"): Verdict("level", "held", "rate", 1_000_000, "e", 5)}
    assert sorted(paths) == [f"/v1/actions/{name}?user_id=u%40x" for name in ("gone", "judged", "open")]


async def test_a_door_that_does_not_tell_is_unavailable(tokens: Tokens) -> None:
    async with serving(lambda *_: (503, {}, b"")) as url, Client(endpoints(url)) as client:
        with pytest.raises(Unavailable):
            await ByReceipt(client, tokens).of([("u", "a")])
    async with Client(endpoints()) as client:
        with pytest.raises(Unavailable):
            await ByReceipt(client, tokens).of([("u", "a")])


@pytest.mark.services
async def test_the_ledger_tells_verdicts_and_is_asked_anew_after_a_fault(database: str) -> None:
    with written(database) as world:
        world.take(submitted("ann", "x-1"), submitted("ann", "x-2", "unknown"), submitted("bob", "x-1"))
        ledger = InLedger(database)
        wanted = [("ann", "x-1"), ("ann", "x-2"), ("bob", "x-1"), ("bob", "x-2"), ("nobody", "x-1")]
        first = await ledger.of(wanted)
        world.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'trueboard client' AND datname = current_database()"
        )
        with pytest.raises(Unavailable):
            await ledger.of(wanted)
        second = await ledger.of(wanted)
        between = {row async for row in ledger.between("x-", "x.")}
        await ledger.close()

    assert first == second
    assert {key: (told.verdict, told.code) for key, told in first.items()} == {
        ("ann", "x-1"): ("accepted", None),
        ("ann", "x-2"): ("rejected", "unknown_type"),
        ("bob", "x-1"): ("accepted", None),
    }
    assert between == {
        ("ann", "x-1", "accepted"),
        ("ann", "x-2", "rejected"),
        ("bob", "x-1", "accepted"),
    }


@pytest.mark.services
async def test_who_reads_verdicts_cannot_write(database: str) -> None:
    ledger = InLedger(database)

    with pytest.raises(Unavailable):
        await ledger._rows("UPDATE fence SET version = version + 1", ())
    await ledger.close()
