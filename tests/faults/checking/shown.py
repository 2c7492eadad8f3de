"""Whatever was shown, at any time: a page, a frame, a receipt, a record, a copy that may be read.

What names (epoch, revision) must be the ledger there. What names a revision that was lost with its
epoch can only be held against what else was shown under that name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core.topics import BOARD_CHANGED
from tests.faults.checking.findings import Findings
from tests.faults.checking.material import Material, Standing, as_object, as_us
from tests.faults.histories import MAIN, Copy, Frame, Page, read_member

Position = tuple[str, int]


@dataclass(slots=True)
class Shown:
    """Something that was shown of the period; None where it does not show it."""

    who: str
    where: str
    epoch: str
    revision: int
    invariant: str = "I-8"
    names_own: bool = True
    """Whether `revision` is the period's last change; else any at which all this holds."""
    top: list[tuple[Any, ...]] | None = None
    """(user, score) or (user, score, reached at in µs), in the order shown."""
    players: list[tuple[str, int | None, int | None]] = field(default_factory=list)
    """(user, score or None if gone, rank or None if not said)."""
    count: int | None = None
    digest: str | None = None
    record: dict[str, Any] | None = None
    unnamed: tuple[str, ...] = ()
    """Who may be left out of the top though they stand in it, in this order."""


def check(findings: Findings, material: Material) -> None:
    """I-6, I-7, I-8, I-17, and I-18 as far as pages and frames go."""
    pages = list(material.seen_pages())
    _pages_never_go_back(findings, material, pages)
    _as_asked(findings, pages)
    frames = list(material.seen("frames", Frame))
    _sockets_never_go_back(findings, frames)
    if material.dump.all_at_rest:
        _last_frames(findings, material, frames)
    by_revision: dict[int, list[Shown]] = {}
    for one in _all_shown(material, pages, frames):
        findings.count("shown")
        if material.ledger.is_kept(one.epoch, one.revision):
            by_revision.setdefault(one.revision, []).append(one)
        else:
            _elsewhere(findings, material, one)
    _alike(findings, material, pages, frames)
    for standing in material.standings(by_revision):
        for one in by_revision[standing.asked]:
            _as_the_ledger(findings, material, one, standing)


def _all_shown(
    material: Material, pages: list[tuple[int, Page]], frames: list[tuple[int, Frame]]
) -> Iterator[Shown]:
    for line, page in pages:
        if page.status == 200:
            yield _of_page(line, page)
    for line, frame in frames:
        if frame.what == "frame" and frame.revision:
            shown = _of_frame(line, frame)
            # It may come from a record that was sent again.
            shown.unnamed = material.erased_by(frame.at_s)
            yield shown
    for line, copy in material.seen("copies", Copy):
        if copy.state == "there" and copy.revision:
            yield _of_copy(line, copy)
    for line, attempt in material.attempts:
        if attempt.score is not None and attempt.revision is not None and attempt.epoch is not None:
            who = f"the receipt of {attempt.action} for {attempt.user}"
            yield Shown(
                who,
                f"attempts.jsonl:{line}",
                attempt.epoch,
                attempt.revision,
                names_own=False,
                players=[(attempt.user, attempt.score, attempt.rank)],
            )
    for line, record in material.records(BOARD_CHANGED.name):
        body = as_object(record)
        if body is not None and f"{body['board']}:{body['window']}" == MAIN:
            who = f"the record of revision {body['revision']}"
            top = [(e["user_id"], e["score"], as_us(e["reached_at"])) for e in body["top"]]
            yield Shown(
                who,
                f"topics/{BOARD_CHANGED.name}.jsonl:{line}",
                body["epoch"],
                body["revision"],
                top=top,
                count=body["count"],
                digest=body["digest"],
                record=body,
                unnamed=material.erased_by(record.at_s),
            )


def _of_page(line: int, page: Page) -> Shown:
    who = f"the {page.kind} page of {page.begun_s} to {page.ended_s} s"
    shown = Shown(who, f"pages.jsonl:{line}", page.epoch or "", page.revision or 0, count=page.count)
    if page.kind == "top":
        shown.top = [(user, score, as_us(reached)) for _, user, _, score, reached in page.entries]
        ranks = [entry[0] for entry in page.entries]
        shown.players = [(user, score, rank) for rank, user, _, score, _ in page.entries]
        if ranks == list(range(1, len(ranks) + 1)):
            shown.players = []
    else:
        shown.players = [(user, score, rank) for rank, user, _, score, _ in page.entries]
    return shown


