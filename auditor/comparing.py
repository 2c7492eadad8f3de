"""What others show against the recount at the same revision; the first difference, if there is one.

Players in doubt are left out on both sides: they may be shown or not, and everybody else stands in
the same order all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from auditor.records import Line, Publication, instant_us
from auditor.recount import Recount, Wrong

TOP: Final = 10
"""How many entries a publication and a frame show."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An entry that somebody shows; None is what they do not tell."""

    user: str
    score: int
    reached_us: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the board from rank `first` on, as somebody shows it.

    `count` is the board's; None: not told. `limit` is how many entries were asked for; None: not
    known. `unnamed` is somebody of whom another score is shown than before, and nobody said that it
    changed.
    """

    first: int
    entries: Sequence[Shown]
    count: int | None = None
    limit: int | None = None
    unnamed: str | None = None


def publication(recount: Recount, record: Publication) -> Wrong | None:
    """A record of `board.changed` against the board after its revision.

    `recount.touched` must hold what that revision changed.
    """
    doubted = recount.in_doubt()
    wrong = _changed(recount, record, doubted)
    if wrong is not None:
        return wrong
    entries = [_shown(line) for line in record.top if line.user_id is not None]
    if len(entries) == len(record.top):
        return page(recount, Page(1, entries, record.count, TOP))
    return count(recount, record.count, doubted)


def _shown(line: Line) -> Shown:
    at = None if line.reached_at is None else instant_us(line.reached_at)
    return Shown(line.user_id or "", line.score or 0, at)


def _changed(recount: Recount, record: Publication, doubted: set[int]) -> Wrong | None:
    named = set()
    for line in record.changed:
        if line.user_id is None:
            continue
        player = recount.player_of(line.user_id)
        if player is None:
            if line.score is not None and not recount.was_erased(line.user_id):
                return Wrong("unknown_user", line.user_id, None, line.score)
            continue
        named.add(player)
        if player in doubted:
            continue
        there = recount.entry(player)
        if line.score is None:
            if there is not None:
                return Wrong("gone", line.user_id, there[0], None)
            continue
        wrong = _entry(recount, _shown(line), player)
        if wrong is not None:
            return wrong
    for player in recount.touched - named - doubted:
        if (there := recount.entry(player)) is not None:
            return Wrong("not_named", recount.users[player], there[0], None)
    return None


def _entry(recount: Recount, shown: Shown, player: int) -> Wrong | None:
    there = recount.entry(player)
    if there is None:
        return Wrong("not_to_be_shown", shown.user, None, shown.score)
    if there[0] != shown.score:
        return Wrong("score", shown.user, there[0], shown.score)
    if shown.reached_us is not None and there[1] != shown.reached_us:
        return Wrong("reached_at", shown.user, there[1], shown.reached_us)
    return None


def count(recount: Recount, found: int, doubted: set[int]) -> Wrong | None:
    """A number of entries; those in doubt may be in it or not."""
    least = recount.shown_without(doubted)
    if least <= found <= least + recount.counted(doubted):
        return None
    return Wrong("count", None, least, found)


def page(recount: Recount, shown: Page) -> Wrong | None:
    """Entries, their order, their ranks, how many there are, and the count."""
    doubted = recount.in_doubt()
    certain: list[tuple[int, Shown, int]] = []
    for rank, entry in enumerate(shown.entries, shown.first):
        if entry.rank not in (None, rank):
            return Wrong("rank", entry.user, rank, entry.rank)
        player = recount.player_of(entry.user)
        if player is None:
            if recount.was_erased(entry.user):
                continue
            return Wrong("unknown_user", entry.user, None, entry.score)
        if player in doubted:
            continue
        wrong = _entry(recount, entry, player)
        if wrong is not None:
            return wrong
        certain.append((rank, entry, player))
    if any(entry.user == shown.unnamed for _, entry, _ in certain):
        return Wrong("not_named", shown.unnamed, None, None)
    if shown.count is not None:
        wrong = count(recount, shown.count, doubted)
        if wrong is not None:
            return wrong
        if shown.limit is not None:
            whole = max(0, min(shown.limit, shown.count - shown.first + 1))
            if len(shown.entries) != whole:
                return Wrong("length", None, whole, len(shown.entries))
    if shown.first == 1:
        return _from_the_top(recount, certain, doubted)
    return _from_a_rank(recount, certain, doubted)


def _from_the_top(recount: Recount, certain: list[tuple[int, Shown, int]], doubted: set[int]) -> Wrong | None:
    expected = recount.first(len(certain), doubted)
    for (_, entry, player), place in zip(certain, expected, strict=False):
        if player != place[3]:
            return Wrong("order", entry.user, recount.users[place[3]], entry.user)
    if len(expected) < len(certain):
        return Wrong("length", None, len(expected), len(certain))
    return None


def _from_a_rank(recount: Recount, certain: list[tuple[int, Shown, int]], doubted: set[int]) -> Wrong | None:
    places = [(-entry.score, recount.reached[player], entry.user.encode()) for _, entry, player in certain]
    for above, below, (_, entry, _) in zip(places, places[1:], certain[1:], strict=False):
        if above >= below:
            return Wrong("order", entry.user, above[2].decode(), entry.user)
    if not certain:
        return None
    loose = recount.counted(doubted)
    for rank, entry, player in (certain[0], certain[-1]):
        better = recount.better_than(player, doubted)
        if not better <= rank - 1 <= better + loose:
            return Wrong("rank", entry.user, better + 1, rank)
    if loose == 0:
        return None
    between = recount.better_than(certain[-1][2], doubted) - recount.better_than(certain[0][2], doubted)
    if between != len(certain) - 1:
        return Wrong("left_out", certain[-1][1].user, between + 1, len(certain))
    return None


@dataclass(frozen=True, slots=True)
class Copy:
    """What Redis holds of the board: the sizes of its parts, a page of `z`, some fields of `m`."""

    digest: str
    count: int
    members: int
    fields: int
    page: Page
    held: dict[str, tuple[int, int] | None]


def sizes(recount: Recount, shown: Copy) -> Wrong | None:
    """How large the parts of a copy are, and how large it says that it is."""
    if not shown.count == shown.members == shown.fields:
        return Wrong("sizes", None, shown.count, [shown.members, shown.fields])
    return count(recount, shown.count, recount.in_doubt())


def fields(recount: Recount, shown: Copy) -> Wrong | None:
    """What a copy holds of single players."""
    doubted = recount.in_doubt()
    for user, found in shown.held.items():
        player = recount.player_of(user)
        if player is None or player in doubted:
            continue
        expected = recount.entry(player)
        if expected != found:
            return Wrong("field", user, expected, found)
    return None


def repeated(recount: Recount, before: Publication, after: Publication) -> Wrong | None:
    """Two records of `board.changed` at one revision, which must say the same.

    Of people who were hidden or erased meanwhile they may differ.
    """
    told, again = (before.previous, before.digest), (after.previous, after.digest)
    if told != again:
        return Wrong("repeat", None, told, again)
    if before.count != after.count:
        return Wrong("repeat_count", None, before.count, after.count)
    free = recount.in_doubt()
    for one, other in ((before.changed, after.changed), (before.top, after.top)):
        first, second = (_certain(recount, lines, free) for lines in (one, other))
        if one is before.changed:
            first, second = sorted(first), sorted(second)
        for said, found in zip(first, second, strict=False):
            if said != found:
                return Wrong("repeat", said[0], said[1:], found)
        if one is before.changed and len(first) != len(second):
            return Wrong("repeat", None, len(first), len(second))
    return None


def _certain(recount: Recount, lines: list[Line], free: set[int]) -> list[tuple[str, int, str]]:
    """The lines about players of whom nothing but the score can have changed."""
    certain = []
    for line in lines:
        if line.user_id is None:
            continue
        player = recount.player_of(line.user_id)
        if player is not None and player not in free and not recount.is_hidden(player):
            # A score below every other stands for "gone".
            certain.append(
                (line.user_id, -(2**64) if line.score is None else line.score, line.reached_at or "")
            )
    return certain
