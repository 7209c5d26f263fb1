# SPDX-License-Identifier: MIT
"""What PAM knows of a socket's page."""

from __future__ import annotations

import typing as t

from app.core.websocket_manager import manager


async def remember(connection_id: str, context: t.Dict[str, t.Any]) -> None:
    await manager.update_connection_context(connection_id, context)


def recall(connection_id: str) -> t.Optional[t.Dict[str, t.Any]]:
    return manager.get_connection_context(connection_id)
