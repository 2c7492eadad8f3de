"""What the feed can be told from outside, read once at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service import keys
from service.revocations import check_interval
from service.settings import above_zero, not_negative


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    kafka: str
    """Bootstrap servers, `host:port,…`."""

    kafka_kind: Literal["jvm", "memory", "external"] = "external"
    """What answers there; the in-memory broker answers a waiting reader only when its wait is over."""

    redis_url: str
    postgres_url: str

    jwks: str
    """Path or URL of the public keys that tokens are checked with."""

    issuer: str = "trueboard"
    audience: str = "trueboard"
    token_algorithms: tuple[str, ...] = ("ES256", "EdDSA")
    token_max_life_s: int = keys.LONGEST_LIFE_S

    revocations_interval_s: float = 5.0
    """How often revoked tokens are read; at most 60."""

    host: str = "127.0.0.1"
    feed_port: int = 8001
    metrics_port: int = 9003
    """Loopback port of `/metrics` and `/health/*`."""

    origins: tuple[str, ...] = ()
    """Pages that may open sockets, as `https://board.example`. Empty: the public paths are open
    to all pages, the others to pages of the host itself (`push.admission`)."""

    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose `X-Forwarded-For` is believed; from elsewhere it is ignored."""

    max_sockets_per_address: int = 50
    max_sockets_per_user: int = 50
    """Sockets that one user may have open at this process."""

    max_sockets: int = 50_000
    """Sockets and streams that this process holds in all; more are refused with 503."""

    address_rate_per_s: float = 300.0
    """Handshakes per second and address."""

    refused_rate_per_s: float = 20.0
    """Refused handshakes per second and address, before all of its handshakes are refused."""

    loopback_address_rate: float | None = None
    """In the place of the two rates above, for loopback addresses."""

    loopback_max_sockets: int | None = None
    """In the place of `max_sockets_per_address`, for loopback addresses."""

    frame_gap_ms: float = 100.0
    """Least time between two frames to one reader."""

    tick_ms: float = 50.0
    """A reader of a Centrifuge channel or a stream is sent one publication at most in each tick of so long;
    the ticks are the same for all."""

    stall_limit_s: float = 10.0
    """A reader whose socket takes nothing for longer is closed with 4410."""

    ping_interval_s: float = 20.0
    """Seconds between pings; a reader that does not answer one within as long is gone."""

    drain_s: float = 1.0
    """Over how long a stop spreads the closing of its sockets, so that readers do not come back all at
    once. The process ends within three seconds more."""

    compare_interval_s: float = 1.0
    """How often what is shown is compared with the standings."""

    def __post_init__(self) -> None:
        check_interval(self.revocations_interval_s)
        above_zero(
            self,
            "frame_gap_ms",
            "compare_interval_s",
            "ping_interval_s",
            "max_sockets_per_address",
            "max_sockets_per_user",
            "max_sockets",
            "address_rate_per_s",
            "refused_rate_per_s",
            "loopback_address_rate",
            "loopback_max_sockets",
        )
        not_negative(self, "tick_ms", "drain_s")
