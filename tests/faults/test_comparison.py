"""The comparison finds what is wrong in a run that is right otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core.ranking import member, order_key
from tests.faults.comparison import compare
from tests.faults.histories import MAIN, Attempt, Copy, Frame, Page, Transcript, WholeCopy, content_of

EPOCH = "01jd0000000000000000000000"
AT_US = {1: 1_000_000, 2: 2_000_000, 3: 3_000_000}
Tables = dict[str, list[dict[str, Any]]]


def instant(at_us: int) -> str:
    return f"1970-01-01T00:00:{at_us / 1_000_000:09.6f}Z"


def tables() -> Tables:
    """Two players: ada with 10 from one action and 1 from another, bo with 7; three revisions."""

    def row(action: str, player: int, points: int, n: int) -> dict[str, Any]:
        return {
            "action_id": action,
            "player": player,
            "seq": 0,
            "verdict": "accepted",
            "reason": None,
            "points": points,
            "batch": n,
        }

    def delta(n: int, player: int, old: int | None, new: int) -> dict[str, Any]:
        return {
            "period": MAIN,
            "revision": n,
            "players": [player],
            "old_scores": [old],
            "new_scores": [new],
            "new_reached": [AT_US[n]],
        }

    return {
        "players": [
            {"player": 1, "user_id": "ada", "username": "Ada", "hidden": False, "erased_at": None},
            {"player": 2, "user_id": "bo", "username": None, "hidden": False, "erased_at": None},
        ],
        "ledger": [row("a1", 1, 10, 1), row("b1", 2, 7, 2), row("a2", 1, 1, 3)],
        "revisions": [{"revision": n, "epoch": EPOCH, "digest": f"{n:064x}"} for n in (1, 2, 3)],
        "deltas": [delta(1, 1, None, 10), delta(2, 2, None, 7), delta(3, 1, 10, 11)],
        "entries": [
            {"period": MAIN, "player": 1, "score": 11, "reached_at": AT_US[3]},
            {"period": MAIN, "player": 2, "score": 7, "reached_at": AT_US[2]},
        ],
    }


def attempt(user: str, action: str, type_: str, status: int = 202, **rest: Any) -> Attempt:
    return Attempt(
        request=1,
        client="writer",
        row="X",
        begun_s=1,
        ended_s=2,
        route="v1",
        user=user,
        action=action,
        type=type_,
        body="",
        purpose="first",
        status=status,
        **rest,
    )


def whole_copy() -> WholeCopy:
    return WholeCopy(
        period=MAIN,
        meta={"epoch": EPOCH, "revision": "3", "digest": f"{3:064x}", "count": "2"},
        z=[member(11, AT_US[3], "ada").hex(), member(7, AT_US[2], "bo").hex()],
        m={
            "ada": (order_key(11, AT_US[3]) + b"Ada").hex(),
            "bo": order_key(7, AT_US[2]).hex(),
        },
    )


def page(revision: int, *entries: tuple[str, int]) -> Page:
    shown = [[n, user, user, score, instant(0)] for n, (user, score) in enumerate(entries, 1)]
    return Page(
        client="top",
        begun_s=1,
        ended_s=2,
        kind="top",
        status=200,
        epoch=EPOCH,
        revision=revision,
        count=len(shown),
        entries=shown,
        content=content_of(shown),
    )


def frame(revision: int, *entries: tuple[str, int]) -> Frame:
    body = {"topScores": [{"userId": user, "score": score} for user, score in entries]}
    return Frame(at_s=1, socket=1, dialect="scores", what="frame", epoch=EPOCH, revision=revision, body=body)


class Story:
    """A run that is right; tests change it before it is written."""

    def __init__(self) -> None:
        self.tables = tables()
        self.attempts = [
            attempt("ada", "a1", "level_complete"),
            attempt("bo", "b1", "client_points", sent_points=7),
            attempt("ada", "a2", "commit", status=0, code="timeout"),
            attempt("bo", "no", "commit", status=400, code="invalid_field"),
        ]
        self.copy = whole_copy()
        self.pages = [page(1, ("ada", 10)), page(3, ("ada", 11), ("bo", 7))]
        self.frames = [frame(2, ("ada", 10), ("bo", 7)), frame(3, ("ada", 11), ("bo", 7))]
        self.looks = [
            Copy(
                at_s=1,
                period=MAIN,
                state="there",
                epoch=EPOCH,
                revision=3,
                count=2,
                sizes=[2, 2],
                top=self.copy.z,
            )
        ]

    def write(self, run: Path) -> Path:
        dump = run / "dumps" / "1"
        dump.mkdir(parents=True)
        for name, rows in self.tables.items():
            (dump / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines: dict[Path, list[Any]] = {
            dump / "copies.jsonl": [self.copy],
            run / "attempts.jsonl": self.attempts,
            run / "pages.jsonl": self.pages,
            run / "frames.jsonl": self.frames,
            run / "copies.jsonl": self.looks,
        }
        for path, found in lines.items():
            transcript = Transcript(path)
            transcript.add(*found)
            transcript.close()
        return run


def _lost(story: Story) -> None:
    story.attempts.append(attempt("ada", "a9", "commit"))


def _invented(story: Story) -> None:
    story.attempts = [one for one in story.attempts if one.action != "a2"]


def _refused_and_counted(story: Story) -> None:
    story.attempts[2] = msgspec.structs.replace(story.attempts[2], status=400, code="invalid_field")


def _twice(story: Story) -> None:
    story.tables["ledger"].append(story.tables["ledger"][0])


def _worth(story: Story) -> None:
    story.attempts[1] = msgspec.structs.replace(story.attempts[1], sent_points=8)


def _told_otherwise(story: Story) -> None:
    story.attempts[0] = msgspec.structs.replace(story.attempts[0], verdict="held")


def _sum(story: Story) -> None:
    story.tables["entries"][1]["score"] = 8


def _copy_behind(story: Story) -> None:
    story.copy.meta["revision"] = "2"


def _copy_of_another_history(story: Story) -> None:
    story.copy.meta["digest"] = f"{4:064x}"


def _copy_misses_a_member(story: Story) -> None:
    story.copy.z.pop()


def _copy_has_another_name(story: Story) -> None:
    story.copy.m["ada"] = (order_key(11, AT_US[3]) + b"Eve").hex()


def _page_of_half_a_board(story: Story) -> None:
    story.pages[1] = page(3, ("ada", 11))


def _page_with_an_older_score(story: Story) -> None:
    story.pages[1] = page(3, ("ada", 10), ("bo", 7))


def _page_goes_back(story: Story) -> None:
    story.pages.append(page(1, ("ada", 10)))


def _page_of_no_change_of_the_period(story: Story) -> None:
    story.tables["deltas"].pop(1)


def _frame_wrong(story: Story) -> None:
    story.frames[0] = frame(2, ("bo", 7), ("ada", 10))


def _socket_goes_back(story: Story) -> None:
    story.frames.append(story.frames[0])


def _copy_shown_wrong(story: Story) -> None:
    story.looks[0].top = story.looks[0].top[::-1]


def _unknown_epoch(story: Story) -> None:
    story.pages[1].epoch = "01jd0000000000000000000009"


def test_a_run_that_is_right_is_found_right(tmp_path: Path):
    findings = compare(Story().write(tmp_path))

    assert findings.wrong == []
    assert findings.looked_at == {"confirmed": 2, "rows": 3, "entries": 2, "copied": 2, "shown": 5}


@pytest.mark.parametrize(
    ("damage", "invariant"),
    [
        (_lost, "I-1"),
        (_told_otherwise, "I-1"),
        (_invented, "I-2"),
        (_refused_and_counted, "I-2"),
        (_twice, "I-3"),
        (_worth, "I-3"),
        (_sum, "I-4"),
        (_copy_behind, "I-5"),
        (_copy_of_another_history, "I-5"),
        (_copy_misses_a_member, "I-5"),
        (_copy_has_another_name, "I-5"),
        (_page_of_half_a_board, "I-8"),
        (_page_with_an_older_score, "I-8"),
        (_page_goes_back, "I-8"),
        (_page_of_no_change_of_the_period, "I-8"),
        (_frame_wrong, "I-8"),
        (_socket_goes_back, "I-8"),
        (_copy_shown_wrong, "I-8"),
        (_unknown_epoch, "I-8"),
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__.strip("_"),
)
def test_what_is_wrong_is_found(tmp_path: Path, damage: Callable[[Story], None], invariant: str):
    story = Story()
    damage(story)

    wrong = compare(story.write(tmp_path)).wrong

    assert any(one.startswith(f"{invariant}:") for one in wrong), wrong
