# SPDX-License-Identifier: MIT
"""Which front ends may call, with which methods and headers."""

from __future__ import annotations

import os
import typing as t

from fastapi import Request, Response

from app.core.config import get_settings
from app.core.logging import get_logger

logger = get_logger(__name__)

PRODUCTION_ORIGINS = (
    "https://wheelsandwins.com",
    "https://www.wheelsandwins.com",
    "https://wheelz-wins.com",
    "https://www.wheelz-wins.com",
    "https://wheels-wins-landing-page.netlify.app",
    "https://65a8f6b6c9f5d2092be8bfc2--wheels-wins-landing-page.netlify.app",
)
STAGING_ORIGINS = ("https://wheels-wins-staging.netlify.app",)
DEVELOPMENT_ORIGINS = (
    *(f"http://{host}:{port}" for host in ("localhost", "127.0.0.1") for port in (3000, 8080, 5173, 3001, 4000, 5000)),
    "https://localhost:3000",
    "https://localhost:8080",
)
_LOVABLE = "4fd8d7d4-1c59-4996-a0dd-48be31131e7c"
LOVABLE_ORIGINS = (
    f"https://{_LOVABLE}.lovable.app",
    f"https://{_LOVABLE}.lovableproject.com",
    f"https://id-preview--{_LOVABLE}.lovable.app",
    f"https://preview--{_LOVABLE}.lovable.app",
    f"https://{_LOVABLE}.sandbox.lovable.dev",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD")
HEADERS = (
    "Accept",
    "Accept-Language",
    "Content-Language",
    "Content-Type",
    "Authorization",
    "X-Requested-With",
    "Origin",
    "Access-Control-Request-Method",
    "Access-Control-Request-Headers",
    "Cache-Control",
    "Pragma",
    "X-Supabase-Auth",
    "apikey",
    "X-CSRF-Token",
    "X-Client-Info",
    "X-Request-ID",
)
EXPOSED = ("Content-Range", "X-Content-Range", "X-Request-ID", "X-Response-Time")


class CORSConfig:
    def __init__(self) -> None:
        self._origins = self._build_origins()

    def _build_origins(self) -> t.List[str]:
        settings = get_settings()
        environment = str(getattr(settings, "ENVIRONMENT", None) or "production").lower()
        origins: t.List[str] = []
        if environment == "production":
            origins.extend(PRODUCTION_ORIGINS)
        elif environment == "staging":
            origins.extend(STAGING_ORIGINS)
        else:
            origins.extend(DEVELOPMENT_ORIGINS)
        for extra in os.environ.get("ADDITIONAL_CORS_ORIGINS", "").split(","):
            if extra.startswith("http"):
                origins.append(extra)
        if os.environ.get("DISABLE_LOVABLE_ORIGINS", "").lower() != "true":
            origins.extend(LOVABLE_ORIGINS)
        return origins

    @property
    def origins(self) -> t.List[str]:
        return list(self._origins)

    @property
    def allowed_methods(self) -> t.List[str]:
        return list(METHODS)

    @property
    def allowed_headers(self) -> t.List[str]:
        return list(HEADERS)

    @property
    def expose_headers(self) -> t.List[str]:
        return list(EXPOSED)

    def is_origin_allowed(self, origin: t.Optional[str]) -> bool:
        return origin in self._origins

    def get_cors_config_dict(self) -> t.Dict[str, t.Any]:
        return {
            "allow_origins": self._origins,
            "allow_credentials": True,
            "allow_methods": self.allowed_methods,
            "allow_headers": self.allowed_headers,
            "expose_headers": self.expose_headers,
            "max_age": 86400,
        }

    # -- preflight --
    def create_options_response(
        self,
        origin: t.Optional[str] = None,
        requested_method: t.Optional[str] = None,
        requested_headers: t.Optional[str] = None,
        cache_bust: bool = True,
    ) -> Response:
        response = Response("OK", status_code=200)
        response.headers["Access-Control-Allow-Origin"] = origin or "*"
        response.headers["Access-Control-Allow-Credentials"] = "true"
        methods = list(METHODS)
        if requested_method and requested_method not in methods:
            methods.append(requested_method)
        headers = set(HEADERS)
        if requested_headers:
            headers |= {name.strip() for name in requested_headers.split(",")}
        response.headers["Access-Control-Allow-Methods"] = ", ".join(methods)
        response.headers["Access-Control-Allow-Headers"] = ", ".join(headers)
        response.headers["Access-Control-Max-Age"] = "3600"
        if cache_bust:
            response.headers["Cache-Control"] = "no-cache, no-store, must-revalidate"
        return response

    def log_cors_debug(self, request_origin: t.Optional[str], endpoint: str, allowed: bool) -> None:
        logger.info("CORS", origin=request_origin, endpoint=endpoint, allowed=allowed)

    def handle_preflight_request(self, request: Request) -> Response:
        return self.create_options_response(origin=request.headers.get("origin"))


cors_config = CORSConfig()
