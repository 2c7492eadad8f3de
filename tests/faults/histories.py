"""What a run of the fault rig leaves behind, and nothing else: the files a checker reads.

A run is a directory. All of it is JSON lines, appended to and flushed while things happen, so
that what was written before a crash of the rig itself still counts. A checker needs these files
only, so a failure that was kept can be looked at again.

    run.json            one object, `Run`
    events.jsonl        what the rig did to whom: `Event`
    attempts.jsonl      every request of every writer: `Attempt`
    pages.jsonl         every read of the API: `Page`
    copies.jsonl        every look at a period's copy in Redis: `Copy`
    frames.jsonl        every socket of the feed, from opening to close: `Frame`
    topics/<topic>.jsonl  every record of each topic, as a stock consumer got it: `Record`
    dumps/<n>/          the state at rest at the end of row n (the last one is the final state):
        dump.json       one object, `Dump`
        ledger.jsonl revisions.jsonl deltas.jsonl entries.jsonl players.jsonl progress.jsonl
        periods.jsonl set_aside.jsonl epochs.jsonl logs.jsonl cursors.jsonl people_changed.jsonl
        boards.jsonl catalogues.jsonl
                        the tables, a JSON object per row by column name, as `to_jsonb` writes
                        them, but: bytes as lower-case hex, instants as µs since 1970 (integers),
                        arrays of instants as arrays of such
        copies.jsonl    the whole copy of each period: `WholeCopy`
        offsets.jsonl   each partition of each topic, and the group's position: `Offsets`

One clock: `*_s` are seconds since the run began on the rig's monotonic clock, the same for all
files, as one process writes them all. Instants of the product are strings as the API writes them
(RFC 3339, µs) or, where the name says `_us`, µs since 1970.

Lines of one file are in the order in which they were written: attempts and pages when their answer
came (`ended_s`), the others when they were seen. Optional fields that hold nothing are left out.

Rows also write records to the submitted topic themselves, past the door. Those are of users whose
ids begin with `direct-`, or byte for byte repeats of records that are there; no attempt is written
down for them.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

MAIN = "main:all-time"

DIALECTS = ("scores", "scoreboard", "leaderboard")
"""The feed's paths are `/ws/<dialect>`."""

TABLES: dict[str, str] = {
    "ledger": "action_id, player, seq",
    "revisions": "revision",
    "deltas": "period, revision",
    "entries": "period, player",
    "players": "player",
    "progress": "partition",
    "periods": "period",
    "set_aside": "log, partition, record_offset",
    "epochs": "epoch",
    "logs": "log",
    "cursors": "follower",
    "people_changed": "revision",
    "boards": "board, version",
    "catalogues": "version",
}
"""Each table of a dump, and the columns it is ordered by."""


