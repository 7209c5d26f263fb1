# SPDX-License-Identifier: MIT
"""Dependencies of the routes: who is asking, and which services answer."""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass, field

import jwt
from fastapi import Depends, Header, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.core.config import get_settings
from app.core.logging import get_logger
from app.services.cache_service import CacheService
from app.services.database import database_service

logger = get_logger(__name__)

bearer = HTTPBearer(auto_error=False)
Claims = t.Dict[str, t.Any]


@dataclass
class CurrentUser:
    user_id: str
    email: str = ""
    role: str = "user"
    permissions: t.List[str] = field(default_factory=list)


def secret_key() -> str:
    key = get_settings().SECRET_KEY
    return key.get_secret_value() if hasattr(key, "get_secret_value") else str(key)


def decode_token(token: str) -> Claims:
    """The verified claims (HS256 with ``SECRET_KEY``); raises ``jwt.PyJWTError``."""
    return dict(
        jwt.decode(token, secret_key(), algorithms=["HS256"], options={"verify_aud": False, "require": ["sub", "exp"]})
    )


async def verify_jwt_token(
    credentials: HTTPAuthorizationCredentials = Depends(bearer),  # noqa: B008 - FastAPI's way
) -> Claims:
    try:
        return decode_token(credentials.credentials)
    except jwt.PyJWTError as error:
        raise HTTPException(401, "Invalid authentication token") from error


async def verify_supabase_jwt_token(
    request: Request,
    credentials: HTTPAuthorizationCredentials = Depends(bearer),  # noqa: B008 - FastAPI's way
) -> Claims:
    if credentials is None:
        raise HTTPException(401, "Authentication required")
    try:
        return dict(jwt.decode(credentials.credentials, options={"verify_signature": False}))
    except jwt.PyJWTError as error:
        raise HTTPException(401, "Invalid authentication token") from error


async def get_current_user(claims: Claims = Depends(verify_jwt_token)) -> CurrentUser:  # noqa: B008 - FastAPI's way
    user_id = str(claims["sub"])
    try:
        profile = await database_service.get_profile(user_id) or {}
    except Exception as error:
        logger.error("Profile lookup failed", user_id=user_id, error=str(error))
        profile = {}
    role = str(profile.get("role") or "user")
    return CurrentUser(
        user_id, str(profile.get("email") or claims.get("email") or ""), role, ["admin"] if role == "admin" else []
    )


def require_admin() -> t.Callable[..., t.Awaitable[CurrentUser]]:
    async def dependency(user: CurrentUser = Depends(get_current_user)) -> CurrentUser:  # noqa: B008 - FastAPI's way
        if user.role != "admin":
            raise HTTPException(403, "Admin access required")
        return user

    return dependency


async def validate_api_key(x_api_key: t.Optional[str] = Header(default=None, alias="X-API-Key")) -> str:
    expected = os.environ.get("API_KEY")
    if not expected or x_api_key != expected:
        raise HTTPException(401, "Invalid API key")
    return x_api_key


async def get_cache_service() -> CacheService:
    """A cache service for this request."""
    return CacheService()


async def check_services() -> t.Dict[str, t.Any]:
    cache = CacheService()
    try:
        cache_state = await cache.health_check()
    except Exception as error:
        cache_state = {"status": "unhealthy", "error": str(error)}
    return {"cache": cache_state}
