"""How the page is served: kept for ever under its version, asked for anew at its address, closed."""

from __future__ import annotations

import gzip
import re

import httpx
import pytest

from ingest.page import websocket_origin
from ingest.settings import Settings
from tests.ingest.world import World


def world_with(**settings: object) -> World:
    return World(Settings(kafka="-", redis_url="-", postgres_url="-", jwks="-", **settings))  # type: ignore[arg-type]


def client_of(world: World) -> httpx.AsyncClient:
    """A client of its own: the page is no part of the description."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(world.app), base_url="http://test")


async def test_the_document_may_load_only_what_lies_beside_it_and_speak_to_the_feed() -> None:
    reply = await client_of(world_with(feed_url="https://feed.example:8443/base")).get("/")
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))

    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert policy["default-src"] == "'self'"
    assert policy["connect-src"] == "'self' wss://feed.example:8443"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-cache"


async def test_a_document_that_is_known_is_not_sent_again() -> None:
    client = client_of(World())
    first = await client.get("/")

    again = await client.get("/", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    other = await client.get("/", headers={"If-None-Match": '"other"'})

    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert other.status_code == 200


async def test_another_policy_is_another_document() -> None:
    tags = [
        (await client_of(world_with(feed_url=url)).get("/")).headers["etag"] for url in (None, "http://feed")
    ]

    assert tags[0] != tags[1]


async def test_every_file_the_document_names_is_there_and_kept_for_ever() -> None:
    client = client_of(World())
    document = (await client.get("/")).text
    addresses = set(re.findall(r'(?:href|src)="(/web/[^"#]+)', document))

    assert len(addresses) > 8
    for address in addresses:
        reply = await client.get(address)
        assert reply.status_code == 200, address
        assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-type"].split(";")[0] in (
            "text/javascript",
            "text/css",
            "image/svg+xml",
            "font/woff2",
        )


@pytest.mark.parametrize(
    "name",
    [
        "__init__.py",
        "package.json",
        "index.html",
        "vendor/README.md",
        "vendor/SHA256SUMS",
        "vendor/none.js",
        "..%2Fapp.py",
    ],
)
async def test_what_is_no_part_of_the_page_is_not_served(name: str) -> None:
    client = client_of(World())
    version = re.search(r"/web/([0-9a-f]+)/", (await client.get("/")).text)
    assert version

    assert (await client.get(f"/web/{version[1]}/{name}")).status_code == 404


async def test_a_file_of_another_version_is_not_there() -> None:
    client = client_of(World())

    assert (await client.get("/web/0123456789abcdef/app.js")).status_code == 404


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip, br", True), ("br;q=1, gzip;q=0.5", True), ("gzip;q=0", False), ("identity", False), ("", False)],
)
async def test_text_is_sent_packed_to_who_takes_it(accepted: str, packed: bool) -> None:
    client = client_of(World())
    address = re.search(r'src="(/web/[^"]+/app.js)"', (await client.get("/")).text)
    assert address
    plain = (await client.get(address[1], headers={"Accept-Encoding": "identity"})).content

    async with client.stream("GET", address[1], headers={"Accept-Encoding": accepted}) as reply:
        body = b"".join([part async for part in reply.aiter_raw()])

    assert (reply.headers.get("content-encoding") == "gzip") is packed
    assert reply.headers["vary"] == "accept-encoding"
    assert (gzip.decompress(body) if packed else body) == plain


async def test_it_says_where_the_feed_is_and_what_can_be_sent() -> None:
    reply = await client_of(world_with(feed_url="http://feed.example:8081")).get("/page.json")

    assert reply.headers["cache-control"] == "no-cache"
    assert reply.json() == {
        "feed": "http://feed.example:8081",
        "types": [
            {"type": "level_complete", "points": 10},
            {"type": "commit", "points": 1},
            {"type": "client_points", "min": 1, "max": 1000},
        ],
    }


async def test_without_an_address_of_the_feed_it_is_where_the_page_is() -> None:
    client = client_of(World())

    assert (await client.get("/page.json")).json()["feed"] is None
    assert "connect-src 'self';" in (await client.get("/")).headers["content-security-policy"]


@pytest.mark.parametrize(
    ("production", "page", "served"),
    [(False, None, True), (True, None, False), (True, True, True), (False, False, False)],
)
async def test_in_production_it_is_served_only_where_that_is_said(
    production: bool, page: bool | None, served: bool
) -> None:
    client = client_of(world_with(production=production, page=page))

    for path in ("/", "/page.json"):
        assert (await client.get(path)).status_code == (200 if served else 404)


async def test_other_methods_are_refused_and_nobody_is_limited_for_reading() -> None:
    world = World()
    client = client_of(world)

    assert (await client.post("/")).status_code == 405
    assert (await client.head("/")).status_code == 200
    assert world.limits.taken == []


@pytest.mark.parametrize(
    "url", ["feed.example", "ftp://feed", "http://", "https://a b", "http://x; script-src *"]
)
def test_an_address_that_is_none_keeps_the_service_from_starting(url: str) -> None:
    with pytest.raises(ValueError, match="no http"):
        websocket_origin(url)
