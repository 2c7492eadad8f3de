"""What a subscriber of the board's channel is told must follow from what it was told before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from auditor.audit import Seen
from auditor.channel import Reader, Told
from auditor.comparing import Page
from auditor.recount import Wrong
from tests.auditor.world import EPOCH, LATER_EPOCH, instant, of_twelve, watched

ADA, BOB = ("ada", 9, 1), ("bob", 5, 2)


def told(revision: int, *top: tuple[str, int, int], epoch: str = EPOCH, **more: Any) -> Told:
    lines = [
        {"rank": rank, "user_id": user, "username": user, "score": score, "reached_at": instant(at_us)}
        for rank, (user, score, at_us) in enumerate(top, 1)
    ]
    return msgspec.convert(
        {"epoch": epoch, "revision": revision, "count": len(top), "top": lines, **more}, Told
    )


def changed(*users: str) -> list[dict[str, Any]]:
    return [{"user_id": user, "score": 0} for user in users]


@pytest.mark.parametrize(
    ("said", "kinds", "unnamed"),
    [
        pytest.param([told(4, ADA, previous=3, changed=changed("ada"))], [], None, id="what follows"),
        pytest.param([told(9, ("ada", 10, 7), BOB)], [], None, id="a snapshot says no more than it shows"),
        pytest.param(
            [told(9, ADA, BOB, previous=7, changed=[])], ["previous"], None, id="from where it does not stand"
        ),
        pytest.param(
            [told(1, ADA, epoch=LATER_EPOCH, previous=9, changed=[])], [], None, id="another history"
        ),
        pytest.param(
            [told(4, ("ada", 10, 7), BOB, previous=3, changed=changed("bob"))],
            [],
            "ada",
            id="somebody changed who is not named",
        ),
        pytest.param([told(2, ADA, BOB)], ["went_back"], None, id="back"),
        pytest.param([told(3, BOB)], ["two_contents"], None, id="one revision, two contents"),
    ],
)
def test_a_publication_follows_from_the_one_before(said: list[Told], kinds: list[str], unnamed: str | None):
    seen: list[Seen] = []
    found: list[Wrong] = []
    reader = Reader(seen.append, lambda _, wrong: found.append(wrong))
    reader.take(told(3, ADA, BOB))
    for one in said:
        reader.take(one)

    assert [wrong.kind for wrong in found] == kinds
    assert [one.what for one in seen] == ["channel"] * (1 + len(said))
    shown = seen[-1].shown
    assert isinstance(shown, Page)
    assert shown.unnamed == unnamed


@pytest.mark.parametrize(("user", "wrong"), [("u05", [("channel", 3, "not_named", "u05")]), (None, [])])
def test_who_changed_and_is_not_named_is_counted(user: str | None, wrong: list[tuple[str, int, str, str]]):
    world = of_twelve()
    watch = watched(world)
    watch.take_rest()
    right = world.page(what="channel")
    assert isinstance(right.shown, Page)
    watch.audit.observe(replace(right, shown=replace(right.shown, unnamed=user)))

    assert watch.wrong == wrong
