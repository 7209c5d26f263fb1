# SPDX-License-Identifier: MIT
"""Figures of the running application, under ``/api``."""

from __future__ import annotations

import gc
import typing as t
from datetime import datetime

import psutil
from fastapi import APIRouter

from app.monitoring.production_monitor import production_monitor
from app.services.performance_monitor import performance_monitor

router = APIRouter(tags=["Monitoring"])

Answer = t.Dict[str, t.Any]


@router.get("/memory")
async def memory() -> Answer:
    found, process = psutil.virtual_memory(), psutil.Process()
    return {
        "timestamp": datetime.utcnow().isoformat(),
        "system": {
            "total_mb": found.total / 1_048_576,
            "used_mb": found.used / 1_048_576,
            "available_mb": found.available / 1_048_576,
            "percent": found.percent,
        },
        "process": {"rss_mb": process.memory_info().rss / 1_048_576, "percent": process.memory_percent()},
        "note": "The memory optimizer was removed",
    }


@router.post("/memory/optimize")
async def optimize() -> Answer:
    collected = gc.collect()
    return {
        "message": f"{collected} objects collected",
        "timestamp": datetime.utcnow().isoformat(),
        "memory_stats": await memory(),
    }


# -- the same in every release --
@router.get("/metrics")
async def metrics() -> Answer:
    return await production_monitor.get_metrics()


@router.get("/health")
async def health() -> Answer:
    return {"status": "healthy", "monitoring": production_monitor.is_running}


@router.get("/health/fast")
async def health_fast() -> Answer:
    return {"status": "healthy"}


@router.get("/errors")
async def errors() -> Answer:
    return {"errors": list(production_monitor.errors)}


@router.get("/performance")
async def performance() -> Answer:
    return dict(performance_monitor.last_metrics)


@router.get("/alerts")
async def alerts() -> Answer:
    return {"alerts": list(production_monitor.alerts)}


@router.get("/alerts/status")
async def alerts_status() -> Answer:
    return {"active": bool(production_monitor.alerts), "count": len(production_monitor.alerts)}


@router.get("/debug")
async def debug() -> Answer:
    return {"monitoring": production_monitor.is_running, "started_at": production_monitor.started_at}
