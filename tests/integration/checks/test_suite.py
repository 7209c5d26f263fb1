# SPDX-License-Identifier: GPL-3.0-or-later
"""Every check takes its limits from the options, on a host with a real Redis."""

from __future__ import annotations

import typing as t

import pytest

from tests.support import servers
from tests.support.answers import Backend, serve
from wheels_ops.checks import celery, cpu, suite, websocket
from wheels_ops.health.thresholds import DEFAULTS, Thresholds

#: Which checks grade a measure by each threshold: nothing may be added to the thresholds that no check takes.
CONSUMERS: t.Dict[str, t.Tuple[str, ...]] = {
    "memory": ("memory", "redis"),
    "cpu": ("cpu",),
    "disk": ("disk",),
    "response_time_ms": ("http", "cpu"),
    "error_rate": ("http",),
    "waiting_tasks": ("celery",),
    "websocket_ms": ("websocket",),
}
PAIRS = [(name, subject) for name, subjects in CONSUMERS.items() for subject in subjects]


def test_every_threshold_has_a_consumer() -> None:
    assert set(CONSUMERS) == set(DEFAULTS)


@pytest.fixture
def backend() -> t.Iterator[Backend]:
    with serve({"/health": [(200, {}), (500, {}), (200, {})], "/api/memory": (200, {})}) as running:
        yield running


@pytest.fixture
def options(backend: Backend, redis: servers.Redis, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[t.Dict[str, t.Any]]:
    """A host on which every measure is above zero and below its highest limit."""
    monkeypatch.setattr(celery.broker, "workers", lambda _client, **_options: {"celery@host": {}})
    monkeypatch.setattr(cpu, "_host_ticks", iter([(100, 1000), (600, 2000)]).__next__)
    monkeypatch.setattr(cpu.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(
        websocket, "check", lambda url, **given: websocket._check(50.0, [], {"url": url}, given["thresholds"])
    )
    redis.cli("RPUSH", "celery", "task")
    redis.cli("CONFIG", "SET", "maxmemory", "1gb")
    yield {"base_url": backend.url, "redis_url": redis.url, "websocket_path": "/ws", "health_path": "", "logs": ()}
    redis.cli("CONFIG", "SET", "maxmemory", "0")


def only(name: str, limit: float) -> t.Dict[str, Thresholds]:
    """Every threshold out of the way, but one."""
    found = {each: Thresholds() for each in DEFAULTS}
    found[name] = Thresholds(critical=limit)
    return found


@pytest.mark.parametrize(("name", "subject"), PAIRS)
def test_a_limit_turns_each_check_that_has_it(options: t.Dict[str, t.Any], name: str, subject: str) -> None:
    (low,) = suite.run(suite.Options(subjects=(subject,), thresholds=only(name, 0), **options))["checks"]
    assert low["status"] == "critical", low["message"]


@pytest.mark.parametrize(("name", "subject"), PAIRS)
def test_out_of_the_way_it_leaves_each_check_well(options: t.Dict[str, t.Any], name: str, subject: str) -> None:
    highest = 100 if name in ("memory", "cpu", "disk", "error_rate") else 1e6
    (high,) = suite.run(suite.Options(subjects=(subject,), thresholds=only(name, highest), **options))["checks"]
    assert high["status"] == "ok", high["message"]


def test_workers_without_a_beat_are_healthy_where_none_is_asked_for(
    redis: servers.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery.broker, "workers", lambda _client, **_options: {"celery@host": {}})
    monkeypatch.setattr(celery.gates, "beats", dict)
    check = celery.check(redis.url, expect_beat=False)
    assert (check.status, check.message) == ("ok", "1 workers answer, 0 tasks wait.")
    assert celery.check(redis.url, expect_beat=True).status == "warning"
