# SPDX-License-Identifier: MIT
"""Samples this process and its host, raises alerts that also clear, and starts the remedy that is known to pay.

Sampling reads a handful of /proc files through open descriptors (some 30 us every 5 s) and never waits: the first
version called ``psutil.cpu_percent(interval=1)`` in a coroutine and froze the server for one second in thirty.

Alerts have hysteresis: a level is raised after three samples above its threshold and cleared after three samples more
than five points (5 % of the threshold for milliseconds and counts) below it. Once a sample is over a threshold the next
ones come sooner, so a real excursion is an alert within ten seconds and a spike is none.

``RequestMetricsMiddleware`` counts requests, errors and times by route template. ``metrics_store`` (in
``app.wheels_ops``) keeps the history over restarts; without it the last 24 hours live in memory.

Environment: ``DISABLE_MONITORING`` (kill switch), ``MONITORING_INTERVAL`` 5 s, ``MEMORY_*``, ``CPU_*``, ``DISK_*``,
``RESPONSE_TIME_*`` (ms), ``ERROR_RATE_*`` (percent) ``_WARNING_THRESHOLD`` and ``_CRITICAL_THRESHOLD``, ``DISK_PATHS``,
``WHEELS_OPS_METRICS_DIR`` (else ``WHEELS_OPS_STATE_DIR``).
"""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import selectors
import sys
import threading
import time
import types
import typing as t
from array import array
from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path

from app.core.logging import get_logger
from app.monitoring.memory_optimizer import (
    MemoryReader,
    MemoryReading,
    end_tasks,
    env_flag,
    env_number,
    env_paths,
    memory_optimizer,
    orphaned,
)

try:
    metrics_store: t.Any = importlib.import_module("app.wheels_ops.metrics_store")
except ImportError:  # copied by hand without app/wheels_ops
    metrics_store = None

logger = get_logger(__name__)
if metrics_store is None:
    logger.warning("📊 Performance monitor: app/wheels_ops is not installed; the history ends with the process")

Scope = t.MutableMapping[str, t.Any]
Message = t.MutableMapping[str, t.Any]
Receive = t.Callable[[], t.Awaitable[Message]]
Send = t.Callable[[Message], t.Awaitable[None]]
ASGIApp = t.Callable[[Scope, Receive, Send], t.Awaitable[None]]

#: Samples on the same side of a limit before an alert is raised or cleared.
CONFIRMATIONS = 3
#: Upper bounds of the request histogram, in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Methods that are told apart: some servers pass on whatever word a caller invents.
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))
#: Route templates that are told apart; what comes later is counted together.
MAX_ROUTES = 300
FINE_SECONDS = 30
#: Response time and error rate are those of the last so many seconds. Fewer requests than that are shown but are no
#: alert by themselves, as one of them would decide; several errors are: where few people ask, what is broken for all of
#: them must be seen as well. A few slow ones are not: a language model takes its seconds for an answer.
REQUEST_WINDOW, REQUESTS_TO_JUDGE, SEVERAL_ERRORS = 15.0, 10, 3
_REQUEST_METRICS = ("response_time_ms", "error_rate")
_CLEAR_BELOW_POINTS = 5.0
#: A stall of the event loop that is worth a warning, in seconds.
LOOP_WARNING_SECONDS = 0.25


