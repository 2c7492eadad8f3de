"""Our own calls, by the letter of the interface."""

from __future__ import annotations

from tests.ingest.world import World, bearer


async def test_an_action_is_answered_with_a_receipt(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    reply = await world.client.post(
        "/v1/actions", json={"action_id": "a1", "type": "level_complete"}, headers=bearer(token)
    )

    assert reply.status_code == 202, reply.text
    assert reply.headers["trueboard-action"] == "a1"
    print(reply.json(), reply.headers)
    print(world.delivery.sent)
