"""A client of the interface's letter: HTTP by raw bodies, tokens of the data directory's own keys.

Knows routes, keys of bodies and words as the interface writes them, and nothing of how they are
served. Users are fresh for each test, so that tests share one running stack.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg

from service import keys
from tests.acceptance.naive import canonical
from trueboard.endpoints import Endpoints

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
TRACE_ID = re.compile(r"[0-9a-f]{32}")
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
ULID = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")

SUBMITTED_KEYS = {"action_id", "user_id", "type", "received_at", "fingerprint", "status", "replayed"}
JUDGED_KEYS = SUBMITTED_KEYS | {
    "points",
    "reason",
    "judged_revision",
    "epoch",
    "revision",
    "score",
    "rank",
}
ENTRY_KEYS = {"rank", "user_id", "username", "score", "reached_at"}
REASON_KEYS = {"code", "rule", "rule_version", "limit", "seen", "window_s"}
PROBLEM_KEYS = {"type", "title", "status", "detail", "code", "trace_id"}

EVERYTHING = ("actions:write", "scores:write", "boards:read")
TRUSTED = ("actions:write", "scores:write", "actions:write:any", "actions:backfill", "boards:read")

PATIENCE_S = 15.0
"""Longest wait for something that is only a matter of time."""


def written(instant: datetime) -> str:
    """An instant as the interface writes it."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now(*, ahead_s: float = 0.0) -> str:
    return written(datetime.now(UTC) + timedelta(seconds=ahead_s))


def as_us(instant: str) -> int:
    """µs since 1970, exactly."""
    since = datetime.fromisoformat(instant) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def fingerprint(type_: str, points: int | None, occurred_at: str | None) -> str:
    """A submission's fingerprint, recounted."""
    return hashlib.sha256(canonical([type_, points, occurred_at])).digest()[:16].hex()


def until(ask: Callable[[], Any], *, patience_s: float = PATIENCE_S, what: str = "") -> Any:
    """The first true answer; fails with the last one."""
    deadline_s = time.monotonic() + patience_s
    while not (answer := ask()):
        assert time.monotonic() < deadline_s, f"not within {patience_s} s: {what or ask}: {answer!r}"
        time.sleep(0.05)
    return answer


