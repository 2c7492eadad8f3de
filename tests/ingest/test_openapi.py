"""The description is valid, whole, and of these routes and no others."""

from __future__ import annotations

from openapi_spec_validator import validate

from core.scopes import ALL
from ingest.settings import Settings
from tests.ingest.world import World

INTERFACE = {
    ("post", "/v1/actions"),
    ("post", "/v1/actions/batch"),
    ("get", "/v1/actions/{action_id}"),
    ("get", "/v1/boards/{board}/standings"),
    ("get", "/v1/boards/{board}/players/{user}"),
    ("post", "/v1/ws-ticket"),
    ("post", "/api/v0/scores/update"),
    ("post", "/update-score"),
    ("post", "/api/v1/scores/update"),
    ("post", "/api/scores/update"),
    ("get", "/api/scores/top10"),
    ("get", "/api/leaderboard"),
    ("get", "/openapi.json"),
    ("get", "/docs"),
    ("get", "/.well-known/jwks.json"),
}


async def test_the_description_is_openapi_3_1(world: World) -> None:
    document = (await world.client.get("/openapi.json")).json()
    validate(document)

    assert document["openapi"].startswith("3.1")


async def test_what_is_described_is_the_interface(world: World) -> None:
    document = (await world.client.get("/openapi.json")).json()
    described = {(method, path) for path, item in document["paths"].items() for method in item}

    assert described == INTERFACE


async def test_what_is_described_is_served_with_these_methods_only(world: World) -> None:
    methods = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    document = (await world.client.get("/openapi.json")).json()
    for template, item in document["paths"].items():
        path = template.replace("{board}", "main").replace("{user}", "u").replace("{action_id}", "a")
        for method in methods:
            reply = await world.client.request(method, path)
            allowed = {name.upper() for name in item} | ({"HEAD"} if "get" in item else set())

            assert (reply.status_code == 405) == (method.lower() not in item), (method, path)
            if reply.status_code == 405:
                assert set(reply.headers["allow"].split(", ")) == allowed


async def test_every_operation_has_an_id_of_its_own(world: World) -> None:
    document = (await world.client.get("/openapi.json")).json()
    ids = [call["operationId"] for item in document["paths"].values() for call in item.values()]

    assert len(ids) == len(set(ids))


async def test_scopes_are_named_by_their_names(world: World) -> None:
    text = (await world.client.get("/openapi.json")).text
    for scope in ("actions:write", "scores:write", "actions:write:any", "boards:read"):
        assert scope in ALL
        assert scope in text


async def test_the_page_loads_nothing_from_elsewhere(world: World) -> None:
    reply = await world.client.get("/docs")
    policy = reply.headers["content-security-policy"]

    assert "http:" not in reply.text
    assert "https:" not in reply.text
    assert "src=" not in reply.text
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


async def test_in_production_there_is_no_page() -> None:
    world = World(Settings(kafka="-", redis_url="-", postgres_url="-", jwks="-", production=True))
    page = await world.client.get("/docs")
    document = (await world.client.get("/openapi.json")).json()

    assert page.status_code == 404
    assert "/docs" not in document["paths"]
