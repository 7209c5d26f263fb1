# SPDX-License-Identifier: GPL-3.0-or-later
"""E1: Prometheus, Alertmanager and ansible-rulebook with the files and intervals that are shipped."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from tests.bench.bench_deploy import deployed
from tests.bench.harness import Pair, Unavailable, benchmark
from tests.sandbox import supervisor
from tests.support.alert_loop import alert_loop, missing
from tests.support.waiting import wait_until


@benchmark(
    "E1",
    what="the Celery worker is stopped: until Prometheus's alert has started `recover` and is resolved",
    unit="s",
    goal="ours <= 90",
    runs=1,
)
@contextlib.contextmanager
def event_loop() -> t.Iterator[Pair]:
    if missing():
        raise Unavailable(f"not installed: {missing()}")
    with (
        deployed() as sandbox,
        tempfile.TemporaryDirectory(prefix="wops-events-") as directory,
        alert_loop(sandbox, Path(directory), {}) as loop,
    ):

        def stopped_to_resolved() -> float:
            started = time.monotonic()
            supervisor.rpc(sandbox).stopProcess("celery-worker", True)
            wait_until(loop.alerts, timeout=90, what="the alert fires")
            fired = time.monotonic()
            wait_until(lambda: not loop.alerts(), timeout=180, what="the alert is resolved")
            seconds = time.monotonic() - started
            if supervisor.rpc(sandbox).getProcessInfo("celery-worker")["statename"] != "RUNNING":
                raise RuntimeError(f"the alert is resolved and the worker does not run:\n{loop.log[-4000:]}")
            print(f"  firing after {fired - started:.1f} s, resolved after {seconds:.1f} s", file=sys.stderr)
            return seconds

        yield stopped_to_resolved, None
