"""The ledger itself: sums, revisions without gaps, digests, order; and that nothing in it ever changes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.faults.checking.findings import Findings
from tests.faults.checking.material import Ledger, Material, Row, Standing
from tests.faults.histories import MAIN, WholeCopy, read, read_member, read_table

State = dict[int, tuple[int, int]]


def check(findings: Findings, material: Material) -> None:
    """I-4, I-5, I-8 as far as the ledger's own numbers go, I-15, I-16, I-19."""
    _numbers(findings, material.ledger)
    _sums(findings, material)
    _digests(findings, material.ledger)
    _order(findings, material)
    _decisions(findings, material)
    _copy(findings, material)


# I-8: numbers


def _numbers(findings: Findings, ledger: Ledger) -> None:
    """Revisions are 1, 2, 3 …, epochs only rise, and each delta names the one before."""
    epoch = ""
    for expected, number in enumerate(sorted(ledger.revisions), 1):
        line, row = ledger.revisions[number]
        if number != expected:
            findings.add("I-8", "the ledger's revisions", expected, number, ledger.at("revisions", line))
            break
        if row["epoch"] < epoch:
            findings.add(
                "I-8", f"the epoch of revision {number}", epoch, row["epoch"], ledger.at("revisions", line)
            )
        epoch = row["epoch"]
    previous = 0
    for line, delta in ledger.deltas:
        if delta["previous"] != previous:
            who = f"the delta of revision {delta['revision']}"
            findings.add("I-8", who, f"previous {previous}", delta["previous"], ledger.at("deltas", line))
        previous = delta["revision"]


# I-4: sums


def _sums(findings: Findings, material: Material) -> None:
    """Each delta says what the rows of its revision add up to, and entries are what they all add up to."""
    ledger = material.ledger
    effects = _effects(ledger)
    state: State = {}
    shown: set[int] = set()
    deltas = {delta["revision"]: (line, delta) for line, delta in ledger.deltas}
    for revision in sorted(effects.keys() | deltas.keys()):
        line, delta = deltas.get(revision, (0, None))
        before = dict(_columns(delta, "old")) if delta else {}
        after = dict(_columns(delta, "new")) if delta else {}
        where = ledger.at("deltas", line)
        rows = effects.get(revision, {})
        for player in sorted(rows.keys() | after.keys()):
            was, wanted = state.get(player), _plus(state.get(player), rows.get(player, []))
            who = f"{material.users[player]} at revision {revision}"
            if player not in after:
                if wanted != was:
                    findings.add("I-4", who, f"a change to {wanted}", "none", where)
                continue
            if before[player] != was:
                findings.add("I-4", f"{who}, before", was, before[player], where)
            if not _agrees(after[player], wanted, rows.get(player, [])):
                findings.add("I-4", f"{who}, recounted", wanted, after[player], where)
            _put(state, player, after[player])
            gone = ledger.gone_from.get(player, revision + 1) <= revision
            (shown.discard if gone or after[player] is None else shown.add)(player)
        if delta is not None and delta["count"] != len(shown):
            findings.add("I-4", f"the count at revision {revision}", len(shown), delta["count"], where)
    _entries(findings, material, state)


def _effects(ledger: Ledger) -> dict[int, dict[int, list[tuple[int, int, bool]]]]:
    """By revision and player: (what its rows add to the score, received at, whether it counts now)."""
    effects: dict[int, dict[int, list[tuple[int, int, bool]]]] = {}
    latest: dict[tuple[int, str], int] = {}
    for _, row in sorted(ledger.rows, key=lambda found: (found[1]["batch"], found[1]["seq"])):
        key = (row["player"], row["action_id"])
        accepted = row["verdict"] == "accepted"
        worth = row["points"] if accepted else 0
        change, latest[key] = worth - (latest.get(key, 0) if row["seq"] else 0), worth
        revision = ledger.revision_of.get(row["batch"], 0)
        if accepted or change:
            effects.setdefault(revision, {}).setdefault(row["player"], []).append(
                (change, row["received_at"], accepted)
            )
    return effects


def _plus(was: tuple[int, int] | None, rows: list[tuple[int, int, bool]]) -> tuple[int, int] | None:
    if not rows:
        return was
    score = (was[0] if was else 0) + sum(change for change, _, _ in rows)
    with_points = [received for change, received, _ in rows if change]
    reached = max([*with_points, was[1] if was else 0])
    return (score, reached or rows[0][1])


def _agrees(
    found: tuple[int, int] | None, wanted: tuple[int, int] | None, rows: list[tuple[int, int, bool]]
) -> bool:
    """Of one whose decisions or worthless actions changed, the instant takes all their rows to tell."""
    if all(change > 0 for change, _, _ in rows):
        return found == wanted
    return (found and found[0]) == (wanted and wanted[0]) or (
        found is None and wanted is not None and not wanted[0]
    )


