# SPDX-License-Identifier: GPL-3.0-or-later
"""/metrics as Prometheus reads it: its linter, several workers, workers that die, and what is missing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import types
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.health_app import TOKEN, HealthApp, health_app
from tests.support.patched_tree import patched_tree
from tests.support.waiting import wait_until

PROMTOOL = shutil.which("promtool")
Modules = t.Callable[[str], types.ModuleType]
COUNT = 'pam_request_duration_seconds_count{method="GET",route="/items/{item}"}'
#: Ending of a metric's name by the monitor's unit, and how much one of that unit is in base units.
ENDINGS: t.Dict[str, t.Tuple[str, float]] = {
    "%": ("_ratio", 0.01),
    "ms": ("_seconds", 0.001),
    "s": ("_seconds", 1.0),
    "MB": ("_bytes", 1_048_576.0),
    "1/s": ("_per_second", 1.0),
}


def scrape(app: HealthApp) -> t.Dict[str, float]:
    answer = app.request("GET", "/metrics", token=TOKEN)
    assert answer.status == 200, answer.body
    lines = [line for line in answer.body.decode().splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _blank, value in (line.rpartition(" ") for line in lines)}


def complaints(text: bytes) -> str:
    """What ``promtool check metrics`` prints, errors and advice."""
    if PROMTOOL is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False, timeout=60)
    return (done.stdout + done.stderr).decode() + ("" if done.returncode == 0 else f"exit status {done.returncode}")


def workers_of(app: HealthApp) -> t.Set[int]:
    """The processes that serve requests: asked from outside, by many at a time."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: app.request("GET", f"/items/{number}").json(), range(16)))
    return {int(answer["process"]) for answer in answers}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[t.Tuple[HealthApp, Path]]:
    """Three workers and the directory of their numbers, which does not exist when they start."""
    directory = tmp_path_factory.mktemp("shared") / "prometheus"
    with health_app(
        PROMETHEUS_MULTIPROC_DIR=str(directory),
        MONITORING_INTERVAL="0.5",
        MEMORY_CHECK_INTERVAL="3600",
        uvicorn=("--workers", "3"),
    ) as app:
        pids: t.Set[int] = set()

        def all_serve() -> bool:
            pids.update(workers_of(app))
            return len(pids) >= 3

        wait_until(all_serve, timeout=60, what="three workers")
        yield app, directory


def test_promtool_has_no_complaint() -> None:
    with health_app(MONITORING_INTERVAL="0.2", HEALTH_CHECK_INTERVAL="0.2") as app:
        app.request("GET", "/fault/error")
        wait_until(lambda: "pam_response_p95_seconds" in scrape(app))
        text = app.request("GET", "/metrics", token=TOKEN).body
        assert complaints(text) == ""
        names = set(re.findall(rb"^# TYPE (\w+) ", text, re.M))
        assert names == set(re.findall(rb"^# HELP (\w+) \S", text, re.M))
        assert not [name for name in names if re.search(rb"_(ms|mb|percent|s)$", name)], "base units"
        shown = scrape(app)
        assert 0 < shown["pam_memory_ratio"] < 1 and 0 < shown["pam_response_time_seconds"] < 5
        resident = psutil.Process(app.process.pid).memory_info().rss
        assert 0.5 * resident < shown["pam_process_memory_bytes"] < 2 * resident
        assert shown['pam_request_errors_total{method="GET",route="/fault/error"}'] == 1
        assert shown['pam_request_errors_total{method="GET",route="/items/{item}"}'] == 0


def test_several_workers_add_up(several: t.Tuple[HealthApp, Path]) -> None:
    """Whichever worker answers the scrape, it tells of all of them."""
    app, _directory = several
    before = scrape(app)[COUNT]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: app.request("GET", f"/items/{number}"), range(60)))
    assert [scrape(app)[COUNT] for _ in range(10)] == [before + 60] * 10
    assert complaints(app.request("GET", "/metrics", token=TOKEN).body) == ""
    shown = scrape(app)
    buckets = [value for name, value in shown.items() if "_bucket{" in name and "/items/" in name and '"+Inf"' in name]
    assert buckets == [before + 60]
    assert 0 < shown["pam_memory_ratio"] < 1, "the host is measured by all and counted once"
    assert shown['pam_health_check{check="memory:utilization"}'] in (0, 1, 2)
    assert not [name for name in shown if "pid=" in name]


