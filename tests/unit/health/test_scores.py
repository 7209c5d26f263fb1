# SPDX-License-Identifier: GPL-3.0-or-later
"""The four scores: documented examples, bounds, and the same answer in the backend and on the host."""

from __future__ import annotations

import random
import types
import typing as t

import pytest

from wheels_ops.health import scores

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


@pytest.mark.parametrize(
    ("score", "corners"),
    [
        (lambda value: scores.performance(memory_percent=value), [(0, 100), (65, 80), (75, 50), (85, 20), (100, 0)]),
        (lambda value: scores.performance(cpu_percent=value), [(0, 100), (70, 80), (85, 50), (100, 0)]),
        (lambda value: scores.performance(disk_percent=value), [(0, 100), (75, 80), (85, 50), (100, 0)]),
        (lambda value: scores.performance(loop_lag_ms=value), [(0, 100), (100, 90), (500, 50), (2000, 0)]),
        (lambda value: scores.user_experience(response_time_ms=value), [(0, 100), (500, 80), (1000, 50), (5000, 0)]),
        (lambda value: scores.user_experience(error_rate=value), [(0, 100), (1, 80), (5, 50), (25, 0)]),
        (lambda value: scores.stability(uptime_percent=value), [(97.5, 0), (99.5, 100)]),
    ],
    ids=["memory", "cpu", "disk", "loop lag", "response time", "error rate", "uptime"],
)
def test_each_part_alone_falls_in_straight_lines(
    score: t.Callable[[float], t.Optional[float]], corners: t.List[t.Tuple[float, float]]
) -> None:
    for value, points in corners:
        assert score(value) == points
    for (low, above), (high, below) in zip(corners, corners[1:]):
        assert score((low + high) / 2) == (above + below) / 2
    assert score(corners[0][0] - 1) == corners[0][1]
    assert score(corners[-1][0] + 1) == corners[-1][1]


def test_half_of_a_score_is_its_worst_part() -> None:
    assert scores.combine([100, 0]) == 25
    assert scores.combine([90, 60, 30, None]) == 45
    assert scores.combine([100, 100, 99]) == 99.3
    assert scores.combine([None, None]) is None
    assert scores.performance(memory_percent=0, cpu_percent=0, disk_percent=0, loop_lag_ms=2000) == 37.5
    assert scores.user_experience(response_time_ms=500, error_rate=25) == 20


def test_a_day_of_which_one_thing_is_known() -> None:
    assert scores.stability(restarts=0) == 100
    assert scores.stability(restarts=2) == 90
    assert scores.stability(crash_loops=1) == 75
    assert scores.stability(uptime_percent=99.51) == 100
    assert scores.stability(restarts=1, uptime_percent=99.49) == 94.5


@pytest.mark.parametrize(
    ("statuses", "word"),
    [
        (["ok"], "healthy"),
        (["pass"], "healthy"),
        (["healthy"], "healthy"),
        (["skipped"], "warning"),
        (["ok", "warning"], "warning"),
        (["ok", "critical"], "critical"),
        (["emergency", "ok"], "critical"),
        (["fail"], "critical"),
        (["unknown", "critical", "skipped"], "critical"),
    ],
)
def test_the_word_for_several_statuses(statuses: t.List[str], word: str) -> None:
    assert scores.overall(statuses) == word
    assert scores.overall(iter(statuses)) == word


def test_backend_and_host_agree(app_modules: Modules) -> None:
    theirs = app_modules("wheels_ops.scores")
    generator = random.Random(5)

    def some(high: float) -> t.Optional[float]:
        return None if generator.random() < 0.2 else generator.uniform(-1, high)

    for _ in range(3000):
        resources = {
            "memory_percent": some(110),
            "cpu_percent": some(110),
            "disk_percent": some(110),
            "loop_lag_ms": some(3000),
        }
        users = {"response_time_ms": some(9000), "error_rate": some(40)}
        lives = {"restarts": generator.randrange(9), "crash_loops": generator.randrange(3), "uptime_percent": some(101)}
        words = [
            generator.choice(["ok", "pass", "warning", "warn", "critical", "fail", "unknown", "skipped", "emergency"])
            for _ in range(3)
        ]
        for name, arguments in (("performance", resources), ("user_experience", users), ("stability", lives)):
            mine = getattr(scores, name)(**arguments)
            assert mine == getattr(theirs, name)(**arguments)
            assert mine is None or 0 <= mine <= 100
        assert scores.overall(words) == theirs.overall(words)
