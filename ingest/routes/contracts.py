"""The five specifications' calls, S0 to S4, each by its own words over the one command.

Where they wait for the stream, it is for two seconds after Kafka's confirmation. A score that is
not known by then is not named: the answer is then that the action was taken.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from core import scopes
from core.errors import Refused, Unavailable
from core.receipts import Judged
from ingest.boards import Boards, Encoded
from ingest.door import Endpoint, Handler, Route
from ingest.limiting import Gate
from ingest.patience import within
from ingest.requests import (
    SINGLE_BYTES,
    Body,
    HeaderList,
    Reply,
    Request,
    action_headers,
    json_reply,
    members_of,
    position_headers,
    read_body,
)
from ingest.submission import CLIENT_POINTS, Offer, invalid, split_action
from ingest.submitting import WAIT_AFTER_CONFIRMATION_S, Outcome
from ingest.taking import Contract, Taking
from storage.standings import Page

_TOP_BUDGET_S = 1.0
_JSON: Final = b"application/json"
_encode = msgspec.json.Encoder().encode

UPDATED: Final = "Score updated successfully."
ACCEPTED: Final = "Score update accepted."
BAD_TOKEN: Final = "Invalid authentication token."

S3_FIELDS: Final = frozenset({"user_id", "score_delta", "auth_token"})
S4_FIELD: Final = "actionId"


class S0Body(Body, forbid_unknown_fields=True):
    user_id: str
    score_delta: int
    authorization_token: str

    def quotes(self) -> int:
        return 10


class S1Body(Body, forbid_unknown_fields=True):
    userId: str
    actionId: str

    def quotes(self) -> int:
        return 8


class S2Body(Body, forbid_unknown_fields=True):
    userId: str
    scoreIncrement: int
    authToken: str

    def quotes(self) -> int:
        return 10


class S3Body(Body, forbid_unknown_fields=True):
    user_id: str
    score_delta: int
    auth_token: str

    def quotes(self) -> int:
        return 10


class S4Body(Body, forbid_unknown_fields=True):
    actionId: str
    timestamp: str

    def quotes(self) -> int:
        return 8


def _client_points(
    contract: str, user_id: str, points: int, request: Request, fields: dict[str, str]
) -> Offer:
    """Points that the client sends; the action is named by `Idempotency-Key`, if at all."""
    return Offer(
        contract,
        CLIENT_POINTS,
        _idempotency_key(request),
        user_id,
        points,
        fields={**fields, "action_id": "Idempotency-Key"},
    )


def _idempotency_key(request: Request) -> str | None:
    """The header's value, bare or as the quoted string of its draft; None without one."""
    value = request.header(b"idempotency-key")
    if value is None:
        if request.has(b"idempotency-key"):
            raise invalid("Idempotency-Key", "must be sent once")
        return None
    text = value.decode("latin-1")
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _accepted(outcome: Outcome) -> tuple[Judged, int] | None:
    """The verdict and the score it led to, where both are known.

    Raises:
        Refused: 422, if the action was rejected.
    """
    judged = outcome.judged
    if judged is None or judged.status == "held":
        return None
    if judged.status == "rejected":
        code = "rejected" if judged.reason is None else judged.reason.code
        headers = {name.decode(): value.decode() for name, value in action_headers(judged.action_id)}
        raise Refused(code, f"The action was rejected: {code}.", status_code=422, headers=headers)
    return None if judged.score is None else (judged, judged.score)


def _shown(outcome: Outcome, judged: Judged) -> HeaderList:
    return action_headers(outcome.record.action_id) + position_headers(judged.epoch, judged.revision)


def _taken(outcome: Outcome, body: Any) -> Reply:
    return json_reply(202, body, action_headers(outcome.record.action_id))


class _Waiting(Contract):
    """A contract whose replies name a score."""

    def wait_s(self, request: Request) -> float:
        return WAIT_AFTER_CONFIRMATION_S


