"""The least that must hold at the end of a row, recounted from the run's files alone.

I-1 nothing confirmed is lost, I-2 nothing is invented, I-3 nothing counts twice and worth what the
catalogue says, I-4 scores are sums, I-5 the copy in Redis is the ledger's, I-8 nothing that was shown
was wrong or went back. `tests.faults.checker` looks at much more; this one is small enough to be
believed by reading it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.histories import (
    MAIN,
    Attempt,
    Copy,
    Frame,
    Page,
    WholeCopy,
    dumps,
    read,
    read_member,
    read_table,
)

WORTH = {"level_complete": 10, "commit": 1}
Top = list[tuple[str, int, int]]


@dataclass
class Findings:
    """What is wrong, and how much was looked at: a comparison of nothing proves nothing."""

    wrong: list[str] = field(default_factory=list)
    looked_at: dict[str, int] = field(default_factory=dict)

    def add(self, invariant: str, what: str) -> None:
        self.wrong.append(f"{invariant}: {what}")

    def count(self, name: str, by: int = 1) -> None:
        self.looked_at[name] = self.looked_at.get(name, 0) + by


def compare(run: Path, dump: Path | None = None) -> Findings:
    """Everything the run has written down so far, against its last dump."""
    where = dump or dumps(run)[-1]
    findings = Findings()
    players = {row["player"]: row for row in read_table(where, "players")}
    ledger = list(read_table(where, "ledger"))
    attempts = list(read(run / "attempts.jsonl", Attempt))
    _nothing_lost_nor_invented(findings, attempts, ledger, players)
    _sums(findings, where, ledger)
    _copy(findings, where, players)
    _shown(findings, run, where, players)
    return findings


# I-1, I-2, I-3


def _nothing_lost_nor_invented(
    findings: Findings, attempts: list[Attempt], ledger: list[dict[str, Any]], players: dict[int, Any]
) -> None:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in ledger:
        if row["seq"] != 0:
            continue
        key = (players[row["player"]]["user_id"], row["action_id"])
        if key in rows:
            findings.add("I-3", f"{key} has two rows")
        rows[key] = row
    sent: dict[tuple[str, str], list[Attempt]] = {}
    for attempt in attempts:
        sent.setdefault((attempt.user, attempt.action), []).append(attempt)
    for key, tries in sent.items():
        confirmed = any(_confirmed(attempt) for attempt in tries)
        refused = all(400 <= attempt.status < 500 and attempt.verdict is None for attempt in tries)
        found = rows.get(key)
        if confirmed:
            findings.count("confirmed")
            if found is None:
                findings.add("I-1", f"{key} was confirmed and is not in the ledger")
        if refused and found is not None:
            findings.add("I-2", f"{key} was only ever refused and is in the ledger")
        if found is None:
            continue
        if (found["verdict"] == "accepted") != (found["reason"] is None):
            findings.add("I-1", f"{key} is {found['verdict']} for {found['reason']}")
        worths = {
            WORTH[attempt.type] if attempt.sent_points is None else attempt.sent_points for attempt in tries
        }
        if found["points"] not in worths:
            findings.add("I-3", f"{key} is worth {found['points']}, not one of {worths}")
        _receipts_agree(findings, key, tries, found)
    for key in rows.keys() - sent.keys():
        if not key[0].startswith("direct-"):
            findings.add("I-2", f"{key} is in the ledger and was never sent")
    findings.count("rows", len(rows))


def _receipts_agree(
    findings: Findings, key: tuple[str, str], tries: list[Attempt], found: dict[str, Any]
) -> None:
    for attempt in tries:
        if attempt.verdict not in (None, "submitted") and attempt.verdict != found["verdict"]:
            findings.add("I-1", f"{key} was told {attempt.verdict} and is {found['verdict']}")
        if attempt.verdict is not None and attempt.points not in (None, found["points"]):
            findings.add("I-3", f"{key} was told {attempt.points} points and has {found['points']}")


def _confirmed(attempt: Attempt) -> bool:
    return attempt.purpose != "other" and (
        attempt.status in (200, 202) or (attempt.status == 422 and attempt.verdict is not None)
    )


# I-4


def _sums(findings: Findings, where: Path, ledger: list[dict[str, Any]]) -> None:
    sums: dict[int, int] = {}
    for row in ledger:
        if row["verdict"] == "accepted" and row["seq"] == 0:
            sums[row["player"]] = sums.get(row["player"], 0) + row["points"]
    entries = {row["player"]: row["score"] for row in read_table(where, "entries") if row["period"] == MAIN}
    for player in sums.keys() | entries.keys():
        if sums.get(player) != entries.get(player):
            findings.add("I-4", f"player {player}: {entries.get(player)}, recounted {sums.get(player)}")
    findings.count("entries", len(entries))


# I-5


def _copy(findings: Findings, where: Path, players: dict[int, Any]) -> None:
    wanted = {}
    for row in read_table(where, "entries"):
        someone = players[row["player"]]
        if row["period"] == MAIN and not someone["hidden"] and someone["erased_at"] is None:
            wanted[someone["user_id"]] = (row["score"], row["reached_at"], someone["username"] or "")
    last = max((row["revision"] for row in read_table(where, "deltas") if row["period"] == MAIN), default=0)
    digests = {row["revision"]: (row["epoch"], row["digest"]) for row in read_table(where, "revisions")}
    [copy] = [one for one in read(where / "copies.jsonl", WholeCopy) if one.period == MAIN]
    if int(copy.meta.get("revision", "-1")) != last:
        findings.add("I-5", f"the copy stands at {copy.meta.get('revision')}, the ledger at {last}")
        return
    if (copy.meta["epoch"], copy.meta["digest"]) != digests[last]:
        findings.add("I-5", f"the copy's digest at {last} is not the ledger's")
    held = [read_member(bytes.fromhex(member)) for member in copy.z]
    names = {user: bytes.fromhex(value)[16:].decode() for user, value in copy.m.items()}
    have = {user: (score, reached, names.get(user)) for user, score, reached in held}
    for user in wanted.keys() | have.keys():
        if wanted.get(user) != have.get(user):
            findings.add("I-5", f"{user}: the copy has {have.get(user)}, the ledger {wanted.get(user)}")
    if not len(held) == len(names) == int(copy.meta["count"]) == len(wanted):
        findings.add("I-5", f"sizes {len(held)}, {len(names)}, {copy.meta['count']}, {len(wanted)}")
    if copy.scores_not_zero:
        findings.add("I-5", f"{copy.scores_not_zero} members have a score that is not 0")
    findings.count("copied", len(held))


# I-8


class History:
    """A period's standings at every revision, by folding the deltas once."""

    def __init__(self, where: Path, players: dict[int, Any]) -> None:
        self._users = {player: row["user_id"] for player, row in players.items()}
        self._deltas = sorted(
            (row for row in read_table(where, "deltas") if row["period"] == MAIN),
            key=lambda row: int(row["revision"]),
        )
        self.epochs = {row["revision"]: row["epoch"] for row in read_table(where, "revisions")}

    def at(self, revisions: Iterable[int]) -> Iterator[tuple[int, int, dict[str, tuple[int, int]]]]:
        """(revision, the period's own revision there, user → (score, reached)), ascending.

        The mapping is one and the same, moved on: look, do not keep.
        """
        state: dict[str, tuple[int, int]] = {}
        following = iter([*self._deltas, None])
        pending, own = next(following), 0
        for revision in sorted(set(revisions)):
            while pending is not None and pending["revision"] <= revision:
                for player, score, reached in zip(
                    pending["players"], pending["new_scores"], pending["new_reached"], strict=True
                ):
                    if score is None:
                        state.pop(self._users[player], None)
                    else:
                        state[self._users[player]] = (score, reached)
                own = pending["revision"]
                pending = next(following)
            yield revision, own, state


