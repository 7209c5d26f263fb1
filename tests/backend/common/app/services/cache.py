# SPDX-License-Identifier: MIT
"""The cache under its older name."""

from __future__ import annotations

import redis.asyncio as aioredis

from app.services.cache_service import CacheService, cache_service

__all__ = ["CacheService", "aioredis", "cache_service"]
