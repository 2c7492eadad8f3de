"""Servers and services of a bench's own, as `trueboard up` starts them, in a directory thrown away.

Real Postgres with fsync on, real Valkey, real Kafka, on free ports; the services are the very
processes that run elsewhere. A bench starts them when it wants them, so that a backlog can be
there before the stream is.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from core import scopes, topics
from core.words import MAIN_PERIOD
from service import keys
from storage.kafka import topics as kafka_topics
from storage.postgres import definitions, migrate
from storage.redis.keys import board
from trueboard.devstack.kafka.jars import kafka_version
from trueboard.devstack.kafka.jvm import JvmKafka
from trueboard.devstack.ports import free_port
from trueboard.devstack.postgres import Postgres
from trueboard.devstack.processes import Launch, Program
from trueboard.devstack.program import Base
from trueboard.devstack.service import Service
from trueboard.devstack.supervision import Supervisor
from trueboard.devstack.valkey import Valkey

HOST: Final = "127.0.0.1"
PARTITIONS: Final = 12
ISSUER: Final = "trueboard"
SERVERS: Final = ("postgres", "valkey", "kafka")

_PATIENCE_S = 120.0


class Stuck(Exception):
    """What a bench waited for did not come."""


class ServerOf(Base):
    """A program of the bench's own that is ready once it listens on its port."""

    def __init__(self, name: str, argv: Sequence[str], *, port: int, log: Path) -> None:
        self.name, self._argv, self._port, self._log = name, argv, port, log

    def launch(self) -> Launch:
        """The command as it is."""
        return Launch(argv=self._argv, log=self._log, env=os.environ)

    def is_ready(self) -> bool:
        """Whether somebody accepts connections there."""
        try:
            with socket.create_connection((HOST, self._port), timeout=1.0):
                return True
        except OSError:
            return False


class TellingService(Service):
    """A service that counts as ready once its log says `event`; `told` is then called, once."""

    def __init__(
        self, *arguments: Any, event: str, told: Callable[[], None], log: Path, **keywords: Any
    ) -> None:
        super().__init__(*arguments, log=log, **keywords)
        self._file, self._mark, self._told = log, f'"{event}"'.encode(), told

    def is_ready(self) -> bool:
        """Whether the event is in the log."""
        if self._mark not in self._file.read_bytes():
            return False
        self._told()
        return True


class Stack:
    """What runs for one bench. `say` gets progress."""

    def __init__(self, data: Path, supervisor: Supervisor) -> None:
        self.data = data
        self._supervisor = supervisor
        self._taken: set[int] = set()
        self._postgres = Postgres(data, self.port())
        self._valkey = Valkey(data, self.port())
        cache = Path(os.environ.get("TRUEBOARD_CACHE_DIR") or Path.home() / ".cache" / "trueboard")
        self._kafka = JvmKafka(data, cache, port=self.port(), controller_port=self.port())
        self.http_port, self.feed_port = self.port(), self.port()
        self.metrics_ports = {name: self.port() for name in ("ingest", "stream_app", "push")}
        self.bootstrap = self._kafka.bootstrap

    @property
    def postgres_url(self) -> str:
        return self._postgres.url

    @property
    def redis_url(self) -> str:
        return self._valkey.url

    def port(self) -> int:
        port = free_port(taken=frozenset(self._taken))
        self._taken.add(port)
        return port

    def start_servers(self, catalogue_toml: bytes) -> None:
        """Postgres, Valkey and Kafka with schema, definitions, topics and keys."""
        self.start(self._postgres, self._valkey, self._kafka)
        migrate.apply(self.postgres_url)
        definitions.apply(self.postgres_url, catalogue_toml)
        kafka_topics.declare(self.bootstrap, kind="jvm", partitions=PARTITIONS, replication=1)
        keys.ensure(self.data / "keys")

    def start(self, *programs: Program) -> None:
        """Start these side by side and wait until they are ready."""
        self._supervisor.start(programs)

    def start_services(self, *names: str, env: Mapping[str, str] | None = None) -> None:
        """Start these of `ingest`, `stream_app` and `push`; `env` on top of what `up` would set."""
        self.start(*(self._service(name, env or {}) for name in names))

    def start_stream(self, taken_up: Callable[[], None]) -> None:
        """Start one worker of the stream; returns when it takes up its partitions.

        Its threads bear their names also for the system, so that each can be timed. `taken_up` is
        called within 50 ms of that moment, before which no record was read.
        """
        name = "stream_app"
        log = self.data / "logs" / f"{name}.log"
        self.start(
            TellingService(
                name,
                (sys.executable, "-P", "-m", "bench._named_threads", name),
                metrics_port=self.metrics_ports[name],
                log=log,
                env=lambda: self.environment({}),
                event="sought",
                told=taken_up,
            )
        )

    def _service(self, name: str, env: Mapping[str, str]) -> Service:
        return Service(
            name,
            (sys.executable, "-P", "-m", name),
            metrics_port=self.metrics_ports[name],
            log=self.data / "logs" / f"{name}.log",
            env=lambda: self.environment(env),
        )

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """What a service is told, as `trueboard up` tells it."""
        ours = {
            "DATA": str(self.data),
            "POSTGRES_URL": self.postgres_url,
            "REDIS_URL": self.redis_url,
            "KAFKA": self.bootstrap,
            "KAFKA_KIND": "jvm",
            "HOST": HOST,
            "HTTP_PORT": str(self.http_port),
            "FEED_PORT": str(self.feed_port),
            "JWKS": str(self.data / "keys" / keys.JWKS_FILE),
            "ISSUER": ISSUER,
            "AUDIENCE": ISSUER,
            "LOOPBACK_ADDRESS_RATE": "100000",
            **env,
        }
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            **{f"TRUEBOARD_{name}": value for name, value in ours.items()},
        }

    def pids(self, *names: str) -> dict[str, list[int]]:
        """The processes of these programs."""
        return {name: self._supervisor.pids(name) for name in names}

    def token(self) -> str:
        """A trusted back end's token: it may send actions for anybody."""
        return keys.issue(
            self.data / "keys",
            user="bench",
            scopes=(scopes.ACTIONS_WRITE_ANY,),
            ttl_s=keys.LONGEST_LIFE_S,
            issuer=ISSUER,
            audience=ISSUER,
        )

    def url_of(self, database: str) -> str:
        """The same Postgres, another database."""
        return urlunsplit(urlsplit(self.postgres_url)._replace(path=f"/{database}"))

    def versions(self) -> dict[str, str]:
        """Of the servers."""
        with psycopg.connect(self.postgres_url) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        with redis.Redis.from_url(self.redis_url) as client:
            information: dict[str, Any] = client.info("server")
        valkey = information.get("valkey_version") or information["redis_version"]
        return {"postgres": row[0] if row else "", "valkey": str(valkey), "kafka": kafka_version()}


