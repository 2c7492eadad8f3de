"""How every contract takes an action in: the order of checks, once, over the one command.

Size and framing, the Bearer token, readable JSON, a token in the body, limits, shape, rights,
rules, the same id with another body, Kafka. A contract says which token, which shape, what its
body means by our words, and how it words the outcome.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec

from core import ids
from core.catalogue import Catalogue
from core.errors import Refused, Unavailable
from ingest.door import as_problem
from ingest.limiting import Gate
from ingest.ports import Claims
from ingest.requests import SINGLE_BYTES, Read, Reply, Request, read_body
from ingest.submission import Offer, Tolerance, accept
from ingest.submitting import Outcome, Submitting
from service import failpoints

T = TypeVar("T")


class Contract(ABC):
    """One client's way of submitting an action."""

    name: ClassVar[str]
    """As in the record and the metrics: `v1`, `s0` … `s4`."""

    decoder: ClassVar[msgspec.json.Decoder[Any]]
    """Of its exact body, a `Body`."""

    token_field: ClassVar[str | None] = None
    """The body's field that holds the token; None: the Authorization header."""

    def shape(self, code: str, status: int, detail: str, trace_id: str) -> tuple[bytes, bytes]:
        """Body and content type of an error; a problem unless the contract has a shape of its own."""
        return as_problem(code, status, detail, trace_id)

    @abstractmethod
    def offer(self, body: Any, request: Request) -> Offer:
        """The body by our words. Raises Refused for what the decoder cannot see."""

    @abstractmethod
    def wait_s(self, request: Request) -> float:
        """How long to wait for the verdict, from Kafka's confirmation on."""

    @abstractmethod
    async def answer(self, outcome: Outcome) -> Reply:
        """The outcome by its words. Raises Refused for a verdict that is an error to its client."""


class Catalogues(Protocol):
    """Where the catalogue in force is found."""

    @property
    def current(self) -> Catalogue: ...


def now_us() -> int:
    """The wall clock, in µs."""
    return time.time_ns() // 1000


def random_id() -> str:
    """A fresh action id: a UUIDv7."""
    return str(ids.uuid7(now_us(), secrets.token_bytes(8)))


class Taking:
    """Takes actions in. `clock_us` stamps them; it is the only instant that counts."""

    def __init__(
        self,
        gate: Gate,
        submitting: Submitting,
        catalogues: Catalogues,
        tolerance: Tolerance,
        *,
        clock_us: Callable[[], int] = now_us,
        fresh_id: Callable[[], str] = random_id,
    ) -> None:
        self.gate, self.submitting, self.catalogues = gate, submitting, catalogues
        self.tolerance, self.clock_us, self.fresh_id = tolerance, clock_us, fresh_id

    def endpoint(self, contract: Contract) -> Callable[[Request], Any]:
        """The handler of a path that this contract has to itself."""

        async def handle(request: Request) -> Reply:
            bearer = contract.token_field is None
            claims, read = await self.read(
                request, SINGLE_BYTES, lambda body: read_body(body, contract.decoder), bearer=bearer
            )
            return await self.take(request, contract, read, claims)

        return handle

    async def read(
        self, request: Request, most_bytes: int, reading: Callable[[bytes], T], *, bearer: bool
    ) -> tuple[Claims | None, T]:
        """Who sent a body, where its `bearer` token tells, and what `reading` makes of it.

        What cannot be read has nobody's actions to be counted for, so it counts for the address.

        Raises:
            Refused: 413, 415, 401, 400, and 429 in the place of each.
            Unavailable: the keys cannot be read.
        """
        claims = None
        try:
            body = await request.body(most_bytes)
        except Refused:
            await self.gate.take_request(request, None)
            raise
        if bearer:
            claims = await self.gate.who(request, request.bearer())
            request.client = claims.sub
        try:
            return claims, reading(body)
        except Refused:
            await self.gate.take_request(request, claims)
            raise

    async def take(
        self, request: Request, contract: Contract, read: Read[Any], claims: Claims | None
    ) -> Reply:
        """Take in a body that was read. `claims` are those of the header, if it was looked at.

        Raises:
            Refused, Unavailable: in the stated order.
        """
        if claims is None:
            claims = await self.gate.who(request, _token(request, contract, read))
        request.client = claims.sub
        offer, fault = _offer(contract, read, request)
        looking = None
        if offer is not None and offer.action_id is not None:
            # Beside the limits, so that both are one round trip; who is turned away never sees it.
            looking = self.submitting.look(offer.user_id or claims.sub, offer.action_id)
        await self.gate.take_actions(request, claims)
        if offer is None:
            assert fault is not None
            raise fault
        record = accept(
            offer, claims, self.catalogues.current, self.clock_us(), self.tolerance, self.fresh_id
        )
        request.record = record
        try:
            outcome = await self.submitting.submit(
                record, request.trace, wait_s=contract.wait_s(request), looking=looking
            )
        except Unavailable as error:
            # Who repeats it under this id cannot count twice, even if it was written after all.
            request.extra.append((b"trueboard-action", record.action_id.encode()))
            raise error
        failpoints.reach("ingest.marked")
        request.waited = outcome.waited
        request.outcome, request.code = outcome_words(outcome)
        return await contract.answer(outcome)


def outcome_words(outcome: Outcome) -> tuple[str, str]:
    """Outcome and code of a submission, for metrics and log."""
    if outcome.judged is None:
        return "submitted", "replayed" if outcome.replayed else ""
    reason = outcome.judged.reason
    if reason is not None:
        return outcome.judged.status, reason.code
    return outcome.judged.status, "replayed" if outcome.replayed else ""


def _token(request: Request, contract: Contract, read: Read[Any]) -> bytes | str | None:
    field = contract.token_field
    if field is None:
        return request.bearer()
    token = read.members.get(field) if read.value is None else getattr(read.value, field)
    return token if isinstance(token, str) and token else None


def _offer(contract: Contract, read: Read[Any], request: Request) -> tuple[Offer | None, Refused | None]:
    """The offer, or the fault in the shape, which is not to be told yet."""
    if read.fault is not None:
        return None, read.fault
    try:
        return contract.offer(read.value, request), None
    except Refused as fault:
        return None, fault
