# SPDX-License-Identifier: GPL-3.0-or-later
"""The incident release before a deployment and after it, under the same bursty load: memory, the slowest request, the
first audio.

B1 to B3: the backend alone, with and without the patched files and marked blocks. B4 to B6: the whole sandbox, broken,
then after `deploy.yml` has run on it, as ``python -m tests.sandbox compare`` shows it. The load is that of
``tests.support.bursty_load``. A machine without the internet cannot reach Edge: what speaks afterwards is espeak-ng,
before it is nothing.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import statistics
import sys
import tempfile
import typing as t
from pathlib import Path

from tests.bench.harness import Pair, Unavailable, benchmark
from tests.sandbox import compare, lifecycle
from tests.sandbox.layout import Sandbox
from tests.support import servers
from tests.support.backend_env import PATCHES, running_backend
from tests.support.bursty_load import CUT_OFF, SECONDS, USER, bursts_and_pace, first_audio

#: TTS_PRIMARY_ENGINE and MEMORY_LIMIT_MB after it; the budget makes a burst pressure, as it was on the hosts of the
#: incident.
AFTER = ("fallback", "400")


@functools.cache
def experiment(deployed: bool, number: int) -> t.Dict[str, float]:
    """One start of the backend, before or after the deployment; ``number`` tells the runs apart."""
    if not shutil.which("espeak-ng"):
        raise Unavailable("not installed: espeak-ng")
    files = [path.name for path in PATCHES.iterdir()] if deployed else []
    with servers.postgres() as postgres, servers.redis() as redis:
        dsn = postgres.database(supabase=True)
        engine, budget = AFTER if deployed else (None, None)
        with running_backend(
            "incident",
            dsn,
            redis.url,
            patched=files,
            install_block=deployed,
            TTS_PRIMARY_ENGINE=engine,
            MEMORY_LIMIT_MB=budget,
        ) as backend:
            found = bursts_and_pace(backend.port, backend.jwt(USER), backend.rss_mb)
            found["first_audio"] = statistics.median(
                first_audio(backend.port, backend.jwt(USER), one) for one in range(20 if deployed else 1)
            )
            return found


def pair(what: str) -> Pair:
    counts = {True: 0, False: 0}

    def run(deployed: bool) -> float:
        counts[deployed] += 1
        return experiment(deployed, counts[deployed])[what]

    return (lambda: run(True)), (lambda: run(False))


_LABEL = f"after a deployment, {SECONDS:g} s of bursty load"


@benchmark(
    "B1",
    what=f"{_LABEL}: mean resident memory of the backend",
    unit="MB",
    goal="ratio <= 0.6",
    peer="before it",
    runs=2,
)
@contextlib.contextmanager
def memory() -> t.Iterator[Pair]:
    yield pair("mean_rss")


@benchmark("B2", what=f"{_LABEL}: the slowest request", unit="ms", goal="ratio <= 0.5", peer="before it", runs=2)
@contextlib.contextmanager
def slowest() -> t.Iterator[Pair]:
    yield pair("worst")


@benchmark(
    "B3",
    what="after a deployment: time to first audio over HTTP, median",
    unit="ms",
    goal="ours <= 600 and ratio <= 0.1",
    runs=2,
    peer=f"before it: no audio, asked for {CUT_OFF:g} s",
)
@contextlib.contextmanager
def audio() -> t.Iterator[Pair]:
    yield pair("first_audio")


@functools.cache
def sandbox() -> t.Tuple[t.Dict[str, float], t.Dict[str, float]]:
    """The figures of the broken sandbox, and those of the same sandbox after ``deploy``."""
    with tempfile.TemporaryDirectory(prefix="wops-sandbox-") as name, contextlib.redirect_stdout(sys.stderr):
        box = Sandbox(Path(name))
        try:
            return compare.measured(box)
        finally:
            lifecycle.down(box)


def sandbox_pair(what: str) -> Pair:
    return (lambda: sandbox()[1][what]), (lambda: sandbox()[0][what])


_SANDBOX = f"the sandbox after `deploy`, {SECONDS:g} s of bursty load"


@benchmark(
    "B4",
    what=f"{_SANDBOX}: mean resident memory of the backend",
    unit="MB",
    goal="ratio <= 0.6",
    peer="the broken sandbox",
    runs=1,
)
@contextlib.contextmanager
def sandbox_memory() -> t.Iterator[Pair]:
    yield sandbox_pair("mean_rss")


@benchmark(
    "B5", what=f"{_SANDBOX}: the slowest request", unit="ms", goal="ratio <= 0.5", peer="the broken sandbox", runs=1
)
@contextlib.contextmanager
def sandbox_slowest() -> t.Iterator[Pair]:
    yield sandbox_pair("worst")


@benchmark(
    "B6",
    what="the sandbox after `deploy`: time to first audio over HTTP, median",
    unit="ms",
    goal="ours <= 600 and ratio <= 0.1",
    runs=1,
    peer=f"the broken sandbox: no audio, asked for {CUT_OFF:g} s",
)
@contextlib.contextmanager
def sandbox_audio() -> t.Iterator[Pair]:
    yield sandbox_pair("first_audio")
