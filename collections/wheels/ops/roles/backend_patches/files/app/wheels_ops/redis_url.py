# SPDX-License-Identifier: MIT
"""Reads the URL of the Redis that the application, its cache and Celery share."""

from __future__ import annotations

import os

from app.core.logging import get_logger
from app.wheels_ops import env

logger = get_logger(__name__)

DEFAULT = "redis://localhost:6379"


def configured() -> str:
    """``REDIS_URL`` as the application has it, or an empty string where nobody has set one.

    The settings come first: they hold what the application itself connects to, be it text, an object of pydantic or a
    secret. The environment stands in where there are none, or where they cannot be read.
    """
    try:
        value = getattr(env.app_settings(), "REDIS_URL", None)
    except Exception as error:  # settings that cannot be read have an error message of their own
        logger.warning(f"REDIS_URL is not read from the settings: {type(error).__name__}")
        value = None
    secret = getattr(value, "get_secret_value", None)
    return str(secret() if secret else value or os.environ.get("REDIS_URL") or "").strip()


def unsupported(url: str) -> str:
    """Why an address cannot be connected to, and what to do; empty where it can. Names no secret."""
    scheme = url.strip().partition("://")[0].lower()
    if (
        scheme in ("redis", "rediss", "unix")
        and "," not in url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    ):
        return ""
    if "sentinel" in scheme:
        hint = "name the master, by an address that follows it"
    elif "cluster" in scheme or "," in url:
        hint = "Celery and the cache need a Redis that is no cluster: name a single server"
    else:
        return "REDIS_URL must begin with redis://, rediss:// or unix://."
    return (
        f"REDIS_URL names {'Sentinel' if 'sentinel' in scheme else 'a cluster'}, which is not supported here: {hint}."
    )


def default_url() -> str:
    """For callers that name none: as ``configured``, or the Redis of this machine where nobody has set another one."""
    return configured() or DEFAULT
