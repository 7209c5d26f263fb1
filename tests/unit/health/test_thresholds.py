# SPDX-License-Identifier: GPL-3.0-or-later
"""The limits of the incident report, and how a value becomes a status."""

from __future__ import annotations

import math
import typing as t

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.health import thresholds
from wheels_ops.health.thresholds import Thresholds


@pytest.mark.parametrize(
    ("name", "warning", "critical", "emergency"),
    [
        ("memory", 65, 75, 85),
        ("cpu", 70, 85, None),
        ("disk", 75, 85, None),
        ("response_time_ms", 500, 1000, None),
        ("error_rate", 1, 5, None),
    ],
)
def test_the_limits_are_those_of_the_incident_report(
    name: str,
    warning: float,
    critical: float,
    emergency: t.Optional[float],
) -> None:
    assert thresholds.DEFAULTS[name].as_dict() == {"warning": warning, "critical": critical, "emergency": emergency}


def test_a_restart_for_memory_and_a_large_log_are_those_of_the_incident_report() -> None:
    assert thresholds.MEMORY_RESTART == 90
    assert thresholds.LOG_MAX_BYTES == 50_000_000


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (0, "ok"),
        (10, "ok"),
        (10.01, "warning"),
        (20, "warning"),
        (20.01, "critical"),
        (30, "critical"),
        (30.01, "emergency"),
        (None, "unknown"),
    ],
)
def test_a_value_above_a_limit_has_its_status(value: t.Optional[float], status: str) -> None:
    assert Thresholds(10, 20, 30).status(value) == status


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (Thresholds(), "ok"),
        (Thresholds(warning=5), "warning"),
        (Thresholds(critical=5), "critical"),
        (Thresholds(emergency=5), "emergency"),
        (Thresholds(5, emergency=50), "warning"),
        (Thresholds(0, 0, 0), "emergency"),
    ],
)
def test_a_limit_that_is_not_set_is_left_out(limits: Thresholds, status: str) -> None:
    assert limits.status(7) == status


def test_limits_rise_or_are_equal() -> None:
    assert Thresholds(5, 5, 5).status(5.1) == "emergency"
    for limits in ((6, 5, None), (6, None, 5), (None, 6, 5)):
        with pytest.raises(OpsError, match="must be in ascending order"):
            Thresholds(*limits)


def test_statuses_from_the_mildest_to_the_worst() -> None:
    words = ("skipped", "ok", "warning", "critical", "emergency", "unknown")
    order = {status: thresholds.STATUSES.index(status) for status in words}
    assert order["skipped"] < order["ok"] < order["warning"] < order["critical"] < order["emergency"]
    assert order["ok"] < order["unknown"] < order["critical"]
    assert len(thresholds.STATUSES) == len(order)


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        (["ok"], "ok"),
        (["skipped"], "skipped"),
        (["ok", "skipped"], "ok"),
        (["warning", "ok"], "warning"),
        (["unknown", "ok"], "unknown"),
        (["ok", "critical", "warning"], "critical"),
        (["critical", "emergency", "unknown"], "emergency"),
        ([], "unknown"),
    ],
)
def test_the_worst_of_several(statuses: t.List[str], worst: str) -> None:
    assert thresholds.worst(statuses) == worst
    assert thresholds.worst(iter(statuses)) == worst


def test_what_a_caller_leaves_out_keeps_its_default() -> None:
    assert thresholds.parse({}) == {}
    assert thresholds.parse({"memory": {}}) == {"memory": Thresholds(65, 75, 85)}
    limits = thresholds.parse({"memory": {"critical": "80"}, "disk": {"warning": None, "emergency": 95}})
    assert limits == {"memory": Thresholds(65, 80, 85), "disk": Thresholds(None, 85, 95)}


@pytest.mark.parametrize("name", ["memory", "cpu", "disk", "error_rate"])
def test_a_percentage_goes_from_0_to_100(name: str) -> None:
    whole = {"warning": 0, "critical": 100, "emergency": None}
    assert thresholds.parse({name: whole}) == {name: Thresholds(0, 100, None)}
    for limits in ({"warning": -0.1}, {"emergency": 100.1}, {"warning": math.nan}):
        with pytest.raises(OpsError, match=rf"{name}\.\w+ must be between 0 and 100"):
            thresholds.parse({name: limits})


def test_a_time_has_no_upper_bound() -> None:
    assert thresholds.parse({"response_time_ms": {"critical": 60_000}}) == {"response_time_ms": Thresholds(500, 60_000)}
    with pytest.raises(OpsError, match="response_time_ms.warning must be at least 0, got -1"):
        thresholds.parse({"response_time_ms": {"warning": -1}})


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({"swap": {"warning": 1}}, "Unknown threshold 'swap'.*memory, cpu, disk"),
        ({"cpu": {"alarm": 1}}, "cpu has unknown keys: alarm"),
        ({"cpu": {"warning": "much"}}, "cpu.warning must be a number"),
        ({"cpu": {"warning": [1]}}, "cpu.warning must be a number"),
        ({"cpu": {"warning": 90}}, "Thresholds of cpu must be in ascending order"),
    ],
)
def test_nonsense_is_refused_by_its_name(limits: t.Dict[str, t.Any], complaint: str) -> None:
    with pytest.raises(OpsError, match=complaint):
        thresholds.parse({"memory": {}, **limits})


def test_thresholds_of_the_new_measures_are_read() -> None:
    assert thresholds.parse({"waiting_tasks": {"warning": 5}, "websocket_ms": {"critical": 20_000}}) == {
        "waiting_tasks": Thresholds(5, 10_000),
        "websocket_ms": Thresholds(1000, 20_000),
    }


@pytest.mark.parametrize(("value", "crossed"), [(65, 0), (65.1, 65), (80, 75), (90, 85)])
def test_the_limit_that_was_crossed(value: float, crossed: float) -> None:
    assert thresholds.DEFAULTS["memory"].crossed(value) == crossed
    assert Thresholds().crossed(value) == 0