def _columns(delta: Row, age: str) -> list[tuple[int, tuple[int, int] | None]]:
    return [
        (player, None if score is None else (score, reached))
        for player, score, reached in zip(
            delta["players"], delta[f"{age}_scores"], delta[f"{age}_reached"], strict=True
        )
    ]


def _put(state: State, player: int, entry: tuple[int, int] | None) -> None:
    if entry is None:
        state.pop(player, None)
    else:
        state[player] = entry


def _entries(findings: Findings, material: Material, state: State) -> None:
    held = {}
    for line, row in enumerate(read_table(material.where, "entries"), 1):
        if row["period"] == MAIN:
            held[row["player"]] = ((row["score"], row["reached_at"]), line)
    for player in sorted(state.keys() | held.keys()):
        findings.count("entries")
        found, line = held.get(player, (None, 0))
        if found != state.get(player):
            where = material.ledger.at("entries", line)
            findings.add("I-4", f"the entry of {material.users[player]}", state.get(player), found, where)


# I-15: digests


def _digests(findings: Findings, ledger: Ledger) -> None:
    """The chain of digests is that of the rows as they are now, so none changed since it was written."""
    leaves: dict[int, list[bytes]] = {}
    for _, row in ledger.rows:
        leaves.setdefault(ledger.revision_of.get(row["batch"], 0), []).append(_row_leaf(ledger, row))
    for table, leaf in (("catalogues", _catalogue_leaf), ("boards", _definition_leaf)):
        for row in read_table(ledger.where, table):
            leaves.setdefault(row["revision"], []).append(leaf(row))
    for row in ledger.epochs.values():
        if row["continues_epoch"] is not None:
            begun = ["epoch", row["epoch"], row["continues_epoch"], row["continues_revision"]]
            leaves.setdefault(row["continues_revision"] + 1, []).append(_json(begun))
    digest = bytes(32)
    for number in sorted(ledger.revisions):
        line, row = ledger.revisions[number]
        content = b"trueboard/1" + digest + _root(leaves.get(number, []))
        digest = hashlib.sha256(content + number.to_bytes(8, "big") + row["cause"].encode()).digest()
        findings.count("digests")
        if digest.hex() != row["digest"]:
            where = ledger.at("revisions", line)
            findings.add("I-15", f"the digest of revision {number}", digest.hex(), row["digest"], where)
            digest = bytes.fromhex(row["digest"])


def _row_leaf(ledger: Ledger, row: Row) -> bytes:
    words = [row["action_id"], row["seq"], row["kind"], row["type"], row["verdict"], row["points"]]
    instants = [row["occurred_at"], row["received_at"]]
    return _json(["row", ledger.players[row["player"]]["pid"], *words, *instants, row["catalogue_version"]])


def _catalogue_leaf(row: Row) -> bytes:
    return _json(["catalogue", row["version"], row["sha256"]])


def _definition_leaf(row: Row) -> bytes:
    return _json(["definition", row["board"], row["version"], row["sha256"]])


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _root(leaves: list[bytes]) -> bytes:
    """RFC 9162 §2.1.1, as it is written there: the left half is the largest power of two below n."""
    hashes = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in sorted(leaves)]

    def root(part: list[bytes]) -> bytes:
        if len(part) == 1:
            return part[0]
        half = 1 << (len(part) - 1).bit_length() - 1
        return hashlib.sha256(b"\x01" + root(part[:half]) + root(part[half:])).digest()

    return root(hashes) if hashes else hashlib.sha256(b"").digest()


# I-16, I-19


def _order(findings: Findings, material: Material) -> None:
    """One user's actions are judged in the order in which they stand in the log."""
    ledger = material.ledger
    theirs: dict[tuple[int, int, int], list[tuple[int, int, int, Row]]] = {}
    for line, row in ledger.rows:
        if row["seq"] == 0 and row["kafka_offset"] is not None:
            place = (row["player"], row["log"], row["kafka_partition"])
            revision = ledger.revision_of.get(row["batch"], 0)
            theirs.setdefault(place, []).append((row["kafka_offset"], revision, line, row))
    for (player, _, partition), rows in theirs.items():
        rows.sort(key=lambda found: found[0])
        latest = 0
        for offset, revision, line, row in rows:
            if revision < latest:
                who = f"{row['action_id']} of {material.users[player]}, offset {offset} of {partition}"
                expected = f"revision {latest} or later, as of the record before it"
                findings.add("I-16", who, expected, revision, ledger.at("ledger", line))
            latest = max(latest, revision)


