"""The rig: real servers and services, and a proxy between every pair of them.

    ingest, stream, stream2, push, auditor  ──link──▶  kafka-1 (2, 3), postgres, redis

A link is named `<who>-<what>`, as `stream-postgres`. Each broker has a listener for every service and
tells it the link's address as its own, so nobody walks round the proxy. The rig itself, its readers
and its checks go directly. `stream2` is a second worker, started when a row wants one, as the auditor is.
"""

from __future__ import annotations

import importlib.resources
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from redis import Redis

from core.errors import Unavailable
from core.topics import ALL
from service import keys
from storage.kafka import topics
from storage.postgres import definitions, migrate
from tests.acceptance.world import EVERYTHING, TRUSTED, written
from tests.faults import clocks
from tests.faults.histories import Event, Run, Transcript, write_one
from tests.faults.ports import Block
from tests.faults.processes import Broker, Listener, Process, environment, until
from tests.faults.proxy import Links, Loop
from trueboard.devstack.postgres import SETTINGS, Postgres
from trueboard.devstack.service import Service
from trueboard.devstack.valkey import Valkey
from trueboard.endpoints import Endpoints

SERVICES: Mapping[str, str] = {
    "ingest": "ingest",
    "stream": "stream_app",
    "stream2": "stream_app",
    "push": "push",
    "auditor": "auditor",
}
"""The rig's name of a process, and its module."""

STARTED = ("ingest", "stream", "push")
PARTITIONS = 12
SESSION_TIMEOUT_S = 3.0
"""Shorter than the default of 10 s, so that a worker that was killed is missed sooner."""

RECONCILE_INTERVAL_S = 3.0
"""Sooner than the default of 10 s, for the same reason."""

PATIENCE_S = 240.0
"""How long is waited for what is no promise of the product, but of the machine that it runs on."""

MORE_TYPES = b"""
[types.vast]
min = 1
max = 9223372036854775807
"""
"""Beside the types that everybody has, one with which a score can leave 64 bits."""

ERASURE_SECRET = "the-key-under-which-this-rig-keeps-who-was-erased"

_ISSUER = _AUDIENCE = "trueboard"
_TOKEN_LIFE_S = 80_000


