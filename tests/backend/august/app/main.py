# SPDX-License-Identifier: MIT
"""The PAM backend."""

from __future__ import annotations

import os
import time
import typing as t
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware

from app.api import chat
from app.api.v1 import data, health, monitoring, pam_socket, tts, voice_conversation
from app.core.cors_middleware import DebugCORSMiddleware, EnhancedCORSMiddleware
from app.core.cors_settings import cors_settings
from app.core.enhanced_security_setup import setup_security
from app.core.logging import get_logger, setup_logging
from app.core.websocket_manager import manager
from app.core.xss_csrf_protection import EXEMPT
from app.monitoring.production_monitor import production_monitor
from app.services.cache_service import cache_service
from app.services.database import database_service
from app.services.pam import history
from app.services.pam.ai_service import ai_service
from app.services.performance_monitor import performance_monitor
from app.services.tts.fallback_tts import fallback_tts_service
from app.services.tts.tts_service import tts_service

setup_logging()
logger = get_logger(__name__)


@asynccontextmanager
async def lifespan(_: FastAPI) -> t.AsyncIterator[None]:
    logger.info("PAM backend starts")
    await cache_service.initialize()
    await performance_monitor.start_monitoring()
    await production_monitor.start_monitoring()
    try:
        await tts_service.initialize()
        logger.info("TTS service initialized")
    except Exception as error:
        logger.error("TTS service failed, using the fallback", error=str(error))
        await fallback_tts_service.initialize()
    await history.warm_up()
    yield
    await tts_service.shutdown()
    await fallback_tts_service.shutdown()
    await production_monitor.stop_monitoring()
    await performance_monitor.stop_monitoring()
    await cache_service.close()
    await database_service.close()
    logger.info("PAM backend stopped", connections=len(manager.active_connections), tasks=len(ai_service.background))


app = FastAPI(title="PAM backend", version=health.VERSION, lifespan=lifespan)
setup_security(app, exempt=(*EXEMPT, "/api/v1/pam", "/api/v1/pam_ai_sdk"), count_options=False)
app.add_middleware(EnhancedCORSMiddleware)
app.add_middleware(DebugCORSMiddleware)
app.add_middleware(CORSMiddleware, **cors_settings.get_cors_middleware_config())


@app.middleware("http")
async def response_time(request: Request, call_next: t.Callable[[Request], t.Awaitable[Response]]) -> Response:
    started = time.monotonic()
    response = await call_next(request)
    elapsed = time.monotonic() - started
    performance_monitor.record_response_time(elapsed)
    response.headers["X-Response-Time"] = f"{elapsed:.4f}"
    return response


@app.get("/")
async def root() -> t.Dict[str, str]:
    return {"message": "PAM backend", "version": health.VERSION}


@app.get("/api/v1/voice/health")
async def voice_health() -> t.Dict[str, t.Any]:
    status = await tts_service.get_service_status()
    working = bool(status.get("is_initialized"))
    return {"status": "healthy" if working else "failed", "engines": list(status.get("engines") or {})}


@app.get("/api/cors/debug")
async def cors_debug(request: Request) -> t.Dict[str, t.Any]:
    config = cors_config  # type: ignore[name-defined]  # noqa: F821 - as the release has it: the name was never imported
    return {"origin": request.headers.get("origin"), "origins": config.origins}


@app.get("/api/cors/stats")
async def cors_stats() -> t.Dict[str, int]:
    return {"origins": len(cors_config.origins)}  # type: ignore[name-defined]  # noqa: F821 - as the release has it: the name was never imported


@app.get("/api/security/status")
async def security_status() -> t.Dict[str, t.Any]:
    return {"status": "active", "blocked_ips": len(app.state.security_monitor.blocked_ips)}


app.include_router(health.router)
app.include_router(monitoring.router, prefix="/api")
app.include_router(chat.router, prefix="/api")
app.include_router(pam_socket.pam.router, prefix="/api/v1")
app.include_router(tts.router, prefix="/api/v1")
app.include_router(voice_conversation.router, prefix="/api/v1")
app.include_router(data.router, prefix="/api/v1")


@app.options("/{path:path}")
async def any_options(request: Request, path: str) -> Response:
    return cors_config.create_options_response(origin=request.headers.get("origin"))  # type: ignore[name-defined]  # noqa: F821 - as the release has it: the name was never imported


if __name__ == "__main__":
    uvicorn.run("app.main:app", host="0.0.0.0", port=int(os.environ.get("PORT", "8000")), workers=1)