def test_the_gauges_of_a_dead_worker_go_and_its_counts_stay(several: t.Tuple[HealthApp, Path]) -> None:
    app, directory = several
    alive = psutil.Process(app.process.pid).children(recursive=True)
    victim = next(iter(workers_of(app)))
    before = scrape(app)[COUNT]
    assert list(directory.glob(f"gauge_live*_{victim}.db"))
    psutil.Process(victim).send_signal(signal.SIGKILL)

    def replaced() -> bool:
        pids = {process.pid for process in psutil.Process(app.process.pid).children(recursive=True)}
        return victim not in pids and len(pids) >= len(alive)

    wait_until(replaced, timeout=60, what="the supervisor replaces the worker")
    wait_until(lambda: app.request("GET", "/livez").status == 200)
    after = scrape(app)
    assert not list(directory.glob(f"gauge_live*_{victim}.db")) and list(directory.glob(f"histogram_{victim}.db"))
    assert after[COUNT] >= before
    wait_until(lambda: len(workers_of(app)) >= 2)
    resident = sum(process.memory_info().rss for process in psutil.Process(app.process.pid).children(recursive=True))
    assert scrape(app)["pam_process_memory_bytes"] < 1.1 * resident


def test_the_number_of_a_dead_worker_that_another_process_has_now(several: t.Tuple[HealthApp, Path]) -> None:
    """A process that lives and has nothing to do with us does not keep the gauges of a worker that is gone."""
    app, directory = several
    stranger = directory / f"gauge_livesum_{os.getpid()}.db"
    shutil.copy(next(iter(directory.glob("gauge_livesum_*.db"))), stranger)
    scrape(app)
    assert stranger.exists(), "a worker that has just opened its file keeps it"
    hour_ago = time.time() - 3600
    os.utime(stranger, (hour_ago, hour_ago))
    scrape(app)
    assert not stranger.exists()


def test_without_the_client_library_the_rest_works(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')\n")
    with health_app(PYTHONPATH=str(tmp_path), PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "shared")) as app:
        answer = app.request("GET", "/metrics", token=TOKEN)
        assert answer.status == 503 and "pip install prometheus-client" in answer.json()["detail"]
        assert app.request("GET", "/metrics").status == 401
        assert app.request("GET", "/api/v1/system/metrics", token=TOKEN).status == 503
        assert app.request("GET", "/api/v1/system/performance/report", token=TOKEN).status == 200
        assert app.health()["checks"] and "prometheus-client" in app.logged()


@pytest.mark.parametrize("directory", ["", "/proc/self/nowhere"])
def test_a_directory_that_cannot_be_used_is_named(directory: str) -> None:
    with health_app(PROMETHEUS_MULTIPROC_DIR=directory) as app:
        answer = app.request("GET", "/metrics", token=TOKEN)
        assert answer.status == 503 and "PROMETHEUS_MULTIPROC_DIR" in answer.json()["detail"]
        assert "/proc" not in answer.json()["detail"], "the log says where"
        assert "PROMETHEUS_MULTIPROC_DIR cannot be used" in app.logged()
        assert app.health()["checks"]


def test_measures_are_those_of_the_monitor_in_base_units(app_modules: Modules) -> None:
    units = app_modules("core.performance_monitor").UNITS
    measures = app_modules("wheels_ops.exposition").MEASURES
    assert set(measures) == {*units, "db_pool_size"}, "what the monitor measures is shown, and nothing else"
    for name, unit in units.items():
        measure = measures[name]
        assert re.fullmatch(r"pam_[a-z0-9_]+", measure.name) and measure.text
        if unit:
            assert (measure.name.endswith(ENDINGS[unit][0]), measure.factor) == (True, ENDINGS[unit][1]), name
    assert len({measure.name for measure in measures.values()}) == len(measures)


def test_text_is_empty_and_the_reason_is_said_without_the_library(app_modules: Modules) -> None:
    exposition = app_modules("wheels_ops.exposition")
    if exposition.prometheus_client is not None:
        assert exposition.unavailable() == ""
        return
    assert exposition.text() == b"" and "pip install prometheus-client" in exposition.unavailable()


def test_a_request_that_cannot_be_counted_is_served(tmp_path: Path) -> None:
    """A full file system costs the numbers, not the requests, and one line in the log."""
    tree = patched_tree(
        tmp_path, "core/performance_monitor.py", "monitoring/memory_optimizer.py", "wheels_ops/exposition.py"
    )
    answer = tree.json(
        """
import json
from app.core.performance_monitor import PerformanceMonitor, request_stats
from app.wheels_ops import exposition
def full(*_):
    raise OSError(28, "No space left on device")
exposition._metrics.record = exposition._metrics.update = full
monitor = PerformanceMonitor()
exposition.observe(monitor, request_stats, None, None)
for _ in range(3):
    request_stats.record("GET /items", 0.01, False)
    for observer in list(monitor.observers):
        observer({})
print(json.dumps([request_stats.routes["GET /items"].count, request_stats.observer, len(monitor.observers)]))
""",
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared")},
    )
    assert answer == [3, None, 0]
    lines = [entry["event"] for entry in tree.logged() if entry["level"] == "error"]
    assert len(lines) == 2 and all("No space left on device" in line for line in lines)
