"""From an ASGI request to a reply: framing, methods, and every error answered in one place.

What a request may look like at all is checked before anything is routed: one Host, few and small
headers, a path in its one spelling. Refusals become replies in the shape of their route; what
nobody foresaw is a defect: it is logged whole and answered as `internal`, with nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from core.errors import Refused, Unavailable
from ingest import problems
from ingest.attempts import Attempts
from ingest.limiting import Forwarded
from ingest.requests import ClientGone, Reply, Request
from service import logs, metrics

MAX_HEADERS: Final = 64
MAX_HEADER_BYTES: Final = 8 * 1024
MAX_TARGET_BYTES: Final = 8 * 1024

_NO_SNIFF = (b"x-content-type-options", b"nosniff")
_NO_STORE = (b"cache-control", b"no-store")

_SAY_EVERY_S = 5.0
_DEFECT: Final = "The request met a defect; it is on record under its trace id."

_log = logs.get("ingest.door")

Handler = Callable[[Request], Awaitable[Reply]]
Shape = Callable[[str, int, str, str], tuple[bytes, bytes]]
"""Body and content type of an error, from code, status, detail and trace id."""
Asgi = Callable[[Any, Any, Any], Awaitable[None]]


def as_problem(code: str, status: int, detail: str, trace_id: str) -> tuple[bytes, bytes]:
    return problems.encode(code, status, detail, trace_id), problems.CONTENT_TYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method of one path. `contract` names whose attempts are counted, None where nothing is sent in."""

    handler: Handler
    contract: str | None = None
    shape: Shape = as_problem


@dataclass(frozen=True, slots=True)
class Route:
    """A path template, as `/v1/actions/{action_id:str}`, with its methods."""

    path: str
    endpoints: Mapping[str, Endpoint]

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return self.path.replace(":str}", "}")

    @property
    def allow(self) -> str:
        methods = list(self.endpoints)
        if "GET" in methods:
            methods.append("HEAD")
        return ", ".join(methods)


