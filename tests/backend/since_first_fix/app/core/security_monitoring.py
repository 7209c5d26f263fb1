# SPDX-License-Identifier: MIT
"""Blocks an address that asks for more than 20 different paths within a minute."""

from __future__ import annotations

import time
import typing as t

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp

from app.core.logging import get_logger
from app.services.cache_service import cache_service

logger = get_logger(__name__)

_PATHS, _SECONDS, _BLOCK_SECONDS = 20, 60, 3600


class SecurityMonitor:
    def __init__(self) -> None:
        self.blocked_ips: t.Set[str] = set()
        self._paths: t.Dict[str, t.Dict[str, float]] = {}

    def client_ip(self, request: Request) -> str:
        for name in ("cf-connecting-ip", "x-forwarded-for", "x-real-ip"):
            value = request.headers.get(name)
            if value:
                return value.split(",")[0].strip()
        return request.client.host if request.client else "unknown"

    async def record(self, address: str, path: str) -> None:
        now = time.time()
        recent = {known: seen for known, seen in self._paths.get(address, {}).items() if now - seen < _SECONDS}
        recent[path] = now
        self._paths[address] = recent
        if len(recent) > _PATHS and address not in self.blocked_ips:
            self.blocked_ips.add(address)
            logger.warning("IP address blocked for 60 minutes", address=address, reason="endpoint enumeration")
            if cache_service.redis:
                try:
                    await cache_service.redis.setex(f"blocked_ip:{address}", _BLOCK_SECONDS, "endpoint enumeration")
                except Exception as error:
                    logger.error("Block not stored", error=str(error))


security_monitor = SecurityMonitor()


class SecurityMonitoringMiddleware(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, count_options: bool = True) -> None:
        super().__init__(app)
        self.count_options = count_options

    async def dispatch(self, request: Request, call_next: t.Callable[[Request], t.Awaitable[Response]]) -> Response:
        address = security_monitor.client_ip(request)
        if address in security_monitor.blocked_ips:
            return JSONResponse({"error": "Access denied", "message": "IP address blocked"}, status_code=403)
        if request.method != "OPTIONS" or self.count_options:
            await security_monitor.record(address, request.url.path)
        return await call_next(request)
