"""Ports on loopback: chosen once, remembered with the data, so that addresses outlive a restart.

Free ports are picked below the range from which systems take outgoing ports (Linux: 32768 on),
or a remembered one would now and then belong to somebody's outgoing connection.
"""

from __future__ import annotations

import errno
import json
import random
import socket
from pathlib import Path

from trueboard.devstack.errors import CannotStart

_LOWEST, _HIGHEST = 20_000, 32_000


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now.

    Raises:
        CannotStart: not on this host, whatever the port is, or not on this port, whoever else does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CannotStart(f"nothing can listen on port {port} of {host}: {error.strerror}") from error
            return False
    return True


def free_port(*, taken: frozenset[int] = frozenset(), host: str = "127.0.0.1") -> int:
    """A port nobody listens on, not among `taken`."""
    dice = random.SystemRandom()
    for _ in range(200):
        port = dice.randrange(_LOWEST, _HIGHEST)
        if port not in taken and is_free(port, host):
            return port
    raise CannotStart(f"no free port between {_LOWEST} and {_HIGHEST} on {host}")


class Ports:
    """The ports of one data directory, by name, kept in `ports.json`."""

    def __init__(self, data: Path) -> None:
        self._path = data / "ports.json"
        try:
            self._known: dict[str, int] = json.loads(self._path.read_text())
        except FileNotFoundError:
            self._known = {}
        except ValueError as error:
            raise CannotStart(f"{self._path} is not readable as JSON: remove it and start again") from error

    def known(self, name: str) -> int | None:
        """The port remembered under this name."""
        return self._known.get(name)

    def of(self, name: str, *, wanted: int | None = None, host: str = "127.0.0.1", option: str = "") -> int:
        """The port for `name`: the wanted one, else the remembered, else a free one.

        Wanted may be 0: the remembered one while it is free, else any that is.

        Raises:
            CannotStart: it is known which port it must be, and somebody else listens there.
        """
        port = wanted or self._known.get(name)
        if port is None or (wanted == 0 and not is_free(port, host)):
            port = free_port(taken=frozenset(self._known.values()), host=host)
        elif not is_free(port, host):
            raise CannotStart(self._taken(name, port, host, option, wanted))
        if self._known.get(name) != port:
            self._known[name] = port
            self._save()
        return port

    def _taken(self, name: str, port: int, host: str, option: str, wanted: int | None) -> str:
        sentence = f"port {port} on {host}, for {name}, is taken by another program"
        if option:
            return f"{sentence}: stop it, or choose another with {option} (0 picks a free one)"
        if wanted is None:
            return f"{sentence}: stop it, or remove the line {name!r} from {self._path}"
        return sentence

    def _save(self) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self._known, indent=1) + "\n")
        fresh.replace(self._path)
