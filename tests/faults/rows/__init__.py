"""The fault matrix: one small function a row, in the order of its sections."""

from tests.faults.rows import processes  # isort: skip
from tests.faults.rows import pauses  # isort: skip
from tests.faults.rows import brokers  # isort: skip
from tests.faults.rows import copies  # isort: skip
from tests.faults.rows import ledger  # isort: skip
from tests.faults.rows import network  # isort: skip
from tests.faults.rows import load  # isort: skip

__all__ = ["brokers", "copies", "ledger", "load", "network", "pauses", "processes"]
