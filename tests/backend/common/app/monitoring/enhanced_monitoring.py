# SPDX-License-Identifier: MIT
"""Figures for the dashboards."""

from __future__ import annotations

import typing as t


class EnhancedMonitoring:
    async def websocket_connections(self) -> int:
        try:
            from app.core.websocket_manager import websocket_manager

            return len(websocket_manager.active_connections)
        except ImportError:
            return 0

    async def snapshot(self) -> t.Dict[str, t.Any]:
        return {"websocket_connections": await self.websocket_connections()}


enhanced_monitoring = EnhancedMonitoring()