def _of_frame(line: int, frame: Frame) -> Shown:
    who = f"a frame of {frame.dialect} to socket {frame.socket} at {frame.at_s} s"
    shown = Shown(who, f"frames.jsonl:{line}", frame.epoch or "", frame.revision or 0)
    shown.top = _board_of(frame)
    if frame.dialect == "scoreboard" and frame.body.get("type") == "SCORE_UPDATE":
        data = frame.body["data"]
        shown.players = [(data["user_id"], data["new_score"], None)]
    if frame.dialect == "leaderboard" and frame.body.get("type") == "error":
        shown.names_own = False
    return shown


def _board_of(frame: Frame) -> list[tuple[Any, ...]] | None:
    """The top ten that a frame shows; None if it shows none."""
    if frame.dialect == "scores":
        return [(entry["userId"], entry["score"]) for entry in frame.body["topScores"]]
    data = frame.body["data"]
    if frame.body["type"] == "SCORE_UPDATE":
        return [(entry["user_id"], entry["score"]) for entry in data["rankings"]]
    if frame.body["type"] == "leaderboard_update":
        return [(entry["userId"], entry["score"]) for entry in data["leaderboard"]]
    return None


def _of_copy(line: int, copy: Copy) -> Shown:
    """A copy whose sizes are not its count is broken, and nobody reads it."""
    shown = Shown(
        f"the copy at {copy.at_s} s", f"copies.jsonl:{line}", copy.epoch or "", copy.revision or 0, "I-6"
    )
    shown.digest = copy.digest
    if copy.sizes == [copy.count, copy.count]:
        shown.count = copy.count
        shown.top = [read_member(bytes.fromhex(member)) for member in copy.top]
    return shown


# at a revision


def _as_the_ledger(findings: Findings, material: Material, one: Shown, standing: Standing) -> None:
    def wrong(what: str, expected: Any, found: Any, invariant: str = one.invariant) -> None:
        who = f"{what} of {one.who}, at revision {one.revision}" if what else one.who
        findings.add(invariant, who, expected, found, one.where)

    if one.names_own and standing.own != one.revision:
        wrong("", f"the period's own revision, {standing.own}", one.revision, "I-8")
        return
    named = [entry[0] for entry in (*(one.top or ()), *one.players)]
    for player, from_revision in material.ledger.gone_from.items():
        if from_revision <= one.revision and material.users[player] in named:
            wrong(
                material.users[player],
                f"nobody who is gone from revision {from_revision} on",
                "an entry",
                "I-18",
            )
            return
    if one.count is not None and one.count != len(standing.entries):
        wrong("the count", len(standing.entries), one.count)
    if one.top is not None and not any(_is(one.top, wanted) for wanted in _tops(one, standing)):
        wrong("the top", standing.top, one.top)
    digest = material.ledger.revisions[one.revision][1]["digest"]
    if one.digest not in (None, digest):
        wrong("the digest", digest, one.digest, "I-8")
    for user, score, rank in one.players:
        wanted_score = standing.entries[user][0] if user in standing.entries else None
        if score != wanted_score:
            wrong(f"the score of {user}", wanted_score, score)
        elif rank is not None and rank != standing.rank(user):
            wrong(f"the rank of {user}", standing.rank(user), rank)
    if one.record is not None:
        _as_the_delta(wrong, material, one.record, standing)


def _tops(one: Shown, standing: Standing) -> Iterator[list[tuple[str, int, int]]]:
    """The top; then as it is without the first, the first two, … of those who may be left out."""
    yield standing.top
    unnamed = [user for user in one.unnamed if user in standing.entries]
    for count in range(1, len(unnamed) + 1):
        yield standing.top_without(frozenset(unnamed[:count]))


def _is(shown: list[tuple[Any, ...]], wanted: list[tuple[str, int, int]]) -> bool:
    """Whether it is shown as wanted, in as many columns as are shown."""
    return len(shown) == len(wanted) and all(
        there == entry[: len(there)] for there, entry in zip(shown, wanted, strict=True)
    )


def _changed(material: Material, standing: Standing) -> dict[str, tuple[int | None, int | None]]:
    """What a delta changed, of those who may be named: user → (score, reached at)."""
    delta, ledger = standing.delta, material.ledger
    return {
        material.users[player]: (score, reached)
        for player, score, reached in zip(
            delta["players"], delta["new_scores"], delta["new_reached"], strict=True
        )
        if player not in ledger.gone_from
    }


def _as_the_delta(wrong: Any, material: Material, record: dict[str, Any], standing: Standing) -> None:
    if record["previous"] != standing.delta["previous"]:
        wrong("the revision before", standing.delta["previous"], record["previous"])
    gone = {material.users[player] for player in material.ledger.gone_from}
    found = {
        entry["user_id"]: (
            entry["score"],
            None if entry["reached_at"] is None else as_us(entry["reached_at"]),
        )
        for entry in record["changed"]
        if entry["user_id"] not in gone
    }
    wanted = _changed(material, standing)
    for user in sorted(wanted.keys() | found.keys()):
        if wanted.get(user) != found.get(user):
            wrong(f"the change of {user}", wanted.get(user), found.get(user))


