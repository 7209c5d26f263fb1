# SPDX-License-Identifier: MIT
"""This release's socket: the user is in its path, and its loop goes on after whatever goes wrong.

One disconnect therefore leaves a loop that never waits: the server answers nobody any more.
"""

from __future__ import annotations

import typing as t

from fastapi import WebSocket

from app.api.v1 import pam
from app.core.logging import get_logger

logger = get_logger(__name__)


async def connection_loop(websocket: WebSocket, connection_id: str) -> None:
    conversation = pam.Conversation(websocket, connection_id)
    while True:
        try:
            if not await conversation.turn():
                return
        except Exception as error:
            logger.error("WebSocket message failed", error=str(error))
            continue


@pam.router.websocket("/ws/{user_id}")
async def socket(websocket: WebSocket, user_id: str, token: t.Optional[str] = None) -> None:
    await pam.serve(websocket, token, owner=user_id)


pam.connection_loop = connection_loop
pam.router.routes[:] = [route for route in pam.router.routes if getattr(route, "path", "") != "/pam/ws"]