class Run(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The run as a whole. `began` is the wall clock's instant at which `*_s` is 0."""

    began: str
    seed: int
    partitions: int
    brokers: int
    version: str = ""
    """The commit the services ran from; empty if unknown."""


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Something the rig did, or saw come of it.

    `what`: `row` (a row begins), `struck` (the fault), `effect` (the rig has seen that it took hold),
    `healed` (what was broken is whole again), `recovered` (as before: the row's own condition),
    `rest` (writers have stopped, everything has caught up), `end` (the row is over), `restart` (a
    process was started; `target` its name), `note`.

    A row's invariants at rest hold at its `rest`; those that hold all the time hold also between
    `struck` and `healed`.
    """

    at_s: float
    row: str
    what: Literal["row", "struck", "effect", "healed", "recovered", "rest", "end", "restart", "note"]
    target: str = ""
    detail: dict[str, Any] = {}


class Attempt(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One action in one request, and how it was answered. An action has one attempt or more.

    A batch is one attempt per action, with the same `request`. (user, action) is the action;
    `body` is the hex of the first 16 bytes of SHA-256 of the action's JSON as it was sent (without
    the token), so equal bodies are equal submissions.

    `purpose`: `first` (not sent before), `retry` (the one before got no final answer), `again` (it
    has been confirmed: must be `replayed`, or a second confirmation, never counted twice), `other`
    (the same id with another body: the first that arrived counts).

    `status` is the HTTP status of this action (in a batch, the item's), 0 when no answer came:
    then `code` says how it ended (`timeout`, `reset`, `refused`, `closed`). Otherwise `code` is the
    problem's code. A 202 or 200 carries the receipt, whose fields follow as they came.
    """

    request: int
    client: str
    row: str
    begun_s: float
    ended_s: float
    route: Literal["v1", "v1-batch", "s0", "s2", "s3", "s4"]
    user: str
    action: str
    type: str
    body: str
    purpose: Literal["first", "retry", "again", "other"]
    status: int
    sent_points: int | None = None
    occurred_at: str | None = None
    wait_s: int = 0
    """`Prefer: wait`, 0 without."""
    code: str = ""
    retry_after: str | None = None
    """The header's value, if there was one."""
    replayed: bool | None = None
    fingerprint: str | None = None
    received_at: str | None = None
    verdict: str | None = None
    """The receipt's `status`: submitted, accepted, rejected or held."""
    reason: str | None = None
    points: int | None = None
    judged_revision: int | None = None
    epoch: str | None = None
    revision: int | None = None
    score: int | None = None
    rank: int | None = None


class Page(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One read: `kind` `top` (a page from the first rank on) or `player`.

    `entries` are [rank, user id, username, score, reached at] as they came; of a player one, or none
    with status 404. `content` is `content_of(entries)`. `at_least` is what was asked for.
    """

    client: str
    begun_s: float
    ended_s: float
    kind: Literal["top", "player"]
    status: int
    code: str = ""
    user: str | None = None
    limit: int | None = None
    at_least: str | None = None
    epoch: str | None = None
    revision: int | None = None
    count: int | None = None
    entries: list[list[Any]] = []
    content: str = ""
    etag: str | None = None


class Copy(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One look at a copy, by one transaction on Redis, beside the product's own scripts.

    `state`: `there` (`meta` is whole), `absent` (no `meta`: nobody may be shown it), `odd` (a key of
    another kind), `away` (Redis gave no answer; nothing else is known). `sizes` are [ZCARD z, HLEN m].
    `top` are the first ten members of `z` in their order, as hex: `read_member` reads them.
    """

    at_s: float
    period: str
    state: Literal["there", "absent", "odd", "away"]
    epoch: str | None = None
    revision: int | None = None
    digest: str | None = None
    count: int | None = None
    sizes: list[int] = []
    top: list[str] = []


class Frame(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One thing that happened to one socket: `opened`, `frame`, `closed` (with `code`), `refused`.

    `socket` is unique in the run. `body` is the frame as it came, parsed.
    """

    at_s: float
    socket: int
    dialect: str
    what: Literal["opened", "frame", "closed", "refused"]
    epoch: str | None = None
    revision: int | None = None
    body: Any = None
    code: int | None = None


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One record of a topic. `topic_id` tells a topic that was made anew from the one before.

    `key` and `value` are text; where they are no UTF-8 they are in Base64 and `binary` names them.
    None is Kafka's null. Header values likewise are text, or `base64:…`.
    """

    at_s: float
    topic_id: str
    partition: int
    offset: int
    key: str | None = None
    value: str | None = None
    headers: dict[str, str] = {}
    binary: list[str] = []


class Dump(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a dump is of. `all_at_rest` is false where a row ends with something that stays stopped.

    The tables are one snapshot (REPEATABLE READ). `topic_ids` are those at that time.
    """

    row: str
    at_s: float
    all_at_rest: bool
    topic_ids: dict[str, str] = {}
    system_identifier: str = ""
    timeline: int = 0


class WholeCopy(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A period's copy, whole. `z` are members as hex in order; `m` maps user id → value as hex: 16
    bytes of order key and the username."""

    period: str
    meta: dict[str, str]
    z: list[str]
    m: dict[str, str]
    scores_not_zero: int = 0


class Offsets(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Of one partition: the log's start and end, and the stream group's committed offset (-1: none;
    asked for of the submitted topic only)."""

    topic: str
    partition: int
    start: int
    end: int
    committed: int = -1


Line = TypeVar("Line", bound=msgspec.Struct)

FILES: dict[str, type[msgspec.Struct]] = {
    "events": Event,
    "attempts": Attempt,
    "pages": Page,
    "copies": Copy,
    "frames": Frame,
}


# Reading ------------------------------------------------------------------------------------


def read(path: Path, kind: type[Line], *, begin: int = 0) -> Iterator[Line]:
    """The lines of a file from this byte on; none if it is not there. A last one cut off is left out."""
    if not path.exists():
        return
    decode = msgspec.json.Decoder(kind).decode
    with path.open("rb") as file:
        file.seek(begin)
        for line in file:
            if line.endswith(b"\n"):
                yield decode(line)


def read_one(path: Path, kind: type[Line]) -> Line:
    """The one object of a file."""
    return msgspec.json.decode(path.read_bytes(), type=kind)


def read_table(dump: Path, table: str) -> Iterator[dict[str, Any]]:
    """The rows of a table of a dump."""
    with (dump / f"{table}.jsonl").open("rb") as file:
        for line in file:
            yield msgspec.json.decode(line)


def dumps(run: Path) -> list[Path]:
    """The dumps of a run, oldest first."""
    return sorted((run / "dumps").glob("*"), key=lambda path: int(path.name))


# Writing ------------------------------------------------------------------------------------


class Transcript:
    """One file that is appended to, from any thread; each line is out of this process when `add` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._encode = msgspec.json.Encoder().encode
        self._lock = threading.Lock()
        self.lines = 0

    def add(self, *lines: msgspec.Struct) -> None:
        content = b"".join(self._encode(line) + b"\n" for line in lines)
        with self._lock:
            self._file.write(content)
            self.lines += len(lines)

    def close(self) -> None:
        self._file.close()


def write_one(path: Path, value: msgspec.Struct) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


# What is in them ------------------------------------------------------------------------------

_HALF = 1 << 63


def read_member(member: bytes) -> tuple[str, int, int]:
    """(user id, score, reached at in µs) of a sorted set's member, read by the rule of the architecture:
    8 bytes of 2^63 - 1 - score and 8 bytes of instant + 2^63, both big-endian, then the user id."""
    score, reached = struct.unpack(">QQ", member[:16])
    return member[16:].decode(), _HALF - 1 - score, reached - _HALF


def content_of(value: Any) -> str:
    """A short name of a content: equal contents have equal names."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:32]
