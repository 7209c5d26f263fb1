# SPDX-License-Identifier: MIT
"""Messages to users."""

from __future__ import annotations

from app.workers.celery import celery_app
from app.workers.tasks.counters import client, ran


@celery_app.task(name="app.workers.tasks.notification_tasks.send_notification")
def send_notification(n: int) -> int:
    """Sends the notification number ``n``: it is appended to the list ``pam:sent:notifications``."""
    client().rpush("pam:sent:notifications", n)
    ran("send_notification")
    return n


@celery_app.task(name="app.workers.tasks.notification_tasks.send_daily_digest")
def send_daily_digest() -> int:
    return ran("send_daily_digest")
