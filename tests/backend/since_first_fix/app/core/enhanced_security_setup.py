# SPDX-License-Identifier: MIT
"""Adds the security middlewares; each has a switch in the environment."""

from __future__ import annotations

import os
import typing as t

from fastapi import FastAPI

from app.core.security_monitoring import SecurityMonitoringMiddleware, security_monitor
from app.core.waf import WAFMiddleware
from app.core.xss_csrf_protection import EXEMPT, CSRFMiddleware


def _on(name: str) -> bool:
    return os.environ.get(name, "true").lower() == "true"


def setup_security(app: FastAPI, *, exempt: t.Sequence[str] = EXEMPT, count_options: bool = True) -> None:
    app.state.security_monitor = security_monitor
    if _on("ENABLE_CSRF_PROTECTION"):
        app.add_middleware(CSRFMiddleware, exempt=exempt)
    if _on("ENABLE_WAF"):
        app.add_middleware(
            WAFMiddleware,
            blocking=_on("WAF_BLOCKING_ENABLED"),
            largest=int(os.environ.get("MAX_REQUEST_SIZE", "10485760")),
        )
    if _on("ENABLE_SECURITY_MONITORING"):
        app.add_middleware(SecurityMonitoringMiddleware, count_options=count_options)