def _elsewhere(findings: Findings, material: Material, one: Shown) -> None:
    """Of an epoch that is over it may have been lost. Of the present one, or of none, it is invented."""
    if one.epoch not in material.ledger.epochs:
        known = sorted(material.ledger.epochs)
        findings.add("I-17", f"the epoch of {one.who}", f"one of {known}", one.epoch, one.where)
    elif one.epoch == material.ledger.epoch:
        who = f"the revision of {one.who}"
        findings.add("I-8", who, f"one of this epoch, up to {material.ledger.last}", one.revision, one.where)


def _alike(
    findings: Findings, material: Material, pages: list[tuple[int, Page]], frames: list[tuple[int, Frame]]
) -> None:
    """What names one lost revision is one content."""
    first: dict[Position, tuple[list[tuple[Any, ...]], Shown]] = {}
    for one in _all_shown(material, pages, frames):
        if one.top is None or material.ledger.is_kept(one.epoch, one.revision):
            continue
        top = [entry[:2] for entry in one.top]
        known, other = first.setdefault((one.epoch, one.revision), (top, one))
        if known != top:
            who = f"the top of {one.who}, at lost revision {one.revision}"
            findings.add("I-8", who, f"{known} as {other.where} shows", top, one.where)


# over time


def _pages_never_go_back(findings: Findings, material: Material, pages: list[tuple[int, Page]]) -> None:
    """A process that has shown something shows nothing older; a new one may not know of it."""
    begins = [event.at_s for event in material.events if event.what == "restart" and event.target == "ingest"]
    ended: dict[int, tuple[list[float], list[Position]]] = {}
    for line, page in sorted(
        ((line, page) for line, page in pages if page.status == 200), key=lambda found: found[1].ended_s
    ):
        process = bisect_left(begins, page.begun_s)
        if process != bisect_left(begins, page.ended_s):
            continue
        at_s, newest = ended.setdefault(process, ([], []))
        here, before = (page.epoch or "", page.revision or 0), bisect_left(at_s, page.begun_s)
        if before and newest[before - 1] > here:
            who = f"the {page.kind} page of {page.begun_s} to {page.ended_s} s"
            findings.add(
                "I-8", who, f"{newest[before - 1]} or later, as shown before", here, f"pages.jsonl:{line}"
            )
        at_s.append(page.ended_s)
        newest.append(max(here, newest[-1]) if newest else here)


def _as_asked(findings: Findings, pages: list[tuple[int, Page]]) -> None:
    """Whoever asks for at least a revision is shown that or a later one."""
    for line, page in pages:
        if page.at_least is None or page.status != 200:
            continue
        findings.count("at least")
        epoch, _, revision = page.at_least.rpartition("-")
        here = (page.epoch or "", page.revision or 0)
        if here < (epoch, int(revision)):
            who = f"the {page.kind} page of {page.begun_s} to {page.ended_s} s"
            findings.add(
                "I-6", who, f"at least {page.at_least}", f"{here[0]}-{here[1]}", f"pages.jsonl:{line}"
            )


def _sockets_never_go_back(findings: Findings, frames: list[tuple[int, Frame]]) -> None:
    latest: dict[int, Position] = {}
    for line, frame in frames:
        if frame.what != "frame" or frame.epoch is None or frame.revision is None:
            continue
        here, before = (frame.epoch, frame.revision), latest.get(frame.socket, ("", 0))
        if here < before:
            who = f"socket {frame.socket} of {frame.dialect} at {frame.at_s} s"
            findings.add("I-8", who, f"{before} or later", here, f"frames.jsonl:{line}")
        latest[frame.socket] = max(here, before)


def _last_frames(findings: Findings, material: Material, frames: list[tuple[int, Frame]]) -> None:
    """At rest every open socket was sent the period's last revision; that it is right is I-8."""
    [standing] = material.standings([material.ledger.last])
    own = material.ledger.revisions.get(standing.own)
    if own is None:
        return
    last: dict[int, tuple[int, Frame]] = {}
    for line, frame in frames:
        if frame.what in ("closed", "refused"):
            last.pop(frame.socket, None)
        elif frame.what == "opened" or _board_of(frame) is not None:
            last[frame.socket] = (line, frame)
    for line, frame in last.values():
        findings.count("sockets at rest")
        found = (frame.epoch, frame.revision) if frame.what == "frame" else None
        if found != (own[1]["epoch"], standing.own):
            who = f"the last frame to socket {frame.socket} of {frame.dialect}"
            findings.add("I-7", who, (own[1]["epoch"], standing.own), found, f"frames.jsonl:{line}")
