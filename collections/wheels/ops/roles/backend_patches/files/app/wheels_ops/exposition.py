# SPDX-License-Identifier: MIT
"""The samples as Prometheus text (format 0.0.4). Written out by hand: the client library costs 10 MB of resident memory."""

from __future__ import annotations

import math
from typing import Any, Iterable, List, Mapping, Tuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SCORES = ("performance", "stability", "user_experience")
_STATES = {"pass": 0, "warn": 1, "fail": 2}


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
    number = "NaN" if math.isnan(value) else f"{value:.10g}"
    return f"{name}{{{inside}}} {number}" if inside else f"{name} {number}"


def _family(
    lines: List[str], name: str, kind: str, text: str, samples: Iterable[Tuple[str, Mapping[str, str], float]]
) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [_line(name + suffix, labels, value) for suffix, labels, value in samples]


def render(monitor: Any, requests: Any, board: Any, optimizer: Any) -> str:
    """Everything a scrape gets: metrics, checks, scores, requests by route, memory remediation."""
    from app.core.performance_monitor import BUCKETS

    lines: List[str] = []
    for name, metric in sorted(monitor.current.items()):
        _family(
            lines,
            f"pam_{name}",
            "gauge",
            f"{name.replace('_', ' ')}{f' ({metric.unit})' if metric.unit else ''}",
            [("", {}, metric.value)],
        )
    states = board.states()
    _family(
        lines,
        "pam_health_check",
        "gauge",
        "0 pass, 1 warn, 2 fail",
        [("", {"check": name}, _STATES[status]) for name, (status, _ignored) in sorted(states.items())],
    )
    _family(
        lines,
        "pam_health_check_skipped",
        "gauge",
        "1 where a check is not made",
        [("", {"check": name}, 1) for name in sorted(dict(board.notes))],
    )
    scores = board.scores()
    _family(
        lines,
        "pam_health_score",
        "gauge",
        "0 to 100, see docs/scores.md",
        [("", {"score": n}, scores[n]) for n in _SCORES if scores[n] is not None],
    )
    _family(
        lines,
        "pam_alerts_active",
        "gauge",
        "Alerts that are raised now",
        [
            ("", {"metric": name, "level": alert.level.value}, 1)
            for name, alert in sorted(monitor.active_alerts.items())
        ],
    )
    routes = [
        (dict(zip(("method", "route"), name.split(" ", 1))), stats) for name, stats in sorted(requests.routes.items())
    ]
    _family(
        lines,
        "pam_request_errors_total",
        "counter",
        "Requests answered 5xx",
        [("", labels, stats.errors) for labels, stats in routes],
    )
    histogram: List[Tuple[str, Mapping[str, str], float]] = []
    for labels, stats in routes:
        seen = 0
        for bound, count in zip((*BUCKETS, math.inf), stats.buckets):
            seen += count
            histogram.append(("_bucket", {**labels, "le": "+Inf" if math.isinf(bound) else f"{bound:g}"}, seen))
        histogram += [("_sum", labels, stats.seconds), ("_count", labels, stats.count)]
    _family(lines, "pam_request_duration_seconds", "histogram", "Time to the first byte of the answer", histogram)
    _family(lines, "pam_requests_in_flight", "gauge", "Requests being served", [("", {}, requests.in_flight)])
    _family(
        lines, "pam_memory_cleanups_total", "counter", "Memory clean-ups done", [("", {}, optimizer.optimization_count)]
    )
    _family(
        lines,
        "pam_memory_freed_bytes",
        "gauge",
        "What the last clean-ups gave back",
        [("", {}, sum(one["freed_bytes"] for one in optimizer.results))],
    )
    return "\n".join(lines) + "\n"
