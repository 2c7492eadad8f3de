"""The fault matrix: one small function a row, in the order of its sections."""

from tests.faults.rows import copies, pauses, processes

__all__ = ["copies", "pauses", "processes"]
