# SPDX-License-Identifier: MIT
"""Refuses changing requests without a CSRF token that this process issued; no endpoint issues one."""

from __future__ import annotations

import secrets
import typing as t

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp

from app.core.logging import get_logger

logger = get_logger(__name__)

EXEMPT = ("/health", "/docs", "/openapi.json", "/favicon.ico", "/metrics", "/api/auth/csrf-token")
_SAFE = ("GET", "HEAD", "OPTIONS")
_issued: t.Set[str] = set()


def issue_token() -> str:
    token = secrets.token_urlsafe(32)
    _issued.add(token)
    return token


class CSRFMiddleware(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, exempt: t.Sequence[str] = EXEMPT) -> None:
        super().__init__(app)
        self.exempt = tuple(exempt)

    async def dispatch(self, request: Request, call_next: t.Callable[[Request], t.Awaitable[Response]]) -> Response:
        if (
            request.method in _SAFE
            or request.url.path.startswith(self.exempt)
            or request.headers.get("x-csrf-token", "") in _issued
        ):
            return await call_next(request)
        logger.warning("CSRF token missing or invalid", path=request.url.path)
        return JSONResponse(
            {"error": "CSRF Protection", "message": "CSRF token missing or invalid", "code": "CSRF_TOKEN_INVALID"},
            status_code=403,
        )
