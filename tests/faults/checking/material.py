"""A run as its files tell it, up to one of its dumps, with the line that each thing stands in."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from heapq import nsmallest
from pathlib import Path
from typing import Any

from core.topics import BOARD_CHANGED, DEAD, JUDGED, PLAYER, SUBMITTED
from tests.faults.histories import (
    MAIN,
    Attempt,
    Dump,
    Event,
    Line,
    Page,
    Record,
    Run,
    read,
    read_one,
    read_table,
)

TOPICS = (SUBMITTED.name, JUDGED.name, PLAYER.name, BOARD_CHANGED.name, DEAD.name)
Row = dict[str, Any]
Key = tuple[str, str]
"""(user, action): what is counted once."""

Entry = tuple[int, int]
"""(score, reached at in µs)."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A record of the submitted topic; `key` is None where it is no action."""

    line: int
    record: Record
    log: str
    key: Key | None
    fingerprint: str

    @property
    def where(self) -> str:
        return f"topics/{SUBMITTED.name}.jsonl:{self.line}"


class Ledger:
    """The tables of a dump."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.players = {row["player"]: row for row in read_table(where, "players")}
        self.rows = list(numbered(read_table(where, "ledger")))
        self.revisions = {
            row["revision"]: (line, row) for line, row in numbered(read_table(where, "revisions"))
        }
        self.revision_of = {row["batch"]: number for number, (_, row) in self.revisions.items()}
        self.deltas = sorted(
            ((line, row) for line, row in numbered(read_table(where, "deltas")) if row["period"] == MAIN),
            key=lambda found: int(found[1]["revision"]),
        )
        self.epochs = {row["epoch"]: row for row in read_table(where, "epochs")}
        self.epoch = max(self.epochs, default="")
        self.logs = {row["topic_id"]: row["log"] for row in read_table(where, "logs")}
        self.aside = {
            (row["log"], row["partition"], row["record_offset"]): (line, row["reason"])
            for line, row in numbered(read_table(where, "set_aside"))
        }
        self.catalogues = {row["version"]: row["body"] for row in read_table(where, "catalogues")}

    def at(self, table: str, line: int) -> str:
        """The place of a row, for a witness."""
        return f"dumps/{self.where.name}/{table}.jsonl:{line}"

    @property
    def last(self) -> int:
        return max(self.revisions, default=0)

    def is_kept(self, epoch: str | None, revision: int | None) -> bool:
        """Whether the ledger has this revision in this epoch, and did not lose it."""
        found = self.revisions.get(revision or 0)
        return found is not None and found[1]["epoch"] == epoch

    @cached_property
    def gone_from(self) -> dict[int, int]:
        """Who is hidden or erased, and from which revision on."""
        gone = {
            player for player, row in self.players.items() if row["hidden"] or row["erased_at"] is not None
        }
        told: dict[int, int] = dict.fromkeys(gone, 0)
        for row in read_table(self.where, "people_changed"):
            for player in gone.intersection(row["players"]):
                told[player] = max(told[player], row["revision"])
        return told


class Material:
    """All that the checks look at. Nothing that was seen after the dump counts."""

    def __init__(self, run: Path, where: Path) -> None:
        self.run, self.where = run, where
        self.dump = read_one(where / "dump.json", Dump)
        self.until_s = self.dump.at_s
        self.ledger = Ledger(where)
        self.events = list(read(run / "events.jsonl", Event))
        self.attempts = [
            (line, attempt)
            for line, attempt in numbered(read(run / "attempts.jsonl", Attempt))
            if attempt.begun_s <= self.until_s
        ]
        for _, attempt in self.attempts:
            if attempt.ended_s > self.until_s:
                attempt.status, attempt.verdict, attempt.code = 0, None, "later"

    def seen(self, name: str, kind: type[Line]) -> Iterator[tuple[int, Line]]:
        """The lines of a transcript up to the dump."""
        for line, one in numbered(read(self.run / f"{name}.jsonl", kind)):
            if one.at_s <= self.until_s:  # type: ignore[attr-defined]
                yield line, one

    def seen_pages(self) -> Iterator[tuple[int, Page]]:
        """The reads of the API that had ended."""
        for line, page in numbered(read(self.run / "pages.jsonl", Page)):
            if page.ended_s <= self.until_s:
                yield line, page

    def records(self, topic: str) -> Iterator[tuple[int, Record]]:
        """The records of a topic up to the dump, of all topics of that name one after another."""
        return self.seen(f"topics/{topic}", Record)

    @cached_property
    def submitted(self) -> list[Submitted]:
        found = []
        for line, record in self.records(SUBMITTED.name):
            body = as_object(record)
            key, fingerprint = None, ""
            if body is not None and {"user_id", "action_id", "fingerprint"} <= body.keys():
                key, fingerprint = (str(body["user_id"]), str(body["action_id"])), str(body["fingerprint"])
            found.append(Submitted(line, record, as_uuid(record.topic_id), key, fingerprint))
        return found

    @cached_property
    def users(self) -> dict[int, str]:
        """The user id of each player; of those erased, what the topic once said of them."""
        by_pid: dict[str, str] = {}
        for _, record in self.records(PLAYER.name):
            if record.key is not None and (body := as_object(record)) is not None and "user_id" in body:
                by_pid[record.key] = body["user_id"]
        users = {}
        for player, row in self.ledger.players.items():
            user = row["user_id"] if row["user_id"] is not None else by_pid.get(row["pid"])
            users[player] = user if user is not None else f"({row['pid']})"
        return users

    @cached_property
    def _erased(self) -> list[tuple[float, str]]:
        """When each person was erased, in the run's seconds, and who; ascending."""
        began_s = as_us(read_one(self.run / "run.json", Run).began) / 1e6
        return sorted(
            (row["erased_at"] / 1e6 - began_s, self.users[player])
            for player, row in self.ledger.players.items()
            if row["erased_at"] is not None
        )

    def erased_by(self, at_s: float) -> tuple[str, ...]:
        """Who was erased by then: no record that is sent from then on names them, of whatever revision.

        In the order in which they were erased.
        """
        return tuple(user for erased_s, user in self._erased if erased_s <= at_s)

    @cached_property
    def sent(self) -> dict[Key, list[tuple[int, Attempt]]]:
        sent: dict[Key, list[tuple[int, Attempt]]] = {}
        for line, attempt in self.attempts:
            sent.setdefault((attempt.user, attempt.action), []).append((line, attempt))
        return sent

    @cached_property
    def judged(self) -> dict[Key, tuple[int, Row]]:
        """The first row of each action, by (user, action)."""
        judged: dict[Key, tuple[int, Row]] = {}
        for line, row in self.ledger.rows:
            if row["seq"] == 0:
                judged.setdefault((self.users[row["player"]], row["action_id"]), (line, row))
        return judged

    def standings(self, revisions: Iterable[int]) -> Iterator[Standing]:
        """The period at each of these revisions, ascending, by folding the deltas once."""
        standing, following = Standing(), iter([*self.ledger.deltas, None])
        pending = next(following)
        for revision in sorted(set(revisions)):
            while pending is not None and pending[1]["revision"] <= revision:
                standing.apply(pending[1], self.users, self.ledger.gone_from)
                pending = next(following)
            standing.asked = revision
            yield standing


