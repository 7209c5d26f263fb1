# SPDX-License-Identifier: MIT
"""The cache in Redis. Values are JSON."""

from __future__ import annotations

import asyncio
import json
import pickle
import typing as t

import redis.asyncio as redis

from app.core.config import get_settings
from app.core.logging import get_logger, setup_logging

setup_logging()
logger = get_logger(__name__)


class CacheService:
    def __init__(self) -> None:
        self.redis: t.Optional[redis.Redis] = None
        self.default_ttl = 300
        self._connection_lock = asyncio.Lock()

    async def initialize(self) -> None:
        async with self._connection_lock:
            if self.redis:
                return
            try:
                redis_url = get_settings().REDIS_URL
                logger.info(
                    "Connecting to Redis", url=redis_url.split("@")[0] + "@***" if "@" in redis_url else redis_url
                )
                self.redis = redis.from_url(
                    redis_url,
                    decode_responses=True,
                    max_connections=20,
                    health_check_interval=30,
                    socket_connect_timeout=10,
                    socket_timeout=5,
                )
                await self.redis.ping()
                logger.info("Redis cache initialized")
            except Exception as error:
                logger.error("Redis connection failed", error=str(error))
                self.redis = None

    async def close(self) -> None:
        if self.redis:
            await self.redis.aclose()
            self.redis = None

    async def get(self, key: str, use_pickle: bool = False) -> t.Optional[t.Any]:
        if not self.redis:
            await self.initialize()
        if not self.redis:
            return None
        try:
            value = await self.redis.get(key)
            if not value:
                return None
            return pickle.loads(value.encode()) if use_pickle else json.loads(value)
        except Exception as error:
            logger.error("Cache get failed", key=key, error=str(error))
            return None

    async def set(self, key: str, value: t.Any, ttl: t.Optional[int] = None, use_pickle: bool = False) -> None:
        if not self.redis:
            await self.initialize()
        if not self.redis:
            return
        try:
            text = pickle.dumps(value).decode("latin-1") if use_pickle else json.dumps(value, default=str)
            await self.redis.setex(key, ttl or self.default_ttl, text)
        except Exception as error:
            logger.error("Cache set failed", key=key, error=str(error))

    async def delete(self, key: str) -> None:
        if not self.redis:
            await self.initialize()
        if self.redis:
            try:
                await self.redis.delete(key)
            except Exception as error:
                logger.error("Cache delete failed", key=key, error=str(error))

    async def exists(self, key: str) -> bool:
        if not self.redis:
            await self.initialize()
        if not self.redis:
            return False
        try:
            return bool(await self.redis.exists(key))
        except Exception as error:
            logger.error("Cache exists failed", key=key, error=str(error))
            return False

    async def batch_get(self, keys: t.List[str]) -> t.Dict[str, t.Any]:
        if not self.redis:
            await self.initialize()
        if not self.redis or not keys:
            return {}
        try:
            values = await self.redis.mget(keys)
            return {key: json.loads(value) for key, value in zip(keys, values) if value}
        except Exception as error:
            logger.error("Cache batch get failed", error=str(error))
            return {}

    async def batch_set(self, data: t.Dict[str, t.Any], ttl: t.Optional[int] = None) -> None:
        for key, value in data.items():
            await self.set(key, value, ttl)

    async def clear_expired(self) -> int:
        """Looks at every key of the database."""
        if not self.redis:
            await self.initialize()
        expired = 0
        for key in await self.redis.keys("*"):  # type: ignore[union-attr]  # as the release has it: no guard
            ttl = await self.redis.ttl(key)  # type: ignore[union-attr]  # as the release has it: no guard
            if ttl == -2:
                expired += 1
            elif ttl == -1:
                await self.redis.expire(key, self.default_ttl)  # type: ignore[union-attr]  # as the release has it: no guard
        return expired

    async def get_cache_stats(self) -> t.Dict[str, t.Any]:
        if not self.redis:
            await self.initialize()
        try:
            keys = await self.redis.keys("*")  # type: ignore[union-attr]  # as the release has it: no guard
            info = await self.redis.info()  # type: ignore[union-attr]  # as the release has it: no guard
            return {
                "connected": True,
                "total_keys": len(keys),
                "used_memory": info.get("used_memory_human"),
                "connected_clients": info.get("connected_clients"),
                "uptime_seconds": info.get("uptime_in_seconds"),
                "redis_version": info.get("redis_version"),
            }
        except Exception as error:
            return {"connected": False, "error": str(error)}


cache_service = CacheService()


async def get_cache() -> CacheService:
    if not cache_service.redis:
        await cache_service.initialize()
    return cache_service
