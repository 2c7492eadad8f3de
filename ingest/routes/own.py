"""Our own calls: actions one by one and in batches, receipts, and tickets for the feed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from core import receipts, scopes, words
from core.actions import SubmittedRecord
from core.errors import Refused, Unavailable
from ingest import problems
from ingest.attempts import Attempts
from ingest.door import Endpoint, Route
from ingest.ports import Claims, Markers, Tickets
from ingest.requests import (
    BATCH_BYTES,
    Body,
    Reply,
    Request,
    action_headers,
    json_reply,
    position_headers,
    read_body,
    too_large,
)
from ingest.submission import Offer, accept
from ingest.submitting import Outcome
from ingest.taking import Contract, Taking, outcome_words

MOST_ACTIONS: Final = 500
"""In one batch."""

TICKET_TTL_S: Final = 30


class ActionBody(Body, forbid_unknown_fields=True):
    """One action."""

    action_id: str
    type: str
    occurred_at: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    points: int | UnsetType = UNSET
    username: str | UnsetType = UNSET

    def quotes(self) -> int:
        return (
            8
            + (0 if self.occurred_at is UNSET else 4)
            + (0 if self.user_id is UNSET else 4)
            + (0 if self.points is UNSET else 2)
            + (0 if self.username is UNSET else 4)
        )

    def offer(self) -> Offer:
        return Offer(
            "v1",
            self.type,
            self.action_id,
            None if self.user_id is UNSET else self.user_id,
            None if self.points is UNSET else self.points,
            None if self.occurred_at is UNSET else self.occurred_at,
            None if self.username is UNSET else self.username,
        )


class BatchBody(Body, forbid_unknown_fields=True):
    """Several actions, each in its shape."""

    actions: list[ActionBody]

    def quotes(self) -> int:
        return 2 + sum(action.quotes() for action in self.actions)


class LooseBatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """Several actions, of which some do not have their shape."""

    actions: list[msgspec.Raw]


_batch_decoder = msgspec.json.Decoder(BatchBody)
_loose_decoder = msgspec.json.Decoder(LooseBatchBody)
_action_decoder = msgspec.json.Decoder(ActionBody)

Item = ActionBody | Refused


class V1(Contract):
    """`POST /v1/actions`."""

    name = "v1"
    decoder = _action_decoder

    def offer(self, body: ActionBody, request: Request) -> Offer:
        return body.offer()

    def wait_s(self, request: Request) -> float:
        return request.preferred_wait_s()

    async def answer(self, outcome: Outcome) -> Reply:
        headers = action_headers(outcome.record.action_id)
        if outcome.judged is not None:
            headers += position_headers(outcome.judged.epoch, outcome.judged.revision)
        status = 200 if outcome.waited and outcome.judged is not None else 202
        return json_reply(status, outcome.receipt(), headers)


class OwnRoutes:
    """The handlers of our own calls, but for the boards."""

    def __init__(self, taking: Taking, markers: Markers, tickets: Tickets, attempts: Attempts) -> None:
        self._taking, self._markers = taking, markers
        self._tickets, self._attempts = tickets, attempts
        self._take = taking.endpoint(V1())

    def routes(self) -> list[Route]:
        return [
            Route("/v1/actions", {"POST": Endpoint(handler=self.submit, contract="v1")}),
            Route("/v1/actions/batch", {"POST": Endpoint(handler=self.submit_batch, contract="v1")}),
            Route("/v1/actions/{action_id:str}", {"GET": Endpoint(handler=self.receipt)}),
            Route("/v1/ws-ticket", {"POST": Endpoint(handler=self.ticket)}),
        ]

    async def submit(self, request: Request) -> Reply:
        """One action in, a receipt out; with `Prefer: wait` the verdict, if it comes in time."""
        reply: Reply = await self._take(request)
        waited_s = request.preferred_wait_s()
        if waited_s and request.waited:
            reply.headers.append((b"preference-applied", b"wait=%d" % waited_s))
        return reply

    async def submit_batch(self, request: Request) -> Reply:
        """Up to 500 actions in, an answer for each out."""
        taking = self._taking
        claims, items = await taking.read(request, BATCH_BYTES, _items, bearer=True)
        assert claims is not None
        if isinstance(items, Refused) or not 1 <= len(items) <= MOST_ACTIONS:
            await taking.gate.take_actions(request, claims)
            if isinstance(items, Refused):
                raise items
            if items:
                raise too_large(f"A batch may have {MOST_ACTIONS} actions.")
            raise Refused("invalid_field", "actions must hold at least one action.")
        await taking.gate.take_actions(request, claims, len(items))
        answers = await self._submit_items(request, claims, items)
        return self._answer_batch(request, answers)

    async def receipt(self, request: Request) -> Reply:
        """What is known of an action: its verdict, else that it was confirmed."""
        taking = self._taking
        claims = await taking.gate.who(request, request.bearer())
        await taking.gate.take_request(request, claims)
        user_id = request.query("user_id").get("user_id", claims.sub)
        action_id = request.path_params["action_id"]
        if words.USER_ID.fullmatch(user_id) is None:
            raise Refused("invalid_field", "user_id must be 1 to 255 of A-Z a-z 0-9 . _ : @ -.")
        foreign = user_id != claims.sub and scopes.ACTIONS_WRITE_ANY not in claims.scopes
        if foreign or words.ACTION_ID.fullmatch(action_id) is None:
            raise _no_action()
        judged = await taking.submitting.from_ledger(user_id, action_id)
        if judged is not None:
            headers = position_headers(judged.epoch, judged.revision)
            return json_reply(200, receipts.judged_receipt(judged), headers)
        marker = await self._markers.found_for_certain(self._markers.look(user_id, action_id))
        if marker is None:
            raise _no_action()
        return json_reply(
            200,
            receipts.submitted_receipt(
                user_id, action_id, marker.type, marker.received_at, marker.fingerprint
            ),
        )

    async def ticket(self, request: Request) -> Reply:
        """A ticket for a WebSocket, good once."""
        claims = await self._taking.gate.who(request, request.bearer())
        await self._taking.gate.take_request(request, claims)
        ticket = await self._tickets(
            {
                "sub": claims.sub,
                "scopes": sorted(claims.scopes),
                "exp_s": claims.exp_s,
                "jti": claims.jti,
                "iat_s": claims.iat_s,
            }
        )
        return json_reply(201, {"ticket": ticket, "expires_in_s": TICKET_TTL_S})

    async def _submit_items(
        self, request: Request, claims: Claims, items: Sequence[Item]
    ) -> list[Outcome | Refused | Unavailable]:
        taking = self._taking
        catalogue, received_at_us = taking.catalogues.current, taking.clock_us()
        answers: list[Outcome | Refused | Unavailable | None] = [None] * len(items)
        places: list[int] = []
        records: list[SubmittedRecord] = []
        for index, item in enumerate(items):
            if isinstance(item, Refused):
                answers[index] = item
                continue
            try:
                record = accept(
                    item.offer(), claims, catalogue, received_at_us, taking.tolerance, taking.fresh_id
                )
            except Refused as refusal:
                answers[index] = refusal
                continue
            places.append(index)
            records.append(record)
        if records:
            for index, answer in zip(
                places, await taking.submitting.submit_many(records, request.trace), strict=True
            ):
                answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def _answer_batch(self, request: Request, answers: list[Outcome | Refused | Unavailable]) -> Reply:
        counts: dict[tuple[str, str], int] = {}
        results: list[dict[str, Any]] = []
        unavailable: Unavailable | None = None
        confirmed = False
        trace_id = request.trace.trace_id
        for answer in answers:
            if isinstance(answer, Outcome):
                confirmed = True
                outcome, code = outcome_words(answer)
                results.append({"status": 202, "receipt": answer.receipt()})
            else:
                outcome, code = "refused", answer.code
                if isinstance(answer, Unavailable):
                    outcome, unavailable = "unavailable", answer
                status = problems.status_of(answer)
                error = problems.problem(answer.code, status, problems.detail_of(answer), trace_id)
                results.append({"status": status, "error": error})
            counts[outcome, code] = counts.get((outcome, code), 0) + 1
        for (outcome, code), count in counts.items():
            self._attempts.count("v1", outcome, code, count)
        request.outcomes = {
            f"{outcome}:{code}" if code else outcome: count for (outcome, code), count in counts.items()
        }
        if unavailable is not None and not confirmed:
            raise unavailable
        request.outcome, request.code = "batch", ""
        return json_reply(200, {"results": results})


def _items(body: bytes) -> Sequence[Item] | Refused:
    """The actions of a batch one by one, those out of shape as their refusals.

    Raises:
        Refused: 400 `invalid_json`.
    """
    read = read_body(body, _batch_decoder)
    if read.value is not None:
        return read.value.actions
    try:
        loose = _loose_decoder.decode(body)
    except msgspec.ValidationError:
        assert read.fault is not None
        return read.fault
    items: list[Item] = []
    for raw in loose.actions[: MOST_ACTIONS + 1]:
        try:
            items.append(_action_decoder.decode(raw))
        except msgspec.ValidationError as error:
            items.append(Refused("invalid_field", f"The action does not have its shape: {str(error)[:200]}."))
    return items


def _no_action() -> Refused:
    return Refused("not_found", "No such action of this user is known.", status_code=404)
