# SPDX-License-Identifier: MIT
"""An ASGI application that takes a while to start, as the backend does: ``/`` answers at once, ``/slow`` after 0.8 s,
both with the PID.
"""

from __future__ import annotations

import asyncio
import json
import os
import typing as t

START_SECONDS = float(os.environ.get("START_SECONDS", "1.5"))


async def app(
    scope: t.Dict[str, t.Any], receive: t.Callable[[], t.Any], send: t.Callable[[t.Dict[str, t.Any]], t.Any]
) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await asyncio.sleep(START_SECONDS)
                await send({"type": "lifespan.startup.complete"})
            else:
                await send({"type": "lifespan.shutdown.complete"})
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            continue
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(0.8)
    body = json.dumps({"status": "pass", "pid": os.getpid()}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        }
    )
    await send({"type": "http.response.body", "body": body})
