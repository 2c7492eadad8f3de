"""The real programs of a stack, each started, killed, paused and continued by its process id.

They are those of `trueboard up`; only who starts them again differs: here nobody does but the rig.
All of this belongs to the main thread, as a program ends with the thread that started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from core.topics import MAX_RECORD_BYTES
from tests.acceptance.stacks import is_gone
from trueboard.devstack.accounts import account_reaching, give
from trueboard.devstack.kafka.jars import find_java
from trueboard.devstack.kafka.jvm import _LOG_SETTINGS, JvmKafka
from trueboard.devstack.processes import Program, Workbench, end_at_once, last_lines, spawn

STOP_S = 20.0


def until(ask: Callable[[], object], *, within_s: float, what: str, every_s: float = 0.05) -> float:
    """Wait for something to be true; how long it took. Fails with what did not come."""
    begun_s = time.monotonic()
    while not ask():
        waited_s = time.monotonic() - begun_s
        if waited_s > within_s:
            raise AssertionError(f"not within {within_s:.0f} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - begun_s


class Process:
    """One program of the rig and its process of the moment."""

    def __init__(self, name: str, program: Program, told: Callable[[str], None] = lambda _: None) -> None:
        self.name, self.program, self._told = name, program, told
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared = False
        self.log = Path(os.devnull)
        self._log_from = 0

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it does its work."""
        assert not self.alive, f"{self.name} runs already"
        if not self._prepared:
            self.program.prepare(Workbench(lambda _: None))
            self._prepared = True
        launch = self.program.launch()
        self.log = launch.log
        self._log_from = launch.log.stat().st_size if launch.log.exists() else 0
        self._process = spawn(launch)
        self._told(self.name)
        if wait:
            self.wait_ready()

    def wait_ready(self, within_s: float | None = None) -> float:
        def ready() -> bool:
            assert self.alive, f"{self.name} ended with {self.exit_code}:\n{self.last_lines()}"
            return self.program.is_ready()

        limit_s = within_s or self.program.ready_timeout_s
        try:
            return until(ready, within_s=limit_s, what=f"{self.name} at work")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.last_lines()}") from None

    def kill(self) -> None:
        """SIGKILL, and see that it is gone. Postgres: the immediate shutdown of all its processes."""
        assert self._process is not None
        assert self.alive, f"{self.name} was to be killed, and is gone already"
        self._process.send_signal(self.program.kill_signal)
        self._process.wait(timeout=STOP_S)
        assert is_gone(self._process.pid)

    def stop(self, *, within_s: float = STOP_S) -> float:
        """Ask it to end, as a rolling restart does; how long it took."""
        assert self._process is not None
        begun_s = time.monotonic()
        self._process.send_signal(self.program.stop_signal)
        self._process.wait(timeout=within_s)
        self.program.stopped(self._process.returncode)
        return time.monotonic() - begun_s

    def signal(self, number: signal.Signals) -> None:
        """A signal to it and to all that descend from it, but for those that end meanwhile."""
        for pid in _family(self.pid):
            with suppress(ProcessLookupError) if pid != self.pid else nullcontext():
                os.kill(pid, number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)
        until(lambda: _state(self.pid) == "T", within_s=5, what=f"{self.name} to stand still")

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """Whatever state it is in, leave nothing of it."""
        if self._process is None or not self.alive:
            return
        self.go_on()
        self._process.send_signal(self.program.stop_signal)
        try:
            self._process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            end_at_once(self._process, self.program.kill_signal)
        self.program.stopped(self._process.wait())

    def since_start(self) -> str:
        """What it has written to its log since it was last started."""
        with self.log.open("rb") as file:
            file.seek(self._log_from)
            return file.read().decode(errors="replace")

    def last_lines(self, count: int = 15) -> str:
        return last_lines(self.log, count=count)

    def memory_kib(self, *, data: bool = False) -> int:
        """Resident memory; or what it may write to, as RLIMIT_DATA counts it."""
        return self._status_kib("VmData" if data else "VmRSS")

    def most_memory_kib(self) -> int:
        """The most resident memory there was since it was last forgotten."""
        return self._status_kib("VmHWM")

    def forget_most_memory(self) -> None:
        """Begin anew with the most there was (`5` in clear_refs: proc(5))."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status_kib(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        return 0


def _family(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


# Kafka with a listener for each of those that connect ----------------------------------------

_PROPERTIES = """\
process.roles={roles}
node.id={node}
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
listeners={listeners}
advertised.listeners={advertised}
controller.listener.names=CONTROLLER
inter.broker.listener.name=DIRECT
listener.security.protocol.map={protocols}
log.dirs={topics}
num.network.threads=2
num.io.threads=4
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replication}
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor={replication}
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor={replication}
share.coordinator.state.topic.min.isr=1
min.insync.replicas={in_sync}
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=6000
replica.lag.time.max.ms=5000
message.max.bytes={max_bytes}
replica.fetch.max.bytes={max_bytes}
log.segment.bytes=67108864
log.cleaner.dedupe.buffer.size=16777216
log.retention.check.interval.ms=1000
log.initial.task.delay.ms=1000
"""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Where a broker listens for one client, and which address it tells that client."""

    name: str
    port: int
    advertised_port: int


