# SPDX-License-Identifier: MIT
"""Health of the application."""

from __future__ import annotations

import typing as t
from datetime import datetime

import psutil
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from app.api.deps import check_services
from app.core.config import get_settings
from app.core.websocket_manager import manager
from app.services.cache_service import cache_service
from app.services.database import database_service

router = APIRouter()

VERSION = "2.0.1"


def _environment() -> str:
    settings = get_settings()
    return str(getattr(settings, "ENVIRONMENT", None) or getattr(settings, "NODE_ENV", "production"))


@router.get("/health")
async def health() -> t.Dict[str, t.Any]:
    return {
        "status": "healthy",
        "service": "wheels-wins-pam-api",
        "version": VERSION,
        "environment": _environment(),
        "timestamp": datetime.utcnow().isoformat(),
    }


@router.get("/health/detailed")
async def detailed() -> t.Dict[str, t.Any]:
    try:
        database = {"status": "healthy" if await database_service.ping() else "unhealthy"}
    except Exception as error:
        database = {"status": "unhealthy", "error": str(error)}
    memory = psutil.virtual_memory()
    settings = get_settings()
    return {
        **await health(),
        "components": {
            "database": database,
            "cache": {"status": "healthy" if cache_service.redis else "unhealthy"},
            "websocket": {"status": "healthy", "connections": len(manager.active_connections)},
            "tts": {"enabled": settings.TTS_ENABLED, "primary_engine": settings.TTS_PRIMARY_ENGINE},
            "system": {
                "memory_percent": memory.percent,
                "process_rss_mb": psutil.Process().memory_info().rss / 1_048_576,
            },
        },
    }


@router.get("/health/services")
async def services() -> t.Dict[str, t.Any]:
    return await check_services()


@router.get("/health/redis")
async def redis() -> JSONResponse:
    if not cache_service.redis:
        return JSONResponse({"status": "unhealthy", "error": "not connected"}, status_code=503)
    try:
        await cache_service.redis.ping()
        info = await cache_service.redis.info()
    except Exception as error:
        return JSONResponse({"status": "unhealthy", "error": str(error)}, status_code=503)
    return JSONResponse(
        {"status": "healthy", "redis_version": info.get("redis_version"), "used_memory": info.get("used_memory_human")}
    )


@router.get("/health/ready")
async def ready() -> JSONResponse:
    try:
        await database_service.ping()
    except Exception as error:
        return JSONResponse({"status": "not_ready", "error": str(error)}, status_code=503)
    return JSONResponse({"status": "ready"})


@router.get("/health/live")
async def live() -> t.Dict[str, str]:
    return {"status": "alive"}


@router.get("/health/ping")
async def ping() -> t.Dict[str, str]:
    return {"status": "ok"}


@router.get("/health/pam")
async def pam() -> t.Dict[str, t.Any]:
    return {"status": "healthy", "connections": len(manager.active_connections)}


@router.get("/health/system")
async def system() -> t.Dict[str, t.Any]:
    return {"status": "healthy", "memory_percent": psutil.virtual_memory().percent}


@router.get("/health/all")
async def everything() -> t.Dict[str, t.Any]:
    return await detailed()
