"""`trueboard up`: the servers, then the services, kept running in the foreground.

Order: lock the data directory, look for the tools, start Postgres, Valkey and Kafka side by side,
bring schema, topics, definitions and keys up to date, start the services, write
endpoints.json, say `ready`. Stopping goes backwards. Whatever keeps it from starting is one
sentence on stderr and exit code 1.
"""

from __future__ import annotations

import fcntl
import importlib.resources
import ipaddress
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click
import psycopg

from core.errors import TrueboardError
from core.topics import ALL as ALL_TOPICS
from ingest.settings import Settings as IngestSettings
from service import erasure_key
from service.settings import data_directory, mask, read_settings
from trueboard.devstack.errors import CannotStart, sentence_of
from trueboard.devstack.kafka.jars import LEAST_JAVA, Jars, find_java, kafka_version
from trueboard.devstack.kafka.jvm import JvmKafka
from trueboard.devstack.kafka.memory import MemoryKafka
from trueboard.devstack.ports import Ports
from trueboard.devstack.postgres import Postgres
from trueboard.devstack.processes import Program
from trueboard.devstack.service import Service
from trueboard.devstack.settings import StackSettings
from trueboard.devstack.supervision import Stopping, Supervisor
from trueboard.devstack.valkey import Valkey
from trueboard.endpoints import Endpoints

DEFAULT_HTTP_PORT, DEFAULT_FEED_PORT = 8080, 8081
LEAST_FREE_BYTES = 256 * 1024 * 1024

