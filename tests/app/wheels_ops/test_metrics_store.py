# SPDX-License-Identifier: GPL-3.0-or-later
"""The history: over restarts, from several workers, bounded, and honest where it cannot be written."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import sys
import types
import typing as t
from pathlib import Path

import pytest

Modules = t.Callable[[str], types.ModuleType]
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_history_survives_a_restart(app_modules: Modules, tmp_path: Path, clock: Clock) -> None:
    make = app_modules("wheels_ops.metrics_store").MetricsStore
    first = make(tmp_path / "state" / "metrics.sqlite", clock=clock)
    assert await first.start()
    for index in range(720):  # six hours back, every thirty seconds
        first.add(NOW - 6 * 3600 + 30 * index, {"memory_percent": 40.0 + index % 2}, {})
    first.add(NOW, {"response_time_ms": 250.0}, {"response_time_ms": (1000.0, 4)})
    first.add(NOW, {"response_time_ms": 1000.0}, {"response_time_ms": (1000.0, 1)})
    await first.stop()
    second = make(tmp_path / "state" / "metrics.sqlite", clock=clock)
    assert await second.start()
    summary = await second.summary(7)
    assert summary["memory_percent"] == {"min": 40.0, "max": 41.0, "avg": pytest.approx(40.5), "data_points": 720}
    assert summary["response_time_ms"]["avg"] == 400.0, "weighted by requests, not by samples"
    assert len((await second.series(["memory_percent"], 7))["memory_percent"]) == 720
    assert (await second.summary(3))["memory_percent"]["data_points"] == pytest.approx(360, abs=2)
    await second.stop()


async def test_a_month_is_kept_and_no_more(app_modules: Modules, tmp_path: Path, clock: Clock) -> None:
    module = app_modules("wheels_ops.metrics_store")
    store = module.MetricsStore(tmp_path / "metrics.sqlite", clock=clock, flush_seconds=1e9)
    assert await store.start()
    for day in range(60):
        for slot in range(48):
            store.add(NOW + day * 86400 + slot * 1800, {"memory_percent": float(day), "cpu_percent": 1.0}, {})
        clock.now = NOW + (day + 1) * 86400
        store._next_prune = 0.0
        store.flush()
    summary = await store.summary(35 * 24)
    assert summary["memory_percent"]["min"] == 25.0 and summary["memory_percent"]["max"] == 59.0
    rows = await store._ask(lambda db: db.execute("select step, count(*) from sample group by step"))
    counts = dict(rows)
    assert counts[module.FINE] <= 2 * (module.FINE_KEPT // module.FINE + 1)
    assert counts[module.COARSE] <= 2 * (module.COARSE_KEPT // module.COARSE + 1)
    await store.stop()


_WORKER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from app.wheels_ops.metrics_store import MetricsStore
async def main():
    store = MetricsStore(Path(sys.argv[2]), clock=lambda: 1_800_000_000.0)
    assert await store.start()
    for index in range(200):
        store.add(1_800_000_000.0 - 30 * index, {"memory_percent": float(sys.argv[3])}, {})
        if index % 10 == 0:
            store.flush(); await asyncio.sleep(0)
    await store.stop()
asyncio.run(main())
"""


async def test_several_workers_write_one_file(app_modules: Modules, tmp_path: Path, clock: Clock) -> None:
    """Four processes at once, 200 samples each: every sample is in it once."""
    root = next(path for path in sys.path if (Path(path) / "app" / "wheels_ops" / "metrics_store.py").exists())
    target = tmp_path / "metrics.sqlite"
    workers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _WORKER, root, str(target), str(10 * number))
        for number in range(1, 5)
    ]
    assert [await worker.wait() for worker in workers] == [0, 0, 0, 0]
    store = app_modules("wheels_ops.metrics_store").MetricsStore(target, clock=clock)
    assert await store.start()
    found = (await store.summary(3))["memory_percent"]
    assert found == {"min": 10.0, "max": 40.0, "avg": 25.0, "data_points": 800}
    await store.stop()
    assert target.stat().st_size < 1_000_000
    assert multiprocessing.active_children() == []


