# SPDX-License-Identifier: MIT
"""Database access: as the signed-in user (row level security applies) or as the service role."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import typing as t

import asyncpg

from app.core.config import get_settings
from app.core.logging import get_logger
from app.services.cache_service import get_cache

logger = get_logger(__name__)

Row = t.Dict[str, t.Any]


class TableMissing(RuntimeError):
    """The statement failed with "does not exist": the feature's table has not been created yet."""


class DatabaseService:
    def __init__(self) -> None:
        self._pool: t.Optional[asyncpg.Pool] = None
        self._lock = asyncio.Lock()

    async def pool(self) -> asyncpg.Pool:
        async with self._lock:
            if self._pool is None:
                url = os.environ.get("DATABASE_URL") or str(get_settings().DATABASE_URL)
                self._pool = await asyncpg.create_pool(url, min_size=0, max_size=10, command_timeout=30)
        return self._pool

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    @contextlib.asynccontextmanager
    async def acting_as(self, role: str, claims: t.Mapping[str, t.Any]) -> t.AsyncIterator[asyncpg.Connection]:
        """A transaction in which row level security sees this role and these JWT claims."""
        pool = await self.pool()
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                {"authenticated": "set local role authenticated", "service_role": "set local role service_role"}[role]
            )
            await connection.execute(
                "select set_config('request.jwt.claims', $1, true)", json.dumps(dict(claims), default=str)
            )
            yield connection

    async def _as_user(self, claims: t.Mapping[str, t.Any], statement: str, *values: t.Any) -> t.List[Row]:
        async with self.acting_as("authenticated", claims) as connection:
            return [dict(row) for row in await connection.fetch(statement, *values)]

    async def ping(self) -> bool:
        pool = await self.pool()
        return bool(await pool.fetchval("select 1") == 1)

    async def get_profile(self, user_id: str) -> t.Optional[Row]:
        cache = await get_cache()
        found = await cache.get(f"user_profile:{user_id}")
        if found is not None:
            return dict(found)
        async with self.acting_as("service_role", {"role": "service_role"}) as connection:
            row = await connection.fetchrow(
                "select user_id::text as user_id, email, role from profiles where user_id::text = $1", user_id
            )
        if row is None:
            return None
        await cache.set(f"user_profile:{user_id}", dict(row), 300)
        return dict(row)

    async def get_trips(self, claims: t.Mapping[str, t.Any]) -> t.List[Row]:
        return await self._as_user(
            claims,
            "select id::text, trip_name, description, start_date, end_date, status, created_by::text from group_trips"
            " order by start_date, id",
        )

    async def get_trip_participants(self, claims: t.Mapping[str, t.Any], trip_id: str) -> t.List[Row]:
        statement = (
            "select id::text, user_id::text, role, status, joined_at from group_trip_participants where trip_id ="
            " $1::text::uuid order by joined_at, id"
        )
        return await self._as_user(claims, statement, trip_id)

    async def get_admin_users(self, claims: t.Mapping[str, t.Any]) -> t.List[Row]:
        return await self._as_user(
            claims, "select id::text, user_id::text, email, role, status, region from admin_users order by email"
        )

    async def get_wishlist(self, claims: t.Mapping[str, t.Any]) -> t.List[Row]:
        statement = (
            "select id::text, product_id, product_name, price, category, notes, created_at from user_wishlists where"
            " user_id::text = $1 order by created_at"
        )
        return await self._feature(claims, statement, str(claims["sub"]))

    async def add_to_wishlist(self, claims: t.Mapping[str, t.Any], item: Row) -> Row:
        user_id = str(claims["sub"])
        found = await self._feature(
            claims,
            "select id::text from user_wishlists where user_id::text = $1 and product_id = $2",
            user_id,
            item["product_id"],
        )
        if found:
            return found[0]
        rows = await self._feature(
            claims,
            "insert into user_wishlists (user_id, product_id, product_name, price, category, notes) values"
            " ($1::text::uuid, $2, $3, $4::float8::numeric, $5, $6) returning id::text, product_id, product_name,"
            " created_at",
            user_id,
            item["product_id"],
            item["product_name"],
            item.get("price"),
            item.get("category"),
            item.get("notes"),
        )
        cache = await get_cache()
        await cache.delete(f"user_wishlists:{user_id}")
        return rows[0]

    async def get_affiliate_sales(self, claims: t.Mapping[str, t.Any]) -> t.List[Row]:
        return await self._feature(
            claims,
            "select id::text, product_name, product_url, amount, commission, status, category, created_at"
            " from affiliate_sales where user_id::text = $1 order by created_at",
            str(claims["sub"]),
        )

    async def log_agent(self, claims: t.Mapping[str, t.Any], action: str) -> None:
        """Writes down what PAM did; a failure is logged only."""
        try:
            await self._as_user(
                claims,
                "insert into agent_logs (user_id, action) values ($1::text::uuid, $2)",
                str(claims["sub"]),
                action,
            )
        except asyncpg.PostgresError as error:
            logger.error("Agent log failed", sqlstate=error.sqlstate, error=str(error))

    async def _feature(self, claims: t.Mapping[str, t.Any], statement: str, *values: t.Any) -> t.List[Row]:
        try:
            return await self._as_user(claims, statement, *values)
        except asyncpg.PostgresError as error:
            if "does not exist" in str(error):
                logger.warning("Table doesn't exist yet", error=str(error))
                raise TableMissing(str(error)) from error
            raise


database_service = DatabaseService()
