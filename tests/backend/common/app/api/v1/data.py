# SPDX-License-Identifier: MIT
"""What the front end reads and writes as the signed-in user."""

from __future__ import annotations

import typing as t
import uuid

import asyncpg
from fastapi import APIRouter, Depends, HTTPException
from pydantic import BaseModel, Field

from app.api.deps import Claims, verify_jwt_token
from app.core.logging import get_logger
from app.services.database import TableMissing, database_service

logger = get_logger(__name__)
router = APIRouter(tags=["Data"])

Signed = t.Annotated[Claims, Depends(verify_jwt_token)]
Answer = t.Dict[str, t.Any]


class WishlistItem(BaseModel):
    product_id: str = Field(min_length=1, max_length=200)
    product_name: str = Field(min_length=1, max_length=500)
    price: t.Optional[float] = None
    category: t.Optional[str] = None
    notes: t.Optional[str] = None


async def _answer(what: str, name: str, work: t.Awaitable[t.Any]) -> Answer:
    try:
        return {name: await work}
    except TableMissing as error:
        raise HTTPException(503, f"{what} is not available yet: the table doesn't exist") from error
    except asyncpg.PostgresError as error:
        logger.error("Query failed", what=what, sqlstate=error.sqlstate, error=str(error))
        raise HTTPException(500, f"{what} failed: {error}") from error


@router.get("/trips")
async def trips(claims: Signed) -> Answer:
    return await _answer("Loading trips", "trips", database_service.get_trips(claims))


@router.get("/trips/{trip_id}/participants")
async def participants(trip_id: uuid.UUID, claims: Signed) -> Answer:
    return await _answer(
        "Loading participants", "participants", database_service.get_trip_participants(claims, str(trip_id))
    )


@router.get("/wishlist")
async def wishlist(claims: Signed) -> Answer:
    return await _answer("The wishlist", "items", database_service.get_wishlist(claims))


@router.post("/wishlist", status_code=201)
async def add_to_wishlist(item: WishlistItem, claims: Signed) -> Answer:
    return await _answer("The wishlist", "item", database_service.add_to_wishlist(claims, item.model_dump()))


@router.get("/affiliate/sales")
async def sales(claims: Signed) -> Answer:
    return await _answer("Affiliate sales", "sales", database_service.get_affiliate_sales(claims))


@router.get("/admin/users")
async def admin_users(claims: Signed) -> Answer:
    return await _answer("Loading admin users", "users", database_service.get_admin_users(claims))
