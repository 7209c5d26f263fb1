# SPDX-License-Identifier: GPL-3.0-or-later
"""Monitoring, memory optimizer and health API: what they cost and what they gain.

The first optimizer was removed because it cost more than it saved; P2 is the proof that ours does not: the same bursty
work with and without it, in turn: so many requests, so many bursts, whoever does it, and what memory that was given
back costs when the next burst wants it again is part of it. By default three seeds of ``WHEELS_OPS_P2_SECONDS`` = 60 s
each, with two bursts; the full run is ``WHEELS_OPS_P2_SECONDS=1200``, with a burst a minute. The process has a budget
of 400 MB (``MEMORY_LIMIT_MB``), so that bursts are pressure, as they were on the hosts of the incident.

The peers of the others are written to the descriptions of the defects.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from pathlib import Path

from tests.app.wheels_ops.test_health_checks import FAULTS, is_healthy, world
from tests.bench.harness import Pair, Unavailable, benchmark
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.health_app import REPORT_FILES, TOKEN, health_app
from tests.support.patched_tree import patched_tree
from tests.support.waiting import free_port, port_open, wait_until

LAB = Path(__file__).with_name("monitor_lab.py")
P2_SECONDS = float(os.environ.get("WHEELS_OPS_P2_SECONDS", "60"))
SEEDS = (1, 2, 3)
_QUIET = "import logging\ndef get_logger(name=None):\n    return logging.getLogger(name)\n"


@contextlib.contextmanager
def lab(*, store: bool = True) -> t.Iterator[t.Callable[..., t.Dict[str, float]]]:
    """``run(name, *words, **env)`` gives the JSON of one program of the lab."""
    with tempfile.TemporaryDirectory(prefix="wops-bench-") as name:
        directory = Path(name)
        patched_tree(directory, *REPORT_FILES[:2], *(["wheels_ops/metrics_store.py"] if store else []))
        (directory / "app" / "core" / "logging.py").write_text(_QUIET)

        def run(program: str, *words: object, **env: str) -> t.Dict[str, float]:
            environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
            environment.update(PYTHONPATH=str(directory), WHEELS_OPS_STATE_DIR=str(directory / "state"), **env)
            done = subprocess.run(
                [str(BACKEND_PYTHON), str(LAB), program, *map(str, words)],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
                timeout=3600,
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            return t.cast(t.Dict[str, float], json.loads(done.stdout.splitlines()[-1]))

        yield run


@benchmark("P1a", what="sampling at 5 s with loop lag and history, CPU of a core", unit="%", goal="ours <= 0.1", runs=1)
@contextlib.contextmanager
def sampler_cpu() -> t.Iterator[Pair]:
    seconds = float(os.environ.get("WHEELS_OPS_P1_SECONDS", "15"))
    with lab() as run:
        yield (
            lambda: run("sampler", seconds, "ours")["cpu_percent"] - run("sampler", seconds, "none")["cpu_percent"],
            None,
        )


@benchmark(
    "P1b",
    what="longest hold of the event loop by one of 300 samples",
    unit="ms",
    goal="ours <= 2 and ratio <= 0.002",
    peer="first version's cycle",
    runs=3,
)
@contextlib.contextmanager
def sampler_stall() -> t.Iterator[Pair]:
    with lab() as run:
        yield lambda: run("sampler", 1.0, "stall")["stall_ms"], lambda: run("sampler", 1.0, "peer-stall")["stall_ms"]


@benchmark("P1c", what="one sample, CPU", unit="us", goal="ours <= 200", runs=3)
@contextlib.contextmanager
def sample_cost() -> t.Iterator[Pair]:
    with lab() as run:
        yield lambda: run("one_sample", 3000)["us"], None


@benchmark("P1d", what="sampling at 5 s, resident memory, history in memory", unit="MB", goal="ours <= 1", runs=1)
@contextlib.contextmanager
def sampler_memory() -> t.Iterator[Pair]:
    with lab(store=False) as run:
        yield lambda: run("sampler", 5.0, "ours")["rss_mb"] - run("sampler", 5.0, "none")["rss_mb"], None


@benchmark(
    "P1e",
    what="sampling at 5 s, resident memory, history on disk (SQLite and its thread)",
    unit="MB",
    goal="ours <= 3",
    runs=1,
)
@contextlib.contextmanager
def store_memory() -> t.Iterator[Pair]:
    with lab() as run:
        yield lambda: run("sampler", 5.0, "ours")["rss_mb"] - run("sampler", 5.0, "none")["rss_mb"], None


@functools.cache
def _bursts(seed: int, which: str) -> t.Dict[str, float]:
    with lab() as run:
        return run(
            "bursts", P2_SECONDS, seed, which, MEMORY_LIMIT_MB="400", BURST_EVERY="60" if P2_SECONDS >= 300 else "30"
        )


def _p2(key: str) -> Pair:
    """One seed after the other; ours and the peer of one seed run one after the other, and each workload runs once."""
    ours, peer = iter(SEEDS), iter(SEEDS)
    return lambda: _bursts(next(ours), "ours")[key], lambda: _bursts(next(peer), "none")[key]


_LABEL = f"bursty workload, {P2_SECONDS:g} s x {len(SEEDS)} seeds"


@benchmark(
    "P2a",
    what=f"{_LABEL}: mean resident memory",
    unit="MB",
    goal="ratio <= 0.5",
    peer="without the optimizer",
    runs=len(SEEDS),
)
@contextlib.contextmanager
def burst_memory() -> t.Iterator[Pair]:
    yield _p2("mean_rss_mb")


@benchmark(
    "P2b",
    what=f"{_LABEL}: p99 latency, less the wait for a processor that others have",
    unit="ms",
    goal="ratio <= 1.05",
    peer="without the optimizer",
    runs=len(SEEDS),
)
@contextlib.contextmanager
def burst_latency() -> t.Iterator[Pair]:
    yield _p2("p99_ms")


@benchmark(
    "P2c",
    what=f"{_LABEL}: CPU for the same work, trims included",
    unit="s",
    goal="ratio <= 1.02",
    peer="without the optimizer",
    runs=len(SEEDS),
)
@contextlib.contextmanager
def burst_cpu() -> t.Iterator[Pair]:
    yield _p2("cpu_s")


@benchmark("P2d", what="idle: resident memory that the optimizer costs", unit="MB", goal="ours <= 1", runs=1)
@contextlib.contextmanager
def idle_memory() -> t.Iterator[Pair]:
    with lab() as run:

        def cost() -> float:
            started, loaded = (run("bursts", 8.0, 1, which, IDLE="1")["mean_rss_mb"] for which in ("ours", "loaded"))
            return started - loaded

        yield cost, None


@benchmark(
    "P2e",
    what="a routine pass over 870 k live objects: stall of the event loop",
    unit="ms",
    goal="ratio <= 0.1",
    peer="first version's pass",
    runs=3,
)
@contextlib.contextmanager
def pass_stall() -> t.Iterator[Pair]:
    with lab() as run:
        yield lambda: run("optimizer_pass", "ours")["stall_ms"], lambda: run("optimizer_pass", "peer")["stall_ms"]


@benchmark(
    "P4",
    what="24 h of history, four metrics",
    unit="MB",
    goal="ours <= 0.2 and ratio <= 0.1",
    peer="objects in lists",
    runs=1,
)
@contextlib.contextmanager
def history_size() -> t.Iterator[Pair]:
    with lab() as run:
        yield lambda: run("history", "ours")["mb"], lambda: run("history", "peer")["mb"]


@benchmark("P5", what="counting a request, CPU added", unit="us", goal="ours <= 3", runs=3)
@contextlib.contextmanager
def layer_cost() -> t.Iterator[Pair]:
    with lab() as run:
        yield lambda: run("requests_layer", 100_000, "ours")["us"] - run("requests_layer", 100_000, "none")["us"], None


# -- the API with every dependency black-holed
# ---------------------------------------------------------------------------


class Hole:
    """Accepts connections and never answers."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._server.getsockname()[1]
        self._kept: t.List[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._kept.append(self._server.accept()[0])

    def close(self) -> None:
        for one in (self._server, *self._kept):
            one.close()


_PEER = """
import asyncio, os
from fastapi import FastAPI
import redis.asyncio as redis
app = FastAPI()
client = redis.from_url(os.environ["REDIS_URL"], socket_timeout=5, socket_connect_timeout=10)
@app.get("/items/{item}")
async def item(item: str):
    return {}
@app.get("/api/v1/system/health")
async def health():
    '''As the first version: asks Redis for its numbers while the caller waits.'''
    try:
        await client.info()
        cache = {"connected": True}
    except Exception as error:
        cache = {"error": str(error)}
    return {"overall_status": "healthy", "system_metrics": {"cache": cache}}
"""


def waited(*threads: int) -> t.List[float]:
    """Seconds that threads were ready to run and had no processor; by the kernel."""
    return [int(Path(f"/proc/{thread}/schedstat").read_text().split()[1]) / 1e9 for thread in threads]


def latency(port: int, rate: float, seconds: float, path: str = "/api/v1/system/health", server: int = 0) -> float:
    """p99 in ms of requests at a steady rate over one kept connection.

    With the ``server``'s process number, less the time that it, or we, waited for a processor that somebody else had:
    the longer of both, as they may have waited at the same time.
    """
    threads = (server, threading.get_native_id()) if server else ()
    times: t.List[float] = []
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begin = time.perf_counter()
        for number in range(int(rate * seconds)):
            if (wait := begin + number / rate - time.perf_counter()) > 0:
                time.sleep(wait)
            before = waited(*threads)
            sent = time.perf_counter()
            sock.sendall(request)
            data = b""
            while b"\r\n\r\n" not in data:
                data += sock.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            while len(body) < length:
                body += sock.recv(65536)
            took = time.perf_counter() - sent
            times.append(took - max((after - then for after, then in zip(waited(*threads), before)), default=0.0))
    times.sort()
    return 1000 * times[int(0.99 * len(times))]


@benchmark(
    "H1a",
    what=(
        "GET /api/v1/system/health at 500/s with database, Redis and speech black-holed, p99 less the wait for a"
        " processor"
    ),
    unit="ms",
    goal="ours <= 2 and ratio <= 0.001",
    peer="first version, one request",
    runs=3,
)
@contextlib.contextmanager
def health_black_holed() -> t.Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        hole = Hole()
        stack.callback(hole.close)
        stores = {
            "REDIS_URL": f"redis://127.0.0.1:{hole.port}/0",
            "DATABASE_URL": f"postgresql://x@127.0.0.1:{hole.port}/x",
        }
        ours = stack.enter_context(health_app(stores, uvicorn=("--no-access-log",)))
        peer_directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wops-bench-")))
        (peer_directory / "peer.py").write_text(_PEER)
        port = free_port()
        words = [str(BACKEND_PYTHON), "-m", "uvicorn", "peer:app", "--port", str(port), "--log-level", "error"]
        process = subprocess.Popen(words, cwd=peer_directory, env={**os.environ, **stores}, start_new_session=True)
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until(lambda: port_open(port), timeout=30)

        @functools.cache
        def once() -> float:
            return latency(port, 1, 1)  # the caller waits for Redis: once is enough

        yield lambda: latency(ours.port, 500, 4, server=ours.process.pid), once


#: As they are without a variable in the environment; the tests shorten them.
PRODUCTION_INTERVALS = {"HEALTH_CHECK_INTERVAL": "5", "HEALTH_CHECK_TIMEOUT": "1", "MONITORING_INTERVAL": "5"}


@benchmark(
    "H2",
    what=f"{len(FAULTS)} injected faults, intervals of production: the longest until the health API says so",
    unit="s",
    goal="ours <= 10",
    runs=1,
)
@contextlib.contextmanager
def faults_seen() -> t.Iterator[Pair]:
    """Each dependency gone, frozen and black-holed, full disk, memory pressure, stalled loop, recursive policy, and the
    others of the tests.
    """

    def longest() -> float:
        seen: t.Dict[str, float] = {}
        for name, fault in FAULTS.items():
            wait_until(lambda: is_healthy(around.app), timeout=60, what=f"healthy before: {name}")
            started = time.monotonic()
            with fault.breaks(around):
                wait_until(lambda: around.app.check(fault.check) == fault.status, timeout=30, every=0.1, what=name)  # noqa: B023 - called in this turn
                seen[name] = time.monotonic() - started
        sys.stderr.write(f"{ {name: round(seconds, 1) for name, seconds in seen.items()} }\n")
        return max(seen.values())

    with world(**PRODUCTION_INTERVALS) as around:
        if around.disk is None:
            raise Unavailable("this user cannot mount a small file system")
        yield longest, None


@benchmark(
    "H1b",
    what="GET /livez, CPU per call in the server",
    unit="us",
    goal="ours <= 60 and ratio <= 0.2",
    peer="a FastAPI route",
    runs=3,
)
@contextlib.contextmanager
def livez_cpu() -> t.Iterator[Pair]:
    program = """
import asyncio, sys, time
from fastapi import FastAPI
from app.api.v1.system_health import SystemHealthMiddleware
app = FastAPI()
@app.get("/items/{item}")
async def item(item: str):
    return {"status": "pass"}
layer = SystemHealthMiddleware(app)
async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}
async def send(message):
    pass
def scope(path):
    return {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [], "http_version": "1.1",
            "scheme": "http", "server": ("x", 80), "client": ("127.0.0.1", 1), "root_path": "", "asgi": {"version": "3.0"}}
async def main(path, count):
    await layer(scope(path), receive, send)
    started = time.process_time()
    for _ in range(count):
        await layer(scope(path), receive, send)
    print(1e6 * (time.process_time() - started) / count)
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
    with tempfile.TemporaryDirectory(prefix="wops-bench-") as name:
        patched_tree(Path(name), *REPORT_FILES)
        (Path(name) / "app" / "core" / "logging.py").write_text(_QUIET)

        def call(path: str, count: int) -> float:
            environment = {**os.environ, "PYTHONPATH": name, "WHEELS_OPS_TOKEN": TOKEN}
            done = subprocess.run(
                [str(BACKEND_PYTHON), "-c", program, path, str(count)],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            )
            return float(done.stdout)

        yield lambda: call("/livez", 50_000), lambda: call("/items/7", 3_000)


if __name__ == "__main__":
    sys.stdout.write(f"{statistics.mean(_bursts(seed, 'ours')['mean_rss_mb'] for seed in SEEDS):.0f} MB\n")
