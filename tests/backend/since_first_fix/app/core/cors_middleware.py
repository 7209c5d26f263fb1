# SPDX-License-Identifier: MIT
"""Two layers around the routes that answer OPTIONS themselves and log what they saw."""

from __future__ import annotations

import time
import typing as t

from fastapi import Request, Response
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp

from app.core.cors_config import cors_config
from app.core.logging import get_logger

logger = get_logger(__name__)

_Next = t.Callable[[Request], t.Awaitable[Response]]


class EnhancedCORSMiddleware(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self.cache: t.Dict[str, Response] = {}

    async def dispatch(self, request: Request, call_next: _Next) -> Response:
        started = time.monotonic()
        origin = request.headers.get("origin")
        if request.method == "OPTIONS":
            return self._options(request, origin)
        response = await call_next(request)
        if origin and cors_config.is_origin_allowed(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Credentials"] = "true"
        response.headers["X-CORS-Process-Time"] = f"{time.monotonic() - started:.4f}"
        return response

    def _options(self, request: Request, origin: t.Optional[str]) -> Response:
        allowed = origin is None or cors_config.is_origin_allowed(origin)
        cors_config.log_cors_debug(origin, request.url.path, allowed)
        if not allowed:
            text = (
                '{"error":"Origin not allowed","origin":"'
                + str(origin)
                + '","allowed":'
                + str(len(cors_config.origins))
                + "}"
            )
            return Response(text, status_code=403, media_type="application/json")
        key = f"{origin}:{request.url.path}"
        if key not in self.cache:
            self.cache[key] = cors_config.create_options_response(
                origin=origin,
                requested_method=request.headers.get("access-control-request-method"),
                requested_headers=request.headers.get("access-control-request-headers"),
                cache_bust=True,
            )
        return self.cache[key]


class DebugCORSMiddleware(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: _Next) -> Response:
        response = await call_next(request)
        if request.headers.get("origin"):
            logger.debug(
                "CORS response", path=request.url.path, allowed=response.headers.get("access-control-allow-origin")
            )
        return response
