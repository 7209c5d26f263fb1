# SPDX-License-Identifier: GPL-3.0-or-later
"""Celery under load: what the throttle does to background work, and what a web process beside it gains."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
import typing as t
import urllib.request

from tests.bench.harness import Pair, benchmark
from tests.support import servers
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.celery_backend import CeleryBackend, celery_backend
from tests.support.waiting import free_port, wait_until
from wheels_ops.remedies import celery_throttle

#: Periodic background work of 0.4 s of processor time every 0.5 s in each of two classes: it keeps both children of the
#: worker busy. What users gain is the share of the processors that it had; on a machine with other tenants a smaller
#: one.
SCHEDULE = {"cleanup-expired-data": 0.5, "process-analytics-hourly": 0.5, "maintenance-check-daily": 1.0}
LOW = ("cleanup_expired_data", "process_hourly_analytics")
BURN = """
    if task in ("cleanup_expired_data", "process_hourly_analytics"):
        import time

        end = time.process_time() + 0.4
        while time.process_time() < end:
            pass
"""
WEB = """
import json

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = json.dumps([json.loads(json.dumps(list(range(300)))) for _ in range(500)]).encode()[:1000]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""
#: Seconds that the machine is busy before it is measured (the goal allows ten), and of measuring: under hogs an answer
#: takes a tenth of a second and more, and a 95th percentile of fewer than a hundred answers is one or two stragglers.
BUSY, MEASURED = 10.0, 20.0


def experiment(install: bool) -> t.Dict[str, float]:
    """Two processor hogs beside worker, beat and a web process: runs of background work, and response times, after ten
    seconds of it.
    """
    with (
        servers.redis() as redis,
        celery_backend(redis.url, install=install, schedule=SCHEDULE, recorders=False) as backend,
        contextlib.ExitStack() as stack,
    ):
        counters = backend.directory / "app/workers/tasks/counters.py"
        text = counters.read_text()
        place = text.index('    """How often the task ran')
        end = text.index("\n", place) + 1
        counters.write_text(text[:end] + BURN + text[end:])
        (backend.directory / "web.py").write_text(WEB)
        port = free_port()
        words = [str(BACKEND_PYTHON), "-m", "uvicorn", "web:app", "--port", str(port), "--log-level", "warning"]
        _start(stack, words, cwd=backend.directory, env=backend.environment)
        backend.worker()
        backend.beat()
        url = f"http://127.0.0.1:{port}/"
        wait_until(
            lambda: _time(url) and _runs(backend, ("check_maintenance_reminders",)) >= 2,
            timeout=60,
            what="everything runs",
        )
        for _ in range(os.cpu_count() or 1):
            _start(stack, [sys.executable, "-c", "while True: pass"])
        time.sleep(BUSY)
        before, critical, times = _runs(backend, LOW), _runs(backend, ("check_maintenance_reminders",)), []
        end_at = time.monotonic() + MEASURED
        while time.monotonic() < end_at:
            times.append(_time(url))
            time.sleep(0.02)
        return {
            "runs": _runs(backend, LOW) - before,
            "critical": _runs(backend, ("check_maintenance_reminders",)) - critical,
            "p95": statistics.quantiles(times, n=20)[18],
        }


def _start(stack: contextlib.ExitStack, words: t.Sequence[str], **options: t.Any) -> None:
    process = subprocess.Popen(list(words), **options)
    stack.callback(process.wait)
    stack.callback(process.kill)


def _runs(backend: CeleryBackend, names: t.Sequence[str]) -> int:
    return sum(int(value or 0) for value in backend.redis.mget([f"pam:ran:{name}" for name in names]))


def _time(url: str) -> float:
    started = time.monotonic()
    with urllib.request.urlopen(url, timeout=30) as answer:
        answer.read()
    return 1000 * (time.monotonic() - started)


_DONE: t.Dict[t.Tuple[bool, int], t.Dict[str, float]] = {}


def measured(install: bool, number: int) -> t.Dict[str, float]:
    """The experiment's outcome, which serves three benchmarks."""
    key = (install, number)
    if key not in _DONE:
        _DONE[key] = experiment(install)
    return _DONE[key]


def pair(what: str) -> Pair:
    counts = {True: 0, False: 0}

    def run(install: bool) -> float:
        counts[install] += 1
        return measured(install, counts[install])[what]

    return (lambda: run(True)), (lambda: run(False))


@benchmark(
    "L1",
    what="runs of cleanup and analytics in 20 s, from 10 s after CPU hogs began",
    unit="runs",
    goal="ratio <= 0.25",
    runs=2,
    peer="no throttle",
)
@contextlib.contextmanager
def low_class() -> t.Iterator[Pair]:
    yield pair("runs")


@benchmark(
    "L1b",
    what="response time of a web process beside it, p95",
    unit="ms",
    goal="ratio <= 0.8",
    runs=2,
    peer="no throttle",
)
@contextlib.contextmanager
def responses() -> t.Iterator[Pair]:
    yield pair("p95")


@benchmark(
    "L3",
    what="runs of a task that users wait for, meanwhile (20 are due)",
    unit="runs",
    goal="ours >= 18",
    runs=2,
    peer="no throttle",
)
@contextlib.contextmanager
def critical() -> t.Iterator[Pair]:
    yield pair("critical")


@benchmark("L2", what="full rate after the throttle's writer died", unit="s", goal="ours <= 100", runs=1)
@contextlib.contextmanager
def recovery() -> t.Iterator[Pair]:
    """With the expiry of an operator's throttle at a third of that of the automatic one (30 s instead of 90); 60 s are
    added.
    """

    def run() -> float:
        backend.redis.set("pam:throttle:observer", "bench", ex=600)
        backend.beat()
        wait_until(lambda: backend.redis.exists("pam:beat:heartbeat"), timeout=60, what="beat")
        celery_throttle.run(redis.url, level=2, expires_s=30)
        started = time.monotonic()
        wait_until(
            lambda: '"factor": 1,' in (backend.redis.get("pam:beat:heartbeat") or ""), timeout=60, what="full rate"
        )
        return time.monotonic() - started + 60

    with servers.redis() as redis, celery_backend(redis.url, schedule=SCHEDULE) as backend:
        yield run, None
