"""Any right history is right, however its records arrive; one wrong figure in it is always seen."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from auditor.audit import Audit
from auditor.records import MAIN
from tests.auditor.world import EPOCH, Recorder, Revision, Watch, World, encoded, horizon, mutated, take

USERS = [f"u{n}" for n in range(14)]
patient = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@st.composite
def worlds(draw: st.DrawFn, *, people: bool = True) -> World:
    """Histories of up to 25 revisions with every kind of change."""
    world, acted = World(), list[tuple[str, str]]()
    known: set[str] = set()
    erased: set[str] = set()
    for number in range(draw(st.integers(2, 25))):
        acts: list[tuple[Any, ...]] = []
        decided: set[tuple[str, str]] = set()
        for place in range(draw(st.integers(0, 4))):
            kinds = ["act", "act", "act", "decide", "name", "hide", "erase"]
            kind = draw(st.sampled_from(kinds if people else kinds[:4]))
            living = sorted(known - erased)
            if kind == "act":
                user = draw(st.sampled_from([user for user in USERS if user not in erased] or ["late"]))
                verdict = draw(st.sampled_from(["accepted", "accepted", "accepted", "rejected", "held"]))
                key = (user, f"{number}-{place}")
                acts.append(("act", *key, draw(st.integers(-3, 20).filter(bool)), verdict))
                acted.append(key)
                decided.add(key)
                known.add(user)
            elif kind == "decide":
                if open_ := [key for key in acted if key not in decided and key[0] not in erased]:
                    key = draw(st.sampled_from(open_))
                    decided.add(key)
                    acts.append(("decide", *key, draw(st.sampled_from(["accepted", "rejected"]))))
            elif living and not any(act[0] in ("name", "hide", "erase") for act in acts):
                user = draw(st.sampled_from(living))
                if kind == "name":
                    acts.append(("name", user, f"name {number}"))
                elif kind == "hide":
                    acts.append(("hide", user, draw(st.booleans())))
                else:
                    erased.add(user)
                    acts.append(("erase", user))
        world.revise(*acts)
    return world


@st.composite
def restored(draw: st.DrawFn) -> tuple[World, list[Revision]]:
    """A history that went on from an older backup, and the revisions that were lost."""
    lost = draw(worlds(people=False))
    number = draw(st.integers(1, lost.last.number))
    world = lost.restored(number)
    for after in range(draw(st.integers(1, 6))):
        users = draw(st.lists(st.sampled_from(USERS), max_size=3))
        world.revise(
            *[("act", u, f"again {after}-{n}", draw(st.integers(1, 20))) for n, u in enumerate(users)]
        )
    return world, lost.revisions[number:]


def logs_of(world: World) -> list[list[tuple[str, Any, int]]]:
    """The records of the history by partition: two of judged, two of people, one of publications."""
    partitions: list[list[tuple[str, Any, int]]] = [[] for _ in range(5)]
    for revision in world.revisions:
        for record in revision.judged:
            partitions[int(record["player"][0], 16) % 2].append(("judged", record, revision.number))
        for person in revision.people:
            partitions[2 + int(person[0][0], 16) % 2].append(("person", person, revision.number))
        if revision.publication is not None:
            partitions[4].append(("publication", revision.publication, revision.number))
    return partitions


def hand_on(audit: Audit, kind: str, content: Any, revision: int, now_s: float) -> None:
    if kind == "judged":
        audit.take_judged(encoded(content))
    elif kind == "person":
        audit.take_person(content[0], encoded(content[1]), (EPOCH, revision), now_s)
    else:
        audit.take_publication(MAIN, encoded(content))


@given(world=worlds(), data=st.data())
@patient
def test_a_right_history_is_right_in_any_order_of_arrival(world: World, data: st.DataObject):
    """Partitions are read at their own pace, the publisher is late, crashes and repeats, pages come
    at any time, and what the cursor allows grows as it likes."""
    until = data.draw(st.integers(0, world.last.number))
    report = Recorder()
    audit = Audit(report, EPOCH, until, {})
    known: dict[int, int] = {}
    for revision in data.draw(st.lists(st.sampled_from(world.revisions), max_size=4, unique_by=id)):
        since = data.draw(st.sampled_from(world.revisions[revision.number - 1 :]))
        revision.publication = world.read_late(revision, since)
        known[revision.number] = since.number
    partitions = logs_of(world)
    for log in partitions:
        if log and data.draw(st.booleans()):
            back = data.draw(st.integers(0, len(log) - 1))
            again = data.draw(st.integers(back, len(log) - 1))
            log[again:again] = log[back:again]
    read = [0] * len(partitions)
    clock_s, pages, ledger_end = 1e12, list(world.revisions), until

    def read_to(ends: list[int]) -> None:
        nonlocal ledger_end
        while open_ := [n for n, end in enumerate(ends) if read[n] < end]:
            n = data.draw(st.sampled_from(open_))
            hand_on(audit, *partitions[n][read[n]], clock_s)
            told = partitions[n][read[n]][2]
            # What was read is in the ledger, and so is what it knew of.
            ledger_end = max(ledger_end, told, known.get(told, 0) if n == 4 else 0)
            read[n] += 1
            if pages and data.draw(st.integers(0, 3)) == 0:
                at = data.draw(st.sampled_from(pages))
                start = data.draw(st.integers(1, max(1, len(at.board))))
                if at.publication is not None:
                    ledger_end = max(ledger_end, at.number)
                    audit.observe(world.page(at, start=start, limit=data.draw(st.integers(1, 12))))

    cursor = until
    for _ in range(12):
        clock_s += 1.0
        needed = [
            max((n + 1 for n, record in enumerate(log) if record[2] <= cursor), default=0)
            for log in partitions
        ]
        read_to([max(need, done) for need, done in zip(needed, read, strict=True)])
        audit.advance(horizon(cursor, asked_s=clock_s - 0.5, ledger_end=max(cursor, ledger_end)))
        cursor = min(world.last.number, cursor + data.draw(st.integers(0, 8)))
    clock_s += 1.0
    read_to([len(log) for log in partitions])
    for _ in range(3):
        clock_s += 1.0
        audit.advance(horizon(world.last.number, asked_s=clock_s))
    audit.observe(world.page(limit=100))

    assert [(what, at, wrong) for what, at, wrong in report.mismatches] == []
    assert audit.at == world.last.number
    if world.last.publication is not None:
        assert ("page", world.last.number) in report.made


@given(history=restored(), data=st.data())
@patient
def test_what_a_restore_took_back_is_void_wherever_it_stands(
    history: tuple[World, list[Revision]], data: st.DataObject
):
    """Who came in lost revisions comes anew; between partitions there is no order."""
    world, lost = history
    first = world.last.number - data.draw(st.integers(1, 3))
    begun = next(revision for revision in world.revisions if revision.continues is not None)
    report = Recorder()
    audit = Audit(report, world.epoch, first, {world.epoch: begun.continues or ("", 0)})
    for revision in data.draw(st.permutations([*lost, *world.revisions[:first]])):
        take(audit, revision)
    for clock_s in (1e12, 2e12):
        audit.advance(horizon(first, asked_s=clock_s, epoch=world.epoch))
    for revision in world.revisions[first:]:
        take(audit, revision)
    audit.observe(world.page(limit=100))
    for clock_s in (3e12, 4e12, 5e12):
        audit.advance(horizon(world.last.number, asked_s=clock_s, epoch=world.epoch))

    assert report.mismatches == []
    assert ("page", world.last.number) in report.made


@given(world=worlds(people=False), data=st.data())
@patient
def test_any_one_wrong_figure_of_a_publication_is_seen_with_its_witness(world: World, data: st.DataObject):
    world.revise(("act", "u1", "last", 5))
    watch = Watch(world, until=1)
    spoilt = data.draw(st.sampled_from([r for r in world.revisions[1:] if r.publication is not None]))
    wrong = mutated(spoilt)
    assert wrong.publication is not None
    part = data.draw(st.sampled_from([part for part in ("changed", "top") if wrong.publication[part]]))
    line = data.draw(
        st.sampled_from([each for each in wrong.publication[part] if each["score"] is not None] or [None])
    )
    if line is None:
        return
    line["score"] += data.draw(st.sampled_from([-7, -1, 1, 1000]))
    for revision in world.revisions[1:]:
        take(watch.audit, wrong if revision is spoilt else revision)
    watch.go_on()

    assert [(what, at, kind) for what, at, kind, _ in watch.wrong] == [
        ("publication", spoilt.number, "score")
    ]
    assert watch.wrong[0][3] == line["user_id"]


@given(world=worlds(people=False), data=st.data())
@patient
def test_an_action_that_is_missing_on_the_topic_is_seen(world: World, data: st.DataObject):
    world.revise(("act", "u1", "last", 5))
    counted = [
        (revision, n)
        for revision in world.revisions[1:]
        for n, record in enumerate(revision.judged)
        if record["verdict"] == "accepted" and "decision" not in record
    ]
    revision, n = data.draw(st.sampled_from(counted))
    watch = Watch(world, until=1)
    short = mutated(revision)
    del short.judged[n]
    for each in world.revisions[1:]:
        take(watch.audit, short if each is revision else each)
    watch.go_on()

    user = next(r["user_id"] for p, r in _people(world) if p == revision.judged[n]["player"])
    assert watch.wrong[0][:2] == ("publication", revision.number)
    assert watch.wrong[0][3] in (user, None)


def _people(world: World) -> list[tuple[str, dict[str, Any]]]:
    return [(player, person) for r in world.revisions for player, person in r.people if person is not None]
