"""Waiting for a store no longer than a caller may be kept, even if the store has frozen.

A query that is cancelled first asks the server to stop, and waits for that too; a server that is
frozen then holds the caller for as long as itself. So the work is left behind, not cancelled.
Stores bound by themselves how many such works there can be: by their pools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from core.errors import Unavailable

T = TypeVar("T")

_left_behind: set[asyncio.Task[Any]] = set()


async def within(seconds: float, work: Coroutine[Any, Any, T], *, code: str = "board_rebuilding") -> T:
    """What the work gives. Raises Unavailable if it takes longer, and whatever it raises itself."""
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    except asyncio.CancelledError:
        _leave(task)
        raise
    if not done:
        _leave(task)
        raise Unavailable(f"no answer within {seconds} s", code=code)
    return task.result()


def _leave(task: asyncio.Task[Any]) -> None:
    # Kept until it ends: the loop itself holds tasks weakly.
    _left_behind.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _left_behind.discard(task)
    if not task.cancelled():
        task.exception()
