# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection manager as one writes it first: one loop over all sockets, each awaited in turn.

It has the properties, and the defects, that the backend's callers know of the file it stands for: a serial heartbeat
that gives each socket five seconds, missed pings counted only after the timeout, a serial broadcast without any bound,
sockets that are dropped from the books but never closed, no latency.
"""

from __future__ import annotations

import asyncio
import time
import typing as t


class ConnectionManager:
    def __init__(self, interval: float = 20, timeout: float = 120, missed: int = 5) -> None:
        self.heartbeat_interval, self.connection_timeout, self.max_missed_pings = interval, timeout, missed
        self.active_connections: t.Dict[str, t.Any] = {}
        self.user_connections: t.Dict[str, t.Dict[str, t.Any]] = {}
        self.connection_metadata: t.Dict[str, t.Dict[str, t.Any]] = {}
        self.clock: t.Callable[[], float] = time.time
        self.task: t.Optional[asyncio.Task[None]] = None

    async def connect(self, websocket: t.Any, user_id: str, connection_id: str) -> None:
        now = self.clock()
        self.active_connections[connection_id] = websocket
        self.user_connections.setdefault(user_id, {})[connection_id] = websocket
        self.connection_metadata[connection_id] = {
            "user_id": user_id,
            "connected_at": now,
            "last_ping": now,
            "last_pong": now,
            "is_alive": True,
            "missed_pings": 0,
            "total_pings_sent": 0,
            "total_pongs_received": 0,
            "last_latency_ms": 0,
            "context": {},
        }
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self.heartbeat())

    def disconnect(self, user_id: str, connection_id: str) -> None:
        self.active_connections.pop(connection_id, None)
        self.connection_metadata.pop(connection_id, None)
        self.user_connections.get(user_id, {}).pop(connection_id, None)

    async def send_personal_message(self, message: t.Any, websocket: t.Any) -> bool:
        try:
            if isinstance(message, str):
                await websocket.send_text(message)
            else:
                await websocket.send_json(message)
            return True
        except Exception:
            return False

    async def send_message_to_user(self, message: t.Any, user_id: str) -> None:
        for websocket in list(self.user_connections.get(user_id, {}).values()):
            await self.send_personal_message(message, websocket)

    async def broadcast(self, message: t.Any) -> None:
        for websocket in list(self.active_connections.values()):
            await self.send_personal_message(message, websocket)

    async def handle_pong(self, connection_id: str, pong_data: t.Optional[t.Dict[str, t.Any]] = None) -> None:
        metadata = self.connection_metadata.get(connection_id)
        if metadata:
            metadata["last_pong"] = self.clock()
            metadata["missed_pings"] = 0
            metadata["total_pongs_received"] += 1

    async def get_connection_stats(self) -> t.Dict[str, t.Any]:
        return {"total_connections": len(self.active_connections)}

    async def heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_interval)
            await self.round()

    async def round(self) -> None:
        dead = []
        for connection_id, metadata in list(self.connection_metadata.items()):
            now = self.clock()
            if now - metadata["last_pong"] > self.connection_timeout:
                metadata["missed_pings"] += 1
                if metadata["missed_pings"] >= self.max_missed_pings:
                    dead.append((metadata["user_id"], connection_id))
                    continue
            websocket = self.active_connections.get(connection_id)
            if websocket is None:
                continue
            try:
                await asyncio.wait_for(
                    websocket.send_json({"type": "ping", "timestamp": now, "connection_id": connection_id}), 5
                )
                metadata["last_ping"] = now
                metadata["total_pings_sent"] += 1
            except Exception:
                dead.append((metadata["user_id"], connection_id))
        for user_id, connection_id in dead:
            self.disconnect(user_id, connection_id)


manager = ConnectionManager()