def _decisions(findings: Findings, material: Material) -> None:
    """An action is judged once; each decision about it is one more row, in a later batch."""
    ledger = material.ledger
    last: dict[tuple[int, str], tuple[int, int]] = {}
    for line, row in sorted(ledger.rows, key=lambda found: found[1]["seq"]):
        key = (row["player"], row["action_id"])
        seq, batch = last.get(key, (-1, 0))
        who = f"row {row['seq']} of {row['action_id']} of {material.users[row['player']]}"
        wanted = "judged" if row["seq"] == 0 else "decision"
        if row["kind"] != wanted:
            findings.add("I-19", who, wanted, row["kind"], ledger.at("ledger", line))
        elif row["seq"] > seq + 1 or (row["seq"] > 0 and row["batch"] <= batch):
            expected = f"row {seq + 1}, in a batch after {batch}"
            findings.add("I-19", who, expected, f"batch {row['batch']}", ledger.at("ledger", line))
        last[key] = (row["seq"], row["batch"])


def unchanged(findings: Findings, earlier: Ledger, later: Ledger, users: dict[int, str]) -> None:
    """I-15: what an earlier dump holds and no restore took away, a later one holds in the same words."""
    rows = {(row["player"], row["action_id"], row["seq"]): (line, row) for line, row in later.rows}
    kept = set()
    for number, (_, row) in earlier.revisions.items():
        if later.is_kept(row["epoch"], number):
            kept.add(row["batch"])
            line, now = later.revisions[number]
            if now["digest"] != row["digest"]:
                where = later.at("revisions", line)
                findings.add("I-15", f"the digest of revision {number}", row["digest"], now["digest"], where)
    for line, row in earlier.rows:
        if row["batch"] not in kept:
            continue
        found = rows.get((row["player"], row["action_id"], row["seq"]))
        where = earlier.at("ledger", line) if found is None else later.at("ledger", found[0])
        who = f"action {row['action_id']} of {users[row['player']]}"
        if found is None:
            findings.add("I-15", who, f"{row['verdict']}, as before", "no row any more", where)
            continue
        findings.count("rows seen again")
        for column in sorted(row.keys() & found[1].keys()):
            if row[column] != found[1][column]:
                findings.add("I-15", f"{column} of {who}", row[column], found[1][column], where)


# I-5: the copy


def _copy(findings: Findings, material: Material) -> None:
    """The copy in Redis, whole, is the ledger at the period's last revision."""
    [standing] = material.standings([material.ledger.last])
    copies = {
        copy.period: (line, copy)
        for line, copy in enumerate(read(material.where / "copies.jsonl", WholeCopy), 1)
    }
    line, copy = copies.get(MAIN, (0, None))
    where = material.ledger.at("copies", line)
    if copy is None or not copy.meta:
        if material.dump.all_at_rest:
            findings.add("I-5", "the copy in Redis", f"revision {standing.own}", "none", where)
        return
    at = (copy.meta["epoch"], int(copy.meta["revision"]))
    own = material.ledger.revisions.get(standing.own)
    if own is None or at != (own[1]["epoch"], standing.own):
        if material.dump.all_at_rest:
            findings.add("I-5", "the copy's position", standing.own, at, where)
        return
    if copy.meta["digest"] != own[1]["digest"]:
        findings.add("I-5", f"the copy's digest at {at[1]}", own[1]["digest"], copy.meta["digest"], where)
    _copied(findings, material, copy, standing, where)


def _copied(findings: Findings, material: Material, copy: WholeCopy, standing: Standing, where: str) -> None:
    names = {
        row["user_id"]: row["username"] or ""
        for row in material.ledger.players.values()
        if row["user_id"] is not None
    }
    wanted = {user: (*entry, names.get(user)) for user, entry in standing.entries.items()}
    erased = {material.users[player] for player in material.ledger.gone_from}
    members = [bytes.fromhex(member) for member in copy.z]
    index = {user: bytes.fromhex(value) for user, value in copy.m.items()}
    have: dict[str, Any] = {}
    for member in members:
        user, score, reached = read_member(member)
        value = index.get(user, b"")
        name = value[16:].decode() if value[:16] == member[:16] else f"another key, {value[:16].hex()}"
        have[user] = (score, reached, name)
    for user in sorted(wanted.keys() | have.keys() - erased):
        findings.count("copied")
        if wanted.get(user) != have.get(user):
            findings.add("I-5", f"{user} in the copy", wanted.get(user), have.get(user), where)
    if members != sorted(members):
        findings.add("I-5", "the copy's order", "that of its members' bytes", "another", where)
    sizes = [len(members), len(index), int(copy.meta["count"])]
    if len({*sizes, len(have)}) > 1:
        findings.add("I-5", "the copy's ZCARD, HLEN and count", f"{len(have)} each", sizes, where)
    if copy.scores_not_zero:
        findings.add("I-5", "members of the copy with a score", 0, copy.scores_not_zero, where)
