"""Errors, grouped by what to do next.

TrueboardError
├── Refused      answer the caller; a retry changes nothing   HTTP 4xx · close 4xxx
├── Unavailable  wait and repeat the same step                HTTP 503 · pause the partition
└── Unreadable   set the record aside and go on               dead-letter topic

Anything else that is raised is a defect: it stops the process and is seen.
"""

from __future__ import annotations


class TrueboardError(Exception):
    """The root of everything that is raised on purpose."""


class Refused(TrueboardError):
    """The caller is told why; asking again changes nothing.

    `code` is one of the problem codes of the interface, `status_code` the HTTP
    status that goes with it, `headers` what the reply carries beside the body.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status_code: int = 400,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.status_code = code, detail, status_code
        self.headers = headers or {}


class Unavailable(TrueboardError):
    """Something this step needs does not answer now: wait and repeat the step.

    `code` is the problem code for an HTTP caller, `retry_after_s` when to ask again.
    """

    def __init__(self, detail: str, *, code: str = "queue_unavailable", retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.code, self.detail, self.retry_after_s = code, detail, retry_after_s


class Unreadable(TrueboardError):
    """A record that cannot be understood; `reason` is the word on the dead-letter topic."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
