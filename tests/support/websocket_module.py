# SPDX-License-Identifier: GPL-3.0-or-later
"""The patched WebSocket files inside the test's own process: they need nothing but the standard library."""

from __future__ import annotations

import asyncio
import importlib
import sys
import typing as t

from tests.support.backend_env import PATCHES


class Modules(t.NamedTuple):
    """The manager, and the package around it."""

    manager: t.Any
    session: t.Any
    addresses: t.Any
    guard: t.Any
    poll: t.Any


def load(*names: str) -> t.List[t.Any]:
    """Fresh copies of modules of the backend, imported as the backend does; ``app`` is as before afterwards."""
    others = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "app"}
    for name in others:
        del sys.modules[name]
    sys.path.insert(0, str(PATCHES.parent))
    importlib.invalidate_caches()
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(PATCHES.parent))
        for name in [name for name in sys.modules if name.partition(".")[0] == "app"]:
            del sys.modules[name]
        sys.modules.update(others)


def load_manager() -> t.Any:
    """The manager by itself, as where nothing else was copied."""
    return load("app.core.websocket_manager")[0]


def load_all() -> Modules:
    package = "app.wheels_ops.websocket"
    rooms = [f"{package}.{name}" for name in ("session", "addresses", "guard", "poll")]
    return Modules(*load("app.core.websocket_manager", *rooms))


class Clock:
    """A monotonic clock that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Peer:
    """The server's side of one socket, as an ASGI ``send`` and ``receive``; while it is ``stuck`` every write waits."""

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
