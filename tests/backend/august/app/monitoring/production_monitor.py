# SPDX-License-Identifier: MIT
"""Watches the running application."""

from __future__ import annotations

import asyncio
import time
import typing as t
from collections import deque

import psutil

from app.core.logging import get_logger

logger = get_logger(__name__)


class ProductionMonitor:
    def __init__(self) -> None:
        self.interval = 30
        self.is_running = False
        self.started_at = time.time()
        self.errors: t.Deque[t.Dict[str, t.Any]] = deque(maxlen=100)
        self.alerts: t.Deque[t.Dict[str, t.Any]] = deque(maxlen=100)
        self._task: t.Optional[asyncio.Task[None]] = None

    async def start_monitoring(self) -> None:
        if self.is_running:
            return
        self.is_running = True
        self._task = asyncio.create_task(self._loop())

    async def stop_monitoring(self) -> None:
        self.is_running = False
        if self._task:
            self._task.cancel()

    async def _loop(self) -> None:
        while self.is_running:
            await asyncio.sleep(self.interval)
            try:
                metrics = await self.get_metrics()
                percent = metrics["memory_percent"]
                if percent > 75:
                    self.alerts.append({"metric": "memory_percent", "value": percent, "timestamp": time.time()})
                    logger.warning("High memory usage", percent=percent)
            except Exception as error:
                logger.error("Monitoring failed", error=str(error))

    def record_error(self, path: str, error: str) -> None:
        self.errors.append({"path": path, "error": error, "timestamp": time.time()})

    async def get_metrics(self) -> t.Dict[str, t.Any]:
        return {
            "uptime_seconds": time.time() - self.started_at,
            "cpu_percent": psutil.cpu_percent(interval=1),
            "memory_percent": psutil.virtual_memory().percent,
            "error_count": len(self.errors),
            "alert_count": len(self.alerts),
        }


production_monitor = ProductionMonitor()