class S0(_Waiting):
    """`POST /api/v0/scores/update`: status and updated score."""

    name = "s0"
    decoder = msgspec.json.Decoder(S0Body)
    token_field = "authorization_token"

    def shape(self, code: str, status: int, detail: str, trace_id: str) -> tuple[bytes, bytes]:
        return _encode({"status": "failure", "message": detail, "code": code}), _JSON

    def offer(self, body: S0Body, request: Request) -> Offer:
        return _client_points("s0", body.user_id, body.score_delta, request, {"points": "score_delta"})

    async def answer(self, outcome: Outcome) -> Reply:
        known = _accepted(outcome)
        if known is None:
            return _taken(outcome, {"status": "pending"})
        judged, score = known
        return json_reply(200, {"status": "success", "updated_score": score}, _shown(outcome, judged))


class S1(Contract):
    """`POST /update-score`: the server knows what the action is worth, and answers with a receipt."""

    name = "s1"
    decoder = msgspec.json.Decoder(S1Body)

    def offer(self, body: S1Body, request: Request) -> Offer:
        type_, action_id = split_action(body.actionId)
        return Offer(
            "s1",
            type_,
            action_id,
            body.userId,
            fields={"user_id": "userId", "action_id": "actionId", "type": "actionId"},
        )

    def wait_s(self, request: Request) -> float:
        return 0.0

    async def answer(self, outcome: Outcome) -> Reply:
        headers = action_headers(outcome.record.action_id)
        if outcome.judged is not None:
            headers += position_headers(outcome.judged.epoch, outcome.judged.revision)
        return json_reply(202, outcome.receipt(), headers)


class S2(_Waiting):
    """`POST /api/v1/scores/update`: the top 10 after the update."""

    name = "s2"
    decoder = msgspec.json.Decoder(S2Body)
    token_field = "authToken"

    def __init__(self, boards: Boards) -> None:
        self._boards = boards

    def shape(self, code: str, status: int, detail: str, trace_id: str) -> tuple[bytes, bytes]:
        message = BAD_TOKEN if code == "invalid_token" else detail
        return _encode({"success": False, "message": message, "code": code}), _JSON

    def offer(self, body: S2Body, request: Request) -> Offer:
        fields = {"points": "scoreIncrement", "user_id": "userId"}
        return _client_points("s2", body.userId, body.scoreIncrement, request, fields)

    async def answer(self, outcome: Outcome) -> Reply:
        known = _accepted(outcome)
        if known is not None:
            judged, _ = known
            try:
                reading = self._boards.top_at_least((judged.epoch, judged.revision))
                page = await within(_TOP_BUDGET_S, reading)
            except Unavailable:
                page = None
            if page is not None:
                body = {
                    "success": True,
                    "message": UPDATED,
                    "topScores": [{"userId": e.user_id, "score": e.score} for e in page.entries],
                }
                headers = action_headers(outcome.record.action_id)
                return json_reply(200, body, headers + position_headers(page.epoch, page.revision))
        return _taken(outcome, {"success": True, "message": ACCEPTED})


class S3(_Waiting):
    """`POST /api/scores/update` with the token in the body: the new score."""

    name = "s3"
    decoder = msgspec.json.Decoder(S3Body)
    token_field = "auth_token"

    def offer(self, body: S3Body, request: Request) -> Offer:
        return _client_points("s3", body.user_id, body.score_delta, request, {"points": "score_delta"})

    async def answer(self, outcome: Outcome) -> Reply:
        known = _accepted(outcome)
        if known is None:
            return _taken(outcome, {})
        judged, score = known
        return json_reply(200, {"user_id": judged.user_id, "new_score": score}, _shown(outcome, judged))


