# SPDX-License-Identifier: MIT
"""Looks at the host's memory every three minutes and cleans up in three tiers."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import tempfile
import time
import typing as t
from datetime import datetime
from pathlib import Path

import psutil

from app.core.logging import get_logger

logger = get_logger(__name__)


class MemoryOptimizer:
    def __init__(self) -> None:
        self.optimization_interval = 180
        self.memory_warning_threshold = 65.0
        self.memory_critical_threshold = 75.0
        self.memory_emergency_threshold = 85.0
        self.last_emergency_cleanup: float = 0
        self.is_running = False
        self.optimization_count = 0
        self._optimization_task: t.Optional[asyncio.Task[None]] = None

    async def start(self) -> None:
        if self.is_running or os.environ.get("DISABLE_MEMORY_OPTIMIZER", "").lower() == "true":
            return
        self.is_running = True
        self._configure_gc()
        self._optimization_task = asyncio.create_task(self._optimization_loop())

    async def stop(self) -> None:
        self.is_running = False
        if self._optimization_task:
            self._optimization_task.cancel()
            self._optimization_task = None

    def _configure_gc(self) -> None:
        gc.set_threshold(500, 10, 10)

    async def _optimization_loop(self) -> None:
        while self.is_running:
            try:
                await self._optimize_memory()
            except Exception as error:
                logger.error("Memory optimization failed", error=str(error))
            await asyncio.sleep(self.optimization_interval)

    async def _optimize_memory(self) -> None:
        percent = psutil.virtual_memory().percent
        if percent > self.memory_emergency_threshold and time.time() - self.last_emergency_cleanup > 60:
            await self._emergency_cleanup()
        elif percent > self.memory_critical_threshold:
            await self._aggressive_cleanup()
        elif percent > self.memory_warning_threshold:
            await self._standard_cleanup()
        else:
            await self._routine_cleanup()
        if psutil.disk_usage("/").percent > 80:
            await self._cleanup_disk_space()
        self.optimization_count += 1

    async def _routine_cleanup(self) -> None:
        gc.collect(0)

    async def _standard_cleanup(self) -> None:
        for _ in range(3):
            gc.collect()

    async def _aggressive_cleanup(self) -> None:
        self._clear_module_caches()  # type: ignore[attr-defined]  # as the release has it: the name is gone
        for _ in range(5):
            gc.collect()

    async def _emergency_cleanup(self) -> None:
        self.last_emergency_cleanup = time.time()
        await self._clear_all_caches()
        for _ in range(15):
            gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)

    async def _cleanup_disk_space(self) -> None:
        """Removes this process's own temporary files that are older than a day."""
        limit = time.time() - 86_400
        for path in Path(tempfile.gettempdir()).glob("pam_tts_cache/*.audio"):
            if path.stat().st_mtime < limit:
                path.unlink()

    async def _clear_all_caches(self) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("app."):
                for value in list(vars(module).values()):
                    clear = getattr(value, "cache_clear", None)
                    if callable(clear):
                        clear()

    async def get_memory_stats(self) -> t.Dict[str, t.Any]:
        try:
            memory, swap, disk = psutil.virtual_memory(), psutil.swap_memory(), psutil.disk_usage("/")
            process = psutil.Process()
            own = process.memory_info()
            return {
                "timestamp": datetime.utcnow().isoformat(),
                "system": {
                    "total_mb": memory.total / 1_048_576,
                    "available_mb": memory.available / 1_048_576,
                    "used_mb": memory.used / 1_048_576,
                    "percent": memory.percent,
                    "swap_total_mb": swap.total / 1_048_576,
                    "swap_used_mb": swap.used / 1_048_576,
                    "swap_percent": swap.percent,
                    "cpu_percent": psutil.cpu_percent(interval=1),
                    "disk_total_gb": disk.total / 1_073_741_824,
                    "disk_used_gb": disk.used / 1_073_741_824,
                    "disk_percent": 100 * disk.used / disk.total,
                },
                "process": {
                    "rss_mb": own.rss / 1_048_576,
                    "vms_mb": own.vms / 1_048_576,
                    "percent": process.memory_percent(),
                    "num_threads": process.num_threads(),
                    "cpu_percent": process.cpu_percent(),
                    "num_fds": process.num_fds(),
                },
                "garbage_collection": {
                    "collections": gc.get_stats(),
                    "counts": gc.get_count(),
                    "thresholds": gc.get_threshold(),
                },
                "network": self._network(),
                "optimization": {
                    "service_running": self.is_running,
                    "warning_threshold": self.memory_warning_threshold,
                    "critical_threshold": self.memory_critical_threshold,
                    "optimization_interval": self.optimization_interval,
                    "optimization_count": self.optimization_count,
                    "emergency_threshold": self.memory_emergency_threshold,
                    "last_emergency_cleanup": self.last_emergency_cleanup,
                },
            }
        except Exception as error:
            return {"error": str(error)}

    def _network(self) -> t.Dict[str, t.Any]:
        try:
            found = psutil.net_io_counters()
            return {name: getattr(found, name) for name in ("bytes_sent", "bytes_recv", "packets_sent", "packets_recv")}
        except Exception as error:
            return {"error": str(error)}


memory_optimizer = MemoryOptimizer()


async def get_memory_optimizer() -> MemoryOptimizer:
    return memory_optimizer
