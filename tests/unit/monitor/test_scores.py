# SPDX-License-Identifier: GPL-3.0-or-later
"""The four scores: documented examples, bounds, and the same answer in the backend and on the host."""

from __future__ import annotations

import random
import types
import typing as t

import pytest

from wheels_ops import scores

Modules = t.Callable[[str], types.ModuleType]


def test_examples_of_the_documentation() -> None:
    assert scores.performance(memory_percent=70, cpu_percent=20, disk_percent=50) == 73.5
    assert scores.stability(restarts=1, crash_loops=0, uptime_percent=99.5) == 95.0
    assert scores.user_experience(response_time_ms=750, error_rate=0.5) == 71.2


@pytest.mark.parametrize(
    ("curve", "warning", "critical"),
    [("MEMORY", 65, 75), ("CPU", 70, 85), ("DISK", 75, 85), ("RESPONSE_TIME_MS", 500, 1000), ("ERROR_RATE", 1, 5)],
)
def test_eighty_at_the_warning_and_fifty_at_the_critical_threshold(curve: str, warning: float, critical: float) -> None:
    assert scores.on_curve(warning, getattr(scores, curve)) == 80
    assert scores.on_curve(critical, getattr(scores, curve)) == 50
    assert scores.on_curve(0, getattr(scores, curve)) == 100


def test_what_was_not_measured_is_not_healthy() -> None:
    assert scores.performance() is None and scores.stability() is None and scores.user_experience() is None
    assert scores.overall([]) == "warning"
    assert scores.overall(["ok", "unknown"]) == "warning"
    assert scores.overall(["ok", "skipped"]) == "healthy"
    assert scores.overall(["pass", "warn"]) == "warning"
    assert scores.overall(["warning", "emergency"]) == "critical"
    assert scores.overall(["pass", "fail"]) == "critical"


def test_crash_loops_and_downtime_cost() -> None:
    assert scores.stability(restarts=0, crash_loops=0, uptime_percent=100) == 100
    assert scores.stability(uptime_percent=98.5) == 50
    assert scores.stability(restarts=3, crash_loops=1, uptime_percent=100) == 60
    assert scores.stability(restarts=50, crash_loops=9, uptime_percent=90) == 0


def test_backend_and_host_agree(app_modules: Modules) -> None:
    theirs = app_modules("wheels_ops.scores")
    generator = random.Random(5)

    def some(high: float) -> t.Optional[float]:
        return None if generator.random() < 0.2 else generator.uniform(-1, high)

    for _ in range(3000):
        resources = {"memory_percent": some(110), "cpu_percent": some(110), "disk_percent": some(110), "loop_lag_ms": some(3000)}
        users = {"response_time_ms": some(9000), "error_rate": some(40)}
        lives = {"restarts": generator.randrange(9), "crash_loops": generator.randrange(3), "uptime_percent": some(101)}
        words = [generator.choice(["ok", "pass", "warning", "warn", "critical", "fail", "unknown", "skipped", "emergency"]) for _ in range(3)]
        for name, arguments in (("performance", resources), ("user_experience", users), ("stability", lives)):
            mine = getattr(scores, name)(**arguments)
            assert mine == getattr(theirs, name)(**arguments)
            assert mine is None or 0 <= mine <= 100
        assert scores.overall(words) == theirs.overall(words)
