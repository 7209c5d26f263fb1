# SPDX-License-Identifier: GPL-3.0-or-later
"""``websockets``' own server and its ``broadcast``, told by lines on standard input: a number of bytes to broadcast.

Run by the backend's interpreter. First writes its port, then a line after each broadcast.
"""

from __future__ import annotations

import asyncio
import json
import sys
import typing as t

from websockets.asyncio.server import broadcast, serve

CONNECTIONS: t.Set[t.Any] = set()


async def handler(websocket: t.Any) -> None:
    CONNECTIONS.add(websocket)
    try:
        await websocket.wait_closed()
    finally:
        CONNECTIONS.discard(websocket)


async def main() -> None:
    async with serve(handler, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=4096) as server:
        sys.stdout.write(f"{next(iter(server.sockets)).getsockname()[1]}\n")
        sys.stdout.flush()
        loop = asyncio.get_running_loop()
        number = 0
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            broadcast(CONNECTIONS, json.dumps({"type": "news", "number": number, "fill": "x" * int(line)}))
            number += 1
            sys.stdout.write("sent\n")
            sys.stdout.flush()


asyncio.run(main())
