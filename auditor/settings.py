"""What the auditor can be told from outside, read once at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.settings import above_zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    kafka: str
    kafka_kind: Literal["jvm", "memory", "external"] = "external"

    postgres_url: str
    redis_url: str

    http_url: str
    feed_url: str

    metrics_port: int = 9004

    audit_interval_s: float = 1.0
    """How often the auditor asks how far the topics are sent, and how long it waits between two
    looks at Redis; pages are asked for half as often."""

    def __post_init__(self) -> None:
        above_zero(self, "audit_interval_s")
