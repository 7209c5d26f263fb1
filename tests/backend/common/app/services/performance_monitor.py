# SPDX-License-Identifier: MIT
"""Collects figures every 300 seconds and tidies up. Not to be confused with ``app.core.performance_monitor``."""

from __future__ import annotations

import asyncio
import time
import typing as t
from collections import deque

import psutil

from app.core.logging import get_logger
from app.core.websocket_manager import manager
from app.services.cache_service import cache_service

logger = get_logger(__name__)


class PerformanceMonitor:
    def __init__(self) -> None:
        self.interval = 300
        self.is_running = False
        self.response_times: t.Deque[float] = deque(maxlen=1000)
        self.last_metrics: t.Dict[str, t.Any] = {}
        self._task: t.Optional[asyncio.Task[None]] = None

    async def start_monitoring(self) -> None:
        if not self.is_running:
            self.is_running = True
            self._task = asyncio.create_task(self._loop())

    async def stop_monitoring(self) -> None:
        self.is_running = False
        if self._task:
            self._task.cancel()

    def record_response_time(self, seconds: float) -> None:
        self.response_times.append(seconds)

    async def _loop(self) -> None:
        while self.is_running:
            try:
                await self.collect_metrics()
                await self.optimize()
            except Exception as error:
                logger.error("Performance monitoring failed", error=str(error))
            await asyncio.sleep(self.interval)

    async def collect_metrics(self) -> t.Dict[str, t.Any]:
        cache_mb = 0.0
        try:
            stats = await cache_service.get_stats()
            cache_mb = stats.get("memory_usage_mb", 0.0)
        except Exception as error:
            logger.error("Cache statistics failed", error=str(error))
        times = list(self.response_times)
        self.last_metrics = {
            "timestamp": time.time(),
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": psutil.virtual_memory().percent,
            "active_connections": len(manager.active_connections),
            "cache_memory_mb": cache_mb,
            "average_response_ms": 1000 * sum(times) / len(times) if times else 0.0,
        }
        return self.last_metrics

    async def optimize(self) -> None:
        try:
            removed = await cache_service.clear_expired()
            logger.info("Expired cache entries cleared", removed=removed)
        except Exception as error:
            logger.error("Cache cleanup failed", error=str(error))


performance_monitor = PerformanceMonitor()