class S4(_Waiting):
    """`POST /api/scores/update` with a Bearer token: the new score and rank."""

    name = "s4"
    decoder = msgspec.json.Decoder(S4Body)

    def shape(self, code: str, status: int, detail: str, trace_id: str) -> tuple[bytes, bytes]:
        return _encode({"success": False, "message": detail, "code": code}), _JSON

    def offer(self, body: S4Body, request: Request) -> Offer:
        type_, action_id = split_action(body.actionId)
        return Offer(
            "s4",
            type_,
            action_id,
            occurred_at=body.timestamp,
            id_from_instant=True,
            fields={"action_id": "actionId", "type": "actionId", "occurred_at": "timestamp"},
        )

    async def answer(self, outcome: Outcome) -> Reply:
        known = _accepted(outcome)
        if known is None or known[0].rank is None:
            return _taken(outcome, {"success": True})
        judged, score = known
        body = {"success": True, "newScore": score, "rank": judged.rank}
        return json_reply(200, body, _shown(outcome, judged))


class ContractRoutes:
    """The handlers of the five specifications' calls."""

    def __init__(self, taking: Taking, gate: Gate, boards: Boards) -> None:
        self._taking, self._gate, self._boards = taking, gate, boards
        self.s0, self.s1, self.s2, self.s3, self.s4 = S0(), S1(), S2(boards), S3(), S4()
        self._scores = Encoded(_scores)
        self._leaderboard = Encoded(_leaderboard)

    def routes(self) -> list[Route]:
        return [
            Route("/api/v0/scores/update", {"POST": self._endpoint(self.s0)}),
            Route("/update-score", {"POST": self._endpoint(self.s1)}),
            Route("/api/v1/scores/update", {"POST": self._endpoint(self.s2)}),
            Route("/api/scores/update", {"POST": Endpoint(handler=self.s3_or_s4, contract="s3_s4")}),
            Route("/api/scores/top10", {"GET": Endpoint(handler=self.top10)}),
            Route("/api/leaderboard", {"GET": Endpoint(handler=self.leaderboard, shape=self.s4.shape)}),
        ]

    async def s3_or_s4(self, request: Request) -> Reply:
        """Two contracts share this path; the body's fields tell which one it is."""
        _, (body, members) = await self._taking.read(
            request, SINGLE_BYTES, lambda body: (body, members_of(body)), bearer=False
        )
        fields = members.keys()
        contract: Contract
        if (S4_FIELD in fields) == bool(fields & S3_FIELDS):
            # Nobody is named, so it counts for the address.
            await self._gate.take_request(request, None)
            raise Refused(
                "invalid_field",
                "The body must have either actionId and timestamp, or user_id, score_delta and auth_token.",
            )
        contract = self.s4 if S4_FIELD in fields else self.s3
        request.contract, request.shape = contract.name, contract.shape
        return await self._taking.take(request, contract, read_body(body, contract.decoder), None)

    async def top10(self, request: Request) -> Reply:
        """S3's top 10, public."""
        await self._gate.reader(request)
        page = await self._boards.top()
        return _page_reply(page, self._scores.body(page))

    async def leaderboard(self, request: Request) -> Reply:
        """S4's top 10, with names and ranks."""
        claims = await self._gate.who(request, request.bearer())
        await self._gate.take_request(request, claims)
        if scopes.BOARDS_READ not in claims.scopes:
            raise Refused("forbidden", "Reading this needs the scope boards:read.", status_code=403)
        page = await self._boards.top()
        return _page_reply(page, self._leaderboard.body(page))

    def _endpoint(self, contract: Contract) -> Endpoint:
        handler: Handler = self._taking.endpoint(contract)
        return Endpoint(handler=handler, contract=contract.name, shape=contract.shape)


def _scores(page: Page) -> dict[str, Any]:
    return {"scores": [{"user_id": entry.user_id, "score": entry.score} for entry in page.entries]}


def _leaderboard(page: Page) -> dict[str, Any]:
    return {
        "leaderboard": [
            {
                "userId": entry.user_id,
                "username": entry.username,
                "score": entry.score,
                "rank": entry.rank,
            }
            for entry in page.entries
        ]
    }


def _page_reply(page: Page, body: bytes) -> Reply:
    headers = position_headers(page.epoch, page.revision)
    headers.append((b"cache-control", b"no-cache"))
    return Reply(200, body, headers, cacheable=True)
