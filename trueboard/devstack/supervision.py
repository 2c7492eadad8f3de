"""Keeping programs running: started together, restarted when they end, stopped in order.

Programs come in tiers; a later tier needs the earlier ones, so stopping goes backwards. One
thread, one loop, woken by signals (SIGCHLD says that a child ended) and by a timer.
"""

from __future__ import annotations

import concurrent.futures
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from trueboard.devstack.errors import FULL, CannotStart, says_full, sentence_of
from trueboard.devstack.processes import Program, Workbench, end_at_once, last_lines, rotate, spawn

_ASKS_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopping(Exception):
    """A signal asked to stop while something was being started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """How long to wait before a restart: doubling, forgotten after a life of `reset_after_s`."""

    first_s: float = 0.5
    most_s: float = 10.0
    reset_after_s: float = 30.0

    def delay_s(self, failures: int) -> float:
        """The wait after this many failures in a row (1, 2, 3 …)."""
        return min(self.first_s * 2.0 ** min(failures - 1, 64), self.most_s)


@dataclass(slots=True)
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    launched_at_s: float = 0.0
    log: Path = Path(os.devnull)
    log_from_bytes: int = 0
    failures: int = 0
    due_at_s: float = 0.0
    replaced: bool = False
    """Asked to end in order to be started again: its end is no crash; it has until `due_at_s`."""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass(slots=True)
class Supervisor:
    """Starts programs and keeps them running until a signal asks to stop.

    Use as a context manager, in the main thread: entering takes the signals over, leaving stops
    everything. `say` gets progress, `complain` what went wrong.
    """

    say: Callable[[str], None]
    complain: Callable[[str], None]
    back_off: BackOff = field(default_factory=BackOff)
    grace_s: float = 5.0
    """How long the last tier may take to stop; the earlier ones share what is left of `stop_within_s`."""
    stop_within_s: float = 9.5
    _tiers: list[list[_Child]] = field(default_factory=list)
    _asked_at_s: float | None = None
    _impatient: bool = False
    _pipe: tuple[int, int] = (-1, -1)
    _earlier: dict[signal.Signals, object] = field(default_factory=dict)

    def __enter__(self) -> Self:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._pipe = (read, write)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in _ASKS_TO_STOP:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup: the end of the terminal is not the end of this
            self._earlier[number] = signal.signal(number, self._ask)
        self._earlier[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in self._earlier.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned
            for descriptor in self._pipe:
                os.close(descriptor)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._asked_at_s is None:
            self._asked_at_s = now_s
        elif number == signal.SIGINT and now_s - self._asked_at_s > 1.0:
            self._impatient = True

    @property
    def asked_to_stop(self) -> bool:
        """Whether a signal has asked to stop."""
        return self._asked_at_s is not None

    def pids(self, name: str) -> list[int]:
        """The living processes of the program of this name."""
        return [
            child.process.pid
            for child in self._children()
            if child.program.name == name and child.process is not None and child.alive
        ]

    def start(self, programs: Sequence[Program]) -> None:
        """Prepare, start and await a tier of programs, side by side.

        Raises:
            CannotStart: one of them ended or was not ready in time; what was started stays for `stop`.
            Stopping: a signal asked to stop meanwhile.
        """
        tier = [_Child(program) for program in programs]
        self._tiers.append(tier)
        bench = Workbench(self.say)
        began_at_s = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(tier))) as pool:
            preparing = {pool.submit(child.program.prepare, bench): child for child in tier}
            try:
                while preparing or not all(child.ready for child in tier):
                    self._pause(0.05)
                    if self.asked_to_stop:
                        raise Stopping
                    for future in [future for future in preparing if future.done()]:
                        child = preparing.pop(future)
                        try:
                            future.result()
                        except OSError as error:
                            doing = f"preparing {child.program.name}"
                            raise CannotStart(sentence_of(error, doing=doing)) from error
                        self._launch(child)
                    for child in tier:
                        if child.process is not None and not child.ready:
                            self._look_at_first_start(child, began_at_s)
            finally:
                bench.close()

    def _look_at_first_start(self, child: _Child, began_at_s: float) -> None:
        assert child.process is not None
        name = child.program.name
        code = child.process.poll()
        if code is not None:
            child.program.stopped(code)
            if says_full(last_lines(child.log, count=200, since_bytes=child.log_from_bytes)):
                raise CannotStart(f"{FULL}: {name} needs space to start; free some and start again")
            raise CannotStart(f"{name} {ending(code)} before it was ready{self._log_of(child)}")
        if child.program.is_ready():
            child.ready = True
            self.say(f"{name} ready ({time.monotonic() - began_at_s:.1f} s)")
        elif time.monotonic() - child.launched_at_s > child.program.ready_timeout_s:
            raise CannotStart(
                f"{name} was not ready within {child.program.ready_timeout_s:.0f} s{self._log_of(child)}"
            )

    def _log_of(self, child: _Child) -> str:
        lines = last_lines(child.log, since_bytes=child.log_from_bytes)
        return f"; the end of {child.log}:\n{lines}" if lines else f"; it wrote nothing to {child.log}"

    def watch(self, changed: Callable[[Program], None]) -> None:
        """Restart what ends, until asked to stop; `changed` is told of each program that runs again."""
        while not self.asked_to_stop:
            busy = any(not child.ready for child in self._children())
            self._pause(0.2 if busy else 2.0)
            for child in list(self._children()):
                if not self.asked_to_stop:
                    self._attend(child, changed)

    def replace(self, names: Iterable[str]) -> None:
        """Ask these programs to end; `watch` starts them anew, with what `launch` then says."""
        wanted = set(names)
        for child in self._children():
            if child.program.name in wanted and child.alive:
                assert child.process is not None
                child.replaced = True
                child.due_at_s = time.monotonic() + self.grace_s
                child.process.send_signal(child.program.stop_signal)

    def _attend(self, child: _Child, changed: Callable[[Program], None]) -> None:
        now_s = time.monotonic()
        name = child.program.name
        if child.process is None:
            if now_s >= child.due_at_s:
                self._relaunch(child)
            return
        code = child.process.poll()
        if code is not None:
            if child.replaced:
                child.process, child.ready, child.replaced = None, False, False
                child.due_at_s = now_s
                return
            self._count_failure(child, f"{name} (pid {child.process.pid}) {ending(code)}")
        elif child.replaced:
            if now_s > child.due_at_s:
                end_at_once(child.process, child.program.kill_signal)
        elif not child.ready:
            if child.program.is_ready():
                child.ready = True
                self.complain(f"{name} runs again (pid {child.process.pid})")
                changed(child.program)
            elif now_s - child.launched_at_s > child.program.ready_timeout_s:
                self.complain(f"{name} (pid {child.process.pid}) does not get ready: killing it")
                end_at_once(child.process, child.program.kill_signal)

    def _count_failure(self, child: _Child, what: str) -> None:
        now_s = time.monotonic()
        if now_s - child.launched_at_s >= self.back_off.reset_after_s:
            child.failures = 0
        child.failures += 1
        delay_s = self.back_off.delay_s(child.failures)
        child.process, child.ready = None, False
        child.due_at_s = now_s + delay_s
        self.complain(f"{what}; starting it again in {delay_s:g} s")

    def _launch(self, child: _Child) -> None:
        launch = child.program.launch()
        child.log = launch.log
        child.launched_at_s = time.monotonic()
        try:
            rotate(launch.log)
            child.log_from_bytes = launch.log.stat().st_size if launch.log.exists() else 0
            child.process = spawn(launch)
        except OSError as error:
            raise CannotStart(sentence_of(error, doing=f"starting {child.program.name}")) from error

    def _relaunch(self, child: _Child) -> None:
        try:
            self._launch(child)
        except CannotStart as error:
            self._count_failure(child, str(error))

    def stop(self) -> None:
        """Stop all, the last tier first; who does not end in time is killed, at a second Ctrl-C at once."""
        began_at_s = time.monotonic()
        while self._tiers:
            tier = [child for child in self._tiers[-1] if child.process is not None]
            spent_s = time.monotonic() - began_at_s
            budget_s = self.stop_within_s - spent_s
            if len(self._tiers) > 1:
                budget_s = min(self.grace_s, budget_s)
            self._stop_tier(tier, max(budget_s, 0.5))
            self._tiers.pop()

    def _stop_tier(self, tier: Sequence[_Child], budget_s: float) -> None:
        for child in tier:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(child.program.stop_signal)
        deadline_s = time.monotonic() + budget_s
        waiting = list(tier)
        while waiting:
            for child in list(waiting):
                assert child.process is not None
                code = child.process.poll()
                if code is not None:
                    child.program.stopped(code)
                    waiting.remove(child)
            if waiting and (time.monotonic() > deadline_s or self._impatient):
                for child in waiting:
                    assert child.process is not None
                    self.complain(f"{child.program.name} did not stop in time: killing it")
                    end_at_once(child.process, child.program.kill_signal)
                return
            if waiting:
                self._pause(0.05)

    def _children(self) -> list[_Child]:
        return [child for tier in self._tiers for child in tier]

    def _pause(self, timeout_s: float) -> None:
        read = self._pipe[0]
        select.select([read], [], [], timeout_s)
        try:
            while os.read(read, 512):
                pass
        except BlockingIOError:
            pass


def ending(exit_code: int) -> str:
    """How a process ended, in words."""
    if exit_code < 0:
        try:
            return f"was ended by {signal.Signals(-exit_code).name}"
        except ValueError:
            return f"was ended by signal {-exit_code}"
    return f"ended with exit code {exit_code}"
