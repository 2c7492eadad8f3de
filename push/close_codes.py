"""Why the server ends a WebSocket, as the client sees it.

4000…4999 are the application's own (RFC 6455 §7.4.2); here they follow the HTTP status they
resemble. A socket refused before it is opened gets that HTTP status instead and no close code.

A Centrifuge client connects again after 3000…3499 and never after 3500…3999, so on its path the
same causes have other numbers: the protocol's own where it has one.

Source: github.com/centrifugal/centrifuge, `Disconnect`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


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

    CROWDED = 3429
    """Of a Centrifuge client: the user has too many sockets open. Close one, or come again later."""

    BAD_TOKEN = 3500
    """The token is not good, or was revoked while the socket was open: connecting again with it changes
    nothing. The number is a Centrifuge client's; elsewhere it is 4401, the reason telling it apart."""

    UNREADABLE = 3501
    """Of a Centrifuge client: what it said is not the protocol. A defect in the client."""

    UNSUPPORTED = 3508
    """Of a Centrifuge client: what it sent is not taken here. Sending it again changes nothing."""


Wording = Mapping[CloseCode, tuple[int, str]]
"""The number in the close frame and the reason that travels with it, by cause."""

OURS: Final[Wording] = {
    CloseCode.RESTART: (1012, "restart"),
    CloseCode.UNAUTHENTICATED: (4401, "token_expired"),
    CloseCode.BAD_TOKEN: (4401, "token_revoked"),
    CloseCode.FORBIDDEN: (4403, "forbidden"),
    CloseCode.TOO_LATE: (4408, "timeout"),
    CloseCode.SLOW: (4410, "slow"),
    CloseCode.TOO_MANY: (4429, "rate_limited"),
}

CENTRIFUGE: Final[Wording] = {
    CloseCode.RESTART: (3001, "shutdown"),
    CloseCode.UNREADABLE: (3501, "bad request"),
    CloseCode.UNAUTHENTICATED: (3005, "connection expired"),
    CloseCode.BAD_TOKEN: (3500, "invalid token"),
    CloseCode.FORBIDDEN: (3507, "permission denied"),
    CloseCode.UNSUPPORTED: (3508, "not available"),
    CloseCode.TOO_LATE: (3012, "no pong"),
    CloseCode.SLOW: (3008, "slow"),
    CloseCode.TOO_MANY: (3013, "too many requests"),
    # The protocol's own 3504 is final, and a page would stay dark though its old sockets are
    # found dead a moment later.
    CloseCode.CROWDED: (3429, "connection limit"),
}
