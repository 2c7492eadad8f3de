"""What the stream needs to know, read once from the environment and `trueboard.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.settings import DEFAULT_DATA, above_zero, not_negative


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One worker's settings."""

    postgres_url: str
    redis_url: str

    kafka: str
    """Bootstrap servers, `host:port[,…]`."""

    kafka_kind: str = "external"
    """`jvm`, `external` or `memory`."""

    erasure_secret: str = ""
    """Secret under which the user ids of erased people are kept as hashes: one for the ledger, for ever.
    Empty: made in the data directory."""

    data_dir: Path = Path(DEFAULT_DATA)
    """Where that secret is made, if none is given; nothing else is kept there."""

    metrics_port: int = 0
    """Loopback port of metrics and health; 0 chooses a free one."""

    consumer_group: str = "trueboard-stream"

    session_timeout_s: float = 10.0
    """A worker silent for so long has lost its partitions."""

    reconcile_interval_s: float = 10.0
    """How often the Redis boards are compared with the ledger."""

    max_late_s: float = 86_400.0
    """How long before it was received an action that is no backfill may have occurred."""

    max_early_s: float = 60.0

    people_at_hand: int = 250_000
    """Players kept in memory; some 700 bytes each."""

    recent_at_hand: int = 3_000_000
    """Recent actions of theirs kept in memory, about; some 30 to 130 bytes each. Less than the windows
    of those who act all the time hold means reading them from the ledger over and over."""

    batch_actions: int = 2_000
    """Most actions in one transaction and revision."""

    dead_letters_in_a_row: int = 1_000
    """Unreadable records in a row after which a partition stops: then it is not the records."""

    defects_in_a_row: int = 20
    """Records in a row set aside for a defect after which a partition stops: then it is not the records."""

    stuck_s: float = 60.0
    """A worker with lag that finishes nothing for so long exits."""

    def __post_init__(self) -> None:
        above_zero(
            self,
            "session_timeout_s",
            "reconcile_interval_s",
            "people_at_hand",
            "recent_at_hand",
            "batch_actions",
            "dead_letters_in_a_row",
            "defects_in_a_row",
            "stuck_s",
        )
        not_negative(self, "max_late_s", "max_early_s")
