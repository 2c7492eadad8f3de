"""Follows one channel with centrifuge-python and says what happens, as `official.mjs` does in JavaScript.

python official_python.py <options as JSON>; ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import centrifuge


def say(is_: str, **rest: Any) -> None:
    print(json.dumps({"is": is_} | rest), flush=True)


class Client(centrifuge.ClientEventHandler):
    async def on_connected(self, ctx: Any) -> None:
        say("connected")

    async def on_connecting(self, ctx: Any) -> None:
        if ctx.code:
            say("connecting", code=ctx.code)

    async def on_disconnected(self, ctx: Any) -> None:
        say("disconnected", code=ctx.code)


class Subscription(centrifuge.SubscriptionEventHandler):
    async def on_subscribed(self, ctx: Any) -> None:
        at = [ctx.stream_position.epoch, ctx.stream_position.offset]
        say("subscribed", at=at, data=ctx.data, recovered=ctx.recovered, wasRecovering=ctx.was_recovering)

    async def on_unsubscribed(self, ctx: Any) -> None:
        say("unsubscribed", code=ctx.code)

    async def on_publication(self, ctx: Any) -> None:
        say("publication", data=ctx.pub.data, offset=ctx.pub.offset)


async def follow(options: dict[str, Any]) -> None:
    tokens: list[str] = options["tokens"] or []

    async def another() -> str:
        return tokens.pop(0)

    client = centrifuge.Client(
        options["url"],
        events=Client(),
        token=options["token"],
        get_token=another if tokens else None,
        min_reconnect_delay=0.05,
        max_reconnect_delay=0.2,
        max_server_ping_delay=1.0,
    )
    subscription = client.new_subscription(
        options["channel"],
        events=Subscription(),
        delta=centrifuge.DeltaType(options["delta"]) if "delta" in options else None,
        min_resubscribe_delay=0.05,
        max_resubscribe_delay=0.2,
    )
    await client.connect()
    await subscription.subscribe()
    await asyncio.to_thread(sys.stdin.read)
    await client.disconnect()


if __name__ == "__main__":
    asyncio.run(follow(json.loads(sys.argv[1])))
