"""The actions that benches send: bodies as a back end posts them, records as the door writes them."""

from __future__ import annotations

import secrets
import time
from typing import Final

from core import actions
from core.times import format_us
from core.topics import SUBMITTED

TYPE: Final = "level_complete"

_FINGERPRINT: Final = actions.fingerprint(TYPE, None, None)


def body(run: str, number: int, users: int, occurred_at: str) -> bytes:
    """One action of 155 bytes; ids are as long as a UUID and rise."""
    # A prime apart, so that neighbours are not neighbours in any index.
    user = number * 7919 % users
    return (
        f'{{"action_id":"{run}{number:013d}","type":"{TYPE}",'
        f'"occurred_at":"{occurred_at}","user_id":"user-{user:07d}"}}'
    ).encode()


class Clock:
    """The present second as text, made once in that second."""

    def __init__(self) -> None:
        self._second, self._text = 0, ""

    def __call__(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._text = second, format_us(second * 1_000_000)
        return self._text


def record(user_id: str, action_id: str, at_us: int) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers of one accepted action, received at this instant, as the door writes them."""
    user = user_id.encode()
    submitted = actions.submitted(
        user_id=user_id,
        action_id=action_id,
        type_=TYPE,
        points=None,
        occurred_at_us=at_us,
        received_at_us=at_us,
        username=None,
        contract="v1",
        client="bench",
        backfill=False,
        fingerprint_hex=_FINGERPRINT,
    )
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", user + b"/" + action_id.encode()),
        ("ce_source", b"/ingest"),
        ("ce_type", SUBMITTED.name.encode()),
        ("ce_time", submitted.received_at.encode()),
        ("content-type", b"application/json"),
        ("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01".encode()),
    ]
    return user, actions.encode(submitted), headers
