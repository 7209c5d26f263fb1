# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests are counted by route template, bounded, and their percentiles are right."""

from __future__ import annotations

import random
import statistics
import types
import typing as t

import pytest

Modules = t.Callable[[str], types.ModuleType]


class Route:
    def __init__(self, path: str) -> None:
        self.path = path


async def _nothing() -> t.Dict[str, t.Any]:
    return {"type": "http.request"}


async def _drop(message: t.MutableMapping[str, t.Any]) -> None:
    pass


async def call(
    layer: t.Any, *, status: int = 200, template: t.Optional[str] = "/users/{id}", error: t.Optional[Exception] = None
) -> None:
    layer.outcome = (status, template, error)
    await layer({"type": "http", "method": "GET", "path": "/users/7"}, _nothing, _drop)


@pytest.fixture
def layer(app_modules: Modules) -> t.Any:
    module = app_modules("core.performance_monitor")

    async def application(scope: t.Any, receive: t.Any, send: t.Any) -> None:
        status, template, error = made.outcome
        if template:
            scope["route"] = Route(template)
        if error:
            raise error
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": b""})

    made = module.RequestMetricsMiddleware(application, module.RequestStats())
    return made


async def test_counts_by_method_and_template(layer: t.Any) -> None:
    await call(layer)
    await call(layer, status=503)
    await call(layer, status=404, template=None)
    with pytest.raises(RuntimeError):
        await call(layer, error=RuntimeError("broken"))
    stats = layer.stats
    assert stats.routes["GET /users/{id}"].count == 3
    assert stats.routes["GET /users/{id}"].errors == 2, "a 503 and an exception; a 404 is the caller's"
    assert stats.routes["GET (unmatched)"].errors == 0
    assert stats.in_flight == 0
    assert stats.take_window().count == 4 and stats.window.count == 0


async def test_a_caller_cannot_grow_the_table(layer: t.Any) -> None:
    for number in range(1000):
        await call(layer, template=f"/made/up/{number}")
    assert len(layer.stats.routes) <= 301
    assert sum(one.count for one in layer.stats.routes.values()) == 1000


def test_percentiles_lie_within_their_histogram_bucket(app_modules: Modules) -> None:
    module = app_modules("core.performance_monitor")
    generator = random.Random(11)
    for _ in range(20):
        times = [generator.lognormvariate(-3, 1.2) for _ in range(500)]
        stats = module.RequestStats()
        for seconds in times:
            stats.record("GET /", seconds, False)
        window = stats.take_window()
        found = module.quantile(window.buckets, 0.95, window.worst)
        exact = statistics.quantiles(times, n=20)[18]
        above = next((bound for bound in module.BUCKETS if bound >= exact), max(times))
        below = max([bound for bound in module.BUCKETS if bound < exact], default=0.0)
        assert below <= found <= above


async def test_other_scopes_pass_through(app_modules: Modules) -> None:
    module = app_modules("core.performance_monitor")
    seen = []

    async def application(scope: t.Any, receive: t.Any, send: t.Any) -> None:
        seen.append((scope["type"], send))

    await module.RequestMetricsMiddleware(application, module.RequestStats())({"type": "websocket"}, _nothing, _drop)
    assert seen == [("websocket", _drop)], "the very same send: nothing is put between a socket and its application"


def test_the_ring_keeps_a_day_in_little_memory_and_shows_gaps(app_modules: Modules) -> None:
    module = app_modules("core.performance_monitor")
    ring = module.Ring()
    for index in range(2 * 17280):  # two days of samples, five seconds apart
        ring.add(5.0 * index, float(index % 100))
    assert len(ring.values) <= ring.size + 64
    assert len(ring.since(2 * 86400 - 3600)) in (120, 121)
    assert len(ring.values) * ring.values.itemsize * 16 <= 0.2 * 1024 * 1024, "P4: 24 h of sixteen metrics in 0.2 MB"
    ring.add(2 * 86400 + 3600, 1.0)
    assert [value for _, value in ring.since(2 * 86400 + 60)] == [1.0], "an hour nobody measured is empty"


async def test_methods_that_a_caller_invents_are_counted_together(app_modules: Modules) -> None:
    """h11 passes any word on; each of them would be a line of the table and a time series."""
    module = app_modules("core.performance_monitor")

    async def application(scope: t.Any, receive: t.Any, send: t.Any) -> None:
        await send({"type": "http.response.start", "status": 405})

    stats = module.RequestStats()
    middleware = module.RequestMetricsMiddleware(application, stats)
    for number in range(500):
        await middleware({"type": "http", "method": f"X{number}", "path": "/"}, _nothing, _drop)
    await middleware({"type": "http", "method": "GET", "path": "/"}, _nothing, _drop)
    assert {name: one.count for name, one in stats.routes.items()} == {
        "(other) (unmatched)": 500,
        "GET (unmatched)": 1,
    }
