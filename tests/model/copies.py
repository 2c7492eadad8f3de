"""The scripts on a period's copy, its keeper, and who reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model import operators
from tests.model.clauses import Clauses
from tests.model.running import Steps
from tests.model.servers import Broken, Build, Delta, Meta, Redis, Session, Standing, Standings, unless

if TYPE_CHECKING:
    from tests.model.world import World

PAGE = 2

Named = dict[str, Standing | None]


def apply(redis: Redis, clauses: Clauses, period: str, at: Meta, now: Meta, changes: Named) -> str:
    """Move a copy from one position to a later one, or say why not."""
    copy = redis.copies[period]
    if copy.meta is None:
        return "broken" if copy.z or copy.m else "moved"
    if clauses.compare_and_set and copy.meta != at:
        return "moved"
    if clauses.sizes_compared and not copy.whole(copy.meta.count):
        copy.meta = None
        return "broken"
    copy.z, copy.m = dict(copy.z or {}), dict(copy.m or {})
    for user_id, standing in changes.items():
        if standing is None:
            copy.z.pop(user_id, None)
            copy.m.pop(user_id, None)
        else:
            copy.z[user_id] = copy.m[user_id] = standing
    if clauses.sizes_compared and not copy.whole(now.count):
        copy.meta = None
        return "broken"
    copy.meta = now
    return "ok"


def fill(redis: Redis, clauses: Clauses, token: str, page: int, standings: Named) -> bool:
    build = redis.builds.setdefault(token, Build())
    if clauses.pages_numbered and build.pages != page:
        return False
    build.pages += 1
    for user_id, standing in standings.items():
        if standing is None:
            build.m.pop(user_id, None)
        else:
            build.m[user_id] = standing
    return True


def swap(
    redis: Redis, clauses: Clauses, period: str, token: str, pages: int, now: Meta, *, alien: Meta | None
) -> str:
    """Put a build in the place of the copy. `alien` is a position no history of ours has."""
    build = redis.builds.pop(token, Build())
    if clauses.pages_numbered and build.pages != pages:
        return "order"
    if clauses.sizes_compared and clauses.pages_numbered and len(build.m) != now.count:
        return "broken"
    copy = redis.copies[period]
    there = copy.meta
    if (
        clauses.newer_kept_on_swap
        and there is not None
        and copy.whole(there.count)
        and (there.place[0] > now.place[0] or (there.place > now.place and there != alien))
    ):
        return "newer"
    count = now.count if clauses.pages_numbered else len(build.m)
    copy.z, copy.m, copy.meta = dict(build.m), dict(build.m), Meta(now.place, now.digest, count)
    return "ok"


def read(redis: Redis, clauses: Clauses, period: str) -> tuple[Meta, Standings] | None:
    """What a reader sees: position and page from one script."""
    copy = redis.copies[period]
    if copy.meta is None or (clauses.sizes_compared and not copy.whole(copy.meta.count)):
        return None
    return copy.meta, dict(copy.z or {})


# The keeper --------------------------------------------------------------------------------------


def keeper(world: World, period: str, name: str) -> Steps:
    """Follows the ledger for one period. There may be two: a lock can be lost unnoticed."""
    session: Session | None = None
    try:
        while True:
            yield unless(session, lambda: world.copy_is_behind(period))
            try:
                if session is None or session.broken:
                    session = world.postgres.connect()
                    yield from operators.look_at_the_epoch(world, session)
                yield from step(world, session, period, name)
            except Broken:
                session = None
    finally:
        if session is not None:
            session.close()


def meta_of(world: World, session: Session, delta: Delta) -> Meta:
    revision = session.tables.revisions[delta.place[1] - 1]
    return Meta(revision.place, revision.digest, delta.count)


def named_changes(session: Session, deltas: list[Delta]) -> Named:
    """Pid → standing now, of many deltas at once."""
    merged: Named = {}
    people = session.tables.people
    for delta in deltas:
        for player, (_, new) in delta.changes.items():
            merged[people[player].pid] = new
    return merged


def step(world: World, session: Session, period: str, name: str) -> Steps:
    clauses, redis = world.clauses, world.redis
    at = redis.copies[period].meta
    yield None
    if at is None:
        yield from build(world, session, period, name)
        return
    chain = session.tables.deltas[period]
    link = next((delta for delta in chain if delta.place[1] == at.place[1]), None)
    if link is None or not _same(world, session, link, at):
        # If the copy names what this ledger does not have, then the ledger lost it.
        yield from operators.new_epoch(world, session, seen=at)
        yield from build(world, session, period, name)
        return
    later = [delta for delta in chain if delta.place[1] > at.place[1]][:3]
    if not later:
        # Nothing to apply, so no script looked at the sizes: the comparison on a timer does.
        if clauses.sizes_compared and not redis.copies[period].whole(at.count):
            yield from build(world, session, period, name)
        return
    now, changes = meta_of(world, session, later[-1]), named_changes(session, later)
    yield None
    if apply(redis, clauses, period, at, now, changes) == "broken":
        yield from build(world, session, period, name)


def _same(world: World, session: Session, link: Delta, at: Meta) -> bool:
    if not world.clauses.position_with_digest:
        return True
    known = meta_of(world, session, link)
    return (known.place, known.digest) == (at.place, at.digest)


def build(world: World, session: Session, period: str, name: str) -> Steps:
    clauses, redis = world.clauses, world.redis
    world.builds += 1
    token = f"{name}-{world.builds}"
    chain = session.tables.deltas[period]
    if not chain:
        return
    start = chain[-1].place
    after, page = 0, 0
    while True:
        yield None
        shown = sorted((player, standing) for player, standing in session.tables.shown(period).items())
        rows = [(player, standing) for player, standing in shown if player > after][:PAGE]
        if not rows:
            break
        after = rows[-1][0]
        people = session.tables.people
        named: Named = {}
        for player, standing in rows:
            named[people[player].pid] = standing
        yield None
        if not fill(redis, clauses, token, page, named):
            return
        page += 1
    tables = session.tables
    if tables.epoch != start[0]:
        return
    later = [delta for delta in tables.deltas[period] if delta.place[1] > start[1]]
    last = tables.deltas[period][-1]
    changes = named_changes(session, later)
    now = meta_of(world, session, last)
    yield None
    if not fill(redis, clauses, token, page, changes):
        return
    page += 1
    yield None
    there = redis.copies[period].meta
    alien = there if there is not None and not operators.has(session.tables, there) else None
    yield None
    swap(redis, clauses, period, token, page, now, alien=alien)
