"""The topics read back as somebody reads them who knows nothing but them."""

from __future__ import annotations

from typing import Any

from core import topics
from storage.followers import At
from tests.acceptance import naive
from tests.acceptance.naive import Standing
from tests.model.real.recount import PERIOD, Count, must
from tests.storage.reading_topics import Reader, Record
from tests.storage.test_publishing import us
from trueboard.devstack.kafka.memory import MockCluster

JUDGED, PLAYER, CHANGED = topics.JUDGED.name, topics.PLAYER.name, topics.BOARD_CHANGED.name

Shown = dict[At, list[dict[str, Standing]]]


def made() -> MockCluster:
    """A broker with the topics, of no more partitions than make a difference."""
    cluster = MockCluster()
    for topic in topics.ALL:
        cluster.make_topic(topic.name, 2 if topic is topics.JUDGED else 1)
    return cluster


class Topics:
    """What stands on the topics of one broker, and what of it was looked at."""

    def __init__(self, cluster: MockCluster) -> None:
        self.bootstrap = cluster.bootstrap
        self._reader = Reader(self.bootstrap)
        self._checked = 0
        self._first: dict[str, Record] = {}

    def close(self) -> None:
        self._reader.close()

    def read(self) -> None:
        self._reader.read()

    def buried(self) -> set[str]:
        """Whose last record of `player` is a tombstone."""
        last = {record.key: record.raw for record in self._reader.records[PLAYER]}
        return {pid for pid, raw in last.items() if raw is None}

    def check(self, shown: Shown, users: dict[str, str], count: Count) -> None:
        """Every record of `board.changed` is the ledger at the position it names.

        Of an earlier revision, whoever was erased since may be left out.
        """
        records = self._reader.records[CHANGED]
        gone = {users[pid] for pid, (user_id, _) in count.names.items() if user_id is None}
        for record in records[self._checked :]:
            value = record.value
            at = At(value["epoch"], value["revision"], value["digest"])
            must(record.key == PERIOD, f"{record} is of another period")
            must(at in shown, f"the topic names {at}, which the ledger never had")
            found = [
                _is_said(value, {users[pid]: one for pid, one in at_once.items()}, gone)
                for at_once in shown[at]
            ]
            must("" in found, f"the topic has {value}: {found}")
        self._checked = len(records)
        for record in self._reader.records[JUDGED]:
            first = self._first.setdefault(record.event_id, record)
            must(
                (first.raw, first.key, first.partition) == (record.raw, record.key, record.partition),
                f"{record} says another thing than {first}",
            )

    def must_end_with(self, count: Count, *, with_people: bool) -> None:
        """Folded by who knows nothing but them, the topics are the ledger."""
        judged = [record.value for record in self._reader.records[JUDGED]]
        void_after = _void_after(judged)
        said = {
            (one["player"], one["action_id"], one.get("decision", 0), one["verdict"], one["points"],
             one["epoch"], one["revision"])
            for one in judged
            if "continues" not in one and one["revision"] <= void_after.get(one["epoch"], -1)
        }  # fmt: skip
        epoch_of = {at.revision: at.epoch for at in count.line}
        rows = {
            (row.pid, row.action_id, row.seq, row.verdict, row.points, epoch_of[row.revision], row.revision)
            for row in count.rows
        }
        must(said == rows, f"the topic has {sorted(said - rows)} more and {sorted(rows - said)} less")
        ends = [record.value for record in self._reader.records[CHANGED]]
        at = max(At(one["epoch"], one["revision"], one["digest"]) for one in ends)
        must(at == count.chain[-1], f"the topic ends at {at}, the ledger at {count.chain[-1]}")
        if with_people:
            self._must_end_with_people(count)

    def _must_end_with_people(self, count: Count) -> None:
        last: dict[str, Any] = {record.key: record.value for record in self._reader.records[PLAYER]}
        for pid, (user_id, username) in count.names.items():
            told = last.get(pid)
            expected = None if user_id is None else (user_id, username or user_id)
            found = None if told is None else (told["user_id"], told["username"])
            must(found == expected, f"the topic calls {pid} {found}, the ledger {expected}")


def _is_said(value: dict[str, Any], truth: dict[str, Standing], gone: set[str]) -> str:
    """What a publication has that is not so; nothing where it is."""
    if value["count"] != len(truth):
        return f"it counts {value['count']} of {truth}"
    top = [(one["user_id"], one["score"], us(one["reached_at"])) for one in value["top"]]
    named = {user_id for user_id, _, _ in top}
    left = {user_id: one for user_id, one in truth.items() if user_id in named or user_id not in gone}
    expected = [ranked[1:] for ranked in naive.ranked(left)[:10]]
    if top != expected:
        return f"its top is not {expected}"
    for one in value["changed"]:
        standing = None if one["score"] is None else (one["score"], us(one["reached_at"]))
        if standing != truth.get(one["user_id"]) and one["user_id"] not in gone:
            return f"it changes {one} of {truth}"
    return ""


def _void_after(judged: list[dict[str, Any]]) -> dict[str, int]:
    """The line of the newest epoch: epoch → its last revision that is not void."""
    continues = {one["epoch"]: one["continues"] for one in judged if "continues" in one}
    epoch = max((one["epoch"] for one in judged), default="")
    until = 1 << 60
    line: dict[str, int] = {}
    while epoch not in line:
        line[epoch] = until
        if epoch not in continues:
            break
        epoch, until = continues[epoch]
    return line


__all__ = ["Topics", "made"]
