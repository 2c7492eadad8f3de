"""Actions: what writers were told of them, what the log holds of them, what the ledger says of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.faults.checking.findings import Findings
from tests.faults.checking.material import Key, Material, Row
from tests.faults.histories import Attempt

Tries = list[tuple[int, Attempt]]
ANSWERS = (0, 200, 202, 409, 422, 503)
"""What may come of these writers' actions; 0 is no answer."""


def check(findings: Findings, material: Material) -> None:
    """I-1, I-2, I-3, I-11, I-12, I-14, I-15 as far as receipts tell, I-26."""
    _counted_once(findings, material)
    for key, tries in material.sent.items():
        _answered(findings, key, tries, material.judged.get(key), material)
    for key, (line, row) in material.judged.items():
        _asked_for(findings, key, row, material.ledger.at("ledger", line), material)
    _refusals(findings, material)
    _on_the_log(findings, material)


def is_direct(user: str) -> bool:
    """Whether records of this user did not come by the door."""
    return user.startswith("direct-")


def is_confirmed(attempt: Attempt) -> bool:
    return attempt.status in (200, 202) or (attempt.status == 422 and attempt.verdict is not None)


def is_refused(attempt: Attempt) -> bool:
    """Whether nothing may come of it. Who waited for the verdict was told 409 by the stream, of a record."""
    waited = attempt.status == 409 and (attempt.wait_s > 0 or attempt.route not in ("v1", "v1-batch"))
    return 400 <= attempt.status < 500 and attempt.verdict is None and not waited


