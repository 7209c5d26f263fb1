# SPDX-License-Identifier: MIT
"""Figures of the running application, under ``/api``."""

from __future__ import annotations

import typing as t
from datetime import datetime

from fastapi import APIRouter, Depends

from app.monitoring.memory_optimizer import MemoryOptimizer, get_memory_optimizer
from app.monitoring.production_monitor import production_monitor
from app.services.performance_monitor import performance_monitor

router = APIRouter(tags=["Monitoring"])

Optimizer = t.Annotated[MemoryOptimizer, Depends(get_memory_optimizer)]
Answer = t.Dict[str, t.Any]


@router.get("/memory")
async def memory(optimizer: Optimizer) -> Answer:
    return await optimizer.get_memory_stats()


@router.post("/memory/optimize")
async def optimize(optimizer: Optimizer) -> Answer:
    await optimizer._optimize_memory()
    stats = await optimizer.get_memory_stats()
    return {
        "message": "Memory optimization completed",
        "timestamp": datetime.utcnow().isoformat(),
        "memory_stats": stats,
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
