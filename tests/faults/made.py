"""A small run made by hand, right in everything, for tests to spoil in one thing.

Three people and one who is erased, seven actions, six revisions. Facts may be changed before everything
else follows from them, lines after.
"""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import digest
from core.actions import fingerprint
from core.ranking import member, order_key
from core.times import format_us
from core.topics import BOARD_CHANGED, DEAD, JUDGED, PLAYER, SUBMITTED
from tests.faults.histories import MAIN

EPOCH = "01jd0000000000000000000000"
LATER = "01jd0000000000000000000001"
FIRST_US = 1_795_000_000_000_000
PARTITIONS = 3
REST_S = 20.0
CATALOGUE = {
    "version": "1",
    "types": {
        "level_complete": {"points": 10},
        "commit": {"points": 1},
        "client_points": {"min": 1, "max": 1000},
    },
}
Line = dict[str, Any]


def pid(player: int) -> str:
    return f"00000000-0000-4000-8000-{player:012d}"


def log_id(topic: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, topic)


def topic_id(topic: str) -> str:
    """As a Kafka client writes it."""
    return base64.urlsafe_b64encode(log_id(topic).bytes).decode().rstrip("=")


@dataclass
class Fact:
    """An action as it was judged; `revision` 0: it never was. `offset` is its record's place."""

    user: str
    action: str
    type: str
    points: int
    revision: int
    partition: int
    offset: int
    sent_points: int | None = None
    verdict: str = "accepted"
    told: bool = True
    """Whether the topic of verdicts has it."""
    seq: int = 0
    """0: judged; else a later decision about the action of that name."""

    @property
    def at_us(self) -> int:
        return FIRST_US + self.partition * 1000 + self.offset

    @property
    def reason(self) -> Line | None:
        return None if self.verdict == "accepted" else {"code": "rate", "rule": "r", "limit": 1, "seen": 2}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.type, self.sent_points, None)


PLAYERS = {"ada": 1, "bo": 2, "cy": 3, "dee": 4}
NAMES = {"ada": "Ada L.", "bo": None, "cy": None, "dee": "Dee"}
ERASED, ERASED_AT = "dee", 5
ERASED_S = 10.5
"""When they were, after the records of the topics were read first."""
CAUSES = {1: "definition", ERASED_AT: "person"}
LAST = 6


def facts() -> list[Fact]:
    return [
        Fact("ada", "a1", "level_complete", 10, 2, 0, 0),
        Fact("bo", "b1", "client_points", 7, 2, 1, 0, sent_points=7),
        Fact("dee", "d1", "commit", 1, 3, 2, 0),
        Fact("ada", "a2", "commit", 1, 3, 0, 1),
        Fact("cy", "c1", "client_points", 60, 4, 1, 1, sent_points=60, verdict="held"),
        Fact("ada", "a3", "client_points", 5, 4, 0, 3, sent_points=5),
        Fact("bo", "b2", "commit", 1, 6, 1, 2),
    ]


