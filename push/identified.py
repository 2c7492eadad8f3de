"""Readers of a token: who they are, so that they are sent away once it is revoked."""

from __future__ import annotations

from push.admission import Admission, Admitted, Identity
from push.channels import Reader
from push.hub import Hub


class Identified:
    """The hub's readers that said who they are. Those of `/connection/websocket` are its own matter."""

    def __init__(self, hub: Hub, admission: Admission) -> None:
        self._hub, self._admission = hub, admission
        self._readers: dict[Reader, Identity] = {}

    def add(self, reader: Reader, admitted: Admitted) -> None:
        """Know a new reader, if it said who it is; it may have been revoked since it was let in."""
        if admitted.identity is not None:
            self._readers[reader] = admitted.identity
            self._end_if_revoked(reader, admitted.identity)

    def remove(self, reader: Reader) -> None:
        """Harmless if it is not known."""
        self._readers.pop(reader, None)

    def end_revoked(self) -> None:
        """Close the sockets of all whose token is revoked."""
        for reader, identity in list(self._readers.items()):
            self._end_if_revoked(reader, identity)

    def _end_if_revoked(self, reader: Reader, identity: Identity) -> None:
        if self._admission.is_revoked(identity):
            self._hub.revoke(reader)
