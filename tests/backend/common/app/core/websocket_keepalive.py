# SPDX-License-Identifier: MIT
"""A second heartbeat beside that of ``websocket_manager``: pings each socket every 25 seconds."""

from __future__ import annotations

import asyncio
import typing as t

from app.core.logging import get_logger

logger = get_logger(__name__)

PING_INTERVAL = 25


class WebSocketKeepalive:
    def __init__(self) -> None:
        self._tasks: t.Dict[str, asyncio.Task[None]] = {}

    def start(self, connection_id: str, websocket: t.Any) -> None:
        self._tasks[connection_id] = asyncio.create_task(self._loop(connection_id, websocket))

    def stop(self, connection_id: str) -> None:
        task = self._tasks.pop(connection_id, None)
        if task:
            task.cancel()

    async def _loop(self, connection_id: str, websocket: t.Any) -> None:
        try:
            from fastapi import WebSocketState  # type: ignore[attr-defined]  # as the release has it: the name is in starlette.websockets

            while websocket.client_state == WebSocketState.CONNECTED:
                await websocket.send_json({"type": "ping"})
                await asyncio.sleep(PING_INTERVAL)
        except Exception as error:
            logger.warning("Keepalive ended", connection_id=connection_id, error=str(error))


websocket_keepalive = WebSocketKeepalive()
