# SPDX-License-Identifier: GPL-3.0-or-later
"""A WebSocket client that keeps its session, and checks that each message of it comes once and in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import typing as t

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.websocket_backend import SocketBackend


class Client:
    """A client that remembers its session and what it saw of one kind of message."""

    def __init__(self, backend: SocketBackend, user: str, kind: str = "note") -> None:
        self.backend, self.user, self.kind = backend, user, kind
        self.session, self.last_seq = "", 0
        self.numbers: t.List[int] = []
        self.notices: t.List[str] = []

    def url(self) -> str:
        return self.backend.url(self.user, f"&session={self.session}&last_seq={self.last_seq}")

    def take(self, text: str) -> t.Optional[str]:
        """Processes one frame; gives an answer to send."""
        message = json.loads(text)
        if message["type"] in ("session", "resync"):
            self.notices.append(message["type"])
            if message["session"] != self.session:
                self.session, self.last_seq = message["session"], message["seq"]
        elif message["type"] == "ping":
            return json.dumps({"type": "pong", "seq": message["seq"]})
        else:
            assert message["_seq"] == self.last_seq + 1, "each message of a session has the next number"
            self.last_seq = message["_seq"]
            if message["type"] == self.kind:
                self.numbers.append(message["number"])
        return None

    def has(self, count: int) -> bool:
        """Whether so many messages came."""
        return len(self.numbers) >= count

    async def listen(self, until: t.Callable[[], bool], seconds: float) -> None:
        """Connects and listens until the condition holds or the time is over, then drops the connection at once."""
        websocket = await connect(self.url(), open_timeout=30)
        try:
            async with asyncio.timeout(seconds) if hasattr(asyncio, "timeout") else contextlib.nullcontext():
                while not until():
                    answer = self.take(t.cast(str, await websocket.recv()))
                    if answer:
                        await websocket.send(answer)
        except (TimeoutError, asyncio.TimeoutError, ConnectionClosed):
            pass
        finally:
            websocket.transport.abort()
