# SPDX-License-Identifier: GPL-3.0-or-later
"""The performance report and the advice on thresholds: from what the backend's own store wrote, and
from nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
import types
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.health.thresholds import DEFAULTS, parse
from wheels_ops.report import performance
from wheels_ops.report.performance import SLOT, Options, Slot

Modules = t.Callable[[str], types.ModuleType]
NOW = 1_800_000_000.0
DAY = 86400


def slots(values: t.Sequence[float]) -> t.List[Slot]:
    """Quarter hours up to now, one a value."""
    return [Slot(NOW - SLOT * (len(values) - number), value, 1, value, value) for number, value in enumerate(values)]


def days(number: float, value: float, *, often: float = 0.0, other: float = 0.0) -> t.List[Slot]:
    """So many whole days at ``value``, of which ``often`` percent at ``other``."""
    count = int(number * DAY / SLOT)
    odd = int(count * often / 100)
    return slots([other] * odd + [value] * (count - odd))


def advice(
    name: str, measured: t.Sequence[Slot], *, failing: t.Optional[t.Dict[str, int]] = None, **limits: float
) -> t.Dict[str, t.Any]:
    series = {performance.MEASURES[name][0]: measured}
    return next(
        entry for entry in performance.advise(series, parse({name: limits}), failing or {}, 14) if entry["name"] == name
    )


@pytest.mark.parametrize("measured", [[], days(0.5, 90.0), days(14, 90.0)[1:]])
def test_too_little_history_gives_no_number(measured: t.List[Slot]) -> None:
    found = advice("cpu", measured)
    assert (found["verdict"], found["advised_warning"], found["p99"], found["above_warning_percent"]) == (
        "unknown",
        None,
        None,
        None,
    )
    assert "needs 1344 of them, which are 14 whole days" in found["reason"]
    assert found["settings"] == {}
    assert ("Nothing was measured" in found["reason"]) == (not measured)


@pytest.mark.parametrize(
    ("name", "measured", "failing", "verdict", "advised"),
    [
        ("cpu", days(14, 50.0), {}, "keep", None),
        ("cpu", days(14, 50.0, often=5, other=75.0), {}, "keep", None),
        ("cpu", days(14, 50.0, often=6, other=76.0), {}, "raise", 80.0),
        # Recovery had to act: the limit told the truth.
        ("cpu", days(14, 50.0, often=6, other=76.0), {"cpu": 1}, "cure", None),
        # Recovery of something else says nothing about it.
        ("cpu", days(14, 50.0, often=6, other=76.0), {"memory": 9}, "raise", 80.0),
        # The next step would be the critical limit.
        ("cpu", days(14, 50.0, often=6, other=81.0), {}, "cure", None),
        ("memory", days(14, 68.0), {}, "raise", 70.0),
        ("memory", days(14, 71.0), {}, "cure", None),
        ("memory", days(14, 20.0), {}, "lower", 40.0),
        ("memory", days(14, 40.0), {}, "lower", 50.0),
        ("memory", days(14, 46.0), {}, "keep", None),
        ("memory", days(14, 20.0), {"memory": 2}, "keep", None),
        ("memory", days(14, 20.0, often=0.5, other=66.0), {}, "keep", None),
        # Neither a disk that is full nor requests that fail are ever usual.
        ("disk", days(14, 78.0), {}, "cure", None),
        ("disk", days(14, 5.0), {}, "keep", None),
        ("error_rate", days(14, 2.0), {}, "cure", None),
        ("response_time_ms", days(14, 620.0), {}, "raise", 650.0),
        ("response_time_ms", days(14, 30.0), {}, "lower", 100.0),
        ("response_time_ms", days(14, 620.0), {"http": 3}, "cure", None),
    ],
)
def test_advice(
    name: str, measured: t.List[Slot], failing: t.Dict[str, int], verdict: str, advised: t.Optional[float]
) -> None:
    found = advice(name, measured, failing=failing)
    assert (found["verdict"], found["advised_warning"]) == (verdict, advised), found
    assert (found["settings"] == {}) == (advised is None)


def test_advice_is_what_the_health_check_takes_and_then_is_quiet() -> None:
    measured = days(14, 50.0, often=10, other=78.0)
    found = advice("cpu", measured)
    limits = parse(found["settings"]["wheels_ops_thresholds"])["cpu"]
    assert (limits.warning, limits.critical) == (80.0, DEFAULTS["cpu"].critical)
    assert advice("cpu", measured, warning=80)["verdict"] == "keep"
    # One variable, which the role environment gives to the backend as well.
    assert set(found["settings"]) == {"wheels_ops_thresholds"}
    assert advice("response_time_ms", days(14, 620.0))["settings"] == {
        "wheels_ops_thresholds": {"response_time_ms": {"warning": 650.0}}
    }


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [performance.percentile(values, percent) for percent in (0, 1, 50, 95, 99, 100)] == [1, 1, 50, 95, 99, 100]
    assert performance.percentile([7.0], 95) == 7.0


def test_the_mean_is_weighted_by_what_was_counted() -> None:
    found = performance.summarise(
        {"response_time_ms": [Slot(0, 1000, 4, 250, 250), Slot(SLOT, 1000, 1, 1000, 1000)]}, {}
    )["response_time_ms"]
    assert (found["mean"], found["lowest"], found["highest"], found["p95"]) == (400.0, 250.0, 1000.0, 1000.0)
    assert (found["quarter_hours"], found["above_warning_percent"]) == (2, 50.0)


async def _written(app_modules: Modules, path: Path, number: int) -> t.Any:
    """The backend's own store with so many days of history."""
    module = app_modules("wheels_ops.metrics_store")
    store = module.MetricsStore(path, clock=lambda: NOW, flush_seconds=1e9)
    assert await store.start()
    for index in range(number * DAY // SLOT):
        at = NOW - SLOT * (index + 1)
        store.add(at, {"memory_percent": 40.0, "cpu_percent": 76.0 if index % 10 == 0 else 30.0, "load_1m": 1.0}, {})
    store.flush()
    return store


def options(directory: Path, **words: t.Any) -> Options:
    return Options(**{"state_dir": str(directory), "days": 30, "minimum_days": 14, "thresholds": {}, **words})


async def test_what_the_backend_wrote_is_read_while_it_runs_and_afterwards(
    app_modules: Modules, tmp_path: Path
) -> None:
    path = tmp_path / "metrics" / "metrics.sqlite"
    store = await _written(app_modules, path, 20)
    while (await store.summary(35 * 24) or {}).get("cpu_percent") is None:  # the store writes in a thread of its own
        await asyncio.sleep(0)
    running = performance.report(options(tmp_path), now=NOW)
    assert path.with_name("metrics.sqlite-wal").exists()
    await store.stop()
    assert not path.with_name("metrics.sqlite-wal").exists()
    before = {entry.name: entry.stat().st_mtime_ns for entry in path.parent.iterdir()}
    stopped = performance.report(options(tmp_path), now=NOW)
    assert {entry.name: entry.stat().st_mtime_ns for entry in path.parent.iterdir()} == before, (
        "reading leaves nothing behind"
    )
    assert running == stopped
    assert stopped["notes"] == []
    cpu = stopped["metrics"]["cpu_percent"]
    assert (cpu["highest"], cpu["lowest"], cpu["quarter_hours"]) == (76.0, 30.0, 1920)
    assert cpu["above_warning_percent"] == pytest.approx(10, abs=0.1)
    assert "above_warning_percent" not in stopped["metrics"]["load_1m"]
    verdicts = {entry["name"]: entry["verdict"] for entry in stopped["advice"]}
    assert verdicts == {
        "memory": "lower",
        "cpu": "raise",
        "disk": "unknown",
        "response_time_ms": "unknown",
        "error_rate": "unknown",
    }
    text = "\n".join(stopped["advice_lines"])
    for words in ("Nothing was changed.", "cpu: {warning: 80}", "memory: {warning: 50}"):
        assert words in text
    assert performance.report(options(tmp_path, days=15), now=NOW)["quarter_hours"] == 15 * DAY // SLOT


def test_nothing_measured_is_said_and_no_figure_is_made_up(tmp_path: Path) -> None:
    found = performance.report(options(tmp_path), now=NOW)
    assert (found["metrics"], found["quarter_hours"], found["recovery"]["runs"]) == ({}, 0, 0)
    assert {entry["verdict"] for entry in found["advice"]} == {"unknown"}
    assert "There is no measured history, so there are no figures." in found["report_lines"]
    assert "keeps no metrics" in found["notes"][0]


@pytest.mark.parametrize("kind", ["text", "directory", "link", "fifo", "other database"])
def test_what_is_no_history_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "metrics.sqlite"
    if kind == "text":
        path.write_text("no database at all, and long enough to be looked at " * 100)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "elsewhere").write_text("x")
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
    with pytest.raises(OpsError, match=r"metrics\.sqlite"):
        performance.read_store(path, 0)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_a_log_with_a_second_name_is_neither_given_away_nor_written(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "metrics", tmp_path / "ours"
    theirs.mkdir()
    with sqlite3.connect(theirs / "metrics.sqlite") as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table metric (id integer, name text)")
    database.close()
    ours.write_text("of root")
    os.link(ours, theirs / "metrics.sqlite-wal")
    for place in (theirs, theirs / "metrics.sqlite"):
        os.chown(place, 65534, 65534)
    with pytest.raises(OpsError, match=r"metrics\.sqlite-wal has 2 hard links"):
        performance.read_store(theirs / "metrics.sqlite", 0)
    assert (ours.stat().st_uid, ours.read_text()) == (0, "of root")
    assert sorted(entry.name for entry in theirs.iterdir()) == ["metrics.sqlite", "metrics.sqlite-wal"]


def test_what_recovery_did_is_counted_in_the_time_asked_for(tmp_path: Path) -> None:
    def record(age: float, **words: t.Any) -> str:
        return json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - age)), **words})

    lines = [
        record(40 * DAY, action="recover", outcome="healthy", before=["disk"], trigger="manual"),
        record(3 * DAY, action="recover", outcome="healthy", before=["cpu", "memory"], trigger="scheduled"),
        record(2 * DAY, action="recover", outcome="not healthy", before=["cpu"], trigger="api"),
        record(1 * DAY, action="maintenance", bytes_freed=58_000_000),
        record(1 * DAY, action="maintenance", bytes_freed="much"),
        json.dumps({"action": "recover", "time": "yesterday"}),
        "torn {",
    ]
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    found = performance.report(options(tmp_path), now=NOW)
    past = found["recovery"]
    assert (past["runs"], past["healthy"], past["not_healthy"]) == (2, 1, 1)
    assert past["failing"] == {"cpu": 2, "memory": 1}
    assert past["triggers"] == {"scheduled": 1, "api": 1}
    assert (past["maintenance_runs"], past["bytes_freed"]) == (2, 58_000_000)
    assert "What was failing: cpu 2 times, memory 1 times" in found["report_lines"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"days": 0}, "days must be between 1 and 35, got 0"),
        ({"days": 36}, "days must be between 1 and 35, got 36"),
        ({"minimum_days": 31}, "minimum_days must be between 1 and 30, got 31"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, words: t.Dict[str, t.Any], message: str) -> None:
    with pytest.raises(OpsError, match=message):
        performance.report(options(tmp_path, **words), now=NOW)


def test_a_backend_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    found = performance.report(options(tmp_path, base_url="http://127.0.0.1:1", token="t" * 20, timeout=1.0), now=NOW)
    assert found["backend"] == {}
    assert any("gave no performance report at http://127.0.0.1:1/" in note for note in found["notes"])
