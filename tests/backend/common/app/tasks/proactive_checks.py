# SPDX-License-Identifier: MIT
"""Hints that PAM sends without being asked; runs in a worker, where there are no sockets."""

from __future__ import annotations

import json

from app.core.websocket_manager import manager


async def notify(user_id: str, text: str) -> None:
    await manager.send_message_to_user(json.dumps({"type": "proactive", "message": text}), user_id)
