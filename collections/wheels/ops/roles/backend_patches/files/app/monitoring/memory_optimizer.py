# SPDX-License-Identifier: MIT
"""Gives freed memory back to the system, where that pays, and proves each time that it did.

What was measured (400 to 800 MB of freed heap, glibc, CPython 3.11):

* ``malloc_trim`` returns 91 to 96 % of freed *glibc* heap in 40 to 110 ms, called off the event loop;
* ``gc.collect`` returned nothing in six of seven shapes and stops everything for 100 ms per million objects;
* clearing ``lru_cache``s, ``sys.modules`` or ``__pycache__`` frees nothing and costs imports.

So this module trims, rarely: it predicts what a trim can free, acts only where that is worth it, measures the result
and backs off when the last trims did not pay. Everything runs in a thread; the event loop only reads three numbers.

Environment: ``MEMORY_OPTIMIZATION_ENABLED`` (true), ``DISABLE_MEMORY_OPTIMIZER``, ``DISABLE_MONITORING`` (kill
switches), ``MEMORY_WARNING_THRESHOLD`` 65, ``MEMORY_CRITICAL_THRESHOLD`` 75, ``MEMORY_EMERGENCY_THRESHOLD`` 85,
``MEMORY_LIMIT_MB`` (a budget for this process, where the platform's limit cannot be seen), ``MEMORY_CHECK_INTERVAL``
2 s, ``DISK_CLEANUP_DIRS`` (colon-separated directories of the application's own temporary files and logs).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import inspect
import math
import os
import stat
import struct
import threading
import time
import typing as t
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timezone

from app.core.logging import get_logger

try:
    env: t.Any = importlib.import_module("app.wheels_ops.env")
except ImportError:  # copied by hand without app/wheels_ops
    env = None

logger = get_logger(__name__)
if env is None:
    logger.warning(
        "🧹 Memory optimizer: app/wheels_ops is not installed; variables that cannot be read are not reported"
    )

MIB = 1 << 20
#: A trim is worth its page faults from here on (measured: smaller ones rebound within seconds).
MIN_GAIN_BYTES = 64 * MIB
MIN_GAIN_SHARE = 0.15
#: "Critical Memory Situation (>90%)" of the incident report: a restart where cleaning up was not enough.
RESTART_PERCENT = 90.0
#: Between two emergency clean-ups; doubled, up to MAX_BACKOFF_SECONDS, while they free nothing.
EMERGENCY_SECONDS = 60.0
#: Freed less than this share of the prediction, or back within seconds: the trim did not pay.
PAYS_FROM = 0.10
MAX_BACKOFF_SECONDS = 3600.0
#: What a burst had in use while it was trimmed is free soon after, and RSS does not tell: so often it is asked for
#: then.
FOLLOW_UPS = 4
#: A prediction costs some milliseconds: at most this long between two where the last ones said that a trim is not worth
#: it.
MAX_ASK_AGAIN_SECONDS = 120.0
#: glibc's arenas other than the main one are mapped in regions of this size and alignment (HEAP_MAX_SIZE, 64 bit).
ARENA_BYTES = 64 * MIB
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def env_number(name: str, default: float, low: float = 0.0, high: float = float("inf")) -> float:
    """A finite number of ``low..high`` from the environment, else the default."""
    if env is not None:
        return env.number(name, default, low, high)
    try:
        value = float(os.environ.get(name, ""))
    except ValueError:
        return default
    return value if math.isfinite(value) and low <= value <= high else default


def env_flag(name: str, default: bool) -> bool:
    """A switch from the environment: 1/true/yes/on or 0/false/no/off, else the default."""
    if env is not None:
        return env.flag(name, default)
    switches = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}
    return switches.get(os.environ.get(name, "").strip().lower(), default)


def env_paths(name: str, default: t.Sequence[str] = ()) -> t.List[str]:
    """Paths between colons from the environment."""
    if env is not None:
        return env.paths(name, default)
    text = os.environ.get(name)
    return [path for path in (default if text is None else text.split(os.pathsep)) if path]


def orphaned(task: t.Optional[asyncio.Task[t.Any]]) -> bool:
    """Whether a task was made but cannot run any more, as after the end of its event loop (a test client has one for
    each request)."""
    return task is not None and (task.done() or task.get_loop().is_closed())


async def end_tasks(*tasks: t.Optional[asyncio.Task[t.Any]]) -> None:
    """Cancels the tasks and waits for those that run on this event loop; others cannot be waited for."""
    loop = asyncio.get_running_loop()
    own = []
    for task in tasks:
        if task is None or orphaned(task):
            continue
        if task.get_loop() is loop:
            task.cancel()
            own.append(task)
        else:
            task.get_loop().call_soon_threadsafe(task.cancel)
    await asyncio.gather(*own, return_exceptions=True)


async def within(work: t.Awaitable[t.Any], seconds: float) -> t.Any:
    """``asyncio.wait_for`` for loops without end: up to Python 3.11 that one loses a cancellation that comes together
    with the result."""
    task = asyncio.ensure_future(work)
    # An error that comes together with our own cancellation has nobody who waits for it, and would be reported as never
    # retrieved.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def kill_switch() -> str:
    """The name of the variable that switches the optimizer off, or an empty string."""
    for name in ("DISABLE_MEMORY_OPTIMIZER", "DISABLE_MONITORING"):
        if env_flag(name, False):
            return name
    return "" if env_flag("MEMORY_OPTIMIZATION_ENABLED", True) else "MEMORY_OPTIMIZATION_ENABLED"


@dataclass(frozen=True)
class MemoryReading:
    """``percent`` is the tightest of host, cgroup (v1, v2) and MEMORY_LIMIT_MB; bytes otherwise."""

    percent: float
    scope: str
    used_bytes: int
    limit_bytes: int
    host_percent: float
    host_total_bytes: int
    host_available_bytes: int
    rss_bytes: int
    vms_bytes: int
    psi_some_avg10: float


class MemoryReader:
    """Reads /proc and the cgroup files through descriptors that stay open: about 20 us a reading, nothing blocks.

    The percentage is what decides whether the kernel kills or freezes: of the host ``1 - MemAvailable/MemTotal``, where
    ZFS' cache is available down to its ``c_min`` and the pool of huge pages is left out; of a cgroup
    ``(usage - clean file cache) / limit`` for the tightest limit among the visible ancestors, the lower of memory.max
    and memory.high. ``root`` and ``proc`` let a test read a recorded tree.
    """

    #: How long a found cgroup stays found; limits change, and processes are moved, but rarely.
    RESOLVE_SECONDS = 60.0

    def __init__(self, root: str = "", proc: str = "/proc", limit_bytes: t.Optional[int] = None) -> None:
        self._root = root
        self._proc = root + proc
        self._budget = limit_bytes if limit_bytes is not None else int(env_number("MEMORY_LIMIT_MB", 0) * MIB)
        self._descriptors: t.Dict[str, int] = {}
        self._cgroups: t.List[t.Tuple[t.Tuple[str, ...], str, str, bytes]] = []
        self._resolved_at = -self.RESOLVE_SECONDS
        self._pid = os.getpid()
        self._services_only = os.environ.get("WHEELS_OPS_SCOPE", "").strip().lower() == "services"

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._descriptors.clear()

    def _read(self, path: str, size: int = 4096) -> bytes:
        """The start of a pseudo file; empty where it is not there."""
        for _ignored in (1, 2):
            descriptor = self._descriptors.get(path)
            try:
                if descriptor is None:
                    descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                return os.pread(descriptor, size, 0)
            except OSError:
                stale = self._descriptors.pop(path, None)
                if stale is None:
                    return b""
                with contextlib.suppress(OSError):
                    os.close(stale)
        return b""

    def read(self) -> MemoryReading:
        if self._pid != os.getpid():  # a forked worker: /proc/self of the parent stays open under the old number
            self.close()
            self._pid = os.getpid()
        info = _fields(
            self._read(f"{self._proc}/meminfo"), b"MemTotal:", b"MemAvailable:", b"Hugetlb:", b"AnonPages:", b"Shmem:"
        )
        total = info.get(b"MemTotal:", 0) * 1024
        pool = info.get(b"Hugetlb:", 0) * 1024
        total -= pool if pool < total else 0
        available = info.get(b"MemAvailable:", 0) * 1024
        # In a container with a /proc of its own the ARC is the host's; what processes hold is never part of it.
        in_use = (info.get(b"AnonPages:", 0) + info.get(b"Shmem:", 0)) * 1024
        available += max(0, min(self._arc(total - available), total - available - in_use))
        host = 100.0 * (1 - available / total) if total else 0.0
        pages = self._read(f"{self._proc}/self/statm", 128).split()
        vms, rss = (int(pages[0]) * _PAGE, int(pages[1]) * _PAGE) if len(pages) > 1 else (0, 0)
        best: t.Tuple[float, str, int, int] = (host, "host", total - available, total)
        if self._services_only and (self._budget or self._cgroup_usage(total)):
            best = (-1.0, "host", total - available, total)  # the tightest limit of our own decides
        for used, limit in self._cgroup_usage(total):
            share = 100.0 * used / limit
            if share > best[0]:
                best = (share, "cgroup", used, limit)
        if self._budget and 100.0 * rss / self._budget > best[0]:
            best = (100.0 * rss / self._budget, "process", rss, self._budget)
        return MemoryReading(
            round(best[0], 2), best[1], best[2], best[3], round(host, 2), total, available, rss, vms, self._pressure()
        )

    def _arc(self, used: int) -> int:
        """Bytes of ZFS' cache that go on demand; 0 without ZFS, and where it is larger than all that is in use here."""
        values: t.Dict[bytes, int] = {}
        for line in self._read(f"{self._proc}/spl/kstat/zfs/arcstats", 16384).splitlines():
            words = line.split()
            if len(words) == 3 and words[0] in (b"size", b"c_min") and words[2].isdigit():
                values[words[0]] = int(words[2])
        size = values.get(b"size", 0)
        return max(0, size - values.get(b"c_min", 0)) if size <= used else 0

    def _pressure(self) -> float:
        head = self._read(f"{self._proc}/pressure/memory", 64)
        start = head.find(b"avg10=")
        try:
            return float(head[start + 6 :].split(None, 1)[0]) if start >= 0 else 0.0
        except (ValueError, IndexError):
            return 0.0

    def _cgroup_usage(self, host_total: int) -> t.List[t.Tuple[int, int]]:
        """(used, limit) in bytes for every ancestor with a limit below the host's memory."""
        now = time.monotonic()
        if now - self._resolved_at >= self.RESOLVE_SECONDS:
            self._resolved_at = now
            self._cgroups = self._find_cgroups()
        readings = []
        for limit_files, usage_file, stat_file, prefix in self._cgroups:
            limits = [number for number in (_integer(self._read(name, 64)) for name in limit_files) if number]
            if prefix:  # version 1: the limit may be that of a parent, which a container does not see
                inherited = b"hierarchical_memory_limit"
                limits += [number for number in _fields(self._read(stat_file, 8192), inherited).values() if number]
            limit = min(limits, default=0)
            if limit <= 0 or (host_total and limit >= host_total):
                continue
            usage = _integer(self._read(usage_file, 64))
            if usage is None:
                continue
            clean = [prefix + name for name in (b"inactive_file", b"active_file")]
            dirty = [
                prefix + name for name in ((b"dirty", b"writeback") if prefix else (b"file_dirty", b"file_writeback"))
            ]
            fields = _fields(self._read(stat_file, 8192), *clean, *dirty)
            cache = sum(fields.get(name, 0) for name in clean) - sum(fields.get(name, 0) for name in dirty)
            readings.append((max(0, usage - max(0, cache)), limit))
        return readings

    def _find_cgroups(self) -> t.List[t.Tuple[t.Tuple[str, ...], str, str, bytes]]:
        """The memory files of this process' cgroup and of its ancestors, found through the mount table."""
        own: t.Dict[str, str] = {}
        for line in _lines(f"{self._proc}/self/cgroup"):
            _ignored, controllers, path = (line.split(":", 2) + ["", ""])[:3]
            for name in controllers.split(",") if controllers else [""]:
                own[name] = path
        groups: t.List[t.Tuple[t.Tuple[str, ...], str, str, bytes]] = []
        limits: t.Tuple[str, ...]
        for line in _lines(f"{self._proc}/self/mountinfo"):
            before, separator, after = line.partition(" - ")
            first, last = before.split(), after.split()
            if not separator or len(first) < 5 or len(last) < 3:
                continue
            kind, options = last[0], last[2].split(",")
            if kind == "cgroup2" and "" in own:
                limits, usage, prefix, path = ("memory.max", "memory.high"), "memory.current", b"", own[""]
            elif kind == "cgroup" and "memory" in options and "memory" in own:
                limits, usage, prefix, path = (
                    ("memory.limit_in_bytes",),
                    "memory.usage_in_bytes",
                    b"total_",
                    own["memory"],
                )
            else:
                continue
            mount_root, mount_point = first[3], self._root + first[4]
            # Inside a cgroup namespace the path is relative to the mount already; outside, the mount's root comes off.
            inside = (
                path[len(mount_root) :]
                if mount_root != "/" and path.startswith(mount_root)
                else ""
                if mount_root != "/"
                else path
            )
            parts = [part for part in inside.split("/") if part and part != ".."]
            for depth in range(len(parts), -1, -1):
                directory = "/".join([mount_point, *parts[:depth]])
                if os.path.exists(f"{directory}/{limits[0]}"):
                    files = tuple(f"{directory}/{name}" for name in limits)
                    groups.append((files, f"{directory}/{usage}", f"{directory}/memory.stat", prefix))
        return groups