class Looking:
    """Looks how far the ledger and its followers are."""

    def __init__(self, stack: Stack) -> None:
        self._connection = psycopg.connect(stack.postgres_url, autocommit=True, prepare_threshold=1)
        self._redis = redis.Redis.from_url(stack.redis_url)
        self._admin = AdminClient({"bootstrap.servers": stack.bootstrap, "log_level": 0})

    def close(self) -> None:
        self._connection.close()
        self._redis.close()

    def one(self, query: str, *arguments: Any) -> Any:
        """The first column of the first row; None without a row."""
        row = self._connection.execute(query, arguments).fetchone()
        return None if row is None else row[0]

    def judged(self) -> int:
        """How many records of the log the ledger is past."""
        return int(self.one("SELECT coalesce(sum(next_offset), 0) FROM progress"))

    def revision(self) -> int:
        return int(self.one("SELECT coalesce(max(revision), 0) FROM revisions"))

    def changed_revision(self) -> int:
        """The last revision that changed the default board."""
        return int(self.one("SELECT coalesce(max(revision), 0) FROM deltas WHERE period = %s", MAIN_PERIOD))

    def published_revision(self) -> int:
        return int(self.one("SELECT coalesce(max(revision), 0) FROM cursors WHERE follower = 'topics'"))

    def copied_revision(self) -> int:
        """The revision that the board in Valkey shows."""
        shown: Any = self._redis.hget(board(MAIN_PERIOD)[2], "revision")
        return int(shown or 0)

    def copied_entries(self) -> int:
        return int(self._redis.zcard(board(MAIN_PERIOD)[0]))

    def wal_bytes(self, since: str | None = None) -> Any:
        """The place in Postgres's log, or the bytes written since then."""
        if since is None:
            return self.one("SELECT pg_current_wal_insert_lsn()::text")
        return int(self.one("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s::pg_lsn)", since))

    def log_end(self, topic: str = topics.SUBMITTED.name) -> int:
        """How many records were ever written to a topic."""
        asked = {
            TopicPartition(topic, number): OffsetSpec.latest()
            for number in range(len(self._admin.list_topics(topic, timeout=10).topics[topic].partitions))
        }
        return sum(future.result().offset for future in self._admin.list_offsets(asked).values())

    def all_is_done(self) -> bool:
        """Whether the ledger is at the log's end, and Valkey and the topics at the ledger's."""
        return (
            self.judged() == self.log_end()
            and self.copied_revision() >= self.changed_revision()
            and self.published_revision() >= self.revision()
        )

    def until_done(self, patience_s: float = _PATIENCE_S) -> None:
        """Wait for it. Raises Stuck if nothing moves for `patience_s`."""
        wait_until(self.all_is_done, self.judged, patience_s)


def wait_until(done: Callable[[], bool], moved: Callable[[], int], patience_s: float = _PATIENCE_S) -> None:
    """Look ten times a second. Raises Stuck if what `moved` tells stays the same for `patience_s`."""
    last, since_s = moved(), time.monotonic()
    while not done():
        time.sleep(0.1)
        now = moved()
        if now != last:
            last, since_s = now, time.monotonic()
        elif time.monotonic() - since_s > patience_s:
            raise Stuck(f"nothing has moved for {patience_s:.0f} s; it stands at {now}")


@contextmanager
def stack(say: Callable[[str], None]) -> Iterator[Stack]:
    """An empty directory and whoever keeps its programs; at the end both are gone."""
    data = Path(tempfile.mkdtemp(prefix="trueboard-bench-"))
    # As in `up`: when root lends the servers another account, that one must get through.
    data.chmod(0o711)
    (data / "logs").mkdir()
    try:
        with Supervisor(say=lambda _: None, complain=say) as supervisor:
            # Whoever interrupts a bench wants its end now, not when it next looks.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            yield Stack(data, supervisor)
    finally:
        shutil.rmtree(data, ignore_errors=True)


def run_id() -> str:
    """What tells the ids of this run from those of others: 23 characters."""
    return f"bench-{secrets.token_hex(8)}-"
