# SPDX-License-Identifier: MIT
"""Reminders of vehicle maintenance."""

from __future__ import annotations

from app.workers.celery import celery_app
from app.workers.tasks.counters import ran


@celery_app.task(name="app.workers.tasks.maintenance_tasks.check_maintenance_reminders")
def check_maintenance_reminders() -> int:
    return ran("check_maintenance_reminders")