async def test_unwritable_degrades_to_memory(app_modules: Modules, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = app_modules("wheels_ops.metrics_store").MetricsStore(blocked / "metrics.sqlite")
    assert not await store.start()
    store.add(NOW, {"memory_percent": 1.0}, {})
    assert await store.summary(1) is None and await store.series(["memory_percent"], 1) == {}
    await store.stop()


async def test_what_is_no_database_is_kept_aside(app_modules: Modules, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sqlite"
    path.write_text("this is no database, but a person may want to look at it\n" * 100)
    store = app_modules("wheels_ops.metrics_store").MetricsStore(path)
    assert await store.start()
    await store.stop()
    assert path.with_suffix(".broken").read_text().startswith("this is no database")
    assert sqlite3.connect(path).execute("select count(*) from life").fetchone() == (1,)


async def test_a_full_queue_never_blocks(app_modules: Modules, tmp_path: Path) -> None:
    store = app_modules("wheels_ops.metrics_store").MetricsStore(tmp_path / "metrics.sqlite")
    assert await store.start()
    blocker = sqlite3.connect(tmp_path / "metrics.sqlite", isolation_level=None)
    blocker.execute("begin exclusive")
    for index in range(3000):
        store.add(NOW + 30 * index, {"memory_percent": 1.0}, {})
        store.flush()
    blocker.execute("rollback")
    blocker.close()
    await store.stop()


@pytest.mark.parametrize(
    ("lives", "expected"),
    [
        ([(NOW - 3600, NOW - 5, False)], (0, 0, 100.0)),
        ([(NOW - 3600, NOW - 1800, True), (NOW - 1790, NOW - 5, False)], (0, 0, 100.0)),
        ([(NOW - 3600, NOW - 1800, False), (NOW - 1790, NOW - 5, False)], (1, 0, 100.0)),
        ([(NOW - 4000, NOW - 3000, False), (NOW - 1000, NOW - 5, False)], (1, 0, 50.0)),
        (
            [(NOW - 1000 + 60 * k, NOW - 1000 + 60 * k + 30, False) for k in range(4)] + [(NOW - 700, NOW - 5, False)],
            (4, 1, 91.0),
        ),
        (
            [(NOW - 100 + 3 * k, NOW - 100 + 3 * k + 2, False) for k in range(4)] + [(NOW - 80, NOW, False)],
            (4, 1, 100.0),
        ),
        (
            [
                (NOW - 3600, NOW - 5, False),
                (NOW - 3599, NOW - 5, False),
                (NOW - 3598, NOW - 1800, False),
                (NOW - 1795, NOW - 5, False),
            ],
            (1, 0, 100.0),
        ),
        (
            [
                (NOW - 3600, NOW - 1800, True),
                (NOW - 3599, NOW - 1800, True),
                (NOW - 1795, NOW - 5, False),
                (NOW - 1794, NOW - 5, False),
            ],
            (0, 0, 100.0),
        ),
    ],
    ids=[
        "alive",
        "deployed",
        "crashed",
        "was away",
        "crash loop",
        "quick crash loop",
        "one of three workers crashed",
        "two workers redeployed",
    ],
)
def test_stability_from_lives(
    app_modules: Modules, lives: t.List[t.Tuple[float, float, bool]], expected: t.Tuple[int, int, float]
) -> None:
    found = app_modules("wheels_ops.metrics_store").stability_of(sorted(lives), NOW - 86400, NOW)
    assert (found["restarts"], found["crash_loops"]) == expected[:2]
    assert found["uptime_percent"] == pytest.approx(expected[2], abs=4)


def test_uptime_counts_no_time_in_which_the_release_was_rolled_back(app_modules: Modules) -> None:
    stability_of = app_modules("wheels_ops.metrics_store").stability_of
    lives = [(NOW - 80_000, NOW - 78_000, True), (NOW - 4_000, NOW, True)]
    assert stability_of(lives, NOW - 86_400, NOW)["uptime_percent"] < 10
    assert stability_of(lives, NOW - 86_400, NOW, NOW - 4_010)["uptime_percent"] > 99
    late = stability_of(lives, NOW - 86_400, NOW, NOW - 6_000)["uptime_percent"]
    assert late == pytest.approx(75, abs=1), "installed, and not running for 2,000 of 8,000 seconds"
    assert stability_of(lives, NOW - 86_400, NOW, NOW - 100_000) == stability_of(lives, NOW - 86_400, NOW)


async def test_a_killed_worker_counts_as_a_restart(app_modules: Modules, tmp_path: Path) -> None:
    root = next(path for path in sys.path if (Path(path) / "app" / "wheels_ops" / "metrics_store.py").exists())
    target = tmp_path / "metrics.sqlite"
    dying = _WORKER.replace(
        "await store.stop()", "store.flush(); await store.summary(1); import os; os.kill(os.getpid(), 9)"
    ).replace("1_800_000_000.0)", "__import__('time').time() - 60)")
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", dying, root, str(target), "1")
    assert await worker.wait() == -9
    store = app_modules("wheels_ops.metrics_store").MetricsStore(target)
    assert await store.start()
    assert (await store.stability())["restarts"] == 1
    await store.stop()
    assert os.path.exists(target)
