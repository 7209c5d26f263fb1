# SPDX-License-Identifier: MIT
"""Hourly figures."""

from __future__ import annotations

from app.workers.celery import celery_app
from app.workers.tasks.counters import ran


@celery_app.task(name="app.workers.tasks.analytics_tasks.process_hourly_analytics")
def process_hourly_analytics() -> int:
    return ran("process_hourly_analytics")
