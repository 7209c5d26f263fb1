# SPDX-License-Identifier: GPL-3.0-or-later
"""Cache: sweeping and clearing beside other clients, outages, hits. The naive peer is the first version, written from
its defects.

``WHEELS_OPS_BENCH_KEYS`` (default 100,000) is the number of keys for the runs that include the naive sweep, which takes
100 s for a million; what only ours or a single command of the peer does runs on a million.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from pathlib import Path

import redis as redis_client

from tests.bench.harness import Pair, benchmark
from tests.support import servers
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.patched_tree import Tree, patched_tree

PROGRAM = Path(__file__).with_name("cache_bench_program.py")
KEYS = int(os.environ.get("WHEELS_OPS_BENCH_KEYS", "100000"))
MILLION = 1_000_000
# Of a hundred keys: five foreign ones without an end, 25 ours without an end, 70 ours with one.
_POPULATE = """
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do
  local kind = n % 100
  if kind < 5 then redis.call('SET', 'foreign:' .. n, 'x')
  elseif kind < 30 then redis.call('SET', 'pam:cache:x' .. n, '{"a":1}')
  else redis.call('SET', 'pam:cache:x' .. n, '{"a":1}', 'EX', 86400) end
end
"""


@contextlib.contextmanager
def scene(keys: int = 0) -> t.Iterator[t.Tuple[servers.Redis, Tree]]:
    with servers.redis() as server, tempfile.TemporaryDirectory(prefix="wops-bench-") as directory:
        client = redis_client.Redis(port=server.port)
        for start in range(0, keys, 10_000):
            client.eval(_POPULATE, 0, str(start), str(min(start + 10_000, keys)))
        yield server, patched_tree(Path(directory), "services/cache_service.py")


def measure(server: servers.Redis, tree: Tree, who: str, what: str) -> t.Dict[str, float]:
    done = subprocess.run(
        [str(BACKEND_PYTHON), str(PROGRAM), who, what],
        env=tree.environment({"REDIS_URL": server.url}),
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    return t.cast(t.Dict[str, float], json.loads(done.stdout.splitlines()[-1]))


class Prober:
    """Another client of the same Redis: one PING a millisecond; ``worst`` is the longest answer in milliseconds."""

    def __init__(self, port: int) -> None:
        self.client = redis_client.Redis(port=port)
        self.client.ping()
        self.worst = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            start = time.perf_counter()
            while True:
                try:
                    self.client.ping()
                    break
                except redis_client.ResponseError:  # BUSY: a script has run for so long that Redis answers nothing else
                    time.sleep(0.001)
            self.worst = max(self.worst, (time.perf_counter() - start) * 1000)
            time.sleep(0.001)

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@functools.cache
def swept(who: str, keys: int) -> t.Dict[str, float]:
    """One sweep of a fresh database: wall and CPU seconds, and the worst answer that another client got."""
    with scene(keys) as (server, tree), Prober(server.port) as prober:
        found = measure(server, tree, who, "clear_expired")
    return {**found, "stall": prober.worst}


def cleared(who: str, what: str) -> float:
    """The worst answer that another client got while 950,000 keys went."""
    with scene(MILLION) as (server, tree), Prober(server.port) as prober:
        measure(server, tree, who, what)
        left = redis_client.Redis(port=server.port).dbsize()
    assert left == MILLION // 20, f"{left} keys are left, not the foreign ones"
    return prober.worst


@benchmark(
    "R1",
    what=f"clear_expired over {KEYS:,} keys, wall",
    unit="s",
    goal=f"ours <= {4 * KEYS / MILLION:g} and ratio <= 0.04",
    peer="first version",
    runs=1,
)
@contextlib.contextmanager
def sweep_wall() -> t.Iterator[Pair]:
    yield lambda: swept("ours", KEYS)["wall"], lambda: swept("naive", KEYS)["wall"]


@benchmark(
    "R1b",
    what=f"clear_expired over {KEYS:,} keys, client CPU",
    unit="s",
    goal=f"ours <= {KEYS / MILLION:g} and ratio <= 0.0167",
    peer="first version",
    runs=1,
)
@contextlib.contextmanager
def sweep_cpu() -> t.Iterator[Pair]:
    yield lambda: swept("ours", KEYS)["cpu"], lambda: swept("naive", KEYS)["cpu"]


@benchmark("R1c", what="clear_expired over 1,000,000 keys, wall", unit="s", goal="ours <= 4", runs=1)
@contextlib.contextmanager
def sweep_million() -> t.Iterator[Pair]:
    yield lambda: swept("ours", MILLION)["wall"], None


@benchmark(
    "R1d",
    what="1,000,000 keys swept: worst answer to another client",
    unit="ms",
    goal="ours <= 10 and ratio <= 0.025",
    peer="its KEYS *",
    runs=1,
)
@contextlib.contextmanager
def sweep_stall() -> t.Iterator[Pair]:
    def keys() -> float:
        with scene(MILLION) as (server, _), Prober(server.port) as prober:
            redis_client.Redis(port=server.port).keys("*")
        return prober.worst

    yield lambda: swept("ours", MILLION)["stall"], keys


@benchmark(
    "R3",
    what="200 concurrent misses: times that the value is loaded",
    unit="loads",
    goal="ours == 1",
    peer="first version",
    runs=1,
)
@contextlib.contextmanager
def stampede() -> t.Iterator[Pair]:
    def loads(who: str) -> float:
        with scene() as (server, tree):
            return measure(server, tree, who, "stampede")["loads"]

    yield lambda: loads("ours"), lambda: loads("naive")


@functools.cache
def outage(who: str) -> t.Dict[str, float]:
    """Redis is stopped under a connected client: seconds of the first three reads, of the others (p99), and until it is
    used again.
    """
    with scene() as (server, tree):
        process = subprocess.Popen(
            [str(BACKEND_PYTHON), str(PROGRAM), who, "outage"],
            env=tree.environment({"REDIS_URL": server.url}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin and process.stdout
        try:
            process.stdout.readline()
            server.process.send_signal(signal.SIGSTOP)
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
            server.process.send_signal(signal.SIGCONT)
            process.stdin.write("\n")
            process.stdin.flush()
            return t.cast(t.Dict[str, float], json.loads(process.stdout.read().splitlines()[-1]))
        finally:
            server.process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()


@benchmark(
    "R4",
    what="Redis stopped: slowest of the first three reads",
    unit="s",
    goal="ours <= 0.5",
    peer="first version",
    runs=1,
)
@contextlib.contextmanager
def outage_first() -> t.Iterator[Pair]:
    yield lambda: outage("ours")["first"], lambda: outage("naive")["first"]


@benchmark(
    "R4b",
    what="Redis stopped: the reads after, 99th percentile",
    unit="s",
    goal="ours <= 0.001 and ratio <= 0.0001",
    peer="first version",
    runs=1,
)
@contextlib.contextmanager
def outage_rest() -> t.Iterator[Pair]:
    yield lambda: outage("ours")["rest"], lambda: outage("naive")["rest"]


@benchmark("R4c", what="Redis back: time until it is used again", unit="s", goal="ours <= 5", runs=1)
@contextlib.contextmanager
def outage_back() -> t.Iterator[Pair]:
    yield lambda: outage("ours")["back"], None


@benchmark(
    "R5",
    what="a hit in this process's memory (200 bytes of JSON), CPU",
    unit="us",
    goal="ours <= 3 and ratio <= 0.05",
    peer="first version",
    runs=3,
)
@contextlib.contextmanager
def hit() -> t.Iterator[Pair]:
    with scene() as (server, tree):
        yield lambda: measure(server, tree, "ours", "hit")["us"], lambda: measure(server, tree, "naive", "hit")["us"]


@benchmark(
    "R5b",
    what="the same against cashews with its client-side cache off",
    unit="us",
    goal="ratio <= 0.05",
    peer="cashews",
    runs=3,
)
@contextlib.contextmanager
def hit_cashews() -> t.Iterator[Pair]:
    program = """