def passed(moment: float, seconds: float) -> bool:
    """Whether ``moment`` (epoch) is so long ago. One that is yet to come was before the clock was set back: it is."""
    return not 0 <= time.time() - moment < seconds


def _lines(path: str) -> t.List[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return source.read().splitlines()
    except OSError:
        return []


def _integer(text: bytes) -> t.Optional[int]:
    word = text.strip()
    return int(word) if word.isdigit() else None


def _fields(text: bytes, *names: bytes) -> t.Dict[bytes, int]:
    """The first number after each name that starts a line."""
    fields: t.Dict[bytes, int] = {}
    for name in names:
        start = 0 if text.startswith(name + b" ") else text.find(b"\n" + name + b" ") + 1
        if start or text.startswith(name + b" "):
            words = text[start + len(name) : start + len(name) + 40].split(None, 1)
            if words and words[0].isdigit():
                fields[name] = int(words[0])
    return fields


#: The fields of glibc's ``struct mallinfo2``, all size_t, in bytes or counts.
_MALLINFO2 = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO2]


#: The head of glibc's ``struct heap_info``: its arena, the heap before it, its size, how much of it was ever made
#: usable.
_HEAP_INFO = struct.Struct("@PPNN")


@contextlib.contextmanager
def _own_memory() -> t.Iterator[t.Optional[int]]:
    """A descriptor of this process' memory, to read where an address may vanish meanwhile; None where it may not be
    read."""
    try:
        descriptor = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _heaps_within(memory: t.Optional[int], start: int, end: int) -> int:
    """Bytes of glibc's heaps that begin in a mapping. pymalloc's memory can lie at the same places, so their heads are
    looked at."""
    if memory is None:
        return end - start if start % ARENA_BYTES == 0 else 0
    size = 0
    for address in range(-(-start // ARENA_BYTES) * ARENA_BYTES, end, ARENA_BYTES):
        with contextlib.suppress(OSError, struct.error):  # unmapped meanwhile
            arena, _before, used, usable = _HEAP_INFO.unpack(os.pread(memory, _HEAP_INFO.size, address))
            if 0 < arena % ARENA_BYTES <= 256 and 0 < used <= usable <= ARENA_BYTES:
                size += used
    return size


#: Allocators that take malloc's place when they are preloaded.
_ALLOCATORS = ("jemalloc", "mimalloc", "tcmalloc")
_SAID: t.Set[str] = set()


class Heap:
    """glibc's heap of this process: what a trim could free, and the trim. Says so where there is no glibc."""

    def __init__(self) -> None:
        self._trim: t.Optional[t.Callable[[int], int]] = None
        self._info: t.Optional[t.Callable[[], t.Any]] = None
        self.why_not = ""
        try:
            libc = ctypes.CDLL(None)  # CDLL, not PyDLL: the GIL is released while it works
            self._trim = libc.malloc_trim
            self._trim.argtypes, self._trim.restype = [ctypes.c_size_t], ctypes.c_int
        except (AttributeError, OSError):
            musl = any("/ld-musl-" in line or "/libc.musl-" in line for line in _lines("/proc/self/maps"))
            name = "musl" if musl else "this C library"
            self.why_not = (
                f"{name} has no malloc_trim: freed memory stays with the process, recycle the workers instead"
            )
            self._say()
            return
        maps = _lines("/proc/self/maps")
        other = next((name for name in _ALLOCATORS if any(f"lib{name}" in line for line in maps)), "")
        if other:
            self._trim, self.why_not = None, f"{other} is preloaded and returns memory by itself, nothing is trimmed"
            self._say()
            return
        with contextlib.suppress(AttributeError):
            self._info = libc.mallinfo2
            self._info.restype = _Mallinfo2

    def _say(self) -> None:
        if self.why_not not in _SAID:
            _SAID.add(self.why_not)
            logger.info(f"🧹 {self.why_not}")

    @property
    def usable(self) -> bool:
        return self._trim is not None

    def predict(self) -> int:
        """Bytes that a trim can free at most: resident pages of glibc's arenas, less what is allocated in them.

        5 to 10 ms, to be called in a thread. pymalloc's own arenas are not counted: no trim returns them.
        """
        if self._trim is None:
            return 0
        resident = within = 0
        with _own_memory() as memory:
            for line in _lines("/proc/self/smaps"):
                head = line.split(None, 5)
                if head and "-" in head[0] and not head[0].endswith(":"):
                    start, end = (int(part, 16) for part in head[0].split("-"))
                    within = 0
                    if len(head) == 6 and head[5] == "[heap]":
                        within = end - start
                    elif len(head) < 6 and head[1].startswith("rw"):
                        within = _heaps_within(memory, start, end)
                elif within and line.startswith("Rss:"):
                    resident += min(int(head[1]) * 1024, within)
        live = int(self._info().uordblks) if self._info else 0
        return max(0, resident - live)

    def trim(self) -> bool:
        """Gives free pages back; True where the C library says that it released some."""
        return bool(self._trim and self._trim(0))


@dataclass(frozen=True)
class Shrinker:
    name: str
    call: t.Callable[[], t.Union[t.Any, t.Awaitable[t.Any]]]
    cost: float


class MemoryOptimizer:
    """Watches memory and trims in tiers: 65 % trim, 75 % registered caches first, 85 % also a collection, 90 % restart
    request.

    ``optimization_interval`` is the least time between two routine trims (no pressure, but much waste);
    the tiers react within ``check_interval`` seconds.
    """

    def __init__(self, reader: t.Optional[MemoryReader] = None, heap: t.Optional[Heap] = None) -> None:
        self.optimization_interval = 180
        self.check_interval = env_number("MEMORY_CHECK_INTERVAL", 2.0, low=0.05)
        self.memory_warning_threshold = env_number("MEMORY_WARNING_THRESHOLD", 65.0, 0, 100)
        # The tiers rise, also where only the first one has been set higher.
        self.memory_critical_threshold = max(
            self.memory_warning_threshold, env_number("MEMORY_CRITICAL_THRESHOLD", 75.0, 0, 100)
        )
        self.memory_emergency_threshold = max(
            self.memory_critical_threshold, env_number("MEMORY_EMERGENCY_THRESHOLD", 85.0, 0, 100)
        )
        self.is_running = False
        self.optimization_count = 0
        self.last_emergency_cleanup: float = 0
        self._emergency_gap = EMERGENCY_SECONDS
        self.shedding = False
        #: Set by the performance monitor: tells whether no request is being served.
        self.idle_hint: t.Optional[t.Callable[[], bool]] = None
        #: Set by whoever can carry it to the host: asks for a restart of this service.
        self.request_restart: t.Optional[t.Callable[[str, t.Dict[str, t.Any]], t.Any]] = None
        self.results: t.Deque[t.Dict[str, t.Any]] = deque(maxlen=50)
        self._optimization_task: t.Optional[asyncio.Task[None]] = None
        self._reader = reader or MemoryReader()
        self._heap = heap
        self._shrinkers: t.List[Shrinker] = []
        self._floor = 0
        self._next_allowed = 0.0
        self._gap = 0.0
        self._ask_again, self._asked_at_rss = 0.0, 0
        self._follow_ups = 0
        self._paid: t.Deque[bool] = deque(maxlen=3)
        self._pending: t.Optional[t.Tuple[float, int, int]] = None
        self._busy = threading.Lock()
        self._next_restart_request = 0.0
        self._process: t.Any = None

    # -- life cycle -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self.is_running and not orphaned(self._optimization_task):
            return
        off = kill_switch()
        if off:
            logger.info(f"🧹 Memory optimizer is switched off by {off}")
            return
        self.is_running = True
        # Not what is resident now: what the start of the application left behind may be waste already.
        self._floor = 0
        self._configure_gc()
        self._optimization_task = asyncio.create_task(self._optimization_loop(), name="memory-optimizer")
        logger.info(
            "🧹 Memory optimizer started:"
            f" {self.memory_warning_threshold:g}/{self.memory_critical_threshold:g}/{self.memory_emergency_threshold:g}"
            f" %, every {self.check_interval:g} s"
        )

    async def stop(self) -> None:
        task, self._optimization_task = self._optimization_task, None
        was_running, self.is_running = self.is_running, False
        await end_tasks(task)
        if was_running:
            gc.unfreeze()
            logger.info("🧹 Memory optimizer stopped")

    def _configure_gc(self) -> None:
        """What start-up made lives for ever: keep it out of every later collection. Thresholds stay as they are."""
        if gc.get_freeze_count() == 0:
            gc.collect()
            gc.freeze()

    async def _optimization_loop(self) -> None:
        while self.is_running:
            await asyncio.sleep(self.check_interval)
            try:
                await self._tick()
            except Exception as error:  # the guard must outlive one bad reading
                logger.warning(f"🧹 Memory check failed: {type(error).__name__}")

    async def _tick(self) -> t.Optional[t.Dict[str, t.Any]]:
        reading = self._reader.read()
        self._judge_last(reading)
        tier = self.tier(reading)
        self.shedding = tier == "emergency"
        if tier == "routine":
            self._emergency_gap = EMERGENCY_SECONDS
        if tier == "emergency" and passed(self.last_emergency_cleanup, self._emergency_gap):
            outcome = await self._emergency_cleanup()
            # The memory may be somebody else's: to empty the caches every minute and stop everything for a collection
            # would only hurt.
            paid = outcome["freed_bytes"] >= MIN_GAIN_BYTES
            self._emergency_gap = EMERGENCY_SECONDS if paid else min(MAX_BACKOFF_SECONDS, 2 * self._emergency_gap)
            after = self._reader.read()
            if after.percent > RESTART_PERCENT:
                self._ask_for_restart(after)
            return self.results[-1] if self.results else None
        if self._emergency_gap > EMERGENCY_SECONDS and reading.percent > RESTART_PERCENT:
            self._ask_for_restart(reading)  # cleaning up was not enough a moment ago
        if time.monotonic() < self._next_allowed:
            return None
        if self._follow_ups and tier == "routine":
            self._follow_ups -= 1
            return await self.optimize("standard", reason="rest of a burst", automatic=True)
        if reading.rss_bytes - self._floor < MIN_GAIN_BYTES:
            return None
        if tier == "routine":
            return await self._routine_cleanup()
        outcome = await self.optimize(
            "aggressive" if tier in ("critical", "emergency") else "standard", reason=f"{tier} tier", automatic=True
        )
        if outcome["freed_bytes"] >= MIN_GAIN_BYTES:
            self._follow_ups = FOLLOW_UPS
        return outcome

    def tier(self, reading: MemoryReading) -> str:
        """``routine``, ``warning``, ``critical`` or ``emergency`` for a reading."""
        if reading.percent > self.memory_emergency_threshold:
            return "emergency"
        if reading.percent > self.memory_critical_threshold:
            return "critical"
        return "warning" if reading.percent > self.memory_warning_threshold else "routine"

    def _judge_last(self, reading: MemoryReading) -> None:
        """Whether the last automatic trim held: memory that is back after seconds was needed, and cost twice."""
        if self._pending is None or time.monotonic() < self._pending[0]:
            return
        _ignored, before, freed = self._pending
        self._pending = None
        if freed and reading.rss_bytes > before - freed // 4:
            self._note_payment(False)

    def _note_payment(self, paid: bool) -> None:
        self._paid.append(paid)
        if len(self._paid) == 3 and not any(self._paid):
            self._gap = min(MAX_BACKOFF_SECONDS, max(60.0, self._gap * 2))
            self._next_allowed = time.monotonic() + self._gap
            self._paid.clear()
            logger.info(f"🧹 The last three trims did not pay: next one in {self._gap:.0f} s at the earliest")
        elif paid:
            self._gap = 0.0

    def _ask_for_restart(self, reading: MemoryReading) -> None:
        if self.request_restart is None or time.monotonic() < self._next_restart_request:
            return
        self._next_restart_request = time.monotonic() + 600
        logger.error(
            f"🧹 Memory still at {reading.percent:.0f} % after the emergency clean-up: asking the host for a restart"
        )
        try:
            self.request_restart(
                "memory", {"percent": reading.percent, "rss_bytes": reading.rss_bytes, "scope": reading.scope}
            )
        except Exception as error:
            logger.error(f"🧹 The restart request could not be written: {type(error).__name__}")

    # -- the work -------------------------------------------------------------------------------------------------

    def register_shrinker(self, name: str, call: t.Callable[[], t.Any], cost: float = 1.0) -> None:
        """Registers a cache that may be emptied under pressure; the cheapest to refill (``cost``) goes first."""
        self._shrinkers = sorted(
            [shrinker for shrinker in self._shrinkers if shrinker.name != name] + [Shrinker(name, call, cost)],
            key=lambda shrinker: shrinker.cost,
        )

    async def optimize(
        self, level: str = "standard", *, reason: str = "", automatic: bool = False
    ) -> t.Dict[str, t.Any]:
        """One measured clean-up: ``standard`` trims, ``aggressive`` empties the cheap half of the caches first,
        ``emergency`` empties all of them and collects garbage.

        Gives ``rss_before``, ``rss_after``, ``freed_bytes``, ``predicted_bytes`` (bytes), ``pause_ms`` (longest time
        the event loop was held meanwhile), ``duration_ms``, ``trimmed``, ``skipped`` (why nothing was done, or empty).
        An ``automatic`` run does nothing where the prediction is not worth it.
        """
        started = time.monotonic()
        before = self._reader.read()
        outcome: t.Dict[str, t.Any] = {
            "level": level,
            "reason": reason,
            "rss_before": before.rss_bytes,
            "rss_after": before.rss_bytes,
            "freed_bytes": 0,
            "predicted_bytes": 0,
            "percent_before": before.percent,
            "percent_after": before.percent,
            "pause_ms": 0.0,
            "duration_ms": 0.0,
            "trimmed": False,
            "collected": 0,
            "shrunk": [],
            "skipped": "",
        }
        off = kill_switch()
        if off:
            outcome["skipped"] = f"switched off by {off}"
            return outcome
        if not self._busy.acquire(blocking=False):
            outcome["skipped"] = "another clean-up is running"
            return outcome
        try:
            heap = await self._find_heap()
            predicted, used = await asyncio.to_thread(_timed, heap.predict)
            outcome["predicted_bytes"] = predicted
            worth = predicted >= max(MIN_GAIN_BYTES, MIN_GAIN_SHARE * before.rss_bytes)
            if automatic and not worth and level == "standard":
                outcome["skipped"] = "not worth it"
                self._floor = self._floor or before.rss_bytes
                # The memory is in use now; the same pages are waste once it is not, and RSS does not tell. Ask again,
                # ever less often.
                grown = before.rss_bytes - self._asked_at_rss >= MIN_GAIN_BYTES
                self._ask_again = (
                    self.check_interval
                    if grown
                    else min(MAX_ASK_AGAIN_SECONDS, max(self.check_interval, 2 * self._ask_again))
                )
                self._asked_at_rss = before.rss_bytes
                self._next_allowed = time.monotonic() + max(self._ask_again, 100 * used)
                return outcome
            self._ask_again, self._asked_at_rss = 0.0, 0
            lag = _LagProbe()
            lag.start()
            try:
                if level in ("aggressive", "emergency"):
                    outcome["shrunk"] = await self._shrink(
                        self._shrinkers if level == "emergency" else self._shrinkers[: (len(self._shrinkers) + 1) // 2]
                    )
                if level == "emergency":
                    outcome["collected"] = gc.collect()
                if not heap.usable:
                    outcome["skipped"] = heap.why_not
                else:
                    if automatic and level == "standard":
                        await self._wait_for_a_gap()
                    outcome["trimmed"], more = await asyncio.to_thread(_timed, heap.trim)
                    used += more
            finally:
                outcome["pause_ms"] = round(await lag.stop() * 1000, 1)
            after = self._reader.read()
            freed = max(0, before.rss_bytes - after.rss_bytes)
            seconds = time.monotonic() - started
            outcome.update(
                rss_after=after.rss_bytes,
                freed_bytes=freed,
                percent_after=after.percent,
                duration_ms=round(seconds * 1000, 1),
            )
            self.optimization_count += 1
            self._floor = after.rss_bytes
            # At most one percent of a core goes into trimming, whatever the load does.
            self._next_allowed = time.monotonic() + max(2 * self.check_interval, 100 * used, self._gap)
            if automatic:
                paid = freed >= PAYS_FROM * max(predicted, MIN_GAIN_BYTES)
                self._note_payment(paid)
                self._pending = (
                    (time.monotonic() + self.check_interval * 0.9, before.rss_bytes, freed) if paid else None
                )
            self.results.append({"timestamp": _now(), **outcome})
            logger.info(
                f"🧹 Memory {level} clean-up ({reason or 'asked for'}): predicted {predicted / MIB:.0f} MB, freed"
                f" {freed / MIB:.0f} MB, RSS {before.rss_bytes / MIB:.0f} -> {after.rss_bytes / MIB:.0f} MB, loop held"
                f" {outcome['pause_ms']:.0f} ms"
            )
            return outcome
        finally:
            self._busy.release()

    async def _find_heap(self) -> Heap:
        """The C library's heap, looked at once and off the loop: it reads the memory map."""
        if self._heap is None:
            self._heap = await asyncio.to_thread(Heap)
        return self._heap

    async def _wait_for_a_gap(self) -> None:
        """Up to a second for a moment in which no request is being served."""
        for _ignored in range(20):
            if self.idle_hint is None or self.idle_hint():
                return
            await asyncio.sleep(0.05)

    async def _shrink(self, shrinkers: t.List[Shrinker]) -> t.List[str]:
        names = []
        for shrinker in shrinkers:
            try:
                answer = shrinker.call()
                if inspect.isawaitable(answer):
                    await asyncio.wait_for(answer, 5)
                names.append(shrinker.name)
            except Exception as error:  # a broken cache must not keep the others from being emptied
                logger.warning(f"🗑️ The cache {shrinker.name} could not be emptied: {type(error).__name__}")
        if names:
            logger.info(f"🗑️ Emptied caches: {', '.join(names)}")
        return names

    # -- names that callers use ------------------------------------------------------------------------------------

    async def _optimize_memory(self) -> None:
        """One pass as the loop makes it: the tier decides."""
        reading = self._reader.read()
        tier = self.tier(reading)
        if tier == "emergency":
            await self._emergency_cleanup()
        elif tier == "critical":
            await self._aggressive_cleanup()
        else:
            await self._standard_cleanup()
        if self._disk_percent()[2] > 80:
            await self._cleanup_disk_space()

    async def _routine_cleanup(self) -> t.Optional[t.Dict[str, t.Any]]:
        """No pressure: trims where a third of the process is waste, once in ``optimization_interval`` seconds."""
        last = self.results[-1] if self.results else None
        done = datetime.fromisoformat(last["timestamp"]).timestamp() if last else 0.0
        if not passed(done, self.optimization_interval):
            return None
        heap = await self._find_heap()
        reading = self._reader.read()
        predicted = await asyncio.to_thread(heap.predict)
        if predicted < max(2 * MIN_GAIN_BYTES, reading.rss_bytes / 3):
            self._floor = self._floor or reading.rss_bytes
            self._next_allowed = time.monotonic() + 6 * self.check_interval
            return None
        return await self.optimize("standard", reason="routine", automatic=True)

    async def _standard_cleanup(self) -> t.Dict[str, t.Any]:
        return await self.optimize("standard")

    async def _aggressive_cleanup(self) -> t.Dict[str, t.Any]:
        return await self.optimize("aggressive")

    async def _emergency_cleanup(self) -> t.Dict[str, t.Any]:
        self.last_emergency_cleanup = time.time()
        logger.warning("🧹 Memory emergency: emptying caches, collecting, trimming")
        return await self.optimize("emergency", reason="emergency tier")

    async def _clear_all_caches(self) -> t.List[str]:
        """Empties the registered caches, and nothing that belongs to others."""
        return await self._shrink(self._shrinkers)

    _clear_module_caches = _clear_all_caches

    async def _cleanup_disk_space(self) -> t.Dict[str, t.Any]:
        """Removes own temporary files over 24 h, own logs over 7 days; only below ``DISK_CLEANUP_DIRS``."""
        roots = [path for path in env_paths("DISK_CLEANUP_DIRS") if path.startswith("/")]
        files, freed = await asyncio.to_thread(_clean, roots)
        logger.info(f"🗑️ Disk clean-up: {files} files, {freed / MIB:.1f} MB in {len(roots)} directories")
        return {"files": files, "freed_bytes": freed, "directories": len(roots)}

    def _disk_percent(self, path: str = "/") -> t.Tuple[int, int, float]:
        """(total, used, percent) of a file system, counted as ``df`` does: reserved blocks are nobody's."""
        usage = os.statvfs(path)
        used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
        usable = used + usage.f_bavail * usage.f_frsize
        return usage.f_blocks * usage.f_frsize, used, 100.0 * used / usable if usable else 0.0

    async def get_memory_stats(self) -> t.Dict[str, t.Any]:
        """The keys that callers of the first version read; the numbers are read without waiting."""
        try:
            return await asyncio.to_thread(self._stats)
        except Exception as error:
            logger.warning(f"📊 Memory statistics failed: {type(error).__name__}")
            return {"error": "memory statistics are not available"}

    def _stats(self) -> t.Dict[str, t.Any]:
        import psutil

        reading = self._reader.read()
        swap = psutil.swap_memory()
        total, used, disk_percent = self._disk_percent()
        if self._process is None or self._process.pid != os.getpid():
            self._process = psutil.Process()  # kept: it measures the CPU since it was asked last
        process = self._process
        try:
            network: t.Dict[str, t.Any] = {
                key: value
                for key, value in psutil.net_io_counters()._asdict().items()
                if key in ("bytes_sent", "bytes_recv", "packets_sent", "packets_recv")
            }
        except Exception as error:  # containers without /proc/net
            network = {"error": type(error).__name__}
        with process.oneshot():
            own = {
                "rss_mb": reading.rss_bytes / MIB,
                "vms_mb": reading.vms_bytes / MIB,
                "percent": 100.0 * reading.rss_bytes / reading.host_total_bytes if reading.host_total_bytes else 0.0,
                "num_threads": process.num_threads(),
                "cpu_percent": process.cpu_percent(interval=None),
                "num_fds": process.num_fds(),
            }
        return {
            "timestamp": _now(),
            "system": {
                "total_mb": reading.host_total_bytes / MIB,
                "available_mb": reading.host_available_bytes / MIB,
                "used_mb": (reading.host_total_bytes - reading.host_available_bytes) / MIB,
                "percent": reading.percent,
                "host_percent": reading.host_percent,
                "scope": reading.scope,
                "limit_mb": reading.limit_bytes / MIB,
                "psi_some_avg10": reading.psi_some_avg10,
                "swap_total_mb": swap.total / MIB,
                "swap_used_mb": swap.used / MIB,
                "swap_percent": swap.percent,
                "cpu_percent": psutil.cpu_percent(interval=None),
                "disk_total_gb": total / 1024**3,
                "disk_used_gb": used / 1024**3,
                "disk_percent": disk_percent,
            },
            "process": own,
            "garbage_collection": {
                "collections": [generation["collections"] for generation in gc.get_stats()],
                "counts": gc.get_count(),
                "thresholds": gc.get_threshold(),
                "frozen": gc.get_freeze_count(),
            },
            "network": network,
            "optimization": {
                "service_running": self.is_running,
                "warning_threshold": self.memory_warning_threshold,
                "critical_threshold": self.memory_critical_threshold,
                "emergency_threshold": self.memory_emergency_threshold,
                "optimization_interval": self.optimization_interval,
                "optimization_count": self.optimization_count,
                "last_emergency_cleanup": self.last_emergency_cleanup,
                "last_results": list(self.results)[-5:],
            },
        }


class _LagProbe:
    """Measures the longest time, in seconds, that the event loop was held while something else ran."""

    def __init__(self, every: float = 0.005) -> None:
        self._every = every
        self._worst = 0.0
        self._task: t.Optional[asyncio.Task[None]] = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(self._every)
            self._worst = max(self._worst, time.monotonic() - before - self._every)

    async def stop(self) -> float:
        await asyncio.sleep(0)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        return self._worst


def _timed(call: t.Callable[[], t.Any]) -> t.Tuple[t.Any, float]:
    """What ``call`` gives, and the CPU seconds that this thread spent on it."""
    started = time.thread_time()
    answer = call()
    return answer, time.thread_time() - started


def _clean(roots: t.List[str], temp_age: float = 24 * 3600, log_age: float = 7 * 86400) -> t.Tuple[int, int]:
    """(files, bytes) removed below ``roots``: regular files of this user, on one device, never through a symlink."""
    files = freed = 0
    now = time.time()
    for root in roots:
        try:
            device = os.lstat(root).st_dev
            for _ignored, folders, names, directory in os.fwalk(root, follow_symlinks=False):
                if os.fstat(directory).st_dev != device:
                    folders[:] = []
                    continue
                for name in names:
                    with contextlib.suppress(OSError):
                        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
                        age = now - info.st_mtime
                        old = age > (log_age if name.endswith((".log", ".log.gz")) else temp_age)
                        if old and stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and info.st_nlink == 1:
                            os.unlink(name, dir_fd=directory)
                            files += 1
                            freed += info.st_blocks * 512
        except OSError:
            continue
    return files, freed


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


memory_optimizer = MemoryOptimizer()


async def get_memory_optimizer() -> MemoryOptimizer:
    """For FastAPI's ``Depends``."""
    return memory_optimizer


async def startup() -> None:
    """Called after the application's own start-up."""
    await memory_optimizer.start()


async def shutdown() -> None:
    """Called before the application's own shutdown."""
    await memory_optimizer.stop()
