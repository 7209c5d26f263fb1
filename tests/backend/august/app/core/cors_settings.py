# SPDX-License-Identifier: MIT
"""CORS lists of the August release; the middleware is fed from here, not from ``cors_config``."""

from __future__ import annotations

import typing as t

from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.config import get_settings

PRODUCTION = (
    "https://wheelsandwins.com",
    "https://www.wheelsandwins.com",
    "https://wheelz-wins.com",
    "https://www.wheelz-wins.com",
    "https://wheels-wins-landing-page.netlify.app",
    "https://65a8f6b6c9f5d2092be8bfc2--wheels-wins-landing-page.netlify.app",
)
STAGING = ("https://wheels-wins-staging.netlify.app", "https://staging-wheelsandwins.netlify.app")
DEVELOPMENT = ("http://localhost:3000", "http://localhost:8080", "http://localhost:5173")
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
    "X-Auth-Type",
)
EXPOSED = ("Content-Range", "X-Content-Range", "X-Request-ID", "X-Response-Time")


class CORSSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CORS_", extra="ignore")

    ENABLED: bool = True
    ALLOW_CREDENTIALS: bool = True
    ALLOWED_ORIGINS: t.List[str] = []
    ENVIRONMENT: str = ""

    def origins(self) -> t.List[str]:
        environment = (self.ENVIRONMENT or get_settings().NODE_ENV).lower()
        known = {"production": PRODUCTION, "staging": STAGING}.get(environment, DEVELOPMENT)
        return [*known, *self.ALLOWED_ORIGINS]

    def get_cors_middleware_config(self) -> t.Dict[str, t.Any]:
        return {
            "allow_origins": self.origins(),
            "allow_credentials": self.ALLOW_CREDENTIALS,
            "allow_methods": list(METHODS),
            "allow_headers": list(HEADERS),
            "expose_headers": list(EXPOSED),
            "max_age": 86400,
        }


cors_settings = CORSSettings()