class Standing:
    """A period's entries at a revision. One and the same, moved on: look, do not keep."""

    def __init__(self) -> None:
        self.asked = self.own = self.previous = 0
        self.entries: dict[str, Entry] = {}
        self.delta: Row = {}
        self._top: list[tuple[str, int, int]] | None = None

    def apply(self, delta: Row, users: dict[int, str], gone_from: dict[int, int]) -> None:
        for player, score, reached in zip(
            delta["players"], delta["new_scores"], delta["new_reached"], strict=True
        ):
            if score is None or gone_from.get(player, delta["revision"] + 1) <= delta["revision"]:
                self.entries.pop(users[player], None)
            else:
                self.entries[users[player]] = (score, reached)
        self.own, self.delta, self._top = delta["revision"], delta, None

    @property
    def top(self) -> list[tuple[str, int, int]]:
        """The first ten: (user, score, reached at)."""
        if self._top is None:
            self._top = self.top_without(frozenset())
        return self._top

    def top_without(self, left_out: frozenset[str]) -> list[tuple[str, int, int]]:
        """The first ten of the others."""
        return [
            (user, score, reached)
            for _, reached, _, user, score in nsmallest(
                10,
                (
                    (-score, reached, user.encode(), user, score)
                    for user, (score, reached) in self.entries.items()
                    if user not in left_out
                ),
            )
        ]

    def rank(self, user: str) -> int:
        score, reached = self.entries[user]
        mine = (-score, reached, user.encode())
        return 1 + sum((-s, r, other.encode()) < mine for other, (s, r) in self.entries.items())


def numbered(lines: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    return enumerate(lines, 1)


def as_object(record: Record) -> dict[str, Any] | None:
    """The JSON object that a record holds; None if it holds none."""
    if record.value is None or "value" in record.binary:
        return None
    try:
        body = json.loads(record.value)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def as_uuid(topic_id: str) -> str:
    """A topic's id as the ledger writes it."""
    try:
        raw = base64.b64decode(topic_id.replace("-", "+").replace("_", "/") + "==")
        return str(uuid.UUID(bytes=raw))
    except ValueError:
        return topic_id


def as_us(instant: str) -> int:
    """An instant as the API writes it, in µs since 1970."""
    at = datetime.fromisoformat(instant)
    return int(at.replace(microsecond=0).timestamp()) * 1_000_000 + at.microsecond
