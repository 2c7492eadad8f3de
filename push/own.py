"""A client's channel of its own verdicts: what is written to its socket, and when no more is."""

from __future__ import annotations

from typing import Final, Protocol

from core.feed import Position
from push.prepared import PreparedSocket
from push.protocols import centrifuge

MOST_WAITING_BYTES: Final = 64 * 1024
"""What may wait in this process for a client to read it, before it is told of no more verdicts."""

INSUFFICIENT_STATE: Final = {"code": 2500, "reason": "insufficient state"}
"""Makes a client subscribe again, from where it stands."""


class Listening(Protocol):
    """What is needed of `push.conversation.Conversation`."""

    @property
    def ended(self) -> bool: ...

    def forget(self, channel: str) -> None: ...


class Own:
    """A listener to one's own verdicts, over one conversation's socket."""

    __slots__ = ("_channel", "_conversation", "_socket")

    def __init__(self, conversation: Listening, socket: PreparedSocket, channel: str) -> None:
        self._conversation, self._socket, self._channel = conversation, socket, channel

    def tell(self, receipt: bytes, position: Position | None) -> bool:
        if self._conversation.ended:
            return False
        if self._socket.waiting_bytes > MOST_WAITING_BYTES:
            self.lose()
            return False
        self._socket.write(centrifuge.own(self._channel, receipt, position))
        return True

    def lose(self) -> None:
        # It comes again with the position it has, and the ledger knows what it missed.
        if not self._conversation.ended:
            self._conversation.forget(self._channel)
            self._socket.write(centrifuge.push(self._channel, "unsubscribe", INSUFFICIENT_STATE))