@dataclass
class Rig:
    """One stack and the directory its run is written to."""

    data: Path
    run: Path
    cache: Path
    brokers: int = 1
    seed: int = 1
    settings: dict[str, str] = field(default_factory=dict)
    """More settings of all services, without the prefix."""
    product: Path | None = None
    """Where the services' packages are taken from; None: from where this one is."""

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True, mode=0o711)
        (self.data / "logs").mkdir(exist_ok=True)
        self.began_s = time.monotonic()
        self.began_unix_s = time.time()
        self.row = ""
        self.loop = Loop("rig")
        self.links = Links(self.loop)
        self.events = Transcript(self.run / "events.jsonl")
        self.failpoints: dict[str, str] = {}
        """Of each service, what TRUEBOARD_FAILPOINTS says at its next start."""
        self.clocks: dict[str, int] = {}
        """Of each service, by how many seconds its wall clock is wrong from its next start on."""
        self.partitions = {topic.name: PARTITIONS for topic in ALL}
        """Of each topic, also after a row has added some."""
        self._extra: dict[str, dict[str, str]] = {}
        self._prefix: dict[str, list[str]] = {}
        self._ports = Block()
        self._tokens: dict[tuple[str, tuple[str, ...]], str] = {}
        self._lock = threading.Lock()
        self._choose()
        write_one(
            self.run / "run.json",
            Run(
                began=written(datetime.fromtimestamp(self.began_unix_s, UTC)),
                seed=self.seed,
                partitions=PARTITIONS,
                brokers=self.brokers,
            ),
        )

    # what there is

    def _choose(self) -> None:
        pg_port, redis_port = self._ports.free(), self._ports.free()
        self.postgres_program = Postgres(
            self.data, pg_port, settings={**SETTINGS, "shared_buffers": "128MB", "max_wal_size": "512MB"}
        )
        self.valkey_program = Valkey(self.data, redis_port)
        self.postgres_at, self.redis_at = ("127.0.0.1", pg_port), ("127.0.0.1", redis_port)
        self.http_port, self.feed_port = self._ports.free(), self._ports.free()
        self.metrics_ports = {name: self._ports.free() for name in SERVICES}
        for name in SERVICES:
            self.links.add(f"{name}-postgres", self._ports.free(), self.postgres_at)
            self.links.add(f"{name}-redis", self._ports.free(), self.redis_at)
        cluster_id = "T" + secrets.token_urlsafe(16)[1:]
        controller_port = self._ports.free()
        self.processes: dict[str, Process] = {}
        self._direct: list[int] = []
        for node in range(1, self.brokers + 1):
            direct = self._ports.free()
            self._direct.append(direct)
            listeners = [Listener(name="DIRECT", port=direct, advertised_port=direct)]
            for name in SERVICES:
                port, link = self._ports.free(), self._ports.free()
                self.links.add(f"{name}-kafka-{node}", link, ("127.0.0.1", port))
                listeners.append(Listener(name=name.upper(), port=port, advertised_port=link))
            broker = Broker(
                self.data,
                self.cache,
                node=node,
                brokers=self.brokers,
                cluster_id=cluster_id,
                controller_port=controller_port,
                listeners=listeners,
            )
            self.processes[broker.name] = Process(broker.name, broker, self._started)
        self.processes["postgres"] = Process("postgres", self.postgres_program, self._started)
        self.processes["valkey"] = Process("valkey", self.valkey_program, self._started)
        for name in SERVICES:
            self.processes[name] = self._service(name, as_service=name)

    def _service(self, name: str, *, as_service: str) -> Process:
        """A process of this name, which runs and is linked as that service."""
        program = _Service(
            name,
            [sys.executable, "-P", "-m", SERVICES[as_service]],
            metrics_port=self.metrics_ports[name],
            log=self.data / "logs" / f"{name}.log",
            env=lambda: self._env(name, as_service),
        )
        return Process(name, program, self._started)

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    def kafka_links(self, service: str) -> list[str]:
        return [f"{service}-kafka-{node}" for node in range(1, self.brokers + 1)]

    def links_of(self, *services: str) -> list[str]:
        return self.links.named(*(f"{service}-" for service in services))

    # addresses

    @property
    def kafka(self) -> str:
        """Kafka for the rig itself."""
        return ",".join(f"127.0.0.1:{port}" for port in self._direct)

    @property
    def postgres(self) -> str:
        return self.postgres_program.url

    @property
    def redis(self) -> str:
        return self.valkey_program.url

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def feed(self) -> str:
        return f"http://127.0.0.1:{self.feed_port}"

    def metrics_url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.metrics_ports[service]}/metrics"

    def _env(self, name: str, linked_as: str) -> dict[str, str]:
        settings = {
            "DATA": str(self.data / name),
            "POSTGRES_URL": _moved(self.postgres, self.links[f"{linked_as}-postgres"].port),
            "REDIS_URL": _moved(self.redis, self.links[f"{linked_as}-redis"].port),
            "KAFKA": ",".join(f"127.0.0.1:{self.links[link].port}" for link in self.kafka_links(linked_as)),
            "KAFKA_KIND": "external",
            "PARTITIONS": str(PARTITIONS),
            "HOST": "127.0.0.1",
            "HTTP_PORT": str(self.http_port),
            "FEED_PORT": str(self.feed_port),
            "HTTP_URL": self.http,
            "FEED_URL": self.feed,
            "METRICS_PORT": str(self.metrics_ports[name]),
            "JWKS": str(self.data / "keys" / "jwks.json"),
            "ISSUER": _ISSUER,
            "AUDIENCE": _AUDIENCE,
            "TOKEN_MAX_LIFE_S": "86400",
            "LOOPBACK_ADDRESS_RATE": "100000",
            "LOOPBACK_MAX_SOCKETS": "20000",
            "ERASURE_SECRET": ERASURE_SECRET,
            "SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
            "RECONCILE_INTERVAL_S": str(RECONCILE_INTERVAL_S),
            **self.settings,
            **self._extra.get(name, {}),
        }
        if name in self.failpoints:
            settings["FAILPOINTS"] = self.failpoints[name]
        packages = {} if self.product is None else {"PYTHONPATH": str(self.product)}
        return environment(settings) | packages | clocks.shifted(self.clocks.get(name), self.data)

    def tell(self, service: str, **settings: str) -> None:
        """Settings of one service from its next start on; none: as usual."""
        self._extra[service] = {key.upper(): value for key, value in settings.items()}

    def another(self, service: str, name: str, **settings: str) -> Process:
        """One more process of a service, over the same links, with these settings of its own.

        Whoever asks for it ends it.
        """
        self._extra[name] = {key.upper(): value for key, value in settings.items()}
        self.metrics_ports[name] = self._ports.free()
        self.processes[name] = self._service(name, as_service=service)
        (self.data / name).mkdir(exist_ok=True)
        return self.processes[name]

    def free_port(self) -> int:
        return self._ports.free()

    # its life

    def up(self) -> None:
        """Start everything."""
        for name in ("postgres", "valkey", *self.broker_names):
            (self.data / name).mkdir(exist_ok=True) if name in SERVICES else None
            self[name].start(wait=False)
        for name in ("postgres", "valkey", *self.broker_names):
            self[name].wait_ready()
        for name in SERVICES:
            (self.data / name).mkdir(exist_ok=True)
        migrate.apply(self.postgres)
        catalogue = (importlib.resources.files("core") / "catalogue.toml").read_bytes() + MORE_TYPES
        definitions.apply(self.postgres, catalogue)
        until(self._declared, within_s=PATIENCE_S, what="the topics")
        keys.ensure(self.data / "keys")
        self.start(*STARTED)
        self.write_endpoints()

    def _declared(self) -> bool:
        """Whether the topics are there now; a broker that has just started may not answer in time."""
        try:
            topics.declare(
                self.kafka, kind="external", partitions=PARTITIONS, replication=min(3, self.brokers)
            )
        except Unavailable:
            return False
        return True

    @property
    def broker_names(self) -> list[str]:
        return [f"kafka-{node}" for node in range(1, self.brokers + 1)]

    def start(self, *names: str) -> None:
        """Start these side by side and wait for all of them."""
        for name in names:
            self[name].start(wait=False)
        for name in names:
            self[name].wait_ready()

    def ensure_up(self) -> None:
        """What a row left dead or broken: as at the start."""
        self.links.heal()
        self.failpoints.clear()
        self.clocks.clear()
        self._extra.clear()
        if self["stream2"].alive:
            self["stream2"].end()
        down = [name for name in ("postgres", "valkey", *self.broker_names, *STARTED) if not self[name].alive]
        self.start(*down)

    def kill(self) -> None:
        """End every process at once; nobody needs what is under way."""
        for process in self.processes.values():
            if process.alive:
                process.go_on()
                process.kill()

    def close(self) -> None:
        """End everything, the services first."""
        for name in (*SERVICES, "valkey", "postgres", *reversed(self.broker_names)):
            self[name].end()
        self.links.close()
        self.loop.close()
        self.events.close()
        self._ports.close()

    def write_endpoints(self) -> None:
        """For the commands that take --data."""
        Endpoints(
            http=self.http,
            feed=self.feed,
            kafka=self.kafka,
            kafka_kind="external",
            postgres=self.postgres,
            redis=self.redis,
            jwks=str(self.data / "keys" / "jwks.json"),
            issuer=_ISSUER,
            audience=_AUDIENCE,
            metrics={name: self.metrics_url(name) for name in STARTED},
            processes={name: [self[name].pid] for name in (*STARTED, "postgres", "valkey")}
            | {"supervisor": [os.getpid()]},
        ).write(self.data)

    def operate(self, program: str, *arguments: str) -> None:
        """Let the product's own code do what an operator would; `arguments` are its `sys.argv[1:]`."""
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, *arguments],
            env=self._env("ingest", "ingest"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    # what is written down

    def now_s(self) -> float:
        return round(time.monotonic() - self.began_s, 4)

    def event(self, what: Any, target: str = "", **detail: Any) -> None:
        self.events.add(Event(at_s=self.now_s(), row=self.row, what=what, target=target, detail=detail))

    def _started(self, name: str) -> None:
        self.event("restart", name, pid=self[name].pid)

    # looking

    def token(self, user: str, *, trusted: bool = False) -> str:
        """A token that lasts as long as a run."""
        scopes = TRUSTED if trusted else EVERYTHING
        with self._lock:
            known = self._tokens.get((user, scopes))
            if known is None:
                known = self._tokens[user, scopes] = keys.issue(
                    self.data / "keys",
                    user=user,
                    name=None,
                    scopes=scopes,
                    ttl_s=_TOKEN_LIFE_S,
                    issuer=_ISSUER,
                    audience=_AUDIENCE,
                )
            return known

    def ask(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Rows of a query, on a connection of its own that only reads."""
        with psycopg.connect(
            self.postgres,
            autocommit=True,
            connect_timeout=5,
            options="-c default_transaction_read_only=on -c timezone=UTC -c statement_timeout=20000",
        ) as connection:
            return connection.execute(query, parameters).fetchall()

    def one(self, query: str, parameters: Any = None) -> Any:
        """The first field of the first row."""
        return self.ask(query, parameters)[0][0]

    def do(self, statement: str, parameters: Any = None) -> None:
        """A statement that changes something behind the product's back."""
        with psycopg.connect(self.postgres, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement, parameters)

    def redis_client(self) -> Redis:
        return Redis.from_url(self.redis, socket_timeout=5, socket_connect_timeout=2)

    def metric(self, service: str, name: str, labels: str = "") -> float:
        """The sum of a metric's samples whose labels hold this text."""
        import httpx

        text = httpx.get(self.metrics_url(service), timeout=5, trust_env=False).text
        total = 0.0
        for line in text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and labels in line:
                total += float(line.rsplit(" ", 1)[1])
        return total


class _Service(Service):
    ready_timeout_s = PATIENCE_S


def _moved(url: str, port: int) -> str:
    """The same URL at another port of loopback."""
    parts = urlsplit(url)
    account = parts.netloc.rsplit("@", 1)[0]
    return urlunsplit(parts._replace(netloc=f"{account}@127.0.0.1:{port}"))
