# SPDX-License-Identifier: GPL-3.0-or-later
"""The patched WebSocket manager inside the test's own process: it needs nothing but the standard library."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import typing as t

from tests.support.backend_env import PATCHES


def load(name: str = "websocket_manager_under_test") -> t.Any:
    """A fresh copy of the module."""
    spec = importlib.util.spec_from_file_location(name, PATCHES / "core" / "websocket_manager.py")
    assert spec is not None and spec.loader is not None
    module: t.Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    module.logger = logging.getLogger(name)
    return module


class Clock:
    """A monotonic clock that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Peer:
    """The server's side of one socket, as an ASGI ``send`` and ``receive``; ``stuck`` makes every write wait for ever."""

    def __init__(self, query: str = "") -> None:
        self.sent: t.List[t.Dict[str, t.Any]] = []
        self.frames: asyncio.Queue[t.Dict[str, t.Any]] = asyncio.Queue()
        self.scope = {"type": "websocket", "query_string": query.encode(), "headers": [], "path": "/"}
        self.stuck = False
        self.aborted = False
        self.transport = self
        self._free = asyncio.Event()

    def abort(self) -> None:
        self.aborted = True
        self.stuck = False
        self._free.set()

    def release(self) -> None:
        self.stuck = False
        self._free.set()

    async def asgi_send(self, message: t.Dict[str, t.Any]) -> None:
        while self.stuck:
            await self._free.wait()
            if self.aborted:
                raise OSError("aborted")
        self.sent.append(message)

    async def asgi_receive(self) -> t.Dict[str, t.Any]:
        return await self.frames.get()

    def says(self, text: str) -> None:
        self.frames.put_nowait({"type": "websocket.receive", "text": text})

    def leaves(self) -> None:
        self.frames.put_nowait({"type": "websocket.disconnect", "code": 1001})

    def texts(self) -> t.List[str]:
        return [message["text"] for message in self.sent if message["type"] == "websocket.send"]

    @property
    def closed(self) -> t.Optional[int]:
        return next((int(message["code"]) for message in self.sent if message["type"] == "websocket.close"), None)


class Socket:
    """What the endpoint holds: the parts of Starlette's ``WebSocket`` that the manager interposes on."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.scope = peer.scope
        self._send, self._receive = peer.asgi_send, peer.asgi_receive

    async def send_text(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    async def receive(self) -> t.Dict[str, t.Any]:
        return await self._receive()

    async def close(self, code: int = 1000) -> None:
        await self._send({"type": "websocket.close", "code": code})
