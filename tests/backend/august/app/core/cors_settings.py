# SPDX-License-Identifier: MIT
"""CORS lists of the August release; the middleware is fed from here, not from ``cors_config``."""

from __future__ import annotations

import typing as t

from app.core.config import get_settings
from app.core.cors_config import EXPOSED, HEADERS, METHODS, PRODUCTION_ORIGINS
from pydantic_settings import BaseSettings, SettingsConfigDict

STAGING = ("https://wheels-wins-staging.netlify.app", "https://staging-wheelsandwins.netlify.app")


class CORSSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CORS_", extra="ignore")

    ENABLED: bool = True
    ALLOW_CREDENTIALS: bool = True
    ALLOWED_ORIGINS: t.List[str] = []
    ENVIRONMENT: str = ""

    def origins(self) -> t.List[str]:
        environment = (self.ENVIRONMENT or get_settings().NODE_ENV).lower()
        known = {"production": PRODUCTION_ORIGINS, "staging": STAGING}.get(environment, ("http://localhost:3000", "http://localhost:8080"))
        return [*known, *self.ALLOWED_ORIGINS]

    def get_cors_middleware_config(self) -> t.Dict[str, t.Any]:
        return {
            "allow_origins": self.origins(), "allow_credentials": self.ALLOW_CREDENTIALS, "allow_methods": list(METHODS),
            "allow_headers": list(HEADERS), "expose_headers": list(EXPOSED), "max_age": 86400,
        }  # fmt: skip


cors_settings = CORSSettings()