def _top(state: dict[str, tuple[int, int]], limit: int = 10) -> Top:
    ranked = sorted((-score, reached, user.encode()) for user, (score, reached) in state.items())
    return [(user.decode(), -score, reached) for score, reached, user in ranked[:limit]]


def _shown(findings: Findings, run: Path, where: Path, players: dict[int, Any]) -> None:
    history = History(where, players)
    shown: dict[int, list[tuple[str, Any]]] = {}
    pages = [page for page in read(run / "pages.jsonl", Page) if page.status == 200]
    _never_back(findings, "pages of the top", ((p.epoch, p.revision) for p in pages if p.kind == "top"))
    for page in pages:
        shown.setdefault(page.revision or 0, []).append((page.epoch or "", page))
    latest: dict[int, tuple[str, int]] = {}
    for frame in read(run / "frames.jsonl", Frame):
        if frame.what != "frame" or frame.epoch is None or frame.revision is None:
            continue
        here = (frame.epoch, frame.revision)
        if here < latest.get(frame.socket, ("", 0)):
            findings.add("I-8", f"socket {frame.socket} went back to {here}")
        latest[frame.socket] = here
        shown.setdefault(frame.revision, []).append((frame.epoch, frame))
    for copy in read(run / "copies.jsonl", Copy):
        if copy.state == "there" and copy.sizes == [copy.count, copy.count]:
            shown.setdefault(copy.revision or 0, []).append((copy.epoch or "", copy))
    known = set(history.epochs.values())
    for revision, own, state in history.at(shown):
        for epoch, what in shown[revision]:
            if epoch not in known:
                findings.add("I-8", f"{_said(what)} names epoch {epoch}, which never was")
                continue
            if history.epochs.get(revision) != epoch:
                # Shown before a restore that lost it; what was shown then nobody can recount.
                findings.count("of a lost history")
                continue
            if own != revision:
                findings.add("I-8", f"{_said(what)} names revision {revision}, the period's is {own}")
                continue
            _one_shown(findings, what, state)


