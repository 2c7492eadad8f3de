"""Why the server ends a WebSocket, as the client sees it.

4000…4999 are the application's own (RFC 6455 §7.4.2); here they follow the HTTP status they
resemble. A socket refused before it is opened gets that HTTP status instead and no close code.
"""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """The number in the close frame. What a client should do stands beside each."""

    RESTART = 1012
    """The server stops or restarts: connect again after a moment, to any replica."""

    UNAUTHENTICATED = 4401
    """The token ran out while the socket was open: get a new one, then connect again."""

    FORBIDDEN = 4403
    """What was asked for is not allowed with this token: asking again changes nothing."""

    TOO_LATE = 4408
    """Something the protocol asks of the client did not come in time: connect again."""

    SLOW = 4410
    """The reader did not read for too long: connect again, the current board comes first."""

    TOO_MANY = 4429
    """The client sent too much: wait, then connect again."""


REASONS = {
    CloseCode.RESTART: "restart",
    CloseCode.UNAUTHENTICATED: "token_expired",
    CloseCode.FORBIDDEN: "forbidden",
    CloseCode.TOO_LATE: "timeout",
    CloseCode.SLOW: "slow",
    CloseCode.TOO_MANY: "rate_limited",
}
"""The reason text that travels with each code."""
