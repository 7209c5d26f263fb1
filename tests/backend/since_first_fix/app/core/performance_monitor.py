# SPDX-License-Identifier: MIT
"""Metrics, alerts and automatic remediation.

Nothing starts it: it waits for ``POST /api/v1/system/monitoring/start``.
"""

from __future__ import annotations

import asyncio
import gc
import typing as t
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

import psutil

from app.core.logging import get_logger

try:
    from app.monitoring.memory_optimizer import memory_optimizer as _optimizer

    memory_optimizer: t.Any = _optimizer
except ImportError:  # the August release has deleted it
    memory_optimizer = None

logger = get_logger(__name__)


class AlertLevel(Enum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    EMERGENCY = "emergency"


@dataclass
class PerformanceMetric:
    name: str
    value: float
    threshold_warning: float
    threshold_critical: float
    timestamp: datetime
    unit: str = ""

    @property
    def alert_level(self) -> AlertLevel:
        if self.value >= self.threshold_critical:
            return AlertLevel.CRITICAL
        return AlertLevel.WARNING if self.value >= self.threshold_warning else AlertLevel.INFO


@dataclass
class PerformanceAlert:
    metric: str
    level: AlertLevel
    message: str
    timestamp: datetime
    auto_remediation_attempted: bool = False
    remediation_result: t.Optional[str] = None


class PerformanceMonitor:
    def __init__(self) -> None:
        self.is_running = False
        self.monitoring_task: t.Optional[asyncio.Task[None]] = None
        self.metrics_history: t.Dict[str, t.List[PerformanceMetric]] = {}
        self.active_alerts: t.Dict[str, PerformanceAlert] = {}
        self.check_interval = 30
        self.history_retention = timedelta(hours=24)
        self.thresholds = {
            "memory_percent": {"warning": 65.0, "critical": 75.0},
            "cpu_percent": {"warning": 70.0, "critical": 85.0},
            "disk_percent": {"warning": 75.0, "critical": 85.0},
            "process_memory_mb": {"warning": 1000.0, "critical": 1500.0},
            "response_time_ms": {"warning": 1000.0, "critical": 2000.0},
            "active_connections": {"warning": 100.0, "critical": 200.0},
        }

    async def start(self) -> None:
        if not self.is_running:
            self.is_running = True
            self.monitoring_task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        self.is_running = False
        if self.monitoring_task:
            self.monitoring_task.cancel()

    async def _loop(self) -> None:
        while self.is_running:
            try:
                for metric in await self._collect():
                    await self._judge(metric)
            except Exception as error:
                logger.error("Monitoring failed", error=str(error))
            await asyncio.sleep(self.check_interval)

    async def _collect(self) -> t.List[PerformanceMetric]:
        disk = psutil.disk_usage("/")
        values = [
            ("memory_percent", psutil.virtual_memory().percent, "%"),
            ("cpu_percent", psutil.cpu_percent(interval=1), "%"),
            ("disk_percent", 100 * disk.used / disk.total, "%"),
            ("process_memory_mb", psutil.Process().memory_info().rss / 1_048_576, "MB"),
        ]
        now = datetime.utcnow()
        return [
            PerformanceMetric(
                name, value, self.thresholds[name]["warning"], self.thresholds[name]["critical"], now, unit
            )
            for name, value, unit in values
        ]

    async def _judge(self, metric: PerformanceMetric) -> None:
        history = self.metrics_history.setdefault(metric.name, [])
        history.append(metric)
        limit = datetime.utcnow() - self.history_retention
        self.metrics_history[metric.name] = [entry for entry in history if entry.timestamp > limit]
        key = f"{metric.name}_{metric.alert_level.value}"
        if metric.alert_level == AlertLevel.INFO:
            self.active_alerts.pop(key, None)
        elif key not in self.active_alerts:
            message = f"{metric.name} is {metric.value:.1f}{metric.unit}"
            alert = PerformanceAlert(
                metric.name, metric.alert_level, message, metric.timestamp, auto_remediation_attempted=True
            )
            alert.remediation_result = await self._remediate(metric)
            self.active_alerts[key] = alert

    async def _remediate(self, metric: PerformanceMetric) -> str:
        if "memory" in metric.name:
            if memory_optimizer is None:
                return f"{gc.collect()} objects collected"
            if metric.alert_level == AlertLevel.CRITICAL:
                await memory_optimizer._aggressive_cleanup()
                return "aggressive cleanup"
            await memory_optimizer._standard_cleanup()
            return "standard cleanup"
        if metric.name == "disk_percent":
            return "disk cleanup"
        gc.collect()
        return "CPU optimization applied"

    async def get_current_status(self) -> t.Dict[str, t.Any]:
        latest = {name: history[-1] for name, history in self.metrics_history.items() if history}
        return {
            "monitoring_active": self.is_running,
            "current_metrics": {
                name: {
                    "value": found.value,
                    "unit": found.unit,
                    "alert_level": found.alert_level.value,
                    "timestamp": found.timestamp.isoformat(),
                }
                for name, found in latest.items()
            },
            "active_alerts": [
                {
                    "metric": alert.metric,
                    "level": alert.level.value,
                    "message": alert.message,
                    "timestamp": alert.timestamp.isoformat(),
                    "auto_remediation_attempted": alert.auto_remediation_attempted,
                    "remediation_result": alert.remediation_result,
                }
                for alert in self.active_alerts.values()
            ],
            "metrics_history_size": {name: len(history) for name, history in self.metrics_history.items()},
        }

    async def get_performance_report(self, hours: int = 1) -> t.Dict[str, t.Any]:
        limit = datetime.utcnow() - timedelta(hours=hours)
        summary: t.Dict[str, t.Dict[str, t.Any]] = {}
        for name, history in self.metrics_history.items():
            values = [entry.value for entry in history if entry.timestamp > limit]
            if values:
                summary[name] = {
                    "min": min(values),
                    "max": max(values),
                    "avg": sum(values) / len(values),
                    "current": values[-1],
                    "unit": history[-1].unit,
                    "data_points": len(values),
                }
        levels = [alert.level for alert in self.active_alerts.values()]
        return {
            "report_period_hours": hours,
            "generated_at": datetime.utcnow().isoformat(),
            "metrics_summary": summary,
            "alert_summary": {
                "warning": levels.count(AlertLevel.WARNING),
                "critical": levels.count(AlertLevel.CRITICAL),
            },
            "recommendations": [
                f"Look at {name}" for name, found in summary.items() if found["max"] >= self.thresholds[name]["warning"]
            ],
        }


performance_monitor = PerformanceMonitor()


async def get_performance_monitor() -> PerformanceMonitor:
    return performance_monitor
