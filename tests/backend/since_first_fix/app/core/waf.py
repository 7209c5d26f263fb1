# SPDX-License-Identifier: MIT
"""A small web application firewall: refuses queries that look like an attack."""

from __future__ import annotations

import re
import typing as t
from urllib.parse import unquote_plus

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp

from app.core.logging import get_logger

logger = get_logger(__name__)

_ATTACK = re.compile(r"<script|union\s+select|\.\./\.\.|;\s*drop\s+table", re.IGNORECASE)


class WAFMiddleware(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, blocking: bool = True, largest: int = 10_485_760) -> None:
        super().__init__(app)
        self.blocking = blocking
        self.largest = largest

    async def dispatch(self, request: Request, call_next: t.Callable[[Request], t.Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.largest:
            return JSONResponse({"error": "Request too large"}, status_code=413)
        if _ATTACK.search(unquote_plus(str(request.url.query))) or _ATTACK.search(request.url.path):
            logger.warning("WAF match", path=request.url.path)
            if self.blocking:
                return JSONResponse({"error": "WAF", "message": "Request blocked"}, status_code=403)
        return await call_next(request)