@dataclass
class Made:
    """The lines of a run, by what they are; `write` puts them where a checker looks for them."""

    facts: list[Fact] = field(default_factory=facts)
    tables: dict[str, list[Line]] = field(default_factory=dict)
    topics: dict[str, list[Line]] = field(default_factory=dict)
    attempts: list[Line] = field(default_factory=list)
    pages: list[Line] = field(default_factory=list)
    frames: list[Line] = field(default_factory=list)
    looks: list[Line] = field(default_factory=list)
    events: list[Line] = field(default_factory=list)
    whole: Line = field(default_factory=dict)
    offsets: list[Line] = field(default_factory=list)
    states: dict[int, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """What is shown at each revision: user → (score, reached at)."""

    def __post_init__(self) -> None:
        self.derive()

    def derive(self) -> None:
        """Everything that follows from the facts, anew."""
        self._tables()
        self._topics()
        self._attempts()
        self._readers()
        self._rest()

    # the ledger

    def _tables(self) -> None:
        self.tables = {
            "players": [
                {
                    "player": player,
                    "pid": pid(player),
                    "user_id": None if user == ERASED else user,
                    "username": None if user == ERASED else NAMES[user],
                    "hidden": False,
                    "erased_at": FIRST_US if user == ERASED else None,
                }
                for user, player in PLAYERS.items()
            ],
            "ledger": [_row(fact) for fact in self.facts if fact.revision],
            "revisions": [],
            "deltas": [],
            "epochs": [{"epoch": EPOCH, "continues_epoch": None, "continues_revision": None}],
            "logs": [{"log": 1, "topic_id": str(log_id(SUBMITTED.name))}],
            "progress": [{"partition": p, "log": 1, "next_offset": n} for p, n in enumerate(self._ends())],
            "set_aside": [{"log": 1, "partition": 2, "record_offset": 1, "reason": "json"}],
            "people_changed": [
                {"revision": 2, "players": [1, 2]},
                {"revision": 3, "players": [4]},
                {"revision": 4, "players": [3]},
                {"revision": ERASED_AT, "players": [4]},
            ],
            "cursors": [],
            "periods": [{"period": MAIN}],
            "boards": [{"board": "main", "version": 1, "sha256": "b0", "revision": 1}],
            "catalogues": [{"version": "1", "body": CATALOGUE, "sha256": "ca", "revision": 1}],
        }
        self._fold()

    def _fold(self) -> None:
        chain, entries = digest.FIRST, dict[str, tuple[int, int]]()
        for revision in range(1, LAST + 1):
            rows = [fact for fact in self.facts if fact.revision == revision]
            leaves = [_leaf(fact) for fact in rows]
            if revision == 1:
                leaves = [digest.catalogue_leaf("1", "ca"), digest.definition_leaf("main", 1, "b0")]
            cause = CAUSES.get(revision, "stream")
            chain = digest.chained(chain, digest.root(leaves), revision, cause)
            self.tables["revisions"].append(
                {
                    "revision": revision,
                    "epoch": EPOCH,
                    "batch": revision + 100,
                    "cause": cause,
                    "digest": chain.hex(),
                }
            )
            before = entries
            entries = self._counted(revision)
            moved = [user for user in PLAYERS if entries.get(user) != before.get(user)]
            if revision == ERASED_AT:
                moved = [ERASED]
            gone = {ERASED} if revision >= ERASED_AT else set()
            self.states[revision] = {user: entry for user, entry in entries.items() if user not in gone}
            self.tables["deltas"].append(
                {
                    "period": MAIN,
                    "revision": revision,
                    "previous": revision - 1,
                    "count": len(self.states[revision]),
                    "players": [PLAYERS[user] for user in moved],
                    "old_scores": [before.get(user, (None, None))[0] for user in moved],
                    "old_reached": [before.get(user, (None, None))[1] for user in moved],
                    "new_scores": [entries.get(user, (None, None))[0] for user in moved],
                    "new_reached": [entries.get(user, (None, None))[1] for user in moved],
                }
            )
        self.tables["entries"] = [
            {"period": MAIN, "player": PLAYERS[user], "score": score, "reached_at": reached}
            for user, (score, reached) in entries.items()
        ]

    def _counted(self, revision: int) -> dict[str, tuple[int, int]]:
        """What counts at a revision: of each action its last row, of its user the sum and the latest."""
        last = {(f.user, f.action, f.offset): f for f in self.facts if 0 < f.revision <= revision}
        entries: dict[str, tuple[int, int]] = {}
        for fact in last.values():
            if fact.verdict == "accepted":
                score, reached = entries.get(fact.user, (0, 0))
                entries[fact.user] = (score + fact.points, max(reached, fact.at_us))
        return entries

    def digest(self, revision: int) -> str:
        return str(self.tables["revisions"][revision - 1]["digest"])

    def top(self, revision: int) -> list[tuple[str, int, int]]:
        places = sorted((-score, at, user) for user, (score, at) in self.states[revision].items())
        return [(user, -score, at) for score, at, user in places]

    def _ends(self) -> list[int]:
        ends = [0] * PARTITIONS
        for partition, offset, _ in self._places():
            ends[partition] = max(ends[partition], offset + 1)
        return ends

    # the topics

    def _places(self) -> list[tuple[int, int, Fact | None]]:
        """What stands on the submitted topic: the facts, `a2` once more, and what is no action."""
        places: list[tuple[int, int, Fact | None]] = [
            (fact.partition, fact.offset, fact) for fact in self.facts if not fact.seq
        ]
        again = next((fact for fact in self.facts if fact.action == "a2"), None)
        return sorted([*places, (0, 2, again), (2, 1, None)], key=lambda place: place[:2])

    def _topics(self) -> None:
        self.topics = {
            SUBMITTED.name: [_submitted(*place) for place in self._places()],
            JUDGED.name: [
                _record(JUDGED.name, 0, n, pid(PLAYERS[fact.user]), _verdict(fact))
                for n, fact in enumerate(fact for fact in self.facts if fact.revision and fact.told)
            ],
            PLAYER.name: [
                _record(PLAYER.name, 0, n, pid(PLAYERS[user]), {**_person(user)})
                for n, user in enumerate(PLAYERS)
            ],
            BOARD_CHANGED.name: [
                _record(BOARD_CHANGED.name, 0, n - 1, MAIN, self._change(n)) for n in range(1, LAST + 1)
            ],
            DEAD.name: [_record(DEAD.name, 0, 0, f"{SUBMITTED.name}-2-1", None)],
        }
        self.topics[PLAYER.name].append(_record(PLAYER.name, 0, len(PLAYERS), pid(PLAYERS[ERASED]), None))
        self.topics[DEAD.name][0] |= {"value": "{", "headers": {"reason": "json"}}

    def _change(self, revision: int) -> Line:
        delta = self.tables["deltas"][revision - 1]
        users = {player: user for user, player in PLAYERS.items()}
        return {
            "board": "main",
            "window": "all-time",
            "epoch": EPOCH,
            "revision": revision,
            "previous": revision - 1,
            "digest": self.digest(revision),
            "count": delta["count"],
            "changed": [
                {"user_id": users[player], "username": None, "score": score, "reached_at": format_us(reached)}
                for player, score, reached in zip(
                    delta["players"], delta["new_scores"], delta["new_reached"], strict=True
                )
            ],
            "top": self._entries(revision),
        }

    def _entries(self, revision: int) -> list[Line]:
        return [
            {"rank": n, "user_id": user, "username": user, "score": score, "reached_at": format_us(at)}
            for n, (user, score, at) in enumerate(self.top(revision), 1)
        ]

    # the writers

    def _attempts(self) -> None:
        self.attempts = [attempt(fact) for fact in self.facts if not fact.seq]
        by_action = {line["action"]: line for line in self.attempts}
        a1, a2 = by_action.get("a1"), by_action.get("a2")
        if a1 is not None:
            a1 |= {"status": 200, "verdict": "accepted", "points": self.facts[0].points, "judged_revision": 2}
            a1 |= {"epoch": EPOCH, "revision": 2, "score": self.facts[0].points, "rank": 1}
            # The same id with another body, refused at the door.
            self.attempts.append({**a1, **OTHER_BODY})
        if a2 is not None:
            a2 |= {"purpose": "retry", "begun_s": 3.0, "ended_s": 3.1}
            unheard = {"status": 0, "code": "reset", "verdict": None, "begun_s": 2.0, "ended_s": 2.1}
            refused = {"status": 503, "code": "queue_unavailable", "verdict": None, "retry_after": "2"}
            self.attempts = [{**a2, **unheard, "purpose": "first"}, {**a2, **refused}, *self.attempts]
        unknown = Fact("cy", "c0", "unheard_of", 0, 0, 1, 9)
        self.attempts.append({**attempt(unknown), "status": 422, "code": "unknown_type", "verdict": None})

    # the readers

    def page(self, revision: int, at_s: float) -> Line:
        entries = [
            [e["rank"], e["user_id"], None, e["score"], e["reached_at"]] for e in self._entries(revision)
        ]
        about = {"client": "top", "kind": "top", "status": 200, "epoch": EPOCH, "revision": revision}
        return about | {"begun_s": at_s, "ended_s": at_s + 0.1, "count": len(entries), "entries": entries}

    def player_page(self, user: str, revision: int, at_s: float) -> Line:
        page = self.page(revision, at_s)
        entries = [entry for entry in page["entries"] if entry[1] == user]
        return page | {"client": "player", "kind": "player", "user": user, "entries": entries}

    def frame(self, socket: int, dialect: str, revision: int, at_s: float) -> Line:
        entries = self._entries(revision)
        camel = [{"userId": e["user_id"], "score": e["score"]} for e in entries]
        snake = [{"user_id": e["user_id"], "score": e["score"]} for e in entries]
        mover = entries[-1]
        body = {
            "scores": {"topScores": camel},
            "scoreboard": {
                "type": "SCORE_UPDATE",
                "data": {"user_id": mover["user_id"], "new_score": mover["score"], "rankings": snake},
            },
            "leaderboard": {"type": "leaderboard_update", "data": {"leaderboard": camel}},
        }[dialect]
        about = {"socket": socket, "dialect": dialect, "what": "frame", "at_s": at_s}
        return about | {"epoch": EPOCH, "revision": revision, "body": body}

    def look(self, revision: int, at_s: float) -> Line:
        top = [member(score, at, user).hex() for user, score, at in self.top(revision)]
        about = {"at_s": at_s, "period": MAIN, "state": "there", "epoch": EPOCH, "revision": revision}
        return about | {
            "digest": self.digest(revision),
            "count": len(top),
            "sizes": [len(top)] * 2,
            "top": top,
        }

    def _readers(self) -> None:
        self.pages = [
            self.page(3, 5.0),
            self.page(6, 12.0),
            self.player_page("bo", 6, 12.5) | {"at_least": f"{EPOCH}-6"},
        ]
        broken = self.look(3, 6.0)
        broken |= {"sizes": [0, broken["count"]], "top": []}
        self.looks = [self.look(3, 5.0), broken, {"at_s": 7.0, "period": MAIN, "state": "absent"}]
        self.looks.append(self.look(6, 12.0))
        welcome = {"type": "connection_success", "data": {"userId": "watcher"}}
        self.frames = [
            *(
                _opened(n, dialect)
                for n, dialect in enumerate(("scores", "scoreboard", "leaderboard", "scores"), 1)
            ),
            self.frame(1, "scores", 3, 5.0),
            self.frame(4, "scores", 3, 5.0),
            {**_opened(4, "scores"), "what": "closed", "code": 1012},
            self.frame(3, "leaderboard", 3, 5.0) | {"body": welcome},
            self.frame(1, "scores", 6, 12.0),
            self.frame(2, "scoreboard", 6, 12.0),
            self.frame(3, "leaderboard", 6, 12.0),
        ]

    # at rest

    def _rest(self) -> None:
        top = self.top(LAST)
        self.whole = {
            "period": MAIN,
            "meta": {
                "epoch": EPOCH,
                "revision": str(LAST),
                "digest": self.digest(LAST),
                "count": str(len(top)),
            },
            "z": [member(score, at, user).hex() for user, score, at in top],
            "m": {
                user: (order_key(score, at) + (NAMES[user] or "").encode()).hex() for user, score, at in top
            },
        }
        ends = {topic: [0] * PARTITIONS for topic in self.topics}
        for topic, records in self.topics.items():
            for record in records:
                ends[topic][record["partition"]] = record["offset"] + 1
        self.offsets = [
            {"topic": topic, "partition": p, "start": 0, "end": end}
            | ({"committed": end} if topic == SUBMITTED.name else {})
            for topic, of in ends.items()
            for p, end in enumerate(of)
        ]
        row = {"row": "X-1", "target": "kafka-1"}
        self.events = [
            {**row, "at_s": 0.5, "what": "row", "detail": {"within_s": 30, "wants": ["503", "duplicates"]}},
            {**row, "at_s": 1.0, "what": "struck", "detail": {"text": "SIGKILL, started again"}},
            {**row, "at_s": 4.0, "what": "healed", "detail": {}},
            {**row, "at_s": 8.0, "what": "recovered", "detail": {"seconds": 4.0}},
            {**row, "at_s": REST_S, "what": "rest", "detail": {}},
        ]

    def restored(self) -> None:
        """The ledger lost what came after the last revision and goes on in another epoch."""
        revision = LAST + 1
        leaf = digest.epoch_leaf(LATER, EPOCH, LAST)
        chain = digest.chained(bytes.fromhex(self.digest(LAST)), digest.root([leaf]), revision, "new_epoch")
        self.tables["epochs"].append({"epoch": LATER, "continues_epoch": EPOCH, "continues_revision": LAST})
        begun = self.tables["revisions"][-1] | {"revision": revision, "epoch": LATER, "batch": revision + 100}
        self.tables["revisions"].append(begun | {"cause": "new_epoch", "digest": chain.hex()})
        nothing = {"players": [], "old_scores": [], "old_reached": [], "new_scores": [], "new_reached": []}
        delta = self.tables["deltas"][-1] | {"revision": revision, "previous": LAST} | nothing
        self.tables["deltas"].append(delta)
        self.states[revision] = self.states[LAST]
        here = {"epoch": LATER, "revision": revision}
        change = self._change(revision) | here
        self.topics[BOARD_CHANGED.name].append(_record(BOARD_CHANGED.name, 0, LAST, MAIN, change))
        continues = here | {"continues": [EPOCH, LAST]}
        last = len(self.topics[JUDGED.name])
        self.topics[JUDGED.name].append(_record(JUDGED.name, 0, last, "", continues) | {"key": None})
        self.pages.append(self.page(revision, 14.0) | here)
        for socket, dialect in enumerate(("scores", "scoreboard", "leaderboard"), 1):
            self.frames.append(self.frame(socket, dialect, revision, 14.0) | here)
        self._rest()
        self.whole["meta"] |= {"epoch": LATER, "revision": str(revision), "digest": chain.hex()}

    def write(self, run: Path, number: int = 1, *, at_rest: bool = True) -> Path:
        """Put all of it into a directory; a further dump beside those that are there."""
        dump = run / "dumps" / str(number)
        dump.mkdir(parents=True)
        about: Line = {"row": "X-1", "at_s": REST_S, "all_at_rest": at_rest}
        about["topic_ids"] = {topic: topic_id(topic) for topic in self.topics}
        (dump / "dump.json").write_text(json.dumps(about))
        began = {"began": format_us(FIRST_US - int(ERASED_S * 1e6))}
        (run / "run.json").write_text(json.dumps(began | {"seed": 1, "partitions": PARTITIONS, "brokers": 1}))
        files = {
            **{dump / f"{name}.jsonl": lines for name, lines in self.tables.items()},
            **{run / "topics" / f"{name}.jsonl": lines for name, lines in self.topics.items()},
            run / "attempts.jsonl": self.attempts,
            run / "pages.jsonl": self.pages,
            run / "frames.jsonl": self.frames,
            run / "copies.jsonl": self.looks,
            run / "events.jsonl": self.events,
            dump / "copies.jsonl": [self.whole],
            dump / "offsets.jsonl": self.offsets,
        }
        for path, lines in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run


OTHER_BODY: Line = {
    "purpose": "other",
    "type": "commit",
    "status": 409,
    "code": "id_reused",
    "verdict": None,
    "score": None,
    "revision": None,
}


def attempt(fact: Fact) -> Line:
    """The request that brought an action, answered 202."""
    return {
        "request": 1,
        "client": "writer",
        "row": "X-1",
        "begun_s": 1.0,
        "ended_s": 1.1,
        "route": "v1",
        "user": fact.user,
        "action": fact.action,
        "type": fact.type,
        "body": fact.action,
        "purpose": "first",
        "status": 202,
        "sent_points": fact.sent_points,
        "replayed": False,
        "fingerprint": fact.fingerprint,
        "verdict": "submitted",
    }


def _row(fact: Fact) -> Line:
    return {
        "action_id": fact.action,
        "player": PLAYERS[fact.user],
        "seq": fact.seq,
        "kind": "decision" if fact.seq else "judged",
        "type": fact.type,
        "verdict": fact.verdict,
        "reason": fact.reason,
        "points": fact.points,
        "catalogue_version": "1",
        "fingerprint": fact.fingerprint,
        "occurred_at": fact.at_us,
        "received_at": fact.at_us,
        "log": 1,
        "kafka_partition": fact.partition,
        "kafka_offset": fact.offset,
        "batch": fact.revision + 100,
    }


def _leaf(fact: Fact) -> bytes:
    about = (pid(PLAYERS[fact.user]), fact.action, fact.seq)
    words = ("decision" if fact.seq else "judged", fact.type, fact.verdict, fact.points)
    return digest.row_leaf(*about, *words, fact.at_us, fact.at_us, "1")


def _record(topic: str, partition: int, offset: int, key: str, body: Line | None) -> Line:
    value = None if body is None else json.dumps(body)
    about = {"at_s": 10.0, "topic_id": topic_id(topic), "partition": partition, "offset": offset, "key": key}
    return about if value is None else about | {"value": value}


def _submitted(partition: int, offset: int, fact: Fact | None) -> Line:
    if fact is None:
        return _record(SUBMITTED.name, partition, offset, "x", None) | {"value": "{"}
    body = {"user_id": fact.user, "action_id": fact.action, "fingerprint": fact.fingerprint}
    return _record(SUBMITTED.name, partition, offset, fact.user, body)


def _verdict(fact: Fact) -> Line:
    instant = format_us(fact.at_us)
    return {
        "player": pid(PLAYERS[fact.user]),
        "action_id": fact.action,
        "type": fact.type,
        "verdict": fact.verdict,
        "reason": fact.reason,
        "points": fact.points,
        "occurred_at": instant,
        "received_at": instant,
        "catalogue_version": "1",
        "epoch": EPOCH,
        "revision": fact.revision,
    } | ({"decision": fact.seq} if fact.seq else {})


def _person(user: str) -> Line:
    return {"player": pid(PLAYERS[user]), "user_id": user, "username": NAMES[user] or user, "hidden": False}


def _opened(socket: int, dialect: str) -> Line:
    return {"at_s": 1.0, "socket": socket, "dialect": dialect, "what": "opened"}
