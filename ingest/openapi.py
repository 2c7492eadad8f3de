"""The description of every route, as OpenAPI 3.1: bodies, statuses, headers and problems.

Written by hand beside the routes, since they decode by themselves; tests hold every reply against
it, so it says what is. A route that is not described here cannot be served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from core import scopes, words
from ingest import problems
from ingest.door import Route

Schema = dict[str, Any]

_INT64: Final[Schema] = {"type": "integer", "format": "int64"}
_COUNT: Final[Schema] = {"type": "integer", "format": "int64", "minimum": 0}
_TEXT: Final[Schema] = {"type": "string"}
_INSTANT: Final[Schema] = {"type": "string", "format": "date-time"}
_USER: Final[Schema] = {"type": "string", "pattern": f"^{words.USER_ID.pattern}$"}
_ACTION: Final[Schema] = {"type": "string", "pattern": f"^{words.ACTION_ID.pattern}$"}
_TYPE: Final[Schema] = {"type": "string", "pattern": f"^{words.TYPE.pattern}$"}
_USERNAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": words.USERNAME_BYTES}
_TOKEN: Final[Schema] = {"type": "string", "description": "An access token, as a Bearer token would be."}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Schema:
    """An object with these members and no others."""
    schema: Schema = {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "additionalProperties": False,
    }
    if required:
        schema["required"] = list(required)
    return schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(of: Schema, least: int = 0, most: int | None = None) -> Schema:
    bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": of, **bounds}


_SUBMITTED: Final = {
    "action_id": _ACTION,
    "user_id": _USER,
    "type": _TYPE,
    "received_at": _INSTANT,
    "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
}
_POSITION: Final = {"epoch": _TEXT, "revision": _COUNT}

SCHEMAS: Final[dict[str, Schema]] = {
    "Problem": _object(
        {
            "type": {"type": "string", "pattern": "^/problems/[a-z_]+$"},
            "title": _TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": _TEXT,
            "code": {"enum": list(problems.TITLES)},
            "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        }
    ),
    "Reason": _object(
        {
            "code": _TEXT,
            "rule": _nullable(_TEXT),
            "rule_version": _nullable(_TEXT),
            "limit": {"type": ["number", "null"]},
            "seen": {"type": ["number", "null"]},
            "window_s": {"type": ["number", "null"]},
        }
    ),
    "SubmittedReceipt": _object(
        {**_SUBMITTED, "status": {"const": "submitted"}, "replayed": {"type": "boolean"}}
    ),
    "JudgedReceipt": _object(
        {
            **_SUBMITTED,
            "status": {"enum": ["accepted", "rejected", "held"]},
            "replayed": {"type": "boolean"},
            "points": _INT64,
            "reason": _nullable(_ref("Reason")),
            "judged_revision": _COUNT,
            **_POSITION,
            "score": _nullable(_INT64),
            "rank": {"type": ["integer", "null"], "minimum": 1},
        }
    ),
    "Receipt": {"oneOf": [_ref("SubmittedReceipt"), _ref("JudgedReceipt")]},
    "Action": _object(
        {"action_id": _ACTION, "type": _TYPE},
        {"occurred_at": _INSTANT, "user_id": _USER, "points": _INT64, "username": _USERNAME},
    ),
    "BatchResult": {
        "oneOf": [
            _object({"status": {"const": 202}, "receipt": _ref("Receipt")}),
            _object(
                {"status": {"type": "integer", "minimum": 400, "maximum": 503}, "error": _ref("Problem")}
            ),
        ]
    },
    "Entry": _object(
        {
            "rank": {"type": "integer", "minimum": 1},
            "user_id": _USER,
            "username": _USERNAME,
            "score": _INT64,
            "reached_at": _INSTANT,
        }
    ),
    "S0Failure": _object({"status": {"const": "failure"}, "message": _TEXT, "code": _TEXT}),
    "S2S4Failure": _object({"success": {"const": False}, "message": _TEXT, "code": _TEXT}),
}

_CONTENT = "application/json"
_PROBLEM = problems.CONTENT_TYPE.decode()

_MEANINGS: Final = {
    400: "What was sent is malformed.",
    401: "The access token is missing or not good.",
    403: "The token does not allow this.",
    404: "There is no such thing here.",
    408: "The request did not arrive in time.",
    409: "The action id stands for another action.",
    410: "The page is no longer held; start again.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "The action is refused, or was rejected, by a rule.",
    429: "Too many requests; Retry-After says when to come back.",
    500: "A defect.",
    503: "Something this needs does not answer now; Retry-After says when to come back.",
}
_HEADERS: Final[dict[str, Schema]] = {
    "Trueboard-Epoch": {"schema": _TEXT, "description": "The history that what is shown belongs to."},
    "Trueboard-Revision": {"schema": _COUNT, "description": "The revision that what is shown holds at."},
    "Trueboard-Action": {"schema": _ACTION, "description": "The action id."},
    "Location": {"schema": _TEXT, "description": "Where the action's receipt is."},
    "Preference-Applied": {"schema": _TEXT, "description": "The wait that was kept to."},
    "ETag": {"schema": _TEXT, "description": "Epoch and revision."},
    "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."},
    "WWW-Authenticate": {"schema": _TEXT, "description": "Bearer."},
    "RateLimit": {"schema": _TEXT, "description": "What is left of each limit, and until when."},
    "RateLimit-Policy": {"schema": _TEXT, "description": "Each limit's size and window."},
}
_LIMITS = ("RateLimit", "RateLimit-Policy")
_WROTE = ("Trueboard-Action", "Location")
_SHOWN = ("Trueboard-Epoch", "Trueboard-Revision")


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _reply(description: str, schema: Schema | None, *headers: str, content: str = _CONTENT) -> dict[str, Any]:
    reply: dict[str, Any] = {"description": description}
    if headers:
        reply["headers"] = _headers(*headers)
    if schema is not None:
        reply["content"] = {content: {"schema": schema}}
    return reply


def _errors(
    statuses: Sequence[int], schema: Schema | None = None, *, content: str = _CONTENT
) -> dict[str, dict[str, Any]]:
    """Replies of these statuses, as problems unless there is a schema."""
    kind = _PROBLEM if schema is None else content
    replies = {}
    for status in statuses:
        headers = {401: ("WWW-Authenticate",), 429: ("Retry-After", *_LIMITS), 503: ("Retry-After",)}
        replies[str(status)] = _reply(
            _MEANINGS[status], schema or _ref("Problem"), *headers.get(status, ()), content=kind
        )
    return replies


_WRITE = (400, 401, 403, 408, 409, 413, 415, 422, 429, 500, 503)
_READ = (400, 404, 429, 500, 503)


def _parameter(name: str, where: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    return {"name": name, "in": where, "required": required, "schema": schema, "description": description}


_BOARD = _parameter(
    "board",
    "path",
    {"type": "string", "pattern": f"^{words.BOARD_ID.pattern}$"},
    "A board, as main.",
    required=True,
)
_WINDOW = _parameter(
    "window",
    "query",
    {"type": "string", "pattern": f"^{words.WINDOW.pattern}$", "default": words.ALL_TIME},
    "The board's window.",
)
_AT_LEAST = _parameter(
    "at_least",
    "query",
    {"type": "string", "pattern": "^[0-9a-z]{1,64}-[0-9]{1,18}$"},
    "Epoch and revision, joined by a hyphen: wait up to 2 s until the answer shows it or a later one.",
)
_IDEMPOTENCY_KEY = _parameter(
    "Idempotency-Key", "header", _ACTION, "The action id; without it each call is a new action."
)
_BEARER: Final[list[dict[str, list[str]]]] = [{"bearer": []}]
_NONE_OR_BEARER: Final[list[dict[str, list[str]]]] = [{}, {"bearer": []}]


def _body(schema: Schema) -> dict[str, Any]:
    return {"required": True, "content": {_CONTENT: {"schema": schema}}}


def _own() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        ("/v1/actions", "post"): {
            "tags": ["actions"],
            "summary": "Submit an action",
            "description": "Confirmed by Kafka when answered. The same user, id and body again is the same "
            "action; another body under its id is refused. With Prefer: wait=s, at most 10, the verdict "
            "is waited for. Needs actions:write; scores:write for points; actions:write:any for another "
            "user_id and for username.",
            "security": _BEARER,
            "parameters": [
                _parameter(
                    "Prefer",
                    "header",
                    {"type": "string"},
                    "wait=s, to wait up to so many seconds for the verdict.",
                )
            ],
            "requestBody": _body(_ref("Action")),
            "responses": {
                "200": _reply(
                    "Judged while it was waited for.",
                    _ref("JudgedReceipt"),
                    *_WROTE,
                    *_SHOWN,
                    "Preference-Applied",
                    *_LIMITS,
                ),
                "202": _reply("Confirmed.", _ref("Receipt"), *_WROTE, *_SHOWN, *_LIMITS),
                **_errors(_WRITE),
            },
        },
        ("/v1/actions/batch", "post"): {
            "tags": ["actions"],
            "summary": "Submit several actions",
            "description": "Up to 500, answered one by one in order. A batch costs as much of the limits "
            "as its actions: of more than the limit's burst it is always 429, which tells how many may be "
            "sent at once. 503 as a whole if none was confirmed.",
            "security": _BEARER,
            "requestBody": _body(_object({"actions": _list(_ref("Action"), 1, 500)})),
            "responses": {
                "200": _reply(
                    "An answer for each.",
                    _object({"results": _list(_ref("BatchResult"), 1, 500)}),
                    *_LIMITS,
                ),
                **_errors((400, 401, 408, 413, 415, 429, 500, 503)),
            },
        },
        ("/v1/actions/{action_id}", "get"): {
            "tags": ["actions"],
            "summary": "An action's receipt",
            "description": "For as long as the ledger lives. Another user's action is as good as unknown, "
            "but for a token with actions:write:any.",
            "security": _BEARER,
            "parameters": [
                _parameter("action_id", "path", _ACTION, "The action's id.", required=True),
                _parameter("user_id", "query", _USER, "Whose action; needs actions:write:any."),
            ],
            "responses": {
                "200": _reply("What is known of it.", _ref("Receipt"), *_SHOWN, *_LIMITS),
                **_errors((401, *_READ)),
            },
        },
        ("/v1/ws-ticket", "post"): {
            "tags": ["actions"],
            "summary": "A ticket for a WebSocket",
            "description": "For callers that cannot set headers: good once, for 30 s.",
            "security": _BEARER,
            "responses": {
                "201": _reply(
                    "The ticket.",
                    _object({"ticket": _TEXT, "expires_in_s": {"type": "integer", "const": 30}}),
                    *_LIMITS,
                ),
                **_errors((401, 429, 500, 503)),
            },
        },
    }


def _boards() -> dict[tuple[str, str], dict[str, Any]]:
    shown = {"board": _TEXT, "window": _TEXT, **_POSITION, "count": _COUNT}
    return {
        ("/v1/boards/{board}/standings", "get"): {
            "tags": ["boards"],
            "summary": "A window's standings",
            "description": "In rank order, all of one revision. Later pages are answered as of the first "
            "one's revision for five minutes or 20,000 changes, then 410. Public boards need no token.",
            "security": _NONE_OR_BEARER,
            "parameters": [
                _BOARD,
                _WINDOW,
                _parameter(
                    "limit",
                    "query",
                    {"type": "integer", "minimum": 1, "maximum": 1000, "default": 10},
                    "Entries in a page.",
                ),
                _parameter("after", "query", _TEXT, "The `next` of the page before."),
                _AT_LEAST,
                _parameter("If-None-Match", "header", _TEXT, "An ETag; 304 if it still holds."),
            ],
            "responses": {
                "200": _reply(
                    "A page.",
                    _object({**shown, "entries": _list(_ref("Entry"), 0, 1000), "next": _nullable(_TEXT)}),
                    *_SHOWN,
                    "ETag",
                    *_LIMITS,
                ),
                "304": _reply("Nothing has changed.", None, *_SHOWN, "ETag", *_LIMITS),
                **_errors((400, 401, 403, 404, 410, 429, 500, 503)),
            },
        },
        ("/v1/boards/{board}/players/{user}", "get"): {
            "tags": ["boards"],
            "summary": "A player's place in a window",
            "description": "404 without an entry. Public boards need no token.",
            "security": _NONE_OR_BEARER,
            "parameters": [
                _BOARD,
                _parameter("user", "path", _USER, "The user's id.", required=True),
                _WINDOW,
                _AT_LEAST,
            ],
            "responses": {
                "200": _reply("The entry.", _object({**shown, "entry": _ref("Entry")}), *_SHOWN, *_LIMITS),
                **_errors((400, 401, 403, 404, 429, 500, 503)),
            },
        },
    }


def _update(
    tag: str,
    summary: str,
    body: Schema,
    replies: dict[str, Any],
    errors: Schema | None,
    *,
    token_in_body: bool,
) -> dict[str, Any]:
    call: dict[str, Any] = {
        "tags": [tag],
        "summary": summary,
        "description": "The reply waits for the verdict up to 2 s after Kafka's confirmation; without one "
        "by then, and for an action that is held, it is 202. 422 also for an action that was rejected.",
        "security": [] if token_in_body else _BEARER,
        "requestBody": _body(body),
        "responses": {**replies, **_errors(_WRITE, errors)},
    }
    if token_in_body:
        call["description"] += " The token is in the body; points need the scope scores:write."
        call["parameters"] = [_IDEMPOTENCY_KEY]
    return call


def _contracts() -> dict[tuple[str, str], dict[str, Any]]:
    score = _object({"user_id": _USER, "score": _INT64})
    top_score = _object({"userId": _USER, "score": _INT64})
    s3 = _object({"user_id": _USER, "score_delta": _INT64, "auth_token": _TOKEN})
    s4 = _object({"actionId": _TEXT, "timestamp": _INSTANT})
    both = _update(
        "scores",
        "Update a score, by either of two bodies",
        {"oneOf": [s3, s4]},
        {
            "200": _reply(
                "The new score; by the body with actionId also the rank.",
                {
                    "oneOf": [
                        _object({"user_id": _USER, "new_score": _INT64}),
                        _object({"success": {"const": True}, "newScore": _INT64, "rank": _COUNT}),
                    ]
                },
                *_WROTE,
                *_SHOWN,
                *_LIMITS,
            ),
            "202": _reply(
                "Taken.",
                {"oneOf": [_object({}), _object({"success": {"const": True}})]},
                *_WROTE,
                *_LIMITS,
            ),
        },
        None,
        token_in_body=True,
    )
    both["security"] = _NONE_OR_BEARER
    both["description"] = (
        "With user_id, score_delta and auth_token, the token in the body; or with actionId and timestamp "
        "and a Bearer token. Errors are problems by the first, and have the members success, message and "
        "code by the second; both or neither is a problem. " + both["description"]
    )
    for status in _WRITE:
        both["responses"][str(status)]["content"][_CONTENT] = {"schema": _ref("S2S4Failure")}
    return {
        ("/api/v0/scores/update", "post"): _update(
            "scores",
            "Update a score; status and score in the answer",
            _object({"user_id": _USER, "score_delta": _INT64, "authorization_token": _TOKEN}),
            {
                "200": _reply(
                    "Updated.",
                    _object({"status": {"const": "success"}, "updated_score": _INT64}),
                    *_WROTE,
                    *_SHOWN,
                    *_LIMITS,
                ),
                "202": _reply("Taken.", _object({"status": {"const": "pending"}}), *_WROTE, *_LIMITS),
            },
            _ref("S0Failure"),
            token_in_body=True,
        ),
        ("/update-score", "post"): {
            "tags": ["scores"],
            "summary": "Update a score by an action the server knows the worth of",
            "description": "actionId is type:instance, the whole then being the action id, or a type alone "
            "for a new action. Answered with a receipt when Kafka has confirmed it.",
            "security": _BEARER,
            "requestBody": _body(_object({"userId": _USER, "actionId": _TEXT})),
            "responses": {
                "202": _reply("Confirmed.", _ref("Receipt"), *_WROTE, *_SHOWN, *_LIMITS),
                **_errors(_WRITE),
            },
        },
        ("/api/v1/scores/update", "post"): _update(
            "scores",
            "Update a score; the top 10 in the answer",
            _object({"userId": _USER, "scoreIncrement": _INT64, "authToken": _TOKEN}),
            {
                "200": _reply(
                    "Updated.",
                    _object(
                        {
                            "success": {"const": True},
                            "message": _TEXT,
                            "topScores": _list(top_score, 0, 10),
                        }
                    ),
                    *_WROTE,
                    *_SHOWN,
                    *_LIMITS,
                ),
                "202": _reply(
                    "Taken.", _object({"success": {"const": True}, "message": _TEXT}), *_WROTE, *_LIMITS
                ),
            },
            _ref("S2S4Failure"),
            token_in_body=True,
        ),
        ("/api/scores/update", "post"): both,
        ("/api/scores/top10", "get"): {
            "tags": ["scores"],
            "summary": "The top 10",
            "description": "Public.",
            "security": [],
            "responses": {
                "200": _reply("The top 10.", _object({"scores": _list(score, 0, 10)}), *_SHOWN, *_LIMITS),
                **_errors((429, 500, 503)),
            },
        },
        ("/api/leaderboard", "get"): {
            "tags": ["scores"],
            "summary": "The top 10, with names and ranks",
            "description": f"Needs {scopes.BOARDS_READ}.",
            "security": _BEARER,
            "responses": {
                "200": _reply(
                    "The top 10.",
                    _object(
                        {
                            "leaderboard": _list(
                                _object(
                                    {"userId": _USER, "username": _USERNAME, "score": _INT64, "rank": _COUNT}
                                ),
                                0,
                                10,
                            )
                        }
                    ),
                    *_SHOWN,
                    *_LIMITS,
                ),
                **_errors((401, 403, 429, 500, 503), _ref("S2S4Failure")),
            },
        },
    }


def _documents() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        ("/openapi.json", "get"): {
            "tags": ["about"],
            "summary": "This description",
            "security": [],
            "responses": {"200": _reply("OpenAPI 3.1.", {"type": "object"}), **_errors((500,))},
        },
        ("/docs", "get"): {
            "tags": ["about"],
            "summary": "This description as a page",
            "security": [],
            "responses": {"200": _reply("A page.", _TEXT, content="text/html"), **_errors((500,))},
        },
        ("/.well-known/jwks.json", "get"): {
            "tags": ["about"],
            "summary": "The public keys that tokens are checked with",
            "security": [],
            "responses": {
                "200": _reply(
                    "A JSON Web Key Set.",
                    {
                        "type": "object",
                        "required": ["keys"],
                        "properties": {"keys": _list({"type": "object"})},
                    },
                    content="application/jwk-set+json",
                ),
                **_errors((500, 503)),
            },
        },
    }


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The document of these routes. Raises KeyError for one that is not described."""
    calls = {**_own(), **_boards(), **_contracts(), **_documents()}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for method in route.endpoints:
            call = calls[route.template, method.lower()]
            call["operationId"] = _operation_id(method, route.template)
            paths.setdefault(route.template, {})[method.lower()] = call
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trueboard",
            "version": "1",
            "description": "A live leaderboard: actions go in, and standings come out at a named revision. "
            "Errors are problems (RFC 9457) unless a call says otherwise; a path answers 405 with Allow to a "
            "method it does not have, 400 to a request without exactly one Host, 414 to a path of more than "
            "8 KiB, and 431 to more than 64 headers or 8 KiB of them.",
        },
        "tags": [
            {"name": "actions", "description": "What users did."},
            {"name": "boards", "description": "Standings."},
            {"name": "scores", "description": "The same board by the calls of its other clients."},
            {"name": "about", "description": "About this service."},
        ],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "headers": _HEADERS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation_id(method: str, template: str) -> str:
    parts = [part.strip("{}.").replace("-", "_") for part in template.split("/") if part]
    return "_".join([method.lower(), *parts]).replace(".", "_")
