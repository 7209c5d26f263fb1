# SPDX-License-Identifier: MIT
"""Cached answers of PAM: ``pam:response:<digest>`` with an expiry, ``pam:response:<digest>:metadata`` without one."""

from __future__ import annotations

import hashlib
import json
import time
import typing as t

from app.core.logging import get_logger
from app.services.cache_service import cache_service

logger = get_logger(__name__)


class CacheManager:
    def key(self, user_id: str, message: str) -> str:
        return f"pam:response:{hashlib.sha256(f'{user_id}:{message}'.encode()).hexdigest()[:32]}"

    async def get(self, user_id: str, message: str) -> t.Optional[t.Any]:
        return await cache_service.get(self.key(user_id, message))

    async def put(self, user_id: str, message: str, answer: t.Dict[str, t.Any], ttl: int = 300) -> None:
        key = self.key(user_id, message)
        await cache_service.set(key, answer, ttl)
        if cache_service.redis:
            await cache_service.redis.set(
                f"{key}:metadata", json.dumps({"user_id": user_id, "created_at": time.time(), "hits": 0})
            )

    async def clear_all(self) -> None:
        if cache_service.redis:
            await cache_service.redis.flushdb()


cache_manager = CacheManager()
