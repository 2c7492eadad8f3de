"""A supervisor as a process of its own, for a test that kills it; prints the ids of its children."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.devstack.stand_in import IGNORES_SIGTERM, StandIn
from trueboard.devstack.supervision import Supervisor

if __name__ == "__main__":
    here = Path(sys.argv[1])
    with Supervisor(say=lambda _: None, complain=lambda _: None) as watched:
        watched.start([StandIn("one", here / "one"), StandIn("two", here / "two", IGNORES_SIGTERM)])
        print(*watched.pids("one"), *watched.pids("two"), flush=True)
        watched.watch(lambda _: None)
