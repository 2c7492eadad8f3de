"""What `up` and `doctor` read from the environment and from `<data dir>/trueboard.toml`.

The names are those the services read (`service.settings`): what a person has set there is passed
on unchanged, the rest is filled in by `up`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSettings:
    """The settings of the stack; None where `up` finds the value itself."""

    kafka: str | None = None
    """`auto`, `jvm`, `memory`, or the host:port of a broker that runs already."""

    postgres_url: str | None = None
    redis_url: str | None = None

    partitions: int = 12
    """Partitions of each topic; fixed when the topics are made."""

    host: str = "127.0.0.1"
    http_port: int | None = None
    feed_port: int | None = None
    http_url: str | None = None
    feed_url: str | None = None

    jwks: str | None = None
    """Path or URL of the public keys; by default those made in the data directory."""

    issuer: str = "trueboard"
    audience: str = "trueboard"
    token_max_life_s: int = 86_400

    loopback_max_sockets: int = 20_000
    max_sockets_per_user: int = 20_000
    """Sockets that one user may have open here, where one token may stand for many watchers."""

    loopback_address_rate: int = 100_000
    """Requests a second from one loopback address: here many users share one."""

    erasure_secret: str = ""
    """As of `stream_app`: the same for all that erase."""

    cache_dir: str | None = None
    """Where downloaded jars are kept; by default `cache` in the data directory."""

    def __post_init__(self) -> None:
        if not 1 <= self.partitions <= 1000:
            raise ValueError("partitions must be 1..1000")
        for name, port in (("http_port", self.http_port), ("feed_port", self.feed_port)):
            if port is not None and not 0 <= port <= 65_535:
                raise ValueError(f"{name} must be 0..65535")
