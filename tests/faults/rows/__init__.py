"""The fault matrix: one small function a row, in the order of its sections."""

from tests.faults.rows import processes

__all__ = ["processes"]
