"""Ports for stacks that run beside each other.

A stack chooses all its ports before anything listens on most of them, and a process of it may be
away for a while; so each has a block of its own, claimed by a lock on a file that goes with the process.
"""

from __future__ import annotations

import fcntl
import random
import tempfile
from pathlib import Path
from typing import IO, Final

from trueboard.devstack.ports import is_free

_LOWEST, _HIGHEST = 20_000, 32_000
"""As in `trueboard.devstack.ports`: below the ports from which systems connect."""

SIZE: Final = 100
"""More than a stack of three brokers needs (52)."""

_CLAIMS: Final = Path(tempfile.gettempdir()) / "trueboard-faults-ports"


class Block:
    """A hundred ports that no other stack chooses from until this one is closed."""

    def __init__(self, claims: Path = _CLAIMS) -> None:
        claims.mkdir(exist_ok=True)
        blocks = list(range(_LOWEST, _HIGHEST, SIZE))
        random.SystemRandom().shuffle(blocks)
        for first in blocks:
            claim = _claimed(claims / str(first))
            if claim is not None:
                self._claim, self._next, self._end = claim, first, first + SIZE
                return
        raise AssertionError(f"every block of ports is claimed in {claims}")

    def free(self) -> int:
        """The next port of the block on which nobody listens."""
        while self._next < self._end:
            self._next += 1
            if is_free(self._next - 1):
                return self._next - 1
        raise AssertionError(f"no free port is left below {self._end}")

    def close(self) -> None:
        self._claim.close()


def _claimed(path: Path) -> IO[bytes] | None:
    """The file with its lock; None if another holds it."""
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
