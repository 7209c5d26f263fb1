# SPDX-License-Identifier: MIT
"""Database access of PAM's nodes, cached under ``pam:<table>:``."""

from __future__ import annotations

import typing as t

from app.core.logging import get_logger
from app.services.cache_service import cache_service

logger = get_logger(__name__)


class UnifiedDatabaseService:
    async def write(self, table: str, save: t.Callable[[], t.Awaitable[t.Any]]) -> t.Any:
        result = await save()
        await self._invalidate(table)
        return result

    async def _invalidate(self, table: str) -> None:
        try:
            await cache_service.delete_pattern(f"{table}:*")
        except Exception as error:
            logger.warning("Cache invalidation failed", table=table, error=str(error))


unified_database_service = UnifiedDatabaseService()
