# SPDX-License-Identifier: MIT
"""The variant of the application for hardened hosts: few routes, the same CORS lists."""

from __future__ import annotations

import typing as t
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app.api.v1 import health
from app.core.cors_config import cors_config
from app.services.cache_service import cache_service


@asynccontextmanager
async def lifespan(_: FastAPI) -> t.AsyncIterator[None]:
    await cache_service.initialize()
    yield
    await cache_service.close()


app = FastAPI(title="PAM backend (hardened)", lifespan=lifespan)
app.add_middleware(
    CORSMiddleware,
    allow_origins=cors_config.allowed_origins,
    allow_credentials=True,
    allow_methods=cors_config.allowed_methods,
    allow_headers=cors_config.allowed_headers,
)
app.include_router(health.router)
