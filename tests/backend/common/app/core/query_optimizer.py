# SPDX-License-Identifier: MIT
"""Cached queries of expenses and budgets."""

from __future__ import annotations

import typing as t

from app.core.logging import get_logger
from app.services.cache_service import get_cache

logger = get_logger(__name__)


class QueryOptimizer:
    async def expenses(
        self, user_id: str, load: t.Callable[[], t.Awaitable[t.List[t.Dict[str, t.Any]]]]
    ) -> t.List[t.Dict[str, t.Any]]:
        cache = await get_cache()
        key = f"expenses:{user_id}:all"
        found = await cache.get(key)
        if found is not None:
            return list(found)
        rows = await load()
        await cache.set(key, rows, 300)
        return rows

    async def expense_added(self, user_id: str) -> None:
        """Forgets what was cached of this user's expenses."""
        cache = await get_cache()
        await cache.delete(f"expenses:{user_id}:*")


query_optimizer = QueryOptimizer()