class Door:
    """Answers requests by their routes' endpoints. `monotonic_s` times them."""

    def __init__(
        self,
        attempts: Attempts,
        forwarded: Forwarded,
        *,
        hosts: tuple[str, ...] = (),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attempts, self._forwarded = attempts, forwarded
        self._hosts = frozenset(host.lower() for host in hosts)
        self._monotonic_s = monotonic_s
        self._timers: dict[tuple[str, int], Any] = {}
        self._said_until_s = float("-inf")

    def guard(self, app: Asgi, fixed: Mapping[str, Asgi]) -> Asgi:
        """`app` behind the checks of framing; what serves a `fixed` path is called without it.

        `app` would only pass those on, and takes some 10 µs to do so.
        """

        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            try:
                self._check_framing(scope)
            except Refused as refusal:
                request = self._request(scope, receive)
                reply = self.refused(request, refusal)
                reply.headers.append((b"connection", b"close"))
                await self._send(request, reply, "none", send)
                return
            served = fixed.get(scope["path"])
            await (app if served is None else served)(scope, receive, send)

        return guarded

    def serve(self, route: Route) -> Asgi:
        """The ASGI application of a route."""
        template, endpoints = route.template, dict(route.endpoints)
        if "GET" in endpoints:
            endpoints["HEAD"] = endpoints["GET"]

        async def served(scope: Any, receive: Any, send: Any) -> None:
            request = self._request(scope, receive)
            endpoint = endpoints.get(scope["method"])
            if endpoint is None:
                await self._send(request, self.refused(request, _method_not_allowed(route)), template, send)
                return
            request.contract, request.shape = endpoint.contract, endpoint.shape
            try:
                reply = await endpoint.handler(request)
            except (Refused, Unavailable) as error:
                reply = self.refused(request, error)
                # What was read hangs on the frames it was raised in, and a frame may hold the error: such
                # rings would keep whole bodies until the collector comes by, which is seldom here.
                error.__traceback__ = error.__context__ = error.__cause__ = None
            except ClientGone:
                return
            except Exception:
                _log.exception("defect", trace_id=request.trace.trace_id, route=template)
                request.outcome, request.code = "defect", "internal"
                reply = self._reply_of(request, "internal", 500, _DEFECT, [])
            if request.contract is not None:
                self._note(request, reply.status)
            await self._send(request, reply, template, send)

        return served

    def refused(self, request: Request, error: Refused | Unavailable) -> Reply:
        """The reply to an error, in the shape of the request's route."""
        request.outcome = "refused" if isinstance(error, Refused) else "unavailable"
        request.code = error.code
        if isinstance(error, Unavailable):
            self._say_unavailable(request, error)
        return self._reply_of(
            request,
            error.code,
            problems.status_of(error),
            problems.detail_of(error),
            problems.headers_of(error),
        )

    def _say_unavailable(self, request: Request, error: Unavailable) -> None:
        """What exactly is away is for the log, at most once in a few seconds."""
        now_s = self._monotonic_s()
        if now_s >= self._said_until_s:
            self._said_until_s = now_s + _SAY_EVERY_S
            _log.warning(
                "unavailable", code=error.code, detail=error.detail[:300], trace_id=request.trace.trace_id
            )

    def _reply_of(
        self, request: Request, code: str, status: int, detail: str, headers: list[tuple[bytes, bytes]]
    ) -> Reply:
        body, content_type = request.shape(code, status, detail, request.trace.trace_id)
        return Reply(status, body, headers, content_type)

    def _request(self, scope: Any, receive: Any) -> Request:
        client = scope.get("client")
        address = self._forwarded.address(client[0] if client else "unknown", scope["headers"])
        return Request(scope, receive, address, self._monotonic_s(), as_problem)

    def _note(self, request: Request, status: int) -> None:
        contract = request.contract or ""
        if request.outcomes is None:
            self._attempts.count(contract, request.outcome, request.code)
        self._attempts.log(request, status, self._monotonic_s() - request.started_s)

    def _check_framing(self, scope: Any) -> None:
        headers = scope["headers"]
        host, size = None, 0
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"host":
                if host is not None:
                    raise _malformed("A request must have one Host.")
                host = value
        if size > MAX_HEADER_BYTES or len(headers) > MAX_HEADERS:
            raise Refused(
                "too_large",
                f"A request may have {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in all.",
                status_code=431,
            )
        if not host:
            raise _malformed("A request must have one Host.")
        if self._hosts and host.decode("latin-1").lower().rsplit(":", 1)[0] not in self._hosts:
            raise _malformed("This host is not served here.")
        path = scope["path"]
        if len(scope.get("raw_path") or path) > MAX_TARGET_BYTES:
            raise Refused("too_large", "The path is too long.", status_code=414)
        # One spelling for one path: what a proxy in front allows or forbids is what is served here.
        if "//" in path or "\\" in path or (path != "/" and path[-1:] == "/"):
            raise _not_found()
        if "/." in path and any(part in (".", "..") for part in path.split("/")):
            raise _not_found()

    async def _send(self, request: Request, reply: Reply, template: str, send: Any) -> None:
        headers = [*reply.headers, *request.extra]
        if reply.content_type is not None:
            headers.append((b"content-type", reply.content_type))
        if reply.status != 304:
            headers.append((b"content-length", b"%d" % len(reply.body)))
        headers.append(_NO_SNIFF)
        if not reply.cacheable:
            headers.append(_NO_STORE)
        decision = request.decision
        if decision is not None and decision.allowed and decision.rate_limit:
            headers.append((b"ratelimit", decision.rate_limit.encode()))
            headers.append((b"ratelimit-policy", decision.rate_limit_policy.encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})
        timer = self._timers.get((template, reply.status))
        if timer is None:
            timer = self._timers[template, reply.status] = metrics.HTTP_REQUEST_SECONDS.labels(
                template, str(reply.status)
            )
        timer.observe(self._monotonic_s() - request.started_s)


def _method_not_allowed(route: Route) -> Refused:
    return Refused(
        "method_not_allowed",
        f"This path has {route.allow}.",
        status_code=405,
        headers={"Allow": route.allow},
    )


def _not_found() -> Refused:
    return Refused("not_found", "There is nothing at this path.", status_code=404)


def _malformed(detail: str) -> Refused:
    return Refused("invalid_request", detail, status_code=400)
