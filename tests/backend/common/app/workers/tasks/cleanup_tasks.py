# SPDX-License-Identifier: MIT
"""Removes what is out of date."""

from __future__ import annotations

import time

from app.workers.celery import celery_app
from app.workers.tasks.counters import client, ran

_KEEP_EVENTS_SECONDS = 7 * 86_400


@celery_app.task(name="app.workers.tasks.cleanup_tasks.cleanup_expired_data")
def cleanup_expired_data() -> int:
    """Forgets security events that are older than a week; gives how many."""
    ran("cleanup_expired_data")
    return int(client().zremrangebyscore("security_event:log", 0, time.time() - _KEEP_EVENTS_SECONDS))  # type: ignore[arg-type]  # an int here
