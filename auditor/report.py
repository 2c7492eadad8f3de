"""What the auditor says: a counter, a line with the first witness, and how far it has come."""

from __future__ import annotations

from typing import Any, Final

from auditor.recount import Wrong
from service import logs, metrics

WHATS: Final = (
    "action",
    "record",
    "publication",
    "digest",
    "chain",
    "page",
    "frame",
    "channel",
    "copy",
    "position",
)
"""action: an action counted twice or told differently; record: one that nobody can read; position:
a connection whose revision went back, or one revision with two contents."""

_MOST_STANDING: Final = 4096

_log = logs.get("auditor")


class Report:
    """Counts mismatches. One that stands where it stood before is the same one, and counted once."""

    def __init__(self) -> None:
        self._standing: dict[tuple[str, str], tuple[Any, ...]] = {}
        for what in WHATS:
            metrics.AUDIT_MISMATCH.labels(what)
            metrics.AUDIT_COMPARED.labels(what)
            metrics.AUDIT_SKIPPED.labels(what)

    def compared(self, what: str, place: str, revision: int, wrong: Wrong | None) -> None:
        """A comparison was made; `place` says where on what is shown."""
        metrics.AUDIT_COMPARED.labels(what).inc()
        if wrong is None:
            self._standing.pop((what, place), None)
        elif self._standing.get((what, place)) != wrong.signature:
            if len(self._standing) >= _MOST_STANDING:
                self._standing.clear()
            self._standing[what, place] = wrong.signature
            self.mismatch(what, revision, wrong, place=place)

    def mismatch(self, what: str, revision: int, wrong: Wrong, **more: Any) -> None:
        metrics.AUDIT_MISMATCH.labels(what).inc()
        _log.error(
            "audit_mismatch",
            what=what,
            revision=revision,
            kind=wrong.kind,
            user_id=wrong.user,
            expected=wrong.expected,
            found=wrong.found,
            **more,
        )

    def skipped(self, what: str, why: str) -> None:
        """A comparison was not made, since nothing proved that both sides are of one revision."""
        metrics.AUDIT_SKIPPED.labels(what).inc()
        _log.debug("audit_skipped", what=what, why=why)
