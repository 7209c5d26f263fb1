# SPDX-License-Identifier: GPL-3.0-or-later
"""The incident release before a deployment and after it, under the same bursty load: memory, the slowest request, the first audio.

The backend is the stand-in, with PostgreSQL and Redis beside it, and all patched files and marked blocks after the
deployment. Two users load their history, 120 MB of rendered messages, every 15 s; the others ask at a steady pace. A
machine without the internet cannot reach Edge: what speaks afterwards is espeak-ng, before it is nothing.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import shutil
import statistics
import threading
import time
import typing as t

from tests.bench.harness import Pair, Unavailable, benchmark
from tests.support import servers
from tests.support.backend_env import PATCHES, Backend, running_backend

#: Seconds of load: long enough for a round of the incident's own monitoring, which comes every 30 s.
SECONDS, BURST_EVERY, BURST_MB = 40.0, 15.0, 120
#: Requests a second of the steady users.
PACE = 50.0
#: Before the deployment no audio comes at all: it is asked for so long.
CUT_OFF = 10.0
USER = "00000000-0000-0000-0000-000000000001"
SENTENCE = "Turn left in two hundred metres, then keep right, sentence number"
#: TTS_PRIMARY_ENGINE and MEMORY_LIMIT_MB after it; the budget makes a burst pressure, as it was on the hosts of the incident.
AFTER = ("fallback", "400")


def first_audio(backend: Backend, number: int) -> float:
    """Milliseconds to the first byte of streamed audio; asks again until CUT_OFF where there is none."""
    started = time.monotonic()
    body = json.dumps({"text": f"{SENTENCE} {number}."}).encode()
    headers = {"Authorization": f"Bearer {backend.jwt(USER)}", "Content-Type": "application/json"}
    while time.monotonic() - started < CUT_OFF:
        connection = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=CUT_OFF)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/api/v1/tts/synthesize/stream", body, headers)
            answer = connection.getresponse()
            if answer.status == 200 and answer.read(64)[:4] in (b"RIFF", b"ID3\x03", b"ID3\x04"):
                return 1000 * (time.monotonic() - started)
        time.sleep(0.25)
    return 1000 * CUT_OFF


def load(backend: Backend) -> t.Dict[str, float]:
    """``mean_rss`` in MB and ``worst`` in ms over SECONDS of load."""
    token = backend.jwt(USER)
    end = time.monotonic() + SECONDS
    resident: t.List[float] = []
    worst: t.List[float] = []

    def bursts() -> None:
        while time.monotonic() < end - 5:
            backend.request("GET", f"/api/v1/pam/history?megabytes={BURST_MB}", headers={"Authorization": f"Bearer {token}"}, timeout=60)
            time.sleep(BURST_EVERY)

    def watch() -> None:
        while time.monotonic() < end:
            resident.append(backend.rss_mb())
            time.sleep(0.1)

    def steady() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=30)
        with contextlib.closing(connection):
            while time.monotonic() < end:
                started = time.monotonic()
                connection.request("GET", "/api/v1/pam/chat")
                connection.getresponse().read()
                worst.append(time.monotonic() - started)
                time.sleep(max(0.0, 1 / PACE - worst[-1]))

    threads = [threading.Thread(target=work) for work in (bursts, bursts, watch, steady)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"mean_rss": statistics.mean(resident), "worst": 1000 * max(worst)}


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
            "incident", dsn, redis.url, patched=files, install_block=deployed, TTS_PRIMARY_ENGINE=engine, MEMORY_LIMIT_MB=budget
        ) as backend:  # fmt: skip
            found = load(backend)
            found["first_audio"] = statistics.median(first_audio(backend, one) for one in range(20 if deployed else 1))
            return found


def pair(what: str) -> Pair:
    counts = {True: 0, False: 0}

    def run(deployed: bool) -> float:
        counts[deployed] += 1
        return experiment(deployed, counts[deployed])[what]

    return (lambda: run(True)), (lambda: run(False))


_LABEL = f"after a deployment, {SECONDS:g} s of bursty load"


@benchmark("B1", what=f"{_LABEL}: mean resident memory of the backend", unit="MB", goal="ratio <= 0.6", peer="before it", runs=2)
@contextlib.contextmanager
def memory() -> t.Iterator[Pair]:
    yield pair("mean_rss")


@benchmark("B2", what=f"{_LABEL}: the slowest request", unit="ms", goal="ratio <= 0.5", peer="before it", runs=2)
@contextlib.contextmanager
def slowest() -> t.Iterator[Pair]:
    yield pair("worst")


@benchmark(
    "B3", what="after a deployment: time to first audio over HTTP, median", unit="ms", goal="ours <= 600 and ratio <= 0.1", runs=2,
    peer=f"before it: no audio, asked for {CUT_OFF:g} s",
)  # fmt: skip
@contextlib.contextmanager
def audio() -> t.Iterator[Pair]:
    yield pair("first_audio")