# -P: a directory of the same name where the command is called must not be taken for the service
SERVICES: Mapping[str, Sequence[str]] = {
    name: (sys.executable, "-P", "-m", name) for name in ("ingest", "stream_app", "push", "auditor")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says; None where it says nothing."""

    data: Path
    kafka: str | None = None
    postgres: str | None = None
    redis: str | None = None
    catalogue: Path | None = None
    http_port: int | None = None
    feed_port: int | None = None
    host: str | None = None


class SetUp:
    """What is done between the servers' start and the services'; each step may be repeated."""

    def schema(self, postgres_url: str) -> None:
        """Bring the tables up to date."""
        from storage.postgres import migrate

        migrate.apply(postgres_url)

    def history(
        self,
        postgres_url: str,
        bootstrap: str,
        redis_url: str,
        *,
        kind: str,
        erasure_key: Callable[[], bytes],
    ) -> None:
        """Compare a ledger that may have been restored with what followed it, before it is written."""
        from storage.histories import Histories

        histories = Histories(
            postgres_url=postgres_url,
            bootstrap=bootstrap,
            kafka_kind=kind,
            redis_url=redis_url,
            erasure_key=erasure_key,
        )
        try:
            histories.settle()
        finally:
            histories.close()

    def definitions(self, postgres_url: str, catalogue_toml: bytes) -> None:
        """Make the catalogue and the default board hold."""
        from storage.postgres import definitions

        definitions.apply(postgres_url, catalogue_toml)

    def topics(self, bootstrap: str, *, kind: str, partitions: int, replication: int) -> None:
        """Make the topics that are missing and verify the others."""
        from storage.kafka import topics

        topics.declare(bootstrap, kind=kind, partitions=partitions, replication=replication)

    def keys(self, directory: Path) -> None:
        """Make the development keys if there are none."""
        from service import keys

        keys.ensure(directory)

    def token(self, directory: Path, *, user: str, settings: StackSettings) -> str:
        """A token for a day's first steps."""
        from service import keys

        return keys.issue(
            directory,
            user=user,
            name=user.title(),
            scopes=("actions:write", "scores:write", "boards:read"),
            ttl_s=min(8 * 3600, settings.token_max_life_s),
            issuer=settings.issuer,
            audience=settings.audience,
        )


class _Voice:
    """Lines for a person. A terminal that has gone away stops the talk, never the stack."""

    def __init__(self, stream: TextIO, prefix: str = "") -> None:
        self._stream, self._prefix = stream, prefix

    def __call__(self, line: str) -> None:
        try:
            print(f"{self._prefix}{line}", file=self._stream, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where everything is kept (default: $TRUEBOARD_DATA, else .trueboard).",
)
@click.option(
    "--kafka",
    metavar="auto|jvm|memory|HOST:PORT",
    help="Apache Kafka on this machine (needs Java 17 and Maven), librdkafka's in-memory broker, or one "
    "that runs already. auto: jvm where possible, else memory.",
)
@click.option("--postgres", metavar="URL", help="A Postgres that runs already, instead of an embedded one.")
@click.option(
    "--redis", metavar="URL", help="A Valkey or Redis that runs already, instead of an embedded one."
)
@click.option(
    "--catalogue",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Action types, points and limits (TOML); remembered in the data directory.",
)
@click.option(
    "--http-port", type=click.IntRange(0, 65_535), help="HTTP (default: 8080 or last time's; 0: any)."
)
@click.option(
    "--feed-port", type=click.IntRange(0, 65_535), help="Live feed (default: 8081 or last time's; 0: any)."
)
@click.option("--host", help="Address HTTP and feed listen on (default 127.0.0.1).")
def command(data: Path | None, **options: Any) -> None:
    """Start everything on this machine and keep it running.

    Postgres, Valkey, Kafka and the services ingest, stream_app, push and auditor, in the foreground: when
    `ready` appears, everything answers. Ctrl-C stops it; the data stays. Settings come from
    TRUEBOARD_* variables or trueboard.toml in the data directory; an option wins over both.
    """
    chosen = Options(data=data_directory(os.environ, data).absolute(), **options)
    sys.exit(run(chosen))


def run(
    options: Options,
    *,
    services: Mapping[str, Sequence[str]] = SERVICES,
    set_up: SetUp | None = None,
) -> int:
    """Bring the stack up and keep it until a signal ends it; the exit code."""
    say, complain = _Voice(sys.stdout), _Voice(sys.stderr, "trueboard up: ")
    try:
        with ExitStack() as held:
            _take(options.data, held)
            Stack(options, services=services, set_up=set_up or SetUp(), say=say, complain=complain).run()
    except Stopping:
        return 0
    except (CannotStart, TrueboardError) as error:
        complain(str(error))
        return 1
    except OSError as error:
        complain(sentence_of(error, doing="starting"))
        return 1
    return 0


def _take(data: Path, held: ExitStack) -> None:
    """Make the data directory and hold its lock until `held` is closed."""
    # 0711: Kafka and Valkey, when root lends them another account, pass through; they cannot list it
    data.mkdir(parents=True, exist_ok=True, mode=0o711)
    free_bytes = shutil.disk_usage(data).free
    if free_bytes < LEAST_FREE_BYTES:
        raise CannotStart(
            f"the disk of {data} is full: {free_bytes // 2**20} MB are free, "
            f"at least {LEAST_FREE_BYTES // 2**20} MB are needed"
        )
    lock = held.enter_context((data / "lock").open("a+"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip()
        by = f" (pid {holder})" if holder else ""
        raise CannotStart(f"{data} is in use by another `trueboard up`{by}: stop that one first") from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()


class Stack:
    """One data directory's servers and services, from first start to last stop."""

    def __init__(
        self,
        options: Options,
        *,
        services: Mapping[str, Sequence[str]],
        set_up: SetUp,
        say: Callable[[str], None],
        complain: Callable[[str], None],
    ) -> None:
        self._options, self._services, self._set_up = options, services, set_up
        self._say, self._complain = say, complain
        self._data = options.data
        self._settings = read_settings(StackSettings, os.environ, data_dir=self._data)
        self._ports = Ports(self._data)
        self._supervisor = Supervisor(say=say, complain=complain)
        self._host = options.host or self._settings.host
        self._postgres_url: Callable[[], str]
        self._redis_url: Callable[[], str]
        self._bootstrap: Callable[[], str]
        self._kafka_kind = "external"
        self._replication = 1
        self._service_programs: list[Service] = []

    def run(self) -> None:
        """Start, watch until asked to stop, stop."""
        Endpoints.remove(self._data)
        (self._data / "logs").mkdir(exist_ok=True)
        self._http_port = self._public_port("http", self._options.http_port, self._settings.http_port)
        self._feed_port = self._public_port("feed", self._options.feed_port, self._settings.feed_port)
        with self._supervisor:
            try:
                self._supervisor.start(self._choose_servers())
                self._prepare_storage()
                self._supervisor.start(self._choose_services())
                self._endpoints().write(self._data)
                self._greet()
                self._say("ready")
                self._supervisor.watch(self._changed)
            finally:
                Endpoints.remove(self._data)
                if self._supervisor.asked_to_stop:
                    self._say("stopping")

    def _public_port(self, name: str, option: int | None, setting: int | None) -> int:
        default = DEFAULT_HTTP_PORT if name == "http" else DEFAULT_FEED_PORT
        wanted = option if option is not None else setting
        if wanted is None and self._ports.known(name) is None:
            wanted = default
        return self._ports.of(name, wanted=wanted, host=self._host, option=f"--{name}-port")

    # servers

    def _choose_servers(self) -> list[Program]:
        chosen: list[Program] = []
        postgres_url = self._options.postgres or self._settings.postgres_url
        redis_url = self._options.redis or self._settings.redis_url
        if postgres_url:
            _look_at_postgres(postgres_url)
            self._postgres_url = lambda: postgres_url
        else:
            postgres = Postgres(self._data, self._ports.of("postgres"))
            self._postgres_url = lambda: postgres.url
            chosen.append(postgres)
        if redis_url:
            _look_at_redis(redis_url)
            self._redis_url = lambda: redis_url
        else:
            valkey = Valkey(self._data, self._ports.of("valkey"))
            self._redis_url = lambda: valkey.url
            chosen.append(valkey)
        chosen += self._choose_kafka(self._options.kafka or self._settings.kafka or "auto")
        return chosen

    def _choose_kafka(self, wanted: str) -> list[Program]:
        if wanted not in ("auto", "jvm", "memory"):
            if ":" not in wanted:
                raise CannotStart(f"--kafka is auto, jvm, memory or HOST:PORT, but was {wanted!r}")
            self._replication = min(3, _look_at_kafka(wanted))
            self._bootstrap = lambda: wanted
            return []
        cache = (
            Path(self._settings.cache_dir).expanduser() if self._settings.cache_dir else self._data / "cache"
        )
        self._kafka_kind = self._auto_kafka(Jars(cache)) if wanted == "auto" else wanted
        kafka: JvmKafka | MemoryKafka
        if self._kafka_kind == "jvm":
            port, controller_port = self._ports.of("kafka"), self._ports.of("kafka-controller")
            kafka = JvmKafka(self._data, cache, port=port, controller_port=controller_port)
        else:
            topics = [topic.name for topic in ALL_TOPICS]
            kafka = MemoryKafka(self._data, topics=topics, partitions=self._settings.partitions)
        self._bootstrap = lambda: kafka.bootstrap
        return [kafka]

    def _auto_kafka(self, jars: Jars) -> str:
        java = find_java()
        if java is None or java.major < LEAST_JAVA:
            missing = f"Java {LEAST_JAVA} or newer"
        elif not jars.are_here() and shutil.which("mvn") is None:
            missing = "Maven (mvn)"
        else:
            return "jvm"
        if (self._data / "kafka" / "formatted").exists():
            raise CannotStart(
                f"the topics of {self._data} are in Apache Kafka, which needs {missing}: "
                "install it, or go on without them with --kafka memory"
            )
        self._say(f"kafka: {missing} is missing, so the in-memory broker is used")
        return "memory"

    # storage

    def _prepare_storage(self) -> None:
        self._step("schema", lambda: self._set_up.schema(self._postgres_url()))
        self._step("definitions", self._apply_definitions)
        self._step(
            "topics",
            lambda: self._set_up.topics(
                self._bootstrap(),
                kind=self._kafka_kind,
                partitions=self._settings.partitions,
                replication=self._replication,
            ),
        )
        self._step("keys", lambda: self._set_up.keys(self._data / "keys"))

    def _step(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except psycopg.Error as error:
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CannotStart(f"{name} could not be brought up to date: {problem}") from error
        self._say(f"{name} up to date")
        if self._supervisor.asked_to_stop:
            raise Stopping

    def _apply_definitions(self) -> None:
        # a catalogue given once holds for the data directory, not only for that start
        remembered = self._data / "catalogue.toml"
        if self._options.catalogue is not None:
            body = self._options.catalogue.read_bytes()
        elif remembered.exists():
            body = remembered.read_bytes()
        else:
            body = (importlib.resources.files("core") / "catalogue.toml").read_bytes()
        self._set_up.history(
            self._postgres_url(),
            self._bootstrap(),
            self._redis_url(),
            kind=self._kafka_kind,
            erasure_key=lambda: erasure_key.read(self._settings.erasure_secret, self._data / "keys"),
        )
        self._set_up.definitions(self._postgres_url(), body)
        if self._options.catalogue is not None:
            fresh = remembered.with_suffix(".new")
            fresh.write_bytes(body)
            fresh.replace(remembered)

    # services

    def _choose_services(self) -> list[Program]:
        self._service_programs = [
            Service(
                name,
                command,
                metrics_port=self._ports.of(f"{name}-metrics"),
                log=self._data / "logs" / f"{name}.log",
                env=self._service_env,
            )
            for name, command in self._services.items()
        ]
        return list(self._service_programs)

    def _service_env(self) -> dict[str, str]:
        settings = self._settings
        ours = {
            "DATA": str(self._data),
            "POSTGRES_URL": self._postgres_url(),
            "REDIS_URL": self._redis_url(),
            "KAFKA": self._bootstrap(),
            "KAFKA_KIND": self._kafka_kind,
            "PARTITIONS": str(settings.partitions),
            "HOST": self._host,
            "HTTP_PORT": str(self._http_port),
            "FEED_PORT": str(self._feed_port),
            "HTTP_URL": self._http_url,
            "FEED_URL": self._feed_url,
            "JWKS": settings.jwks or str(self._data / "keys" / "jwks.json"),
            "ISSUER": settings.issuer,
            "AUDIENCE": settings.audience,
            "TOKEN_MAX_LIFE_S": str(settings.token_max_life_s),
            "LOOPBACK_ADDRESS_RATE": str(settings.loopback_address_rate),
            "LOOPBACK_MAX_SOCKETS": str(settings.loopback_max_sockets),
            "MAX_SOCKETS_PER_USER": str(settings.max_sockets_per_user),
        }
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            **{f"TRUEBOARD_{name}": value for name, value in ours.items()},
        }

    @property
    def _http_url(self) -> str:
        return self._settings.http_url or f"http://{_reachable(self._host)}:{self._http_port}"

    @property
    def _feed_url(self) -> str:
        return self._settings.feed_url or f"http://{_reachable(self._host)}:{self._feed_port}"

    def _changed(self, program: Program) -> None:
        if isinstance(program, MemoryKafka):
            self._complain("what the in-memory broker held is lost; the services go on with the new one")
            self._supervisor.replace(self._services)
        try:
            self._endpoints().write(self._data)
        except (CannotStart, OSError) as error:
            # What runs goes on: the next program that is started again writes it.
            why = error.strerror if isinstance(error, OSError) else str(error)
            self._complain(f"endpoints.json does not tell of the new {program.name}: {why}")

    # what others are told

    def _endpoints(self) -> Endpoints:
        names = (*self._services, "kafka", "postgres", "valkey")
        return Endpoints(
            http=self._http_url,
            feed=self._feed_url,
            kafka=self._bootstrap(),
            kafka_kind=self._kafka_kind,
            postgres=self._postgres_url(),
            redis=self._redis_url(),
            jwks=f"{self._http_url}/.well-known/jwks.json",
            issuer=self._settings.issuer,
            audience=self._settings.audience,
            metrics={
                service.name: f"http://127.0.0.1:{service.metrics_port}/metrics"
                for service in self._service_programs
            },
            processes={
                "supervisor": [os.getpid()],
                **{name: self._supervisor.pids(name) for name in names},
            },
        )

    def _greet(self) -> None:
        kinds = {
            "jvm": f"Apache Kafka {kafka_version()}",
            "memory": "in-memory broker",
            "external": "not ours",
        }
        for line in (
            "",
            f"  HTTP       {self._http_url}  (reference: {self._http_url}/docs)",
            f"  live feed  {self._feed_url}  (WebSocket: /ws/scores, /ws/scoreboard, /ws/leaderboard)",
            f"  Kafka      {self._bootstrap()}  ({kinds[self._kafka_kind]})",
            f"  Postgres   {mask('postgres', self._postgres_url())}",
            f"  Valkey     {mask('redis', self._redis_url())}",
            f"  data       {self._data}  (passwords: endpoints.json, logs: logs/)",
            "",
        ):
            self._say(line)
        if self._kafka_kind == "memory":
            self._say(
                "  !! KAFKA IS IN MEMORY: what is in the topics is GONE when this ends, and only the last"
            )
            self._say("  !! 5 MB of each partition are kept. Install Java 17 and Maven for Apache Kafka.")
            self._say("")
        token = "$TOKEN"
        if self._settings.jwks is None:
            token = self._set_up.token(self._data / "keys", user="ada", settings=self._settings)
        if read_settings(IngestSettings, self._service_env(), data_dir=self._data).serves_page:
            fragment = "" if token == "$TOKEN" else f"#token={token}"
            self._say("  The live board:" if token == "$TOKEN" else "  The live board, as Ada:")
            self._say("")
            self._say(f"    {self._http_url}/{fragment}")
            self._say("")
        self._say("  Score a first point, then look at the board:")
        self._say("")
        self._say(f"    {self._first_call(token)}")
        self._say(f"    curl -sS {self._http_url}/v1/boards/main/standings")
        self._say("")
        self._say(
            "  Then, in a second terminal: trueboard token --user ada, trueboard simulate, trueboard verify."
        )
        self._say(
            f"  Limits per address are raised to {self._settings.loopback_address_rate}/s for loopback. "
            "Ctrl-C stops everything; the data stays."
        )

    def _first_call(self, token: str) -> str:
        body = f'{{"action_id": "hello-{secrets.token_hex(4)}", "type": "level_complete"}}'
        return (
            f'curl -sS {self._http_url}/v1/actions -H "Authorization: Bearer {token}" '
            f"-H 'Content-Type: application/json' -H 'Prefer: wait=5' -d {shlex.quote(body)}"
        )


def _reachable(host: str) -> str:
    """What to connect to for a server that listens on `host`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"


def _look_at_postgres(url: str) -> None:
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            allowed = connection.execute("SELECT has_schema_privilege('public', 'CREATE')").fetchone()
    except psycopg.Error as error:
        problem = str(error).strip().splitlines()[0]
        raise CannotStart(f"Postgres does not answer at {mask('postgres', url)}: {problem}") from error
    if allowed != (True,):
        raise CannotStart(f"the user of {mask('postgres', url)} may not make tables in its schema public")


def _look_at_redis(url: str) -> None:
    import redis

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise CannotStart(f"Redis does not answer at {mask('redis', url)}: {error}") from error


def _look_at_kafka(bootstrap: str) -> int:
    """How many brokers there are."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        return len(client.list_topics(timeout=8).brokers)
    except KafkaException as error:
        raise CannotStart(f"Kafka does not answer at {bootstrap}: {error.args[0].str()}") from error
