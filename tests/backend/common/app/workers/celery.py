# SPDX-License-Identifier: MIT
"""The Celery application ``pam_backend``."""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from app.core.config import get_settings

settings = get_settings()

celery_app = Celery(
    "pam_backend",
    broker=settings.REDIS_URL,
    backend=settings.REDIS_URL,
    include=[
        "app.workers.tasks.maintenance_tasks",
        "app.workers.tasks.cleanup_tasks",
        "app.workers.tasks.analytics_tasks",
        "app.workers.tasks.notification_tasks",
    ],
)

celery_app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    result_serializer="json",
    timezone="UTC",
    enable_utc=True,
    task_queues=tuple(
        Queue(name) for name in ("email", "maintenance", "analytics", "cleanup", "notifications", "default")
    ),
    task_routes={
        "app.workers.tasks.maintenance_tasks.*": {"queue": "maintenance"},
        "app.workers.tasks.cleanup_tasks.*": {"queue": "cleanup"},
        "app.workers.tasks.analytics_tasks.*": {"queue": "analytics"},
        "app.workers.tasks.notification_tasks.*": {"queue": "notifications"},
    },
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_max_tasks_per_child=1000,
    broker_connection_retry_on_startup=True,
    beat_schedule={
        "maintenance-check-daily": {
            "task": "app.workers.tasks.maintenance_tasks.check_maintenance_reminders",
            "schedule": 86400.0,
        },
        "cleanup-expired-data": {"task": "app.workers.tasks.cleanup_tasks.cleanup_expired_data", "schedule": 3600.0},
        "process-analytics-hourly": {
            "task": "app.workers.tasks.analytics_tasks.process_hourly_analytics",
            "schedule": 3600.0,
        },
        "send-daily-digest": {"task": "app.workers.tasks.notification_tasks.send_daily_digest", "schedule": 86400.0},
    },
)