class AlertLevel(Enum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    EMERGENCY = "emergency"


_ORDER = (AlertLevel.INFO, AlertLevel.WARNING, AlertLevel.CRITICAL, AlertLevel.EMERGENCY)


@dataclass
class PerformanceMetric:
    name: str
    value: float
    threshold_warning: float
    threshold_critical: float
    timestamp: datetime
    unit: str = ""

    @property
    def alert_level(self) -> AlertLevel:
        if self.name == "memory_percent" and self.value > memory_optimizer.memory_emergency_threshold:
            return AlertLevel.EMERGENCY
        if self.value > self.threshold_critical:
            return AlertLevel.CRITICAL
        return AlertLevel.WARNING if self.value > self.threshold_warning else AlertLevel.INFO


@dataclass
class PerformanceAlert:
    metric: str
    level: AlertLevel
    message: str
    timestamp: datetime
    auto_remediation_attempted: bool = False
    remediation_result: t.Optional[str] = None

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {
            "metric": self.metric,
            "level": self.level.value,
            "message": self.message,
            "timestamp": self.timestamp.isoformat(),
            "auto_remediation_attempted": self.auto_remediation_attempted,
            "remediation_result": self.remediation_result,
        }


class Hysteresis:
    """The state of one alert. ``update`` gives the level after a sample; ``pending`` asks for the next sample soon."""

    __slots__ = ("level", "pending", "_above", "_below")

    def __init__(self) -> None:
        self.level = AlertLevel.INFO
        self.pending = False
        self._above = 0
        self._below = 0

    def update(self, value: float, limits: t.Tuple[t.Tuple[AlertLevel, float], ...], margin: float) -> AlertLevel:
        """``limits`` rise; ``margin`` is how far below a level's limit a value must fall for the level to clear."""
        reached = AlertLevel.INFO
        kept = AlertLevel.INFO
        for level, limit in limits:
            if value > limit:
                reached = level
            if value > limit - margin:
                kept = level
        if _ORDER.index(reached) > _ORDER.index(self.level):
            self._above, self._below = self._above + 1, 0
            if self._above >= CONFIRMATIONS:
                self.level, self._above = reached, 0
        elif _ORDER.index(kept) < _ORDER.index(self.level):
            self._below, self._above = self._below + 1, 0
            if self._below >= CONFIRMATIONS:
                self.level, self._below = kept, 0
        else:
            self._above = self._below = 0
        self.pending = self._above > 0
        return self.level


class Ring:
    """The last ``size`` values of one metric with the time of each slot implied: 4 bytes a value."""

    __slots__ = ("size", "values", "last_slot", "_sum", "_count")

    def __init__(self, size: int = 86400 // FINE_SECONDS) -> None:
        self.size = size
        self.values = array("f")
        self.last_slot = 0
        self._sum = 0.0
        self._count = 0

    def add(self, now: float, value: float) -> None:
        slot = int(now // FINE_SECONDS)
        if slot == self.last_slot and self.values:
            self._sum += value
            self._count += 1
        else:
            # Slots nobody measured stay empty (NaN): a gap is a gap.
            missing = min(slot - self.last_slot - 1, self.size) if self.values else 0
            for _ignored in range(missing):
                self._append(float("nan"))
            self._append(value)
            self.last_slot, self._sum, self._count = slot, value, 1
        self.values[-1] = self._sum / self._count

    def _append(self, value: float) -> None:
        self.values.append(value)
        if len(self.values) > self.size + 64:  # cut in strides, not with every value
            del self.values[:64]

    def since(self, start: float) -> t.List[t.Tuple[float, float]]:
        """(time of the slot, mean) of every slot measured since ``start``."""
        first = self.last_slot - len(self.values) + 1
        return [
            (float((first + index) * FINE_SECONDS), value)
            for index, value in enumerate(self.values)
            if not math.isnan(value) and (first + index) * FINE_SECONDS >= start - FINE_SECONDS
        ]


class RouteStats:
    """Counters of one route template: requests, errors (5xx and exceptions), seconds, and a histogram."""

    __slots__ = ("count", "errors", "seconds", "worst", "buckets")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.seconds = 0.0
        self.worst = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)


def quantile(buckets: t.List[int], share: float, worst: float) -> float:
    """An upper bound of the quantile in seconds, interpolated inside its histogram bucket."""
    total = sum(buckets)
    if not total:
        return 0.0
    rank, passed, low = share * total, 0, 0.0
    for index, count in enumerate(buckets):
        high = BUCKETS[index] if index < len(BUCKETS) else max(worst, BUCKETS[-1])
        if count and passed + count >= rank:
            return min(low + (high - low) * (rank - passed) / count, worst or high)
        passed += count
        low = high
    return worst


class RequestStats:
    """All requests of this process, by route template, and the window since the last sample."""

    def __init__(self) -> None:
        self.routes: t.Dict[str, RouteStats] = {}
        self.in_flight = 0
        self.window = RouteStats()
        #: Called with every request as ``record`` is; must not wait.
        self.observer: t.Optional[t.Callable[[str, float, bool], None]] = None

    def record(self, route: str, seconds: float, failed: bool) -> None:
        stats = self.routes.get(route)
        if stats is None:
            if len(self.routes) >= MAX_ROUTES:
                route = "(other)"
            stats = self.routes.setdefault(route, RouteStats())
        bucket = bisect_left(BUCKETS, seconds)
        for counters in (stats, self.window):
            counters.count += 1
            counters.seconds += seconds
            counters.buckets[bucket] += 1
            if seconds > counters.worst:
                counters.worst = seconds
            if failed:
                counters.errors += 1
        if self.observer is not None:
            self.observer(route, seconds, failed)

    def take_window(self) -> RouteStats:
        window, self.window = self.window, RouteStats()
        return window

    def by_route(self) -> t.List[t.Dict[str, t.Any]]:
        """The busiest routes first, times in milliseconds."""
        return [
            {
                "route": name,
                "requests": stats.count,
                "errors": stats.errors,
                "avg_ms": round(1000 * stats.seconds / stats.count, 2),
                "p95_ms": round(1000 * quantile(stats.buckets, 0.95, stats.worst), 2),
                "max_ms": round(1000 * stats.worst, 2),
            }
            for name, stats in sorted(self.routes.items(), key=lambda item: -item[1].count)
            if stats.count
        ]


request_stats = RequestStats()


class RequestMetricsMiddleware:
    """Counts HTTP requests by method and route template; the time is the time to the first byte of the answer.

    Templates, not paths: ``/users/{user_id}``; what no route answers is ``(unmatched)``, so that a caller cannot grow
    the table. Long downloads and event streams count with the time until they start.
    """

    def __init__(self, app: ASGIApp, stats: t.Optional[RequestStats] = None) -> None:
        self.app = app
        self.stats = stats or request_stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stats = self.stats
        started = time.perf_counter()
        answered = 0.0
        status = 500

        async def observe(message: Message) -> None:
            nonlocal answered, status
            if not answered and message["type"] == "http.response.start":
                answered = time.perf_counter()
                status = message["status"]
            await send(message)

        stats.in_flight += 1
        try:
            await self.app(scope, receive, observe)
        finally:
            stats.in_flight -= 1
            route = getattr(scope.get("route"), "path", "(unmatched)")
            method = scope["method"] if scope["method"] in METHODS else "(other)"
            stats.record(f"{method} {route}", (answered or time.perf_counter()) - started, status >= 500)


@dataclass
class Stall:
    """The stalls of one place in the code: what blocked, how often, for how long (seconds), and when last (epoch)."""

    frame: str
    count: int = 0
    seconds: float = 0.0
    worst: float = 0.0
    last: float = 0.0


def _place(frame: types.FrameType) -> str:
    """``app/core/x.py:57 in sample``: relative to the working directory or to the packages."""
    path = frame.f_code.co_filename
    for mark in ("/site-packages/", "/dist-packages/", os.getcwd().rstrip("/") + "/"):
        path = path.rpartition(mark)[2]
    return f"{'/'.join(path.split('/')[-4:]).lstrip('/')}:{frame.f_lineno} in {frame.f_code.co_name}"


def _is_library(frame: types.FrameType) -> bool:
    path = frame.f_code.co_filename
    return path.startswith((_STDLIB, "<")) or "/site-packages/" in path or "/dist-packages/" in path


_STDLIB = os.path.dirname(os.__file__)


def blocker(frame: t.Optional[types.FrameType], base: t.Optional[types.FrameType] = None) -> str:
    """Who keeps the event loop: the application's own innermost frame, and what it waits in. ``base``: the loop's."""
    innermost, own = frame, frame
    while own is not None and own is not base and not _runs_callbacks(own) and _is_library(own):
        own = own.f_back
    if innermost is None:
        return ""
    if own is None or own is base or own is innermost or _runs_callbacks(own):
        return _place(innermost)
    return f"{_place(own)} (in {_place(innermost)})"


def _runs_callbacks(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename == asyncio.events.__file__ and frame.f_code.co_name == "_run"


def _waits_for_events(frame: types.FrameType, base: t.Optional[types.FrameType]) -> bool:
    """Whether the loop's thread has nothing to do: in asyncio's select, or, in a loop written in C, in no callback."""
    if frame is base:
        return True
    code, caller = frame.f_code, frame.f_back
    return (
        code.co_name == "select"
        and code.co_filename == selectors.__file__
        and caller is not None
        and caller.f_code.co_name == "_run_once"
    )


class LoopLag:
    """How long the event loop is kept from turning, and by whom: a thread looks at the loop every ``every`` seconds.

    A loop that waits for events is left alone: looking at it costs some 30 us and wakes nothing. One that is at work is
    sent a call, and is stalled while that does not run. Every stall of twice ``every`` is seen, the begin of each lies
    somewhere between two looks: its middle is taken, so a stall is known to within half of ``every``. Code that holds
    the interpreter's lock keeps the thread away as well; that is told by the thread's own lateness.
    """

    #: A stall that goes on is logged after so many seconds, and one place in the code not more often than that.
    STILL, QUIET = 5.0, 60.0
    MAX_PLACES = 64
    WINDOW = 60.0

    def __init__(self, every: float = 0.1) -> None:
        self.every = every
        #: Called on the loop with the seconds of a stall as soon as it is over.
        self.on_late: t.Optional[t.Callable[[float], t.Any]] = None
        self.window_worst = 0.0
        #: Place in the code -> its stalls; the places that were seen least recently go first.
        self.stalls: OrderedDict[str, Stall] = OrderedDict()
        self._recent: t.Deque[t.Tuple[float, float, str]] = deque(maxlen=1024)
        self._halt: t.Optional[threading.Event] = None
        self._base: t.Optional[types.FrameType] = None
        self._alive = self._gap = 0.0
        self._sent: t.Optional[float] = None
        self._blame: t.Counter[str] = Counter()
        self._logged: t.Dict[str, float] = {}

    def start(self) -> None:
        self.stop()
        loop = asyncio.get_running_loop()
        self._halt, self._sent, self._alive = threading.Event(), None, time.monotonic()
        self._base = None
        loop.call_soon(self._find_base)
        threading.Thread(
            target=self._watch, args=(loop, self._halt, threading.get_ident()), name="loop-lag", daemon=True
        ).start()

    def stop(self) -> None:
        halt, self._halt = self._halt, None
        self._base = None
        if halt is not None:
            halt.set()

    def _find_base(self) -> None:
        """The frame that runs a loop written in C calls us without a frame of its own between."""
        caller = sys._getframe(1)
        if self._halt is not None and not _runs_callbacks(caller):
            self._base = caller

    def _look(self, thread: int, *, named: bool) -> t.Optional[t.Tuple[bool, str]]:
        """(whether the loop waits for events, the line that it runs), None where its thread ended. Without ``named`` the
        line of a loop that waits is not looked up.

        Here and nowhere longer is its frame held: with it lives everything that the frame has in its variables.
        """
        frame = sys._current_frames().get(thread)
        if frame is None:
            return None
        waits = _waits_for_events(frame, self._base)
        return waits, blocker(frame, self._base) if named or not waits else ""

    def _watch(self, loop: asyncio.AbstractEventLoop, halt: threading.Event, thread: int) -> None:
        reported = False
        before = time.monotonic()
        while True:
            time.sleep(self.every)  # half the price of waiting for an event
            if halt.is_set():
                return
            now = time.monotonic()
            late, before = now - before - self.every, now
            position = self._look(thread, named=self._sent is not None)
            if position is None:
                return
            waits, place = position
            if self._sent is not None:
                self._blame[place] += 1
                if not reported and now - self._sent > self.STILL:
                    reported = True
                    self._log(f"has not turned for {now - self._sent:.0f} s", self._blame.most_common(1)[0][0])
                continue
            reported = False
            if late > self.every:  # nobody could run any Python
                self._blame = Counter([place if not waits else "(not on the loop)"])
                sent = now - late
            elif waits:
                self._alive = now
                continue
            else:
                self._blame, sent = Counter(), now
            self._gap = max(0.0, min(sent - self._alive, 2 * self.every))
            self._sent = sent
            try:
                loop.call_soon_threadsafe(self._turned, halt)
            except RuntimeError:  # the loop is closed
                return

    def _turned(self, halt: threading.Event) -> None:
        sent, self._sent = self._sent, None
        now = self._alive = time.monotonic()
        if sent is None or halt is not self._halt:
            return
        late = now - sent
        if late < self.every:
            self.window_worst = max(self.window_worst, late)
            return
        late += self._gap / 2
        self.window_worst = max(self.window_worst, late)
        place = self._blame.most_common(1)[0][0] if self._blame else ""
        self._recent.append((now, late, place))
        stall = self.stalls.pop(place, None) or Stall(place)
        self.stalls[place] = stall
        stall.count, stall.seconds, stall.worst = stall.count + 1, stall.seconds + late, max(stall.worst, late)
        stall.last = time.time()
        while len(self.stalls) > self.MAX_PLACES:
            self.stalls.popitem(last=False)
        if late >= LOOP_WARNING_SECONDS:
            self._log(f"was blocked for {1000 * late:.0f} ms", place)
        if self.on_late is not None:
            self.on_late(late)

    def _log(self, what: str, place: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(place, float("-inf")) < self.QUIET:
            return
        if len(self._logged) >= self.MAX_PLACES:
            self._logged.clear()
        self._logged[place] = now
        logger.warning(f"📊 The event loop {what} by {place or 'something that was over at the next look'}")

    def worst(self, seconds: float = 15.0) -> float:
        """The longest stall in seconds of the last ``seconds``."""
        return max((late for _ignored, late, _place in self._since(seconds)), default=0.0)

    def blocked_percent(self, seconds: float = WINDOW) -> float:
        """The share of the last ``seconds`` in which the loop could not turn."""
        return min(100.0, 100.0 * sum(late for _ignored, late, _place in self._since(seconds)) / seconds)

    def by_place(self, seconds: float = WINDOW) -> t.List[t.Tuple[str, float]]:
        """(place in the code, seconds blocked) of the last ``seconds``, the worst first."""
        places: t.Dict[str, float] = {}
        for _ignored, late, place in self._since(seconds):
            places[place] = places.get(place, 0.0) + late
        return sorted(places.items(), key=lambda item: -item[1])

    def _since(self, seconds: float) -> t.List[t.Tuple[float, float, str]]:
        horizon = time.monotonic() - seconds
        return [stall for stall in list(self._recent) if stall[0] >= horizon]

    def take(self) -> float:
        worst, self.window_worst = self.window_worst, 0.0
        return worst


class CpuReader:
    """Busy share of all cores since the last call (since boot, if that was just now), from /proc/stat; and this
    process' own."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._descriptor: t.Optional[int] = None
        self._last: t.Optional[t.Tuple[int, int]] = None
        self._last_own: t.Optional[t.Tuple[float, float]] = None

    def system(self) -> t.Optional[float]:
        try:
            if self._descriptor is None:
                self._descriptor = os.open(f"{self._proc}/stat", os.O_RDONLY | os.O_CLOEXEC)
            words = os.pread(self._descriptor, 256, 0).split(b"\n", 1)[0].split()[1:9]
        except OSError:
            return None
        ticks = [int(word) for word in words]
        total, idle = sum(ticks), ticks[3] + ticks[4]
        last, self._last = self._last, (total, idle)
        if last is None or total < last[0]:
            return None
        if (
            total == last[0]
        ):  # asked again within one tick of the kernel's clock: what is known is the mean since it started
            last = (0, 0)
        return max(0.0, min(100.0, 100.0 * (1 - (idle - last[1]) / (total - last[0]))))

    def own(self) -> t.Optional[float]:
        now, used = time.monotonic(), time.process_time()
        last, self._last_own = self._last_own, (now, used)
        return None if last is None or now <= last[0] else 100.0 * (used - last[1]) / (now - last[0])


def disk_usage(path: str) -> t.Tuple[float, float, int]:
    """(percent of bytes as ``df`` shows it, percent of inodes, free bytes) of the file system of ``path``."""
    usage = os.statvfs(path)
    used = usage.f_blocks - usage.f_bfree
    usable = used + usage.f_bavail
    inodes = 100.0 * (usage.f_files - usage.f_favail) / usage.f_files if usage.f_files else 0.0
    return (100.0 * used / usable if usable else 0.0), inodes, usage.f_bavail * usage.f_frsize


def is_local(path: str) -> bool:
    """Whether the file system of ``path`` is one whose statvfs cannot hang; False where that is not known."""
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as source:
            for line in source:
                before, _ignored, after = line.partition(" - ")
                point = before.split()[4]
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, after.split()[0]
    except (OSError, IndexError):
        return False
    return kind in ("ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "f2fs", "vfat")


def _limits(name: str, warning: float, critical: float, *between: float) -> t.Dict[str, float]:
    low = env_number(f"{name}_WARNING_THRESHOLD", warning, *(between or (0,)))
    high = env_number(f"{name}_CRITICAL_THRESHOLD", critical, *(between or (0,)))
    return {"warning": low, "critical": max(low, high)}


#: unit of each metric; ``percent`` metrics clear five points below their limit, others 5 % of the limit below.
UNITS = {
    "memory_percent": "%",
    "cpu_percent": "%",
    "disk_percent": "%",
    "disk_inodes_percent": "%",
    "process_memory_mb": "MB",
    "process_cpu_percent": "%",
    "load_1m": "",
    "loop_lag_ms": "ms",
    "loop_blocked_percent": "%",
    "response_time_ms": "ms",
    "response_p95_ms": "ms",
    "error_rate": "%",
    "requests_per_second": "1/s",
    "active_connections": "",
    "cache_hit_rate": "%",
    "db_query_ms": "ms",
    "db_pool_in_use": "",
    "celery_queue_depth": "",
    "celery_queue_age_s": "s",
    "psi_memory": "%",
}

#: Values that do not jump about. CPU does, and is a mean over the time since the sample before: its confirmation takes
#: two half intervals.
_CONFIRMED_SOON = ("memory_percent", "disk_percent", "disk_inodes_percent", "loop_lag_ms", "loop_blocked_percent")
#: What the log and the dashboard name the blocking frame with.
_OF_THE_LOOP = ("loop_lag_ms", "loop_blocked_percent")

_ADVICE = {
    "memory_percent": (
        "Memory is the bottleneck: look at the routes with the largest answers, lower the number of workers, or add"
        " memory."
    ),
    "cpu_percent": "The CPU is the bottleneck: move work to the background queues, or add cores.",
    "disk_percent": "The disk fills up: the playbook recover cleans up and rotates logs; or enlarge the file system.",
    "disk_inodes_percent": "The file system runs out of inodes: look for directories with very many small files.",
    "process_memory_mb": "This process is large: recycle the workers after a number of requests.",
    "response_time_ms": "Answers are slow: see the slowest routes in this report.",
    "response_p95_ms": "One request in twenty is slow: see the slowest routes in this report.",
    "error_rate": "Too many requests fail: see the routes with errors in this report.",
    "loop_lag_ms": "Something blocks the event loop: move the call that the alert names into a thread.",
    "loop_blocked_percent": "The event loop is kept from its work: move the calls that the alert names into threads.",
    "active_connections": "Many WebSocket connections: add workers or hosts.",
    "celery_queue_depth": "Background tasks pile up: add workers.",
}


class PerformanceMonitor:
    """One per process: samples every ``check_interval`` seconds, keeps 24 hours, raises and clears alerts."""

    def __init__(self, reader: t.Optional[MemoryReader] = None) -> None:
        #: ``services``: the processor time of this process and a limit of memory of its own, not what others use.
        self.scope = os.environ.get("WHEELS_OPS_SCOPE", "").strip().lower()
        self.is_running = False
        self.monitoring_task: t.Optional[asyncio.Task[None]] = None
        self.active_alerts: t.Dict[str, PerformanceAlert] = {}
        self.check_interval: float = env_number("MONITORING_INTERVAL", 5.0, low=0.05)
        self.history_retention = timedelta(hours=24)
        self.thresholds: t.Dict[str, t.Dict[str, float]] = {
            "memory_percent": _limits("MEMORY", 65, 75, 0, 100),  # as the optimizer reads them
            "cpu_percent": _limits("CPU", 70, 85),
            "disk_percent": _limits("DISK", 75, 85),
            "disk_inodes_percent": _limits("DISK_INODES", 75, 85),
            "process_memory_mb": _limits("PROCESS_MEMORY_MB", 1000, 1500),
            "response_time_ms": _limits("RESPONSE_TIME", 500, 1000),
            "error_rate": _limits("ERROR_RATE", 1, 5),
            "active_connections": _limits("ACTIVE_CONNECTIONS", 100, 200),
            "loop_lag_ms": _limits("LOOP_LAG", 1000 * LOOP_WARNING_SECONDS, 2500),
            "loop_blocked_percent": _limits("LOOP_BLOCKED", 10, 50),
        }
        self.current: t.Dict[str, PerformanceMetric] = {}
        self.rings: t.Dict[str, Ring] = {}
        self.loop_lag = LoopLag(env_number("LOOP_LAG_INTERVAL", 0.1, low=0.01))
        self.last_sample_at = 0.0
        self.last_reading: t.Optional[MemoryReading] = None
        #: Further numbers for a sample, by metric name; must not wait.
        self.sources: t.List[t.Callable[[], t.Mapping[str, float]]] = []
        #: Called with the values of every sample; must not wait.
        self.observers: t.List[t.Callable[[t.Mapping[str, float]], t.Any]] = []
        #: The history that survives restarts (``app.wheels_ops.metrics_store``); None where it is not there or not
        #: writable.
        self.store: t.Optional[t.Any] = None
        self.alert_counts: t.Deque[t.Tuple[float, str, str]] = deque(maxlen=1000)
        self._reader = reader or MemoryReader()
        self._cpu = CpuReader()
        self._states: t.Dict[str, Hysteresis] = {}
        self._paths = env_paths("DISK_PATHS", ["/"])
        self._paths_are_local = all(is_local(path) for path in self._paths)
        self._disk: t.Dict[str, float] = {}
        self._disk_task: t.Optional[asyncio.Task[None]] = None
        self._pause: t.Optional[asyncio.Future[None]] = None
        self._remedies: t.Dict[str, float] = {}
        self._tasks: set[asyncio.Task[t.Any]] = set()
        self._request_window: t.Deque[t.Tuple[float, int, int, float, t.List[int], float]] = deque(maxlen=400)
        #: The metrics of requests that are not judged at the moment.
        self._too_few: t.FrozenSet[str] = frozenset(_REQUEST_METRICS)

    # -- life cycle -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self.is_running and not orphaned(self.monitoring_task):
            return
        if env_flag("DISABLE_MONITORING", False):
            logger.info("📊 Performance monitor is switched off by DISABLE_MONITORING")
            return
        self.is_running, self.monitoring_task = True, None
        memory_optimizer.idle_hint = lambda: request_stats.in_flight == 0
        self.loop_lag.on_late = self._stalled
        self.loop_lag.start()
        self._cpu.system()
        self._cpu.own()
        await self._measure_disks()
        await self._open_store()
        self.sample()
        self.monitoring_task = asyncio.create_task(self._loop(), name="performance-monitor")
        logger.info(f"📊 Performance monitor started, every {self.check_interval:g} s")

    async def stop(self) -> None:
        task, self.monitoring_task = self.monitoring_task, None
        was_running, self.is_running = self.is_running, False
        self.loop_lag.stop()
        await end_tasks(task, self._disk_task, *self._tasks)
        store, self.store = self.store, None
        if store is not None:
            await store.stop()
        if was_running:
            logger.info("📊 Performance monitor stopped")

    async def _open_store(self) -> None:
        if self.store is not None or metrics_store is None:  # its thread outlives an event loop
            return
        directory = (
            os.environ.get("WHEELS_OPS_METRICS_DIR") or os.environ.get("WHEELS_OPS_STATE_DIR") or "/var/lib/wheels-ops"
        )
        store = metrics_store.MetricsStore(Path(directory) / "metrics.sqlite")
        if await store.start():
            self.store = store

    def _stalled(self, late: float) -> None:
        """A stall that is worth an alert is sampled at once: it is over before the next sample would come."""
        if 1000 * late > self.thresholds["loop_lag_ms"]["warning"]:
            self._wake()

    def _wake(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._pause = loop.create_future()
            timer = loop.call_later(self.next_delay(), self._wake)
            try:
                await self._pause
            finally:
                timer.cancel()
            try:
                self.sample()
            except Exception as error:  # monitoring must outlive one bad reading
                logger.warning(f"📊 Sampling failed: {type(error).__name__}")

    def next_delay(self) -> float:
        """Seconds until the next sample: fewer while an excursion waits for its confirmation."""
        pending = {name for name, state in self._states.items() if state.pending}
        if not pending.isdisjoint(_CONFIRMED_SOON):
            return min(1.0, self.check_interval)
        return self.check_interval / 2 if "cpu_percent" in pending else self.check_interval

    # -- sampling -------------------------------------------------------------------------------------------------

    def sample(self) -> t.Dict[str, float]:
        """One sample, some tens of microseconds; gives the values by metric name."""
        now = time.time()
        reading = self.last_reading = self._reader.read()
        values: t.Dict[str, float] = {
            "memory_percent": reading.percent,
            "process_memory_mb": reading.rss_bytes / (1 << 20),
            "psi_memory": reading.psi_some_avg10,
            # The worst of the last samples: a stall is over before three samples could confirm it.
            "loop_lag_ms": 1000 * max(self.loop_lag.take(), self.loop_lag.worst(3 * self.check_interval + 2)),
            "loop_blocked_percent": self.loop_lag.blocked_percent(),
        }
        cpu, own = self._cpu.system(), self._cpu.own()
        if self.scope == "services":  # the machine serves others too
            cpu = None if own is None else own / (os.cpu_count() or 1)
            if reading.scope == "host":
                del values["memory_percent"]
        if cpu is not None:
            values["cpu_percent"] = cpu
        if own is not None:
            values["process_cpu_percent"] = own
        values["load_1m"] = os.getloadavg()[0]
        if self._paths_are_local:  # with every sample, so that three samples are three measurements; one call a path
            try:
                self._note_disks([disk_usage(path) for path in self._paths])
            except OSError as error:  # a directory that is gone
                logger.debug(f"📊 The disk cannot be measured: {type(error).__name__}")
                self._note_disks([])
        values.update(self._disk)
        weights = self._request_values(now, values)
        for source in self.sources:
            try:
                values.update(source())
            except Exception as error:  # a part that is missing or broken costs its own numbers only
                logger.debug(f"📊 A metric source failed: {type(error).__name__}")
        stamp = datetime.fromtimestamp(now, timezone.utc)
        for name, value in values.items():
            self._note(name, value, stamp, now)
        for name in _REQUEST_METRICS:
            if name in self._too_few:  # hardly anybody asks: an alert of the past must not stay for ever
                self._judge(PerformanceMetric(name, 0.0, 0.0, 0.0, stamp, UNITS[name]), self.thresholds[name])
        for name in [name for name in self.current if name not in values]:
            del self.current[name]
        self.last_sample_at = time.monotonic()
        if self.store is not None:
            self.store.add(now, values, weights)
        for observer in self.observers:
            observer(values)
        if not self._paths_are_local and (self._disk_task is None or self._disk_task.done()):
            self._disk_task = asyncio.get_running_loop().create_task(self._measure_disks())
        return values

    def _request_values(self, now: float, values: t.Dict[str, float]) -> t.Dict[str, t.Tuple[float, float]]:
        """Adds what the last requests say; gives (sum, count) of this sample's own for exact averages."""
        window = request_stats.take_window()
        self._request_window.append((now, window.count, window.errors, window.seconds, window.buckets, window.worst))
        while self._request_window and self._request_window[0][0] <= now - REQUEST_WINDOW:
            self._request_window.popleft()
        count = sum(slot[1] for slot in self._request_window)
        errors, seconds = sum(slot[2] for slot in self._request_window), sum(slot[3] for slot in self._request_window)
        judged = {
            "response_time_ms": count >= REQUESTS_TO_JUDGE,
            "error_rate": count >= REQUESTS_TO_JUDGE or errors >= SEVERAL_ERRORS,
        }
        self._too_few = frozenset(name for name, enough in judged.items() if not enough)
        values["requests_per_second"] = count / max(
            self.check_interval, min(REQUEST_WINDOW, len(self._request_window) * self.check_interval)
        )
        if count:
            buckets = [sum(column) for column in zip(*(slot[4] for slot in self._request_window))]
            values["response_time_ms"] = 1000 * seconds / count
            values["response_p95_ms"] = 1000 * quantile(buckets, 0.95, max(slot[5] for slot in self._request_window))
            values["error_rate"] = 100 * errors / count
        if not window.count:
            return {"response_time_ms": (0.0, 0), "error_rate": (0.0, 0), "response_p95_ms": (0.0, 0)}
        return {
            "response_time_ms": (1000 * window.seconds, window.count),
            "error_rate": (100.0 * window.errors, window.count),
        }

    async def _measure_disks(self) -> None:
        """statvfs can hang on a network file system: there it never runs on the loop."""
        try:
            usages = await asyncio.wait_for(asyncio.to_thread(lambda: [disk_usage(path) for path in self._paths]), 5)
        except (OSError, asyncio.TimeoutError) as error:
            logger.warning(f"📊 The disk did not answer: {type(error).__name__}")
            usages = []
        self._note_disks(usages)

    def _note_disks(self, usages: t.List[t.Tuple[float, float, int]]) -> None:
        self._disk = (
            {
                "disk_percent": max(usage[0] for usage in usages),
                "disk_inodes_percent": max(usage[1] for usage in usages),
            }
            if usages
            else {}
        )

    def _note(self, name: str, value: float, stamp: datetime, now: float) -> None:
        limits = self.thresholds.get(name)
        metric = PerformanceMetric(
            name,
            value,
            limits["warning"] if limits else float("inf"),
            limits["critical"] if limits else float("inf"),
            stamp,
            UNITS.get(name, ""),
        )
        self.current[name] = metric
        ring = self.rings.get(name)
        if ring is None:
            ring = self.rings[name] = Ring()
        ring.add(now, value)
        if limits and name not in self._too_few:
            self._judge(metric, limits)

    # -- alerts ---------------------------------------------------------------------------------------------------

    def _judge(self, metric: PerformanceMetric, limits: t.Mapping[str, float]) -> None:
        name = metric.name
        state = self._states.setdefault(name, Hysteresis())
        steps: t.List[t.Tuple[AlertLevel, float]] = [
            (AlertLevel.WARNING, limits["warning"]),
            (AlertLevel.CRITICAL, limits["critical"]),
        ]
        if name == "memory_percent":
            steps.append((AlertLevel.EMERGENCY, max(limits["critical"], memory_optimizer.memory_emergency_threshold)))
        margin = (
            _CLEAR_BELOW_POINTS
            if metric.unit == "%" and limits["warning"] > 2 * _CLEAR_BELOW_POINTS
            else 0.05 * limits["warning"]
        )
        before = state.level
        level = state.update(metric.value, tuple(steps), margin)
        if level is AlertLevel.INFO:
            if before is not AlertLevel.INFO:
                self.active_alerts.pop(name, None)
                logger.info(f"📊 Alert cleared: {name} is at {metric.value:.1f} {metric.unit}")
            return
        limit = dict(steps)[level]
        message = (
            f"{name} is {metric.value:.1f} {metric.unit}".rstrip()
            + f", {'above' if metric.value > limit else 'was above'} {limit:g} {metric.unit}".rstrip()
        )
        if name in _OF_THE_LOOP:
            places = [place for place, _ignored in self.loop_lag.by_place() if place]
            message += f"; blocked by {places[0]}" if places else ""
        if level is not before:
            self.active_alerts[name] = PerformanceAlert(name, level, message, metric.timestamp)
            self._note_alert(name, level, message)
        elif name in self.active_alerts:
            self.active_alerts[name].message = message
        self._remedy(name, level)

    def raise_alert(self, name: str, level: AlertLevel, message: str) -> None:
        """An alert from outside the sampler (a dependency, for example); replaces the one of the same name."""
        alert = self.active_alerts.get(name)
        if alert is not None and alert.level is level:
            alert.message = message
            return
        self.active_alerts[name] = PerformanceAlert(name, level, message, datetime.now(timezone.utc))
        self._note_alert(name, level, f"{name}: {message}")

    def _note_alert(self, name: str, level: AlertLevel, message: str) -> None:
        self.alert_counts.append((time.time(), name, level.value))
        if self.store is not None:
            self.store.add_alert(name, level.value, message)
        logger.warning(f"📊 Alert {level.value}: {message}")

    def clear_alert(self, name: str) -> None:
        if self.active_alerts.pop(name, None) is not None:
            logger.info(f"📊 Alert cleared: {name}")

    def _remedy(self, name: str, level: AlertLevel) -> None:
        """What this process can do about an alert. Memory is the optimizer's, which measures and backs off itself."""
        alert = self.active_alerts.get(name)
        if alert is None or name not in ("memory_percent", "disk_percent"):
            return
        if name == "memory_percent":
            last = memory_optimizer.results[-1] if memory_optimizer.results else None
            if last and datetime.fromisoformat(last["timestamp"]) >= alert.timestamp:
                alert.auto_remediation_attempted = True
                alert.remediation_result = (
                    f"freed {last['freed_bytes'] / (1 << 20):.0f} of {last['predicted_bytes'] / (1 << 20):.0f} MB"
                    " predicted"
                )
            return
        if time.monotonic() < self._remedies.get(name, 0.0):
            return
        self._remedies[name] = time.monotonic() + 600
        task = asyncio.get_running_loop().create_task(self._clean_disk(alert))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _clean_disk(self, alert: PerformanceAlert) -> None:
        alert.auto_remediation_attempted = True
        result = await memory_optimizer._cleanup_disk_space()
        alert.remediation_result = f"removed {result['files']} own files, {result['freed_bytes'] / (1 << 20):.1f} MB"

    # -- what callers read ------------------------------------------------------------------------------------------

    @property
    def metrics_history(self) -> t.Dict[str, t.List[PerformanceMetric]]:
        """The last 24 hours as the first version kept them; built on demand, the store is four bytes a value."""
        history: t.Dict[str, t.List[PerformanceMetric]] = {}
        for name, ring in self.rings.items():
            limits = self.thresholds.get(name, {"warning": float("inf"), "critical": float("inf")})
            history[name] = [
                PerformanceMetric(
                    name,
                    value,
                    limits["warning"],
                    limits["critical"],
                    datetime.fromtimestamp(at, timezone.utc),
                    UNITS.get(name, ""),
                )
                for at, value in ring.since(0.0)
            ]
        return history

    def status(self) -> t.Dict[str, t.Any]:
        """``get_current_status`` for callers that are not coroutines."""
        return {
            "monitoring_active": self.is_running,
            "current_metrics": {
                name: {
                    "value": round(entry.value, 3),
                    "unit": entry.unit,
                    "alert_level": self._level(name).value,
                    "timestamp": entry.timestamp.isoformat(),
                }
                for name, entry in self.current.items()
            },
            "active_alerts": [entry.as_dict() for entry in list(self.active_alerts.values())],
            "metrics_history_size": {name: len(ring.values) for name, ring in self.rings.items()},
        }

    def _level(self, name: str) -> AlertLevel:
        alert = self.active_alerts.get(name)
        return alert.level if alert else AlertLevel.INFO

    async def get_current_status(self) -> t.Dict[str, t.Any]:
        return self.status()

    async def get_performance_report(self, hours: int = 1) -> t.Dict[str, t.Any]:
        """Minimum, maximum and average of every metric over ``hours``; true over restarts where the store is there."""
        now = time.time()
        summary: t.Dict[str, t.Dict[str, t.Any]] = {}
        raised: t.Mapping[str, int] = {}
        source = "memory"
        stored = None
        if self.store is not None:
            try:
                stored = await self.store.summary(hours)
                raised = await self.store.alerts(hours)
            except Exception as error:  # a broken or busy file: what is in memory is shown, and named so
                logger.warning(f"📊 The metrics history did not answer: {type(error).__name__}")
                stored = None
        if stored:
            source = "store"
            for name, row in stored.items():
                summary[name] = {**row, "unit": UNITS.get(name, "")}
        else:
            for name, ring in self.rings.items():
                values = [value for _ignored, value in ring.since(now - 3600 * hours)]
                if values:
                    summary[name] = {
                        "min": min(values),
                        "max": max(values),
                        "avg": sum(values) / len(values),
                        "unit": UNITS.get(name, ""),
                        "data_points": len(values),
                    }
        for name, entry in summary.items():
            current = self.current.get(name)
            entry["current"] = current.value if current else None
            for key in ("min", "max", "avg", "current"):
                entry[key] = None if entry.get(key) is None else round(entry[key], 3)
        if not stored:
            raised = Counter(level for at, _ignored, level in self.alert_counts if at >= now - 3600 * hours)
        return {
            "report_period_hours": hours,
            "generated_at": datetime.now(timezone.utc).isoformat(),
            "source": source,
            "metrics_summary": summary,
            "alert_summary": {level: raised.get(level, 0) for level in ("warning", "critical", "emergency")},
            "slowest_routes": sorted(request_stats.by_route(), key=lambda item: -item["p95_ms"])[:10],
            "memory_remediation": [dict(item) for item in list(memory_optimizer.results)[-10:]],
            "recommendations": self._recommendations(summary),
        }

    def _recommendations(self, summary: t.Mapping[str, t.Mapping[str, t.Any]]) -> t.List[str]:
        advice_lines = []
        for name, advice in _ADVICE.items():
            limits, row = self.thresholds.get(name), summary.get(name)
            if (
                limits
                and row
                and row.get("avg") is not None
                and (row["avg"] > limits["warning"] or row["max"] > limits["critical"])
            ):
                advice_lines.append(
                    f"{advice} (average {row['avg']:g}, highest {row['max']:g} {UNITS.get(name, '')})".replace(
                        " )", ")"
                    )
                )
        return advice_lines or ["Nothing to do: every average is below its warning threshold."]


performance_monitor = PerformanceMonitor()


async def get_performance_monitor() -> PerformanceMonitor:
    """For FastAPI's ``Depends``."""
    return performance_monitor


async def startup() -> None:
    """Called around the application's own lifespan."""
    await performance_monitor.start()


async def shutdown() -> None:
    await performance_monitor.stop()
