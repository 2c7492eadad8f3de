"""A stack of a test's own: `trueboard up` as a process, commands beside it, and faults by process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.acceptance.world import World, until
from trueboard.endpoints import Endpoints

READY_S = 150
STOP_S = 10
"""How long an orderly stop may take."""

COMMAND = [sys.executable, "-P", "-m", "trueboard"]


@dataclass
class Stack:
    """`trueboard up` on a data directory, started and stopped as often as a test likes."""

    data: Path
    kafka: str
    options: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self, *options: str) -> World:
        """Start it and wait for `ready`."""
        self.starts += 1
        output = self.data.parent / f"{self.data.name}-up-{self.starts}.log"
        with output.open("wb") as log:
            ports = ["--http-port=0", "--feed-port=0"]
            self.process = subprocess.Popen(
                [*COMMAND, "up", f"--data={self.data}", f"--kafka={self.kafka}", *ports, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

        def ready() -> bool:
            assert self.process
            assert self.process.poll() is None, output.read_text()
            return "ready" in output.read_text().splitlines()

        until(ready, patience_s=READY_S, what="the line `ready`")
        return World(Endpoints.read(self.data), self.data)

    @contextmanager
    def running(self) -> Iterator[Stack]:
        """Started with its `options`; whatever happens inside, nothing is left running."""
        try:
            self.start(*self.options).close()
            yield self
        finally:
            self.end()

    @contextmanager
    def world(self) -> Iterator[World]:
        """Somebody who talks to it as it runs now."""
        world = World(Endpoints.read(self.data), self.data)
        try:
            yield world
        finally:
            world.close()

    def stop(self) -> tuple[int, float]:
        """Ask it to stop: (exit code, seconds it took)."""
        assert self.process
        begun_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=4 * STOP_S)
        self.process = None
        return code, time.monotonic() - begun_s

    def end(self) -> None:
        """Whatever happened, leave nothing running."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run(data: Path, *arguments: str, timeout_s: float = 120) -> tuple[int, dict[str, Any]]:
    """A command that prints one JSON object: (exit code, the object)."""
    done = subprocess.run(
        [*COMMAND, *arguments, f"--data={data}", "--json"],
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.stdout.count(b"\n") == 1, (done.stdout, done.stderr)
    return done.returncode, json.loads(done.stdout)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that only waits to be counted has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill(world: World, name: str) -> int:
    """SIGKILL a process of the stack and see it end; its id."""
    [pid] = Endpoints.read(world.data).processes[name]
    assert not is_gone(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_gone(pid), patience_s=5, what=f"the end of {name}")
    return pid


def replaced(world: World, name: str, pid: int) -> None:
    """Wait until another process stands in for the one that was killed."""

    def another() -> bool:
        path = world.data / "endpoints.json"
        return path.exists() and Endpoints.read(world.data).processes.get(name, [pid]) not in ([pid], [])

    until(another, patience_s=60, what=f"another {name} than {pid}")
