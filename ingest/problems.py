"""Errors as the interface writes them: RFC 9457 problems, and what the specifications' own shapes need.

A code has one title and stays; the detail is for a person and may change.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from core.errors import Refused, Unavailable

CONTENT_TYPE: Final = b"application/problem+json"

TITLES: Final = {
    "invalid_json": "The body is not readable JSON",
    "invalid_field": "A field is missing or malformed",
    "invalid_request": "The request is malformed",
    "invalid_token": "The access token is missing or not good",
    "forbidden": "The token does not allow this",
    "not_found": "There is no such thing here",
    "method_not_allowed": "The path has other methods",
    "request_timeout": "The request did not arrive in time",
    "unsupported_media_type": "The body must be application/json",
    "unknown_type": "There is no such type of action",
    "out_of_bounds": "The points are out of their bounds",
    "outside_window": "The action lies too far from now",
    "id_reused": "The action id stands for another action",
    "too_large": "The request is too large",
    "rate_limited": "Too many requests",
    "queue_unavailable": "Actions cannot be taken now",
    "board_rebuilding": "The standings cannot be read now",
    "page_expired": "The page is no longer held",
    "internal": "This is a defect",
    # What the judge's reasons are called where a contract answers with the verdict.
    "cooldown": "The action came too soon after the one before",
    "rate": "Too many actions of this type",
    "points_rate": "Too many points",
    "too_fast": "The action came too fast after the one before",
    "score_overflow": "The score would be too large",
    "score_below_minimum": "The score would be too low",
    "period_final": "The period is over",
    "erased": "The user was erased",
    "rejected": "The action was rejected",
}

_encode = msgspec.json.Encoder().encode


def problem(code: str, status: int, detail: str, trace_id: str) -> dict[str, Any]:
    """The members of a problem."""
    return {
        "type": f"/problems/{code}",
        "title": TITLES.get(code, code),
        "status": status,
        "detail": detail,
        "code": code,
        "trace_id": trace_id,
    }


def encode(code: str, status: int, detail: str, trace_id: str) -> bytes:
    return _encode(problem(code, status, detail, trace_id))


def status_of(error: Refused | Unavailable) -> int:
    return error.status_code if isinstance(error, Refused) else 503


def detail_of(error: Refused | Unavailable) -> str:
    """What the caller is told. What does not answer, and how, is nobody's business outside."""
    if isinstance(error, Unavailable):
        again = f"Try again in {max(1, error.retry_after_s)} s"
        if error.code == "board_rebuilding":
            return f"The standings cannot be read now. {again}."
        return f"This cannot be confirmed now. {again}; an action repeated under its id counts once."
    return error.detail


def headers_of(error: Refused | Unavailable) -> list[tuple[bytes, bytes]]:
    """What the error's reply carries beside its body."""
    if isinstance(error, Unavailable):
        return [(b"retry-after", str(max(1, error.retry_after_s)).encode())]
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
