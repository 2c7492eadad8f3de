"""People who were erased: nothing that anybody may read leads to them any more."""

from __future__ import annotations

from core.topics import PLAYER
from tests.faults.checking.findings import Findings
from tests.faults.checking.material import Material
from tests.faults.histories import Record, WholeCopy, read, read_member


def check(findings: Findings, material: Material) -> None:
    """I-18: the tables, the copies and the topic of people; `shown` looks at pages and frames."""
    erased = {player: row for player, row in material.ledger.players.items() if row["erased_at"] is not None}
    findings.count("erased", len(erased))
    users = {material.users[player] for player in erased}
    for player, row in erased.items():
        if row["user_id"] is not None or row["username"] is not None:
            found = (row["user_id"], row["username"])
            findings.add(
                "I-18",
                f"player {row['pid']}",
                "no id and no name",
                found,
                material.ledger.at("players", player),
            )
    for line, copy in enumerate(read(material.where / "copies.jsonl", WholeCopy), 1):
        held = {read_member(bytes.fromhex(member))[0] for member in copy.z} | copy.m.keys()
        for user in sorted(users & held):
            findings.add(
                "I-18",
                user,
                f"not in the copy of {copy.period}",
                "an entry",
                material.ledger.at("copies", line),
            )
    if material.dump.all_at_rest:
        _buried(findings, material, {row["pid"] for row in erased.values()})


def _buried(findings: Findings, material: Material, erased: set[str]) -> None:
    last: dict[str, tuple[int, Record]] = {}
    for line, record in material.records(PLAYER.name):
        if record.key in erased and record.topic_id == material.dump.topic_ids.get(PLAYER.name):
            last[record.key or ""] = (line, record)
    for pid, (line, record) in last.items():
        if record.value is not None:
            findings.add(
                "I-18",
                f"player {pid}",
                "a tombstone last",
                record.value,
                f"topics/{PLAYER.name}.jsonl:{line}",
            )
