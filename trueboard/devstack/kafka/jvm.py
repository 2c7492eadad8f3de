"""Apache Kafka itself: one node, broker and controller in one JVM, topics kept on disk.

Formatted once. After the first run the JVM leaves an archive of the classes it loaded; with it
the broker starts in half the time.

Source: https://kafka.apache.org/documentation/#kraft
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import ClassVar

from core.topics import MAX_RECORD_BYTES
from trueboard.devstack.accounts import Account, account_reaching, give
from trueboard.devstack.errors import CannotStart
from trueboard.devstack.kafka.jars import LEAST_JAVA, Jars, Java, find_java
from trueboard.devstack.processes import Launch, Workbench
from trueboard.devstack.program import Base

_LOG_SETTINGS = Path(__file__).with_name("log4j2.properties")
_STARTED = b"Kafka Server started"
_ENDED_IN_ORDER = (0, 143, -15)
_FOR_A_SHORT_LIFE = "-XX:TieredStopAtLevel=1"
"""Without the JVM's optimizing compiler: half the CPU of a start, more of it under load."""

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={topics}
num.network.threads=2
num.io.threads=4
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
message.max.bytes={max_bytes}
replica.fetch.max.bytes={max_bytes}
log.segment.bytes=67108864
log.cleaner.dedupe.buffer.size=16777216
"""


class JvmKafka(Base):
    """A broker that keeps its topics in `<data>/kafka`; its jars come from a cache directory.

    A `short_lived` one, of a test, is for minutes: it starts with less CPU and never gets fast.
    """

    name = "kafka"
    kind: ClassVar[str] = "jvm"

    def __init__(
        self, data: Path, cache: Path, *, port: int, controller_port: int, short_lived: bool = False
    ) -> None:
        self._directory, self._log, self._port = data / "kafka", data / "logs" / "kafka.log", port
        self._controller_port = controller_port
        self._options = (_FOR_A_SHORT_LIFE,) if short_lived else ()
        self._jars = Jars(cache)
        self._java: Java | None = None
        self._account: Account | None = None
        self._log_from_bytes = 0

    @property
    def bootstrap(self) -> str:
        """Where clients connect first."""
        return f"127.0.0.1:{self._port}"

    @property
    def _new_archive(self) -> Path:
        return self._directory / "classes.jsa"

    def prepare(self, bench: Workbench) -> None:
        """Find Java, fetch the jars, write the properties, format the storage once."""
        self._java = find_java()
        if self._java is None or self._java.major < LEAST_JAVA:
            there = f"Java {self._java.version} is too old" if self._java else "there is no Java"
            raise CannotStart(f"{there}: Kafka needs Java {LEAST_JAVA} or newer (or use --kafka memory)")
        self._jars.fetch(bench)
        self._directory.mkdir(exist_ok=True, mode=0o700)
        self._account = account_reaching(self._directory.parent, self._jars.directory, self._java.executable)
        shutil.copyfile(_LOG_SETTINGS, self._directory / "log4j2.properties")
        properties = self._directory / "server.properties"
        properties.write_text(
            _PROPERTIES.format(
                port=self._port,
                controller_port=self._controller_port,
                topics=self._directory / "topics",
                max_bytes=2 * MAX_RECORD_BYTES,
            )
        )
        give(self._directory, self._account)
        formatted = self._directory / "formatted"
        if not formatted.exists():
            bench.say("kafka: formatting its storage")
            self._format(bench, properties, self._cluster_id(), "--standalone")
            formatted.touch()

    def _format(self, bench: Workbench, properties: Path, cluster_id: str, *options: str) -> None:
        bench.run(
            [
                *self._java_with_classes(_FOR_A_SHORT_LIFE),
                "kafka.tools.StorageTool",
                "format",
                *options,
                "--ignore-formatted",
                "--cluster-id",
                cluster_id,
                "--config",
                str(properties),
            ],
            env=self._env(),
            cwd=self._directory,
            account=self._account,
            doing="formatting Kafka's storage",
        )

    def _cluster_id(self) -> str:
        # 16 bytes in URL-safe base64; one that begins with a dash would read as an option
        while (candidate := secrets.token_urlsafe(16)).startswith("-"):
            pass
        return candidate

    def _java_with_classes(self, *options: str) -> list[str]:
        assert self._java is not None
        return [
            str(self._java.executable),
            "-XX:+UseSerialGC",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={(self._directory / 'log4j2.properties').as_uri()}",
            *options,
            "-cp",
            self._jars.class_path(),
        ]

    def _env(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", ""), "TZ": "UTC", "LANG": "C.UTF-8"}

    def launch(self) -> Launch:
        """The broker in the foreground; its first run also writes the class archive when it ends."""
        assert self._java is not None
        archive = self._jars.class_archive(self._java)
        self._log_from_bytes = self._log.stat().st_size if self._log.exists() else 0
        use, make = f"-XX:SharedArchiveFile={archive}", f"-XX:ArchiveClassesAtExit={self._new_archive}"
        return Launch(
            argv=[
                *self._java_with_classes(
                    *self._options, "-Xms256m", "-Xmx512m", use if archive.exists() else make
                ),
                "kafka.Kafka",
                str(self._directory / "server.properties"),
            ],
            log=self._log,
            env=self._env(),
            cwd=self._directory,
            account=self._account,
        )

    def is_ready(self) -> bool:
        """Whether the broker has said so in its log since it was launched."""
        try:
            with self._log.open("rb") as log:
                if self._log_from_bytes > log.seek(0, os.SEEK_END):  # rotated at the launch
                    self._log_from_bytes = 0
                log.seek(self._log_from_bytes)
                return _STARTED in log.read()
        except FileNotFoundError:
            return False

    def stopped(self, exit_code: int) -> None:
        """Keep the class archive of a run that ended in order; an unfinished one is thrown away."""
        fresh = self._new_archive
        if self._java is None or not fresh.exists():
            return
        archive = self._jars.class_archive(self._java)
        try:
            if exit_code in _ENDED_IN_ORDER and not archive.exists():
                beside = archive.with_name(f"{archive.name}.{os.getpid()}")
                shutil.copyfile(fresh, beside)
                beside.replace(archive)
            fresh.unlink(missing_ok=True)
        except OSError:
            # an archive only saves time: without it the next start is slower
            return
