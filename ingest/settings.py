"""The settings of the ingest service; each field is the variable `TRUEBOARD_<FIELD>`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service import keys
from service.revocations import check_interval
from service.settings import above_zero, not_negative


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    kafka: str
    """Bootstrap servers, `host:port[,…]`."""

    redis_url: str
    postgres_url: str

    jwks: str
    """Path or URL of the public keys that tokens are checked with."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    metrics_port: int = 9001
    """Loopback port of `/metrics` and `/health/*`."""

    kafka_kind: Literal["jvm", "memory", "external"] = "external"
    issuer: str = "trueboard"
    audience: str = "trueboard"
    token_algorithms: tuple[str, ...] = ("ES256", "EdDSA")
    token_max_life_s: int = keys.LONGEST_LIFE_S

    revocations_interval_s: float = 5.0
    """How often revoked tokens are read; at most 60."""

    production: bool = False
    """Leaves out the page `/docs`."""

    page: bool | None = None
    """Serves the live board at `/`; without it, wherever `production` is not set."""

    feed_url: str | None = None
    """The feed's base URL as browsers see it; without one, the page looks for it at its own origin."""

    hosts: tuple[str, ...] = ()
    """Names a request's Host may have, without port; empty: any."""

    trusted_proxies: tuple[str, ...] = ()
    """Networks whose `X-Forwarded-For` is believed, as `10.0.0.0/8`."""

    ingest_replicas: int = 1
    """How many processes share the limits, should Redis be away."""

    user_rate_per_s: float = 5.0
    user_burst: int = 30
    trusted_rate_per_s: float = 20_000.0
    """Of each token with `actions:write:any`; it may send one second's worth at once."""

    address_rate_per_s: float = 300.0
    unauthenticated_rate_per_s: float = 20.0
    """Of an address, for requests without a token and for those whose token is refused."""

    loopback_address_rate: float | None = None
    """In the place of the two above, for loopback addresses."""

    max_late_s: int = 86_400
    """How long before it is received an action may have occurred."""

    max_early_s: int = 60
    """How long after it is received an action may say that it occurs."""

    marker_ttl_s: int = 86_400
    """How long the door itself knows an action it has published."""

    late_after_s: float = 5.0
    """Age of the oldest unjudged action from which nobody is kept waiting."""

    shed_after_s: float = 60.0
    """Age of the oldest unjudged action from which new ones are turned away."""

    def __post_init__(self) -> None:
        check_interval(self.revocations_interval_s)
        above_zero(
            self,
            "token_max_life_s",
            "ingest_replicas",
            "user_rate_per_s",
            "user_burst",
            "trusted_rate_per_s",
            "address_rate_per_s",
            "unauthenticated_rate_per_s",
            "loopback_address_rate",
            "marker_ttl_s",
            "late_after_s",
            "shed_after_s",
        )
        not_negative(self, "max_late_s", "max_early_s")

    @property
    def serves_page(self) -> bool:
        """Whether the live board is served."""
        return not self.production if self.page is None else self.page
