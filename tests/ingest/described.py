"""Holds replies against the service's own description."""

from __future__ import annotations

import re
from typing import Any

import httpx
from jsonschema import Draft202012Validator

FRAMING = {405, 414, 431}
"""Said once for all paths, in the description's text."""


class Description:
    """The OpenAPI document, asked about replies."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._paths = [
            (re.compile(re.sub(r"\{[a-z_]+\}", "[^/]+", template)), template)
            for template in sorted(document["paths"], key=lambda path: path.count("{"))
        ]

    def check(self, reply: httpx.Response) -> None:
        """Raises AssertionError for a reply that is not described."""
        request = reply.request
        template = next((each for pattern, each in self._paths if pattern.fullmatch(request.url.path)), None)
        if template is None:
            assert reply.status_code in (400, 404, 405, 414, 431), f"{request.url.path} is not described"
            return
        item = self.document["paths"][template]
        method = "get" if request.method == "HEAD" else request.method.lower()
        if method not in item:
            assert reply.status_code == 405, f"{method} {template} is not described"
            return
        if reply.status_code in FRAMING or (
            reply.status_code == 400 and reply.json().get("code") == "invalid_request"
        ):
            return
        described = item[method]["responses"].get(str(reply.status_code))
        assert described is not None, f"{method} {template} may not answer {reply.status_code}: {reply.text}"
        for name in described.get("headers", {}):
            if name in ("Retry-After", "WWW-Authenticate", "ETag") and reply.status_code != 429:
                assert name in reply.headers, f"{method} {template} {reply.status_code} lacks {name}"
        if "content" not in described:
            assert not reply.content, f"{method} {template} {reply.status_code} has a body"
            return
        kind = reply.headers["content-type"].partition(";")[0]
        assert kind in described["content"], f"{method} {template} {reply.status_code} is {kind}"
        if kind == "text/html" or request.method == "HEAD":
            return
        schema = {**described["content"][kind]["schema"], "components": self.document["components"]}
        Draft202012Validator(schema).validate(reply.json())