def _never_back(findings: Findings, what: str, positions: Iterable[tuple[str | None, int | None]]) -> None:
    latest: tuple[str, int] = ("", 0)
    for epoch, revision in positions:
        here = (epoch or "", revision or 0)
        if here < latest:
            findings.add("I-8", f"{what} went from {latest} back to {here}")
        latest = here


def _one_shown(findings: Findings, what: Any, state: dict[str, tuple[int, int]]) -> None:
    findings.count("shown")
    if isinstance(what, Page):
        if what.count != len(state):
            findings.add("I-8", f"{_said(what)}: count {what.count}, not {len(state)}")
        told = [(entry[1], entry[3]) for entry in what.entries]
        if what.kind == "top":
            right = told == [(user, score) for user, score, _ in _top(state)]
        else:
            [(user, score)] = told
            right = user in state and state[user][0] == score
    elif isinstance(what, Copy):
        right = [read_member(bytes.fromhex(member)) for member in what.top] == _top(state)
    else:
        board = _board_of(what)
        if board is None:
            return
        right = board == [(user, score) for user, score, _ in _top(state)]
    if not right:
        findings.add("I-8", f"{_said(what)} is not what the ledger says there")


def _board_of(frame: Frame) -> list[tuple[str, int]] | None:
    """The top ten a frame shows; None if it shows none."""
    if frame.dialect == "scores":
        return [(entry["userId"], entry["score"]) for entry in frame.body["topScores"]]
    data = frame.body["data"]
    if frame.body["type"] == "SCORE_UPDATE":
        return [(entry["user_id"], entry["score"]) for entry in data["rankings"]]
    if frame.body["type"] == "leaderboard_update":
        return [(entry["userId"], entry["score"]) for entry in data["leaderboard"]]
    return None


def _said(what: Any) -> str:
    if isinstance(what, Page):
        return f"the {what.kind} page ended at {what.ended_s}"
    if isinstance(what, Copy):
        return f"the copy looked at {what.at_s}"
    return f"a frame of {what.dialect} to socket {what.socket} at {what.at_s}"