class Broker(JvmKafka):
    """One of several brokers. Node 1 is also the controller; the others only store."""

    def __init__(
        self,
        data: Path,
        cache: Path,
        *,
        node: int,
        brokers: int,
        cluster_id: str,
        controller_port: int,
        listeners: Sequence[Listener],
    ) -> None:
        home = data / f"kafka-{node}"
        home.mkdir(parents=True, exist_ok=True, mode=0o711)
        super().__init__(
            home, cache, port=listeners[0].port, controller_port=controller_port, short_lived=True
        )
        self.name = f"kafka-{node}"
        self.home = home / "kafka"
        self._node, self._brokers, self._id = node, brokers, cluster_id
        self._listeners = listeners

    def prepare(self, bench: Workbench) -> None:
        self._java = find_java()
        assert self._java is not None
        self._jars.fetch(bench)
        self._directory.mkdir(exist_ok=True, mode=0o700)
        self._account = account_reaching(self._directory.parent, self._jars.directory, self._java.executable)
        shutil.copyfile(_LOG_SETTINGS, self._directory / "log4j2.properties")
        properties = self._directory / "server.properties"
        properties.write_text(self._properties())
        give(self._directory, self._account)
        first = ["--standalone"] if self._node == 1 else []
        self._format(bench, properties, self._id, *first)

    def _properties(self) -> str:
        controller = f"CONTROLLER://127.0.0.1:{self._controller_port}"
        listeners = [f"{one.name}://127.0.0.1:{one.port}" for one in self._listeners]
        advertised = [f"{one.name}://127.0.0.1:{one.advertised_port}" for one in self._listeners]
        if self._node == 1:
            listeners.append(controller)
            advertised.append(controller)
        names = ["CONTROLLER", *(one.name for one in self._listeners)]
        return _PROPERTIES.format(
            roles="broker,controller" if self._node == 1 else "broker",
            node=self._node,
            controller_port=self._controller_port,
            listeners=",".join(listeners),
            advertised=",".join(advertised),
            protocols=",".join(f"{name}:PLAINTEXT" for name in names),
            topics=self._directory / "topics",
            replication=min(3, self._brokers),
            in_sync=2 if self._brokers > 1 else 1,
            max_bytes=2 * MAX_RECORD_BYTES,
        )


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """A service's environment: this process's own without any setting, and these settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TRUEBOARD_")}
    return {
        **own,
        "PYTHONUNBUFFERED": "1",
        **{f"TRUEBOARD_{name}": value for name, value in settings.items()},
    }
