# SPDX-License-Identifier: GPL-3.0-or-later
"""Several workers of one service answer as one: counters, actions, limits, and what may be asked for again."""

from __future__ import annotations

import os
import signal
import tempfile
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.app.wheels_ops.test_exposition import COUNT, scrape, workers_of
from tests.support.health_app import TOKEN, HealthApp, health_app
from tests.support.waiting import wait_until

WORKERS = 3


@pytest.fixture(scope="module")
def app() -> t.Iterator[HealthApp]:
    """Three workers, and no variable that tells them of each other."""
    with health_app(
        uvicorn=("--workers", str(WORKERS)), MONITORING_INTERVAL="0.5", MEMORY_CHECK_INTERVAL="3600"
    ) as running:
        wait_until(lambda: running.health()["worker"]["of"] == WORKERS, timeout=60, what="three workers")
        wait_until(lambda: len(statuses(running)) == WORKERS, timeout=60, what="each of them answers")
        yield running


def at_once(count: int, ask: t.Callable[[int], t.Any]) -> t.List[t.Any]:
    """Many at a time, so that each worker gets some."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, range(count)))


def statuses(app: HealthApp) -> t.Dict[int, str]:
    """pid of a worker -> the state of its monitor, as each of them tells it."""
    documents = at_once(24, lambda _number: app.health())
    return {document["worker"]["pid"]: str(document["status"]) for document in documents}


def monitors(app: HealthApp) -> t.Set[t.Tuple[int, bool]]:
    documents = at_once(24, lambda _number: app.health())
    return {(one["worker"]["pid"], one["system_metrics"]["performance"]["monitoring_active"]) for one in documents}


def test_counters_of_all_workers_are_one_number_whoever_answers(app: HealthApp) -> None:
    before = scrape(app).get(COUNT, 0.0)
    at_once(60, lambda number: app.request("GET", f"/items/{number}"))
    assert [scrape(app)[COUNT] for _ in range(10)] == [before + 60] * 10


def test_each_worker_says_which_of_them_it_is(app: HealthApp) -> None:
    documents = at_once(24, lambda _number: app.health()["worker"])
    assert {one["pid"] for one in documents} == workers_of(app)
    assert {one["scope"] for one in documents} == {f"this worker ({number} of 3)" for number in (1, 2, 3)}


def test_actions_reach_every_worker(app: HealthApp) -> None:
    stopped = app.request("POST", "/api/v1/system/monitoring/stop", token=TOKEN)
    assert stopped.status == 200 and stopped.json()["workers_reached"] == WORKERS
    assert monitors(app) == {(pid, False) for pid in workers_of(app)}
    started = app.request("POST", "/api/v1/system/monitoring/start", token=TOKEN)
    assert started.json()["workers_reached"] == WORKERS
    assert monitors(app) == {(pid, True) for pid in workers_of(app)}
    cleared = app.request("POST", "/api/v1/system/cache/clear?cache_type=memory", token=TOKEN).json()
    assert cleared["workers_reached"] == WORKERS and len(cleared["other_workers"]) == WORKERS - 1


def test_limits_are_those_of_the_service(app: HealthApp) -> None:
    """Five at once, whichever workers they reach."""
    answers = at_once(24, lambda _number: app.request("POST", "/api/v1/system/memory/optimize", token=TOKEN).status)
    assert sum(status != 429 for status in answers) <= 6
    assert answers.count(429) >= 18


def test_a_repetition_is_answered_by_whichever_worker_it_reaches(app: HealthApp) -> None:
    key = {"Idempotency-Key": "one-of-the-tests"}
    answers = at_once(4, lambda _number: app.request("POST", "/api/v1/system/monitoring/start", token=TOKEN, more=key))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1


def test_a_worker_that_is_killed_is_forgotten_and_its_successor_belongs_to_the_group(app: HealthApp) -> None:
    victim = next(iter(workers_of(app)))
    psutil.Process(victim).send_signal(signal.SIGKILL)

    def replaced() -> bool:
        known = statuses(app)
        return len(known) == WORKERS and victim not in known and app.health()["worker"]["of"] == WORKERS

    wait_until(replaced, timeout=60, what="another worker in its place")


def test_directory_is_private_and_goes_with_the_service() -> None:
    before = own_directories()
    with health_app(uvicorn=("--workers", "2")) as first:
        wait_until(lambda: first.health()["worker"]["of"] == 2, timeout=60)
        (made,) = own_directories() - before
        assert made.stat().st_mode & 0o777 == 0o700
    with health_app(uvicorn=("--workers", "2")) as second:
        wait_until(lambda: second.health()["worker"]["of"] == 2, timeout=60)
        assert not made.exists(), "the next service removes what an ended one left"


def own_directories() -> t.Set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"wheels-ops-{os.geteuid()}-*"))


def test_a_single_process_has_no_group() -> None:
    before = own_directories()
    with health_app() as app:
        worker = app.health()["worker"]
        assert (worker["of"], worker["scope"]) == (1, "the only worker")
        assert own_directories() == before


def test_numbers_that_cannot_be_shared_are_labelled(tmp_path: Path) -> None:
    """The application imported the package before us: it has decided to keep its numbers in the process."""
    (tmp_path / "sitecustomize.py").write_text("import prometheus_client\n")
    with health_app(uvicorn=("--workers", "2"), PYTHONPATH=str(tmp_path)) as app:
        wait_until(lambda: app.health()["worker"]["of"] == 2, timeout=60)
        at_once(16, lambda number: app.request("GET", f"/items/{number}"))
        shown = at_once(12, lambda _number: app.request("GET", "/metrics", token=TOKEN).body.decode())
        labels = {
            line.partition('worker="')[2].partition('"')[0]
            for text in shown
            for line in text.splitlines()
            if "{" in line
        }
        assert labels == {str(pid) for pid in workers_of(app)}
