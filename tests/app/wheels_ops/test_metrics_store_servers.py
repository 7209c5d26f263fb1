# SPDX-License-Identifier: GPL-3.0-or-later
"""The history over restarts and several workers of a running server."""

from __future__ import annotations

import os
import signal
import socket
import typing as t
from pathlib import Path

import pytest

from tests.support.health_app import TOKEN, HealthApp, health_app
from tests.support.waiting import wait_until

REPORT = "/api/v1/system/performance/report?hours=6"
QUICK = {"MONITORING_INTERVAL": "0.2"}


def report_of(app: HealthApp, path: str = REPORT) -> t.Dict[str, t.Any]:
    """The report, as soon as the rate limit lets one have it."""
    answer = wait_until(
        lambda: (found := app.request("GET", path, token=TOKEN)).status == 200 and found, timeout=30, every=0.6
    )
    assert answer
    return t.cast(t.Dict[str, t.Any], answer.json())


def points(app: HealthApp, name: str = "memory_percent") -> int:
    return int(report_of(app)["metrics_summary"].get(name, {}).get("data_points", 0))


def test_a_report_is_true_after_a_restart_and_after_a_crash(tmp_path: Path) -> None:
    with health_app(QUICK, state=tmp_path) as app:
        for _ in range(40):
            app.request("GET", "/items/5")
        wait_until(lambda: points(app) >= 10, timeout=30)
        wait_until(lambda: points(app, "response_time_ms") >= 40, timeout=30, what="an average weighted by requests")
        before = points(app)
    with health_app(QUICK, state=tmp_path) as app:
        assert points(app) >= before
        report = report_of(app)
        assert report["source"] == "store" and report["metrics_summary"]["response_time_ms"]["data_points"] >= 40
        month = report_of(app, "/api/v1/system/performance/report?days=30")
        assert (
            month["report_period_hours"] == 720 and month["metrics_summary"]["memory_percent"]["data_points"] >= before
        )
        scores = app.health()["scores"]
        assert scores["stability"] == 100.0, "an orderly restart costs nothing"
        wait_until(lambda: points(app) > before, timeout=30)
        os.kill(app.process.pid, signal.SIGKILL)
        app.process.wait()
    with health_app(QUICK, state=tmp_path) as app:
        assert points(app) >= before
        assert app.health()["sections"]["stability"]["restarts"] == 1
        assert app.health()["scores"]["stability"] == 95.0


def test_several_workers_share_one_history(tmp_path: Path) -> None:
    with health_app(QUICK, state=tmp_path, uvicorn=("--workers", "3")) as app:
        serving: t.Set[int] = set()

        def all_of_them() -> bool:
            """A worker that is told to stop while it still starts ends without a goodbye."""
            serving.add(app.request("GET", "/items/5").json()["process"])
            return len(serving) == 3

        wait_until(all_of_them, timeout=60, what="three workers serve")
        for _ in range(30):
            assert app.request("GET", "/items/5").status == 200
        wait_until(lambda: points(app, "process_memory_mb") >= 30, timeout=60)
        report = report_of(app)
        assert report["source"] == "store"
    with health_app(QUICK, state=tmp_path) as app:
        assert report_of(app)["metrics_summary"]["response_time_ms"]["data_points"] >= 30, "of all workers together"
        assert app.health()["sections"]["stability"]["restarts"] == 0


@pytest.mark.parametrize(("moment", "seconds"), [("the application starts", "1"), ("Performance monitor started", "0")])
def test_an_end_that_is_asked_for_during_the_start_is_no_crash(tmp_path: Path, moment: str, seconds: str) -> None:
    """uvicorn notes SIGTERM while the application starts, and ends after it without ``lifespan.shutdown``."""
    with health_app(QUICK, state=tmp_path):
        pass
    # A database that accepts and says nothing: the first round of the checks, which the start waits for, takes its
    # whole timeout.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        database = f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x"
        with health_app(QUICK, state=tmp_path, wait=False, START_SECONDS=seconds, DATABASE_URL=database) as app:
            wait_until(lambda: moment in app.logged(), timeout=30, what=moment)
            app.process.send_signal(signal.SIGTERM)
            assert app.process.wait(30) == -signal.SIGTERM
            assert "the application ends in order" not in app.logged(), (
                "the server itself said nothing to the application"
            )
    with health_app(QUICK, state=tmp_path) as app:
        assert app.health()["sections"]["stability"]["restarts"] == 0
        assert app.health()["scores"]["stability"] == 100.0
