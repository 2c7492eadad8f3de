"""Tables of the documentation that are made from the code: settings, metrics, benches, worked examples.

`python -m tests.docs.tables` writes them into their pages; a test sees that they are the present ones.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field, fields
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram

import auditor.settings
import ingest.settings
import push.settings
import stream_app.settings
import trueboard.devstack.settings
from service import metrics
from service.settings import DATA_VARIABLE, PREFIX
from tests.docs import examples, pages
from trueboard import up
from trueboard.new_epoch import EpochSettings
from trueboard.resume import ResumeSettings
from trueboard.setup import SetupSettings
from trueboard.token import TokenSettings

SETTINGS: Final = {
    "ingest": ingest.settings.Settings,
    "stream_app": stream_app.settings.Settings,
    "push": push.settings.Settings,
    "auditor": auditor.settings.Settings,
    "up": trueboard.devstack.settings.StackSettings,
    "setup": SetupSettings,
    "new-epoch": EpochSettings,
    "resume-partition": ResumeSettings,
    "token": TokenSettings,
}

MEANINGS: Final = {
    "address_rate_per_s": "Requests (ingest) or handshakes (push) a second from one address.",
    "audience": "What a token's `aud` must be.",
    "consumer_group": "The Kafka consumer group of the stream's workers.",
    "feed_port": "Port of the live feed.",
    "feed_url": "The feed's base URL as clients see it; without one `up` takes host and port, and the page "
    "looks where it came from.",
    "host": "Address that HTTP and feed listen on.",
    "http_port": "Port of HTTP.",
    "http_url": "The base URL of HTTP as clients see it, if not host and port.",
    "issuer": "What a token's `iss` must be.",
    "jwks": "Path or URL of the public keys that tokens are checked with; `up`: those of the data directory.",
    "kafka": "Bootstrap servers, `host:port[,…]`; for `up` also `auto`, `jvm` or `memory`.",
    "kafka_kind": "What answers there: `jvm`, `external` or `memory`.",
    "loopback_address_rate": "In the place of the rates per address, for loopback addresses.",
    "max_sockets_per_address": "Sockets that one address may have open.",
    "metrics_port": "Loopback port of `/metrics` and `/health/*`; `up` finds one for each.",
    "postgres_url": "`postgresql://…`; `up`: instead of an embedded one.",
    "redis_url": "`redis://…` of Redis or Valkey; `up`: instead of an embedded one.",
    "token_algorithms": "Which algorithms keys may have: ES256, EdDSA, RS256.",
    "token_max_life_s": "Longest life of a token, in seconds.",
    "user_burst": "Actions a user may send at once.",
    "user_rate_per_s": "Actions a second of a user.",
    "max_late_s": "How long before it is received an action may have occurred; the same for both.",
    "max_early_s": "How long after it is received an action may say that it occurs; the same for both.",
}
"""Of settings that several processes read, or whose class leaves it at the name."""


_UP: Final = {"http_port": f"`{up.DEFAULT_HTTP_PORT}`", "feed_port": f"`{up.DEFAULT_FEED_PORT}`"}
"""What `up` takes where its class leaves it open."""


def settings_table() -> str:
    """A row for every variable that a process reads."""
    rows: dict[str, dict[str, Field[Any]]] = {}
    meanings = dict(MEANINGS)
    for reader, cls in SETTINGS.items():
        said = _docstrings(cls)
        for field in fields(cls):
            rows.setdefault(field.name, {})[reader] = field
            if field.name in said:
                meanings.setdefault(field.name, said[field.name])
    lines = ["| variable | read by | default | meaning |", "|---|---|---|---|"]
    for name in sorted(rows):
        readers = rows[name]
        variable = DATA_VARIABLE if name == "data_dir" else PREFIX + name.upper()
        lines.append(f"| `{variable}` | {', '.join(readers)} | {_default(readers)} | {meanings[name]} |")
    return "\n".join(lines)


def _default(readers: dict[str, Field[Any]]) -> str:
    shown = {reader: _shown(field) for reader, field in readers.items()}
    if "up" in readers and readers["up"].name in _UP:
        shown["up"] = _UP[readers["up"].name]
    if len(shown) > 1 and shown.get("up") == "none":
        del shown["up"]
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return "; ".join(f"{reader}: {value}" for reader, value in shown.items())


def _shown(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, float):
        return f"`{field.default:.10g}`"
    if isinstance(field.default, tuple):
        return f"`{','.join(field.default)}`" if field.default else "empty"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _docstrings(cls: type) -> dict[str, str]:
    """What stands below each field of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    said = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            said[field.target.id] = " ".join(str(below.value.value).split())
    return said


def metric_names() -> dict[str, Any]:
    """Every metric of the catalogue by the name that a scrape shows."""
    found = {}
    for value in vars(metrics).values():
        if isinstance(value, Counter | Gauge | Histogram):
            name = value._name
            found[f"{name}_total" if isinstance(value, Counter) else name] = value
    return found


def metrics_table() -> str:
    """A row for every metric: name, kind, labels, what it says and what a rise means."""
    lines = ["| metric | kind | labels | says |", "|---|---|---|---|"]
    for name, metric in metric_names().items():
        labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "–"
        lines.append(f"| `{name}` | {metric._type} | {labels} | {metric._documentation} |")
    return "\n".join(lines)


def benches_table() -> str:
    """A row for every bench, with the first line of what it says of itself."""
    lines = ["| bench | measures |", "|---|---|"]
    for path in sorted((pages.ROOT / "bench").glob("[!_]*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"| `bench/{path.name}` | {said.partition(chr(10))[0]} |")
    return "\n".join(lines)


MADE: Final = {
    ("docs/running.md", "settings"): settings_table,
    ("docs/metrics.md", "metrics"): metrics_table,
    (examples.PAGE, "examples"): examples.table,
    ("docs/performance.md", "benches"): benches_table,
}
"""(Page, mark) → what stands there."""


def main() -> None:
    for (page, mark), table in MADE.items():
        pages.put(page, mark, table())


if __name__ == "__main__":
    main()