def fingerprint(attempt: Attempt) -> str:
    """Of a submission: hex of the first half of SHA-256 of [type, points, occurred_at as sent]."""
    body = json.dumps([attempt.type, attempt.sent_points, attempt.occurred_at], separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()[:32]


def _counted_once(findings: Findings, material: Material) -> None:
    first: dict[tuple[str, str, int], int] = {}
    for line, row in material.ledger.rows:
        key = (material.users[row["player"]], row["action_id"], row["seq"])
        if key in first:
            found = f"two, in lines {first[key]} and {line}"
            findings.add("I-3", _name(key), f"one row {key[2]}", found, material.ledger.at("ledger", line))
        first[key] = line


def _answered(
    findings: Findings, key: Key, tries: Tries, found: tuple[int, Row] | None, material: Material
) -> None:
    """What was confirmed is there, and as it was told."""
    confirmed = next(
        ((line, one) for line, one in tries if is_confirmed(one) and one.purpose != "other"), None
    )
    if confirmed is not None:
        findings.count("confirmed")
        if any(not is_confirmed(one) and line < confirmed[0] for line, one in tries):
            findings.count("retried")
    if found is None:
        if confirmed is not None and not _was_erased(key[0], material):
            told = f"none, though it was told {confirmed[1].status} at {confirmed[1].ended_s} s"
            findings.add("I-1", _name(key), "a row", told, f"attempts.jsonl:{confirmed[0]}")
        return
    line, row = found
    if row["verdict"] not in ("accepted", "rejected", "held") or (row["verdict"] == "accepted") != (
        row["reason"] is None
    ):
        reason = f"{row['verdict']} for {row['reason']}"
        findings.add(
            "I-1", _name(key), "a reason unless accepted", reason, material.ledger.at("ledger", line)
        )
    for line, attempt in tries:
        if attempt.verdict not in (None, "submitted"):
            _as_told(findings, key, attempt, row, f"attempts.jsonl:{line}", material)


def _as_told(
    findings: Findings, key: Key, attempt: Attempt, row: Row, where: str, material: Material
) -> None:
    """A receipt is the row. One of a revision that was lost with its epoch is of another judging."""
    if attempt.epoch is not None and not material.ledger.is_kept(attempt.epoch, attempt.revision):
        return
    findings.count("receipts")
    told = {
        "verdict": (attempt.verdict, row["verdict"]),
        "reason": (attempt.reason, (row["reason"] or {}).get("code")),
        "points": (attempt.points, row["points"]),
        "fingerprint": (attempt.fingerprint, row["fingerprint"]),
        "revision": (attempt.judged_revision, material.ledger.revision_of.get(row["batch"])),
    }
    for what, (said, is_now) in told.items():
        if said != is_now and (said is not None or what == "reason"):
            findings.add("I-15", f"the {what} of {_name(key)}", f"{said} as its receipt says", is_now, where)


def _asked_for(findings: Findings, key: Key, row: Row, where: str, material: Material) -> None:
    """A row is of a submission that somebody sent, and worth what that is worth."""
    findings.count("rows")
    if is_direct(key[0]):
        return
    tries = material.sent.get(key)
    if tries is None:
        findings.add("I-2", _name(key), "no row: nobody sent it", f"it is {row['verdict']}", where)
        return
    if all(is_refused(attempt) for _, attempt in tries):
        statuses = {attempt.status for _, attempt in tries}
        findings.add("I-2", _name(key), f"no row: only ever refused, {statuses}", row["verdict"], where)
        return
    bodies = {fingerprint(attempt): attempt for _, attempt in tries}
    counted = bodies.get(row["fingerprint"])
    if counted is None:
        findings.add("I-3", _name(key), f"one of the bodies sent, {set(bodies)}", row["fingerprint"], where)
        return
    worth = _worth(counted, material.ledger.catalogues.get(row["catalogue_version"]))
    if row["points"] != worth:
        findings.add("I-3", f"the points of {_name(key)}", worth, row["points"], where)


def _worth(attempt: Attempt, catalogue: dict[str, Any] | None) -> int | None:
    """The points of an action by a catalogue; None if there is no such catalogue."""
    if catalogue is None:
        return None
    kind = catalogue["types"].get(attempt.type)
    if kind is None:
        return 0
    return int(kind["points"]) if kind.get("points") is not None else attempt.sent_points


def _refusals(findings: Findings, material: Material) -> None:
    """503 says when to come again; nothing else is answered where there is no confirmation."""
    struck = {event.row for event in material.events if event.what == "struck" and event.target == "ingest"}
    for line, attempt in material.attempts:
        findings.count("attempts")
        who, where = _name((attempt.user, attempt.action)), f"attempts.jsonl:{line}"
        if attempt.status not in ANSWERS:
            findings.add(
                "I-11", who, "a confirmation, a refusal or 503", f"{attempt.status} {attempt.code}", where
            )
        if attempt.status == 503 and not attempt.retry_after:
            findings.add("I-11", who, "Retry-After", "503 without it", where)
        if attempt.code == "timeout" and attempt.row not in struck:
            took_s = attempt.ended_s - attempt.begun_s
            findings.add("I-11", who, "503 within some 4 s", f"no answer for {took_s:.1f} s", where)


def _on_the_log(findings: Findings, material: Material) -> None:
    """What was confirmed stands on the log; what was refused does not; the first of an action counts."""
    there: set[tuple[str, str, str]] = set()
    first: dict[tuple[Key, str, int], int] = {}
    for one in material.submitted:
        if one.key is None:
            continue
        there.add((*one.key, one.fingerprint))
        first.setdefault((one.key, one.log, one.record.partition), one.record.offset)
        if is_direct(one.key[0]) or one.key in material.judged:
            continue
        tries = [a for _, a in material.sent.get(one.key, []) if fingerprint(a) == one.fingerprint]
        if not tries:
            findings.add("I-2", _name(one.key), "no record: nobody sent it", one.fingerprint, one.where)
    topics = {number: topic_id for topic_id, number in material.ledger.logs.items()}
    for key, (line, row) in material.judged.items():
        place = first.get((key, topics.get(row["log"], ""), row["kafka_partition"]))
        if place is not None and place != row["kafka_offset"]:
            findings.add(
                "I-3",
                _name(key),
                f"the first record to count, offset {place} of partition {row['kafka_partition']}",
                row["kafka_offset"],
                material.ledger.at("ledger", line),
            )
    if material.dump.all_at_rest:
        _confirmed_on_the_log(findings, material, there)
    for key, tries in material.sent.items():
        for body in {fingerprint(a) for _, a in tries if is_refused(a)}:
            if (*key, body) in there and all(is_refused(a) for _, a in tries if fingerprint(a) == body):
                _, refused = next((line, a) for line, a in tries if fingerprint(a) == body)
                if material.judged.get(key, (0, {}))[1].get("fingerprint") != body:
                    findings.add(
                        "I-26", _name(key), f"no record: it was told {refused.status}", body, _of(tries)
                    )


def _confirmed_on_the_log(findings: Findings, material: Material, there: set[tuple[str, str, str]]) -> None:
    for key, tries in material.sent.items():
        for line, attempt in tries:
            if not is_confirmed(attempt):
                continue
            findings.count("durable")
            if (
                any((*key, fingerprint(a)) in there for _, a in tries)
                if attempt.replayed
                else ((*key, fingerprint(attempt)) in there)
            ):
                continue
            told = f"none, though it was told {attempt.status} at {attempt.ended_s} s"
            if attempt.replayed:
                told += ", as a repeat"
            invariant = "I-14" if attempt.replayed else "I-12"
            findings.add(invariant, _name(key), "a record on the log", told, f"attempts.jsonl:{line}")


def _was_erased(user: str, material: Material) -> bool:
    """Whether records of this user are set aside now."""
    return any(
        row["erased_at"] is not None and material.users[player] == user
        for player, row in material.ledger.players.items()
    )


def _of(tries: Tries) -> str:
    return f"attempts.jsonl:{tries[0][0]}"


def _name(key: tuple[Any, ...]) -> str:
    return f"action {key[1]} of {key[0]}"
