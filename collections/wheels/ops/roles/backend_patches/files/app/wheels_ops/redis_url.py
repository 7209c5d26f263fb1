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


def default_url() -> str:
    """For callers that name none: as ``configured``, or the Redis of this machine where nobody has set another one."""
    return configured() or DEFAULT
