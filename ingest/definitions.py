"""The catalogue and the boards in force, as the door knows them: read at start, and again when they move.

Between a change and its reading the door may take what the judge will reject, or the other way
round, for two seconds; the verdict is the judge's alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from core.catalogue import Catalogue
from core.errors import Refused, Unavailable
from service import logs

_PAUSE_S = 2.0
_RETRY_S = 0.5

_log = logs.get("ingest.definitions")


class Definitions:
    """Holds what is in force; `watch` keeps it so. `fence` gives a number that moves with each change."""

    def __init__(
        self,
        fence: Callable[[], Awaitable[int]],
        catalogue: Callable[[], Awaitable[Catalogue]],
        public_boards: Callable[[], Awaitable[frozenset[str]]],
    ) -> None:
        self._read_fence, self._read_catalogue, self._read_public = fence, catalogue, public_boards
        self._fence: int | None = None
        self._catalogue: Catalogue | None = None
        self._public: frozenset[str] = frozenset()

    @property
    def known(self) -> bool:
        """Whether they were read at all."""
        return self._catalogue is not None

    @property
    def current(self) -> Catalogue:
        """The catalogue in force. Raises Unavailable before it was first read."""
        if self._catalogue is None:
            raise Unavailable("The catalogue cannot be read now.", retry_after_s=2)
        return self._catalogue

    def public(self) -> frozenset[str]:
        """The boards that need no token. Raises Unavailable before they were first read."""
        if self._catalogue is None:
            raise Unavailable("The boards cannot be read now.", code="board_rebuilding", retry_after_s=2)
        return self._public

    async def refresh(self) -> None:
        """Read what moved. Raises Unavailable."""
        fence = await self._read_fence()
        if fence == self._fence and self._catalogue is not None:
            return
        catalogue, public = await self._read_catalogue(), await self._read_public()
        if self._catalogue is None or catalogue.version != self._catalogue.version:
            _log.info("catalogue_in_force", version=catalogue.version, types=len(catalogue.types))
        # The number was read first: what moved in between is read once more.
        self._fence, self._catalogue, self._public = fence, catalogue, public

    async def watch(self) -> None:
        """Refresh for ever; an answer that does not come leaves what was known in force."""
        said = False
        while True:
            try:
                await self.refresh()
                said = False
            except (Refused, Unavailable) as error:
                # A catalogue of a later version than this process can read leaves the old one too.
                if not said:
                    _log.warning("definitions_unreadable", detail=error.detail)
                said = True
            await asyncio.sleep(_PAUSE_S if self.known else _RETRY_S)
