"""Child processes that cannot outlive their parent, and how one is described.

On Linux the kernel is told to signal a child when the thread that started it ends
(PR_SET_PDEATHSIG), so even SIGKILL of the supervisor leaves no orphan; hence long-lived children
are started from the main thread only. Each child leads a session of its own: a Ctrl-C at the
terminal reaches the supervisor alone, which then stops its children in order.

Source: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trueboard.devstack.accounts import Account
from trueboard.devstack.errors import FULL, CannotStart, says_full

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

LOG_ROTATED_ABOVE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start one process. `death_signal` is what it gets when its parent dies."""

    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    account: Account | None = None
    open_fds: Sequence[int] = ()
    death_signal: signal.Signals = signal.SIGKILL


class Program(Protocol):
    """Something the supervisor keeps running: a server or a service."""

    @property
    def name(self) -> str: ...

    @property
    def stop_signal(self) -> signal.Signals:
        """What asks it to finish in an orderly way."""

    @property
    def kill_signal(self) -> signal.Signals:
        """What ends it at once; SIGKILL follows half a second later."""

    @property
    def ready_timeout_s(self) -> float:
        """How long it may take from being started to being ready."""

    def prepare(self, bench: Workbench) -> None:
        """What comes before the first start (downloads, formatting); runs beside other programs'."""

    def launch(self) -> Launch:
        """How to start it now; asked again at each restart."""

    def is_ready(self) -> bool:
        """Whether it does its work; polled, answers within a second."""

    def stopped(self, exit_code: int) -> None:
        """It ended after it was asked to."""


def spawn(launch: Launch) -> subprocess.Popen[bytes]:
    """Start a child with its output appended to its log.

    Raises:
        OSError: it could not be started or its log not opened.
    """
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    account = launch.account
    with launch.log.open("ab") as log:
        return subprocess.Popen(
            launch.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(launch.env),
            cwd=launch.cwd,
            start_new_session=True,
            pass_fds=tuple(launch.open_fds),
            preexec_fn=_dies_with_parent(launch.death_signal),
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )


def _dies_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    # runs in the child after its user id was set: changing the user id clears the request
    if _LIBC is None:
        return None
    libc, parent = _LIBC, os.getpid()

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask_the_kernel


def end_at_once(process: subprocess.Popen[bytes], kill_signal: signal.Signals) -> None:
    """Kill a child and wait until it is gone."""
    process.send_signal(kill_signal)
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def rotate(log: Path) -> None:
    """Put a log that has grown large aside, as `<name>.1`; the one before is dropped."""
    try:
        grown = log.stat().st_size > LOG_ROTATED_ABOVE_BYTES
    except FileNotFoundError:
        return
    if grown:
        log.replace(log.with_name(log.name + ".1"))


def last_lines(log: Path, *, count: int = 8, since_bytes: int = 0) -> str:
    """The end of a log, of what was written after `since_bytes`; empty if there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since_bytes, size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-count:])


class Workbench:
    """Runs the short helper programs of preparing (initdb, Maven); any thread may use it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self.closed = False

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        account: Account | None = None,
        open_fds: Sequence[int] = (),
        doing: str,
    ) -> str:
        """Run a program to its end and return what it printed.

        Raises:
            CannotStart: it failed, or the bench was closed; the sentence begins with `doing`.
        """
        with self._lock:
            if self.closed:
                raise CannotStart(f"{doing} was interrupted")
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env=None if env is None else dict(env),
                    cwd=cwd,
                    start_new_session=True,
                    pass_fds=tuple(open_fds),
                    preexec_fn=_dies_with_parent(signal.SIGKILL),
                    user=account.uid if account else None,
                    group=account.gid if account else None,
                    extra_groups=[] if account else None,
                )
            except OSError as error:
                raise CannotStart(f"{doing} failed: {argv[0]}: {error.strerror}") from error
            self._running.add(process)
        try:
            output, _ = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        if process.returncode != 0 and says_full(output):
            raise CannotStart(f"{FULL}: {doing} needs space; free some and start again")
        if process.returncode != 0:
            raise CannotStart(f"{doing} failed: {_most_telling(output)}")
        return output

    def close(self) -> None:
        """End what runs and refuse to run more."""
        with self._lock:
            self.closed = True
            for process in self._running:
                process.kill()


def _most_telling(output: str) -> str:
    # the first line that speaks of an error says more than the last, which often says "exiting"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return (telling or lines or ["it printed nothing"])[0][:400]
