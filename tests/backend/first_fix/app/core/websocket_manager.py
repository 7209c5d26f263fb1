# SPDX-License-Identifier: MIT
"""Open sockets: by connection and by user, with a heartbeat."""

from __future__ import annotations

import asyncio
import json
import time
import typing as t

from fastapi import WebSocket
from starlette.websockets import WebSocketState

from app.core.logging import get_logger

logger = get_logger(__name__)

Message = t.Union[str, t.Dict[str, t.Any], t.List[t.Any]]


class ConnectionManager:
    def __init__(self) -> None:
        self.active_connections: t.Dict[str, WebSocket] = {}
        self.user_connections: t.Dict[str, t.Dict[str, WebSocket]] = {}
        self.connection_metadata: t.Dict[str, t.Dict[str, t.Any]] = {}
        self.heartbeat_interval = 20
        self.connection_timeout = 60
        self.max_missed_pings = 3
        self.heartbeat_task: t.Optional[asyncio.Task[None]] = None

    async def connect(self, websocket: WebSocket, user_id: str, connection_id: str) -> None:
        now = time.time()
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
        if self.heartbeat_task is None or self.heartbeat_task.done():
            self.heartbeat_task = asyncio.create_task(self._heartbeat())

    def disconnect(self, user_id: str, connection_id: str) -> None:
        self.active_connections.pop(connection_id, None)
        self.connection_metadata.pop(connection_id, None)
        connections = self.user_connections.get(user_id)
        if connections is not None:
            connections.pop(connection_id, None)
            if not connections:
                del self.user_connections[user_id]
        if not self.active_connections and self.heartbeat_task and not self.heartbeat_task.done():
            self.heartbeat_task.cancel()

    async def send_personal_message(self, message: Message, websocket: t.Any) -> bool:
        try:
            if websocket.client_state != WebSocketState.CONNECTED:
                return False
            await websocket.send_text(message if isinstance(message, str) else json.dumps(message, default=str))
            return True
        except Exception as error:
            logger.warning("Message not sent", error=str(error))
            return False

    async def send_message_to_user(self, message: Message, user_id: str) -> None:
        for websocket in list(self.user_connections.get(user_id, {}).values()):
            await self.send_personal_message(message, websocket)

    async def broadcast(self, message: Message) -> None:
        for websocket in list(self.active_connections.values()):
            await self.send_personal_message(message, websocket)

    async def handle_pong(self, connection_id: str, pong_data: t.Optional[t.Dict[str, t.Any]] = None) -> None:
        found = self.connection_metadata.get(connection_id)
        if found is None:
            return
        now = time.time()
        found.update(last_pong=now, missed_pings=0, total_pongs_received=found["total_pongs_received"] + 1)
        if pong_data and "timestamp" in pong_data:
            found["last_latency_ms"] = (now - pong_data["timestamp"]) * 1000

    async def get_connection_stats(self) -> t.Dict[str, t.Any]:
        now = time.time()
        return {
            "total_connections": len(self.active_connections),
            "unique_users": len(self.user_connections),
            "connections_by_user": {user: len(connections) for user, connections in self.user_connections.items()},
            "connection_details": [
                {
                    "connection_id": connection_id,
                    "user_id": found["user_id"],
                    "age_seconds": now - found["connected_at"],
                    "time_since_ping": now - found["last_ping"],
                    "time_since_pong": now - found["last_pong"],
                    **{
                        name: found[name]
                        for name in (
                            "is_alive",
                            "missed_pings",
                            "total_pings_sent",
                            "total_pongs_received",
                            "last_latency_ms",
                        )
                    },
                }
                for connection_id, found in self.connection_metadata.items()
            ],
        }

    async def _heartbeat(self) -> None:
        try:
            while self.active_connections:
                await asyncio.sleep(self.heartbeat_interval)
                await self._round()
        except Exception as error:
            logger.error("Heartbeat ended", error=str(error))

    async def _round(self) -> None:
        now = time.time()
        dead = []
        for connection_id, websocket in list(self.active_connections.items()):
            found = self.connection_metadata[connection_id]
            if now - found["last_pong"] > self.connection_timeout:
                found["missed_pings"] += 1
                if found["missed_pings"] >= self.max_missed_pings:
                    dead.append((found["user_id"], connection_id))
                    continue
            ping = {"type": "ping", "timestamp": time.time(), "connection_id": connection_id}
            try:
                await asyncio.wait_for(websocket.send_text(json.dumps(ping)), timeout=5)
                found.update(last_ping=time.time(), total_pings_sent=found["total_pings_sent"] + 1)
            except Exception as error:
                logger.warning("Ping not sent", connection_id=connection_id, error=str(error))
        for user_id, connection_id in dead:
            logger.warning("No pong, connection dropped", user_id=user_id, connection_id=connection_id)
            self.disconnect(user_id, connection_id)


manager = ConnectionManager()
