# SPDX-License-Identifier: MIT
"""The four scores. The host side (``module_utils/health/scores.py``) has the same formulas; a test proves that both
agree."""

from __future__ import annotations

import typing as t

#: (value, score) corners; between them a straight line, outside them the nearest corner.
Curve = t.Sequence[t.Tuple[float, float]]

MEMORY: Curve = ((0, 100), (65, 80), (75, 50), (85, 20), (100, 0))
CPU: Curve = ((0, 100), (70, 80), (85, 50), (100, 0))
DISK: Curve = ((0, 100), (75, 80), (85, 50), (100, 0))
LOOP_LAG_MS: Curve = ((0, 100), (100, 90), (500, 50), (2000, 0))
RESPONSE_TIME_MS: Curve = ((0, 100), (500, 80), (1000, 50), (5000, 0))
ERROR_RATE: Curve = ((0, 100), (1, 80), (5, 50), (25, 0))
#: Uptime in percent: full marks at the target of 99.5 %, none at 97.5 %.
UPTIME: Curve = ((97.5, 0), (99.5, 100))
#: Points that one unplanned restart, and one crash loop (three restarts within ten minutes), cost.
RESTART_POINTS = 5.0
CRASH_LOOP_POINTS = 25.0


def on_curve(value: float, curve: Curve) -> float:
    """The score of a value, 0 to 100."""
    if value <= curve[0][0]:
        return float(curve[0][1])
    for (low, above), (high, below) in zip(curve, curve[1:]):
        if value <= high:
            return float(above + (below - above) * (value - low) / (high - low))
    return float(curve[-1][1])


def combine(parts: t.Iterable[t.Optional[float]]) -> t.Optional[float]:
    """Half the worst part, half the mean: one exhausted resource must show, whatever the others do. None without
    parts."""
    numbers = [part for part in parts if part is not None]
    if not numbers:
        return None
    return round(0.5 * min(numbers) + 0.5 * sum(numbers) / len(numbers), 1)


def _part(value: t.Optional[float], curve: Curve) -> t.Optional[float]:
    return None if value is None else on_curve(value, curve)


def performance(
    *,
    memory_percent: t.Optional[float] = None,
    cpu_percent: t.Optional[float] = None,
    disk_percent: t.Optional[float] = None,
    loop_lag_ms: t.Optional[float] = None,
) -> t.Optional[float]:
    """0 to 100 from the use of resources; what was not measured does not count, None where nothing was."""
    return combine(
        (
            _part(memory_percent, MEMORY),
            _part(cpu_percent, CPU),
            _part(disk_percent, DISK),
            _part(loop_lag_ms, LOOP_LAG_MS),
        )
    )


def stability(
    *, restarts: t.Optional[int] = None, crash_loops: t.Optional[int] = None, uptime_percent: t.Optional[float] = None
) -> t.Optional[float]:
    """0 to 100 from the last 24 hours: uptime against 99.5 %, less points for unplanned restarts and crash loops."""
    if restarts is None and crash_loops is None and uptime_percent is None:
        return None
    score = 100.0 if uptime_percent is None else on_curve(uptime_percent, UPTIME)
    score -= RESTART_POINTS * (restarts or 0) + CRASH_LOOP_POINTS * (crash_loops or 0)
    return round(max(0.0, score), 1)


def user_experience(
    *, response_time_ms: t.Optional[float] = None, error_rate: t.Optional[float] = None
) -> t.Optional[float]:
    """0 to 100 from the 95th percentile of the response time (500/1000 ms) and the share of failed requests (1/5 %)."""
    return combine((_part(response_time_ms, RESPONSE_TIME_MS), _part(error_rate, ERROR_RATE)))


def overall(statuses: t.Iterable[str]) -> str:
    """``healthy``, ``warning`` or ``critical`` from the statuses of all checks. What is unknown is never shown as
    healthy."""
    measured_statuses = [status for status in statuses if status != "skipped"]
    if any(status in ("critical", "emergency", "fail") for status in measured_statuses):
        return "critical"
    if not measured_statuses or any(status not in ("ok", "pass", "healthy") for status in measured_statuses):
        return "warning"
    return "healthy"