def is_problem(response: httpx.Response, status: int, code: str) -> bool:
    """Whether this is the problem it should be; says what is wrong by failing."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].split(";")[0] == "application/problem+json"
    body = response.json()
    assert set(body) == PROBLEM_KEYS
    assert (body["type"], body["code"], body["status"]) == (f"/problems/{code}", code, status)
    assert body["title"]
    assert body["detail"]
    assert TRACE_ID.fullmatch(body["trace_id"])
    return True


@dataclass
class World:
    """A running stack and its keys."""

    endpoints: Endpoints
    data: Path
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.endpoints.http, timeout=20, trust_env=False)

    def close(self) -> None:
        self.http.close()

    def again(self) -> None:
        """Read the endpoints once more, after a process was started anew."""
        self.endpoints = until(lambda: _endpoints(self.data), what="endpoints.json")

    # people

    def user(self) -> str:
        return f"u-{secrets.token_hex(6)}"

    def token(self, user: str, *scopes: str, name: str | None = None, ttl_s: int = 600, **rest: Any) -> str:
        """A token with `scopes`, or with everything that concerns one's own."""
        return keys.issue(
            self.data / "keys",
            user=user,
            name=name,
            scopes=scopes or EVERYTHING,
            ttl_s=ttl_s,
            issuer=self.endpoints.issuer,
            audience=self.endpoints.audience,
            **rest,
        )

    def trusted(self) -> str:
        return self.token(f"backend-{secrets.token_hex(4)}", *TRUSTED)

    # HTTP

    def send(
        self,
        path: str,
        body: Any,
        token: str | None = None,
        *,
        method: str = "POST",
        **headers: str,
    ) -> httpx.Response:
        """Send a body (bytes as they are); header names with _ for -."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.request(method, path, content=content, headers=sent)

    def get(
        self, path: str, token: str | None = None, headers: dict[str, str] | None = None, **query: Any
    ) -> httpx.Response:
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        return self.http.get(path, params=query or None, headers=sent)

    def act(self, user: str, type_: str = "level_complete", **rest: Any) -> dict[str, Any]:
        """One own action, judged: its receipt."""
        body = {"action_id": f"a-{secrets.token_hex(8)}", "type": type_, **rest}
        response = self.send("/v1/actions", body, self.token(user), Prefer="wait=10")
        assert response.status_code == 200, response.text
        receipt: dict[str, Any] = response.json()
        return receipt

    def give(self, actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send actions of whomever as a trusted back end and wait for the verdicts: receipts."""
        token = self.trusted()
        for begin in range(0, len(actions), 500):
            response = self.send("/v1/actions/batch", {"actions": actions[begin : begin + 500]}, token)
            assert response.status_code == 200, response.text
            assert {result["status"] for result in response.json()["results"]} == {202}, response.text
        return [self.judged(action["action_id"], action["user_id"], token) for action in actions]

    def lift_to_the_top(self, user: str) -> int:
        """Give a user more points than anybody has, so slowly that no limit minds; the new score."""
        leaders = self.standings(limit=1)["entries"]
        thousands = (leaders[0]["score"] if leaders else 0) // 1000 + 1
        self.give(
            [
                {
                    "action_id": f"lift-{secrets.token_hex(6)}",
                    "user_id": user,
                    "type": "client_points",
                    "points": 1000,
                    "occurred_at": now(ahead_s=-3600 * hours - 60),
                }
                for hours in range(1, thousands + 1)
            ]
        )
        return 1000 * thousands

    def judged(self, action_id: str, user: str, token: str | None = None) -> dict[str, Any]:
        """The receipt of an action once it is judged."""

        def ask() -> dict[str, Any] | None:
            response = self.get(f"/v1/actions/{action_id}", token or self.trusted(), user_id=user)
            assert response.status_code == 200, response.text
            receipt: dict[str, Any] = response.json()
            return receipt if receipt["status"] != "submitted" else None

        return until(ask, what=f"a verdict on {action_id}") or {}

    def judged_later(self, action_id: str, user: str) -> dict[str, Any]:
        """The receipt of an action that came another way and may not be known yet."""
        token = self.trusted()
        until(
            lambda: self.get(f"/v1/actions/{action_id}", token, user_id=user).status_code == 200,
            what=f"a receipt of {action_id}",
        )
        return self.judged(action_id, user, token)

    def standings(self, **query: Any) -> dict[str, Any]:
        """A page; a long one of a board that is being copied anew is asked for again, as the answer says."""

        def ask() -> httpx.Response | None:
            response = self.get("/v1/boards/main/standings", **query)
            if response.status_code == 503 and response.json()["code"] == "board_rebuilding":
                assert int(response.headers["retry-after"]) >= 1
                return None
            return response

        response = until(ask, what="a board that is not being rebuilt")
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def score(self, user: str) -> int:
        """A user's score; 0 without an entry."""
        response = self.get(f"/v1/boards/main/players/{user}")
        return int(response.json()["entry"]["score"]) if response.status_code == 200 else 0

    def everybody(self) -> list[dict[str, Any]]:
        """Every entry of the board, page by page."""
        entries: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": 1000}
        while True:
            page = self.standings(**query)
            entries += page["entries"]
            if page["next"] is None:
                return entries
            query["after"] = page["next"]

    @contextmanager
    def ledger(self) -> Iterator[psycopg.Connection]:
        """A connection that only reads."""
        with psycopg.connect(
            self.endpoints.postgres,
            autocommit=True,
            options="-c default_transaction_read_only=on -c timezone=UTC",
        ) as connection:
            yield connection


def _endpoints(data: Path) -> Endpoints | None:
    return Endpoints.read(data) if (data / "endpoints.json").exists() else None
