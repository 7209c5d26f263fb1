# SPDX-License-Identifier: MIT
"""The older socket endpoint; no release mounts it."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from app.core.websocket_manager import manager

router = APIRouter()


@router.websocket("/ws/{user_id}")
async def socket(websocket: WebSocket, user_id: str) -> None:
    await websocket.accept()
    connection_id = str(uuid.uuid4())
    await manager.connect(websocket, user_id, connection_id)
    try:
        while True:
            await manager.send_personal_message({"type": "echo", "message": await websocket.receive_text()}, websocket)
    except WebSocketDisconnect:
        manager.disconnect(user_id, connection_id)
