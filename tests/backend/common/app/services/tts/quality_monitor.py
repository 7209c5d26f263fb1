# SPDX-License-Identifier: MIT
"""Counts how speech went."""

from __future__ import annotations

import typing as t


class QualityMonitor:
    def __init__(self) -> None:
        self.is_monitoring = False
        self.total = self.failed = 0
        self.generation_ms: t.List[int] = []
        self.engines: t.Dict[str, int] = {}

    async def start_monitoring(self) -> None:
        self.is_monitoring = True

    async def stop_monitoring(self) -> None:
        self.is_monitoring = False

    def record(self, success: bool, engine: t.Optional[str], generation_ms: t.Optional[int]) -> None:
        self.total += 1
        self.failed += not success
        if generation_ms is not None:
            self.generation_ms = [*self.generation_ms[-999:], generation_ms]
        if engine:
            self.engines[engine] = self.engines.get(engine, 0) + 1

    def performance(self) -> t.Dict[str, t.Any]:
        average = sum(self.generation_ms) / len(self.generation_ms) if self.generation_ms else 0
        rate = 100 * (self.total - self.failed) / self.total if self.total else 0
        return {
            "total_requests": self.total,
            "success_rate_percent": rate,
            "avg_generation_time_ms": average,
            "engine_usage": self.engines,
        }

    async def get_quality_report(self, hours: int = 24) -> t.Dict[str, t.Any]:
        return {"monitoring": self.is_monitoring, "hours": hours, **self.performance()}


quality_monitor = QualityMonitor()
