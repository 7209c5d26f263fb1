# SPDX-License-Identifier: MIT
"""PAM's memory of a conversation, with a cache connection of its own."""

from __future__ import annotations

import typing as t

from app.services.cache_service import CacheService


class PamMemory:
    def __init__(self) -> None:
        self.cache = CacheService()

    async def remember(self, user_id: str, entry: t.Dict[str, t.Any]) -> None:
        await self.cache.set(f"recent_conversation:{user_id}", entry, 300)

    async def recall(self, user_id: str) -> t.Optional[t.Dict[str, t.Any]]:
        found = await self.cache.get(f"recent_conversation:{user_id}")
        return found if isinstance(found, dict) else None
