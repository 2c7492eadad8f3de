"""Logs and topics: everything read has its place, and what follows the ledger says what it says."""

from __future__ import annotations

from typing import Any

from core.topics import BOARD_CHANGED, DEAD, JUDGED, PLAYER, SUBMITTED
from tests.faults.checking.findings import VACUOUS, Findings
from tests.faults.checking.material import Material, Row, Submitted, as_object, as_us
from tests.faults.histories import MAIN, Offsets, Record, read, read_table

Event = tuple[str, str, int, str]
"""(player, action, decision or 0, epoch): what one record of a verdict says, however often."""


def check(findings: Findings, material: Material) -> None:
    """I-9, I-10, I-24; all of them at rest only, but that records of one event never differ."""
    if material.dump.all_at_rest:
        _positions(findings, material)
        _places(findings, material)
        _dead_letters(findings, material)
        _people(findings, material)
        _changes(findings, material)
    _verdicts(findings, material)


# I-9


def _positions(findings: Findings, material: Material) -> None:
    """The ledger has read each log to its end, and the group is not beyond it."""
    progress = {
        row["partition"]: (line, row) for line, row in enumerate(read_table(material.where, "progress"), 1)
    }
    seen: dict[tuple[str, int], set[int]] = {}
    for topic in (SUBMITTED.name, JUDGED.name, PLAYER.name, BOARD_CHANGED.name, DEAD.name):
        for _, record in material.records(topic):
            if record.topic_id == material.dump.topic_ids.get(topic):
                seen.setdefault((topic, record.partition), set()).add(record.offset)
    for line, place in enumerate(read(material.where / "offsets.jsonl", Offsets), 1):
        who, where = f"partition {place.partition} of {place.topic}", material.ledger.at("offsets", line)
        there = set(range(place.start, place.end))
        if missing := there - seen.get((place.topic, place.partition), set()):
            findings.add(
                VACUOUS, who, f"a transcript of {len(there)} records", f"none of {min(missing)}", where
            )
        if place.topic != SUBMITTED.name:
            continue
        findings.count("partitions")
        progress_line, row = progress.get(place.partition, (0, None))
        next_offset = row["next_offset"] if row is not None else 0
        if next_offset != place.end:
            at = material.ledger.at("progress", progress_line)
            findings.add("I-9", who, f"read to its end, {place.end}", f"read to {next_offset}", at)
        if place.committed > next_offset:
            findings.add("I-9", f"the group at {who}", f"at most {next_offset}", place.committed, where)


def _places(findings: Findings, material: Material) -> None:
    """Each record that was read is counted, a repeat, or set aside."""
    for one in material.submitted:
        log = material.ledger.logs.get(one.log)
        findings.count("records")
        if one.key in material.judged:
            continue
        if log is None or (log, one.record.partition, one.record.offset) in material.ledger.aside:
            continue
        if any(attempt.status in (200, 202) for _, attempt in material.sent.get(one.key or ("", ""), [])):
            # I-1 says it of what was confirmed.
            continue
        findings.add("I-9", _place(one), "a row, a repeat, or set aside", "none of them", one.where)


def _place(one: Submitted) -> str:
    what = "no action" if one.key is None else f"action {one.key[1]} of {one.key[0]}"
    return f"the record at {one.record.offset} of partition {one.record.partition}, {what}"


# I-10


def _dead_letters(findings: Findings, material: Material) -> None:
    """Each record that was set aside has its letter, unchanged and with a reason, and none other has."""
    letters: dict[str, list[tuple[int, Record]]] = {}
    for line, letter in material.records(DEAD.name):
        letters.setdefault(letter.key or "", []).append((line, letter))
    originals = {
        (material.ledger.logs.get(one.log), one.record.partition, one.record.offset): one
        for one in material.submitted
    }
    wanted = set()
    for (log, partition, offset), (line, reason) in material.ledger.aside.items():
        if reason == "erased":
            continue
        key = f"{SUBMITTED.name}-{partition}-{offset}"
        wanted.add(key)
        findings.count("set aside")
        where = material.ledger.at("set_aside", line)
        found = letters.get(key, [])
        if not found:
            findings.add(
                "I-10", f"the record at {offset} of partition {partition}", f"a letter {key}", "none", where
            )
            continue
        original = originals.get((log, partition, offset))
        if original is not None:
            _letter(findings, key, found, original.record, reason)
    for key, found in letters.items():
        if key not in wanted:
            at = f"topics/{DEAD.name}.jsonl:{found[0][0]}"
            findings.add("I-10", f"the record of letter {key}", "set aside", "not set aside", at)


def _letter(
    findings: Findings, key: str, found: list[tuple[int, Record]], record: Record, reason: str
) -> None:
    for line, letter in found:
        at = f"topics/{DEAD.name}.jsonl:{line}"
        if (letter.value or "", letter.binary[-1:]) == (record.value or "", record.binary[-1:]):
            if letter.headers.get("reason") != reason:
                findings.add("I-10", f"the reason of letter {key}", reason, letter.headers.get("reason"), at)
            return
    findings.add(
        "I-10", f"letter {key}", "the record's bytes", "others", f"topics/{DEAD.name}.jsonl:{found[0][0]}"
    )


