# SPDX-License-Identifier: MIT
"""Settings of the August release: one pydantic model, strict about ``.env``."""

from __future__ import annotations

import sys
import typing as t
from functools import lru_cache

from pydantic import Field, RedisDsn, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", case_sensitive=True, validate_default=False)

    NODE_ENV: str = "production"
    DEBUG: bool = False
    PORT: int = 8000
    SECRET_KEY: SecretStr = SecretStr("change-me")
    DATABASE_URL: str = "postgresql://localhost/postgres"
    SUPABASE_URL: str = ""
    SUPABASE_SERVICE_ROLE_KEY: SecretStr = SecretStr("")

    REDIS_URL: RedisDsn = "redis://localhost:6379"  # type: ignore[assignment]  # as the release has it: a plain str unless it is set
    REDIS_MAX_CONNECTIONS: int = 50
    REDIS_CACHE_TTL: int = 300
    CACHE_DEFAULT_TTL: int = 300

    TTS_ENABLED: bool = True
    TTS_PRIMARY_ENGINE: str = "edge"
    TTS_FALLBACK_ENABLED: bool = True
    TTS_VOICE_DEFAULT: str = "en-US-AriaNeural"
    TTS_CACHE_ENABLED: bool = True
    TTS_CACHE_TTL: int = 3600

    WEBSOCKET_CONNECTION_TIMEOUT: int = Field(default=300, ge=30)
    WEBSOCKET_MAX_CONNECTIONS: int = 100

    CORS_ENABLED: bool = True
    CORS_ALLOWED_ORIGINS: t.List[str] = []


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        sys.stderr.write(f"Configuration error: {error}\n")
        sys.exit(1)


settings = get_settings()
