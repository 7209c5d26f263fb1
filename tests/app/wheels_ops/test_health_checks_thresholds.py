# SPDX-License-Identifier: GPL-3.0-or-later
"""The thresholds of a host, given to a running backend by its environment: its own health endpoint turns with each."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.support.health_app import TOKEN, HealthApp, health_app
from tests.support.waiting import wait_until
from wheels_ops.health.backend_settings import threshold_variables

#: Nothing that is measured is below the one limit, and nothing above the other.
LOW = {
    name: {"warning": 0, "critical": 0, "emergency": None}
    for name in ("memory", "cpu", "disk", "response_time_ms", "error_rate")
}
HIGH = {name: {"warning": None, "critical": None, "emergency": None} for name in LOW}
CHECKS = ("memory:utilization", "cpu:utilization", "disk:utilization", "http:responseTime", "http:errorRate")


def statuses(app: HealthApp) -> t.Dict[str, str]:
    """After some requests, as few say nothing of the time of an answer, and some that fail."""
    for number in range(30):
        app.request("GET", "/fault/error" if number % 10 == 0 else f"/items/{number}")
    checks = app.request("GET", "/api/v1/system/health", token=TOKEN).json()["checks"]
    return {name: checks[name][0]["status"] for name in CHECKS if name in checks}


@pytest.mark.parametrize(("limits", "status"), [(LOW, "fail"), (HIGH, "pass")])
def test_the_health_endpoint_turns_with_each_threshold(tmp_path: Path, limits: t.Dict[str, t.Any], status: str) -> None:
    with health_app(
        threshold_variables(limits), state=tmp_path, MONITORING_INTERVAL="0.5", HEALTH_CHECK_INTERVAL="0.5"
    ) as app:
        # A busy processor is a warning: it takes no server out.
        expected = {**dict.fromkeys(CHECKS, status), "cpu:utilization": "warn" if status == "fail" else status}
        wait_until(lambda: statuses(app) == expected)