import asyncio, resource, sys
from cashews import cache
async def main():
    cache.setup(sys.argv[1])
    await cache.set("hot", {"id": 1, "name": "a" * 120, "ok": True, "tags": ["x", "y", "z"], "n": 3.5}, expire=300)
    await cache.get("hot")
    used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    start = used()
    for _ in range(2000):
        await cache.get("hot")
    print((used() - start) / 2000 * 1e6)
asyncio.run(main())
"""
    with scene() as (server, tree):

        def cashews() -> float:
            done = subprocess.run(
                [sys.executable, "-c", program, server.url], capture_output=True, text=True, check=True
            )
            return float(done.stdout)

        yield lambda: measure(server, tree, "ours", "hit")["us"], cashews


@benchmark(
    "R7",
    what="950,000 keys cleared by prefix: worst answer to another client",
    unit="ms",
    goal="ours <= 5 and ratio <= 0.0125",
    peer="KEYS and DEL",
    runs=1,
)
@contextlib.contextmanager
def clear_prefix() -> t.Iterator[Pair]:
    yield lambda: cleared("ours", "clear_prefix"), lambda: cleared("naive", "clear_prefix")


@benchmark(
    "R7b",
    what="the same",
    unit="ms",
    goal="ours <= 5 and ratio <= 0.0125",
    peer="one Lua script, as fastapi-cache",
    runs=1,
)
@contextlib.contextmanager
def clear_script() -> t.Iterator[Pair]:
    yield lambda: cleared("ours", "clear_prefix"), lambda: cleared("naive", "clear_by_script")
