"""What goes over the wire, against golden records."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from core import events, feed
from core.errors import Unreadable
from core.events import ChangedEntry, RankedEntry
from core.feed import View, named_of_changes
from core.words import MAIN_PERIOD
from push.frames import WINDOW_BITS, WORTHWHILE_BYTES, text_frame
from push.protocols import centrifuge, sse
from push.sequencing import Sequence
from push.server import DIALECTS
from tests.push.views import publication

EXAMPLES = Path(str(resources.files("core"))) / "examples" / "feed"


def _examples(folder: Path) -> list[Any]:
    return [pytest.param(json.loads(p.read_text("utf-8")), id=p.stem) for p in sorted(folder.glob("*.json"))]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("example", _examples(EXAMPLES))
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_a_record_is_worded_as_each_dialect_asks(example: dict[str, Any], dialect: Any) -> None:
    record = feed.decode(_compact(example["record"]).encode())

    frame = dialect.frame(View.of_publication(record)).decode()

    assert frame == _compact(example["frames"][dialect.path])


@pytest.mark.parametrize("example", _examples(EXAMPLES / "publications"))
def test_a_reader_is_told_what_changed_since_what_it_has_seen(example: dict[str, Any]) -> None:
    sequence = Sequence()
    for record in example["records"]:
        sequence.take(View.of_publication(feed.decode(_compact(record).encode())))
    view = sequence.latest
    assert view is not None

    words = feed.publication_words(view, sequence.changes_since(example["seen"]))

    said = _compact(example["publication"])
    epoch, revision = view.position
    assert words.decode() == said
    assert centrifuge.dialect("board:main", False).frame(words, view.position, None).decode() == (
        f'{{"push":{{"channel":"board:main","pub":{{"data":{said},"offset":{revision}}}}}}}'
    )
    assert sse.event(words, view.position).decode() == (
        f"event: board\nid: {epoch}-{revision}\ndata: {said}\n\n"
    )


@pytest.mark.parametrize("example", _examples(EXAMPLES / "pages"))
def test_a_page_names_who_changed_as_far_as_pages_show_it(example: dict[str, Any]) -> None:
    before, after = ([RankedEntry(**line) for line in example[side]] for side in ("before", "after"))
    shown = View.of_page(MAIN_PERIOD, ("e", 1), len(before), before, before=None)
    view = View.of_page(MAIN_PERIOD, ("e", 2), len(after), after, before=shown)

    data = json.loads(feed.scoreboard_frame(view))["data"]

    assert {"user_id": data["user_id"], "new_score": data["new_score"]} == example["named"]


def test_a_publication_reads_back_as_it_was_written() -> None:
    record = publication(7)

    assert feed.decode(events.encode(record)) == record


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(None, "empty", id="no value"),
        pytest.param(b"", "empty", id="empty value"),
        pytest.param(b"{", "json", id="cut off"),
        pytest.param(b'{"board":"\xff"}', "json", id="not utf-8"),
        pytest.param(b"[]", "shape", id="an array"),
        pytest.param(b'{"board":"main"}', "shape", id="members missing"),
        pytest.param(
            events.encode(publication(7)).replace(b'"revision":7', b'"revision":"7"'),
            "shape",
            id="text for a number",
        ),
        pytest.param(events.encode(publication(7, epoch="zzz")), "shape", id="an epoch of nobody's"),
        pytest.param(
            events.encode(publication(7, epoch="7" + 25 * "z")), "shape", id="an epoch that none can follow"
        ),
        pytest.param(b"[" * 100_000, "shape", id="deeply nested"),
    ],
)
def test_what_is_no_publication_is_unreadable(value: bytes | None, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        feed.decode(value)

    assert caught.value.reason == reason


def test_the_other_frames_say_what_the_interface_says() -> None:
    success = feed.connection_success_frame("ada", ("e", 3))
    error = feed.error_frame("token_expired", "why", ("e", 3))

    assert success == b'{"type":"connection_success","data":{"userId":"ada"},"epoch":"e","revision":3}'
    assert error == (
        b'{"type":"error","data":{"code":"token_expired","message":"why"},"epoch":"e","revision":3}'
    )


instants = st.sampled_from([None, "2026-01-01T00:00:00.000001Z", "2026-01-01T00:00:00.000002Z"])
changes = st.lists(
    st.builds(ChangedEntry, st.text("ab", min_size=1, max_size=3), st.just(""), st.integers(-9, 9), instants),
    min_size=1,
    max_size=6,
    unique_by=lambda change: change.user_id,
)


@given(changes, st.data())
def test_the_order_of_the_changes_does_not_matter_to_who_is_named(
    changed: list[ChangedEntry], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(changed))

    named = named_of_changes(shuffled)

    last = max(change.reached_at or "" for change in changed)
    candidates = [change for change in changed if (change.reached_at or "") == last]
    assert named is not None
    assert named.user_id == min(change.user_id for change in candidates)


@pytest.mark.parametrize("size_bytes", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_a_prepared_frame_is_a_websocket_text_frame(size_bytes: int) -> None:
    payload = b"x" * size_bytes
    client = Protocol(Side.CLIENT, state=State.OPEN, max_size=None)

    client.receive_data(text_frame(payload))

    (frame,) = client.events_received()
    assert isinstance(frame, Frame)
    assert (frame.opcode, frame.fin, bytes(frame.data)) == (Opcode.TEXT, True, payload)


@pytest.mark.parametrize("size_bytes", [0, WORTHWHILE_BYTES - 1, WORTHWHILE_BYTES, 5_000, 70_000])
def test_a_compressed_frame_is_read_by_whoever_agreed_to_it(size_bytes: int) -> None:
    payload = (b'{"user_id":"ada","score":%d},' * size_bytes % tuple(range(size_bytes)))[:size_bytes]
    client = Protocol(Side.CLIENT, state=State.OPEN, max_size=None)
    client.extensions = [PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)]

    for _ in range(2):
        client.receive_data(text_frame(payload, compressed=True))

    frames = client.events_received()
    assert [bytes(frame.data) for frame in frames if isinstance(frame, Frame)] == [payload, payload]
    assert len(text_frame(payload, compressed=True)) <= len(text_frame(payload))
