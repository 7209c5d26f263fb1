# SPDX-License-Identifier: MIT
"""Counts what ran, in the broker's Redis: ``pam:ran:<task>``."""

from __future__ import annotations

import functools

import redis

from app.core.config import get_settings


@functools.lru_cache(maxsize=1)
def client() -> redis.Redis:
    return redis.Redis.from_url(str(get_settings().REDIS_URL), decode_responses=True)


def ran(task: str) -> int:
    """How often the task ran, this time included."""
    return int(client().incr(f"pam:ran:{task}"))  # type: ignore[arg-type]  # the synchronous client gives an int
