"""A ledger to follow."""

from __future__ import annotations

from tests.stream_app.conftest import stream

__all__ = ["stream"]