# I-24: verdicts


def _verdicts(findings: Findings, material: Material) -> None:
    """Each row is on the topic of verdicts, as it is, in the order of revisions; repeats are the same."""
    ledger = material.ledger
    players = {row["pid"]: player for player, row in ledger.players.items()}
    rows: dict[tuple[int, str, int], Row] = {}
    for _, row in ledger.rows:
        rows.setdefault((row["player"], row["action_id"], row["seq"]), row)
    current: set[tuple[int, str, int]] = set()
    said: dict[Event, str] = {}
    told: set[tuple[str, Event]] = set()
    latest: dict[tuple[str, int], tuple[str, int]] = {}
    for line, record in material.records(JUDGED.name):
        body = as_object(record)
        if body is None or "action_id" not in body:
            continue
        findings.count("verdicts")
        where, seq = f"topics/{JUDGED.name}.jsonl:{line}", body.get("decision", 0)
        who = f"the verdict on {body['action_id']} of {body['player']}"
        event = (body["player"], body["action_id"], seq, body["epoch"])
        at, log = (body["epoch"], body["revision"]), (record.topic_id, record.partition)
        if said.setdefault(event, record.value or "") != record.value:
            findings.add("I-24", who, f"repeated as {said[event]}", record.value, where)
            continue
        if (record.topic_id, event) not in told and at < latest.get(log, ("", 0)):
            findings.add("I-24", who, f"revision {latest[log][1]} or later, as before it", at[1], where)
        told.add((record.topic_id, event))
        latest[log] = max(at, latest.get(log, ("", 0)))
        if not ledger.is_kept(*at):
            continue
        player = players.get(body["player"])
        found = rows.get((player, body["action_id"], seq)) if player is not None else None
        if found is None:
            findings.add("I-24", who, "no record: there is no such row", body["verdict"], where)
        elif (difference := _unlike(body, found, ledger.revision_of)) is not None:
            findings.add("I-24", f"{difference[0]} of {who}", difference[1], difference[2], where)
        elif record.topic_id == material.dump.topic_ids.get(JUDGED.name):
            current.add((found["player"], found["action_id"], seq))
    if material.dump.all_at_rest:
        for line, row in ledger.rows:
            if (row["player"], row["action_id"], row["seq"]) not in current:
                who = f"the verdict on {row['action_id']} of {material.users[row['player']]}"
                findings.add("I-24", who, "a record on the topic", "none", ledger.at("ledger", line))


def _unlike(body: dict[str, Any], row: Row, revision_of: dict[int, int]) -> tuple[str, Any, Any] | None:
    """The first field in which a record is not its row: (name, the row's, the record's)."""
    wanted = {
        "type": row["type"],
        "verdict": row["verdict"],
        "reason": row["reason"],
        "points": row["points"],
        "catalogue_version": row["catalogue_version"],
        "revision": revision_of.get(row["batch"]),
    }
    for name, value in wanted.items():
        if body.get(name) != value:
            return name, value, body.get(name)
    for name in ("occurred_at", "received_at"):
        if as_us(body[name]) != row[name]:
            return name, row[name], as_us(body[name])
    return None


# I-24: people and changes


def _people(findings: Findings, material: Material) -> None:
    """The last record of a player says what holds now; I-18 looks at those who were erased."""
    last: dict[str, tuple[int, Record]] = {}
    for line, record in material.records(PLAYER.name):
        if record.topic_id == material.dump.topic_ids.get(PLAYER.name):
            last[record.key or ""] = (line, record)
    for row in material.ledger.players.values():
        if row["erased_at"] is not None:
            continue
        line, found = last.get(row["pid"], (0, None))
        body = as_object(found) if found is not None else None
        told = None if body is None else (body["user_id"], body["username"], body["hidden"])
        wanted = (row["user_id"], row["username"] or row["user_id"], row["hidden"])
        if told is None or (told[0], told[1] or told[0], told[2]) != wanted:
            findings.add("I-24", f"player {row['pid']}", wanted, told, f"topics/{PLAYER.name}.jsonl:{line}")


def _changes(findings: Findings, material: Material) -> None:
    """Each revision of the period is on the topic of changes."""
    there = set()
    for _, record in material.records(BOARD_CHANGED.name):
        body = as_object(record)
        if body is not None and record.topic_id == material.dump.topic_ids.get(BOARD_CHANGED.name):
            there.add((body["epoch"], body["revision"]))
    for line, delta in material.ledger.deltas:
        _, revision = material.ledger.revisions.get(delta["revision"], (0, {}))
        if (revision.get("epoch"), delta["revision"]) not in there:
            where = material.ledger.at("deltas", line)
            findings.add(
                "I-24", f"revision {delta['revision']} of {MAIN}", "a record of the change", "none", where
            )
