# SPDX-License-Identifier: MIT
"""Settings of the incident release and of the first fix: one object that delegates to three groups."""

from __future__ import annotations

import typing as t
from functools import lru_cache

from pydantic_settings import BaseSettings, SettingsConfigDict

_SOURCE = SettingsConfigDict(env_file=".env", extra="ignore", case_sensitive=False)


class InfrastructureSettings(BaseSettings):
    model_config = _SOURCE

    ENVIRONMENT: str = "production"
    DEBUG: bool = False
    PORT: int = 8000
    SECRET_KEY: str = "change-me"
    DATABASE_URL: str = "postgresql://localhost/postgres"
    DATABASE_POOL_SIZE: int = 10
    REDIS_URL: str = "redis://localhost:6379"
    SUPABASE_URL: str = ""
    SUPABASE_KEY: str = ""
    SITE_URL: str = "https://wheelsandwins.com"
    CACHE_TTL: int = 300


class UserSettings(BaseSettings):
    model_config = _SOURCE

    DEFAULT_LANGUAGE: str = "en"
    MAX_HISTORY_MESSAGES: int = 2000


class FeatureSettings(BaseSettings):
    model_config = _SOURCE

    TTS_ENABLED: bool = True
    TTS_PRIMARY_ENGINE: str = "edge"
    TTS_FALLBACK_ENABLED: bool = True
    TTS_VOICE_DEFAULT: str = "en-US-AriaNeural"
    TTS_CACHE_ENABLED: bool = True
    TTS_CACHE_TTL: int = 3600


class UnifiedSettings:
    """Looks a name up in the infrastructure, user and feature groups, in this order."""

    def __init__(self) -> None:
        self.infra = InfrastructureSettings()
        self.user = UserSettings()
        self.features = FeatureSettings()

    def __getattr__(self, name: str) -> t.Any:
        if name in ("infra", "user", "features"):
            raise AttributeError(name)
        for group in (self.infra, self.user, self.features):
            if name in type(group).model_fields:
                return getattr(group, name)
        raise AttributeError(f"'UnifiedSettings' object has no attribute '{name}'")


@lru_cache(maxsize=1)
def get_settings() -> UnifiedSettings:
    return UnifiedSettings()


settings = get_settings()
