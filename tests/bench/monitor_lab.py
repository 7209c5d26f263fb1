# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that the benchmarks of the monitoring run under the backend's interpreter; each prints one line of JSON.

python monitor_lab.py bursts SECONDS SEED ours|none     (PYTHONPATH: a tree with ``app``)
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import sys
import threading
import time
import typing as t


def rss() -> int:
    with open("/proc/self/statm", encoding="ascii") as source:
        return int(source.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Stall:
    """The longest time in seconds that the loop was held, looked at every millisecond."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def run(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - before - 0.001)


class Queue:
    """Seconds that this thread was ready to run and had no processor, by the kernel: what other programs did to it, on
    a machine with cores to spare.
    """

    def __init__(self) -> None:
        self._file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    def waited(self) -> float:
        return int(os.pread(self._file, 64, 0).split()[1]) / 1e9


# The peers, written to the descriptions of the defects: what the first version of each did.


async def first_monitor_cycle() -> None:
    """One cycle: a blocking second of ``cpu_percent`` in a coroutine, then the process table."""
    import psutil

    psutil.virtual_memory()
    psutil.cpu_percent(interval=1)
    psutil.disk_usage("/")
    psutil.Process().memory_info()


async def first_optimizer_pass() -> None:
    """One routine pass: collections on the event loop, and every ``cache_clear`` of every module."""
    for generation in (0, 1, 2):
        gc.collect(generation)
    for module in list(sys.modules.values()):
        for name in dir(module):
            try:
                clear = getattr(getattr(module, name, None), "cache_clear", None)
                if clear is not None:
                    clear()
            except Exception:  # lazy attributes fail in many ways
                continue
    gc.collect()


# Bursts: requests of the usual size, and every few seconds many large answers at once, as after a notification.


def documents(generator: random.Random, scale: int) -> t.List[str]:
    """JSON texts of 600 bytes to 30 kB, as answers of other services are; parsed, they live in glibc's heap."""
    return [json.dumps({"id": number, "text": "x" * generator.randrange(600, 30_000)}) for number in range(scale)]


#: Requests a second; each needs about a millisecond.
RATE = 400


async def bursts(seconds: float, seed: int, which: str) -> t.Dict[str, float]:
    """Mean RSS, p99 latency, CPU seconds and trims over a bursty workload, which is the same work whoever does it.

    RATE requests a second keep nearly half a core busy; every BURST_EVERY seconds eight threads parse 40 MB each, and
    two percent of it stays until the next burst, as sessions and caches do.
    """
    loop = asyncio.get_running_loop()
    optimizer: t.Any = None
    if which != "none":
        from app.monitoring.memory_optimizer import memory_optimizer

        if which == "ours":
            optimizer = memory_optimizer
            await optimizer.start()
    generator = random.Random(seed)
    texts = documents(generator, 200)
    every = float(os.environ.get("BURST_EVERY", "30"))
    times = [3.0]
    while times[-1] + every < seconds - 3:
        times.append(times[-1] + every * generator.uniform(0.9, 1.1))
    samples: t.List[int] = []
    latencies: t.List[float] = []
    begin = time.monotonic()
    started = time.process_time()
    working = True

    async def until(second: float) -> None:
        await asyncio.sleep(max(0.0, begin + second - time.monotonic()))

    async def requests() -> None:
        own, queue = random.Random(seed + 1), Queue()
        for number in range(int(seconds * RATE)):
            await until(number / RATE)
            before, waited = time.perf_counter(), queue.waited()
            for _ in range(10):
                json.loads(
                    json.dumps({"rows": [{"id": number, "text": "x" * own.randrange(20, 200)} for number in range(60)]})
                )
            await asyncio.sleep(0)
            # Waiting for the interpreter's lock, for pages and for the memory map counts; for a processor that somebody
            # else has it does not.
            latencies.append(time.perf_counter() - before - (queue.waited() - waited))

    kept: t.Dict[int, t.List[t.Any]] = {}

    def hold(worker: int) -> None:
        held = [json.loads(texts[number % len(texts)]) for number in range(2600)]
        time.sleep(0.5)
        kept[worker] = held[::50]

    async def storms() -> None:
        for second in times:
            await until(second)
            await asyncio.gather(*(loop.run_in_executor(None, hold, worker) for worker in range(8)))

    async def watch() -> None:
        while working:
            samples.append(rss())
            await asyncio.sleep(0.1)

    watcher = asyncio.create_task(watch())
    await (until(seconds) if os.environ.get("IDLE") == "1" else asyncio.gather(requests(), storms()))
    working = False
    await watcher
    cpu = time.process_time() - started
    trims = optimizer.optimization_count if optimizer else 0
    pause = max((one["pause_ms"] for one in optimizer.results), default=0.0) if optimizer else 0.0
    if optimizer:
        await optimizer.stop()
    latencies.sort()
    return {
        "mean_rss_mb": sum(samples) / len(samples) / 1e6,
        "peak_rss_mb": max(samples) / 1e6,
        "cpu_s": cpu,
        "bursts": len(times),
        "trims": trims,
        "pause_ms": pause,
        "seconds": time.monotonic() - begin,
        "p99_ms": 1000 * latencies[int(0.99 * len(latencies))] if latencies else 0.0,
        "requests": len(latencies),
    }


async def sampler(seconds: float, which: str) -> t.Dict[str, float]:
    """CPU in percent of a core and RSS of the monitor alone, and the worst stall of the loop, at the interval of
    production.
    """
    from app.core import performance_monitor as module

    base, longest = rss(), 0.0
    if which == "ours":
        await module.performance_monitor.start()
    stall = Stall()
    task = asyncio.create_task(stall.run()) if which == "peer-stall" else None
    await asyncio.sleep(1)
    began, started = time.process_time(), time.monotonic()
    if which == "stall":  # ours, many samples, so that the worst of them is seen
        await module.performance_monitor.start()
        stall.worst = 0.0
        for _ in range(300):
            # Where the thread never gave the processor up, what others did with it meanwhile is not our stall.
            waits, wall, cpu_time = (
                resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw,
                time.perf_counter(),
                time.thread_time(),
            )
            module.performance_monitor.sample()
            held = time.thread_time() - cpu_time
            if resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw > waits:
                held = time.perf_counter() - wall
            longest = max(longest, held)
            await asyncio.sleep(0.003)
        stall.worst = longest
    elif which == "peer-stall":
        stall.worst = 0.0
        await first_monitor_cycle()
        await asyncio.sleep(0.01)
    else:
        await asyncio.sleep(seconds)
    cpu = 100 * (time.process_time() - began) / (time.monotonic() - started)
    if task:
        task.cancel()
    grown = (rss() - base) / 1e6
    if module.performance_monitor.is_running:
        await module.performance_monitor.stop()
    return {"cpu_percent": cpu, "rss_mb": grown, "stall_ms": 1000 * stall.worst}


async def one_sample(count: int) -> t.Dict[str, float]:
    """CPU microseconds of one sample."""
    from app.core import performance_monitor as module

    await module.performance_monitor.start()
    started = time.process_time()
    for _ in range(count):
        module.performance_monitor.sample()
    used = time.process_time() - started
    await module.performance_monitor.stop()
    return {"us": 1e6 * used / count}


def history(which: str) -> t.Dict[str, float]:
    """Bytes of 24 hours of history of four metrics: rings, or lists of objects as in the first version."""
    import tracemalloc
    from datetime import datetime, timedelta, timezone

    from app.core import performance_monitor as module

    names = ("memory_percent", "cpu_percent", "disk_percent", "process_memory_mb")
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    if which == "ours":
        rings = {name: module.Ring() for name in names}
        for index in range(17_280):
            for name in names:
                rings[name].add(5.0 * index, 50.0 + index % 7)
        keep: t.Any = rings
    else:
        begin = datetime.now(timezone.utc)
        keep = {name: [] for name in names}
        for index in range(2_880):  # every 30 s
            for name in names:
                keep[name].append(
                    module.PerformanceMetric(
                        name, 50.0 + index % 7 + index / 1e6, 65.0, 75.0, begin + timedelta(seconds=30 * index), "%"
                    )
                )
    size = tracemalloc.get_traced_memory()[0] - before
    return {"mb": size / 1e6, "metrics": len(keep)}


async def requests_layer(count: int, which: str) -> t.Dict[str, float]:
    """CPU microseconds that counting requests adds to one call."""
    from app.core import performance_monitor as module

    class Route:
        path = "/items/{item}"

    async def application(scope: t.Any, receive: t.Any, send: t.Any) -> None:
        scope["route"] = Route
        await send(start)
        await send(body)

    async def send(message: t.Any) -> None:
        pass

    async def receive() -> t.Any:
        return None

    start, body = {"type": "http.response.start", "status": 200}, {"type": "http.response.body", "body": b""}
    layer = module.RequestMetricsMiddleware(application, module.RequestStats()) if which == "ours" else application
    scope = {"type": "http", "method": "GET", "path": "/items/7"}
    started = time.process_time()
    for _ in range(count):
        await layer(scope, receive, send)
    return {"us": 1e6 * (time.process_time() - started) / count}


async def optimizer_pass(which: str) -> t.Dict[str, float]:
    """A routine pass with 870,000 live objects: the worst stall of the loop in ms, bytes given back, RSS grown."""
    from app.monitoring.memory_optimizer import memory_optimizer

    keep = [{"id": number, "tags": [number, str(number)]} for number in range(290_000)]
    if which == "ours":
        memory_optimizer._floor = 0
    stall = Stall()
    task = asyncio.create_task(stall.run())
    await asyncio.sleep(0.05)
    stall.worst, before = 0.0, rss()
    if which == "ours":
        await memory_optimizer._routine_cleanup()
    else:
        await first_optimizer_pass()
    await asyncio.sleep(0.01)
    task.cancel()
    return {
        "stall_ms": 1000 * stall.worst,
        "freed_mb": max(0, before - rss()) / 1e6,
        "grown_mb": max(0, rss() - before) / 1e6,
        "kept": len(keep),
    }


if __name__ == "__main__":
    name, *words = sys.argv[1:]
    call = globals()[name]
    arguments: t.List[t.Any] = [float(word) if "." in word else int(word) if word.isdigit() else word for word in words]
    answer = call(*arguments)
    if asyncio.iscoroutine(answer):
        answer = asyncio.run(answer)
    sys.stdout.write(json.dumps(answer) + "\n")
