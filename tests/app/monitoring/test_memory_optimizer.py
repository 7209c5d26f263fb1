# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory as the kernel sees it (recorded trees: host, cgroup v1, v2, nested, hybrid), and the optimizer's decisions."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import types
import typing as t
from pathlib import Path

import pytest

Modules = t.Callable[[str], types.ModuleType]
GIB = 1 << 30
MIB = 1 << 20
MEMINFO = "MemTotal:       24684372 kB\nMemFree:         1000000 kB\nMemAvailable:   22215934 kB\n"
#: Host: 24 GB, 90 % available.
HOST_PERCENT = 10.0


def tree(root: Path, files: t.Mapping[str, str], *, cgroup: str, mounts: str) -> str:
    written = {
        "proc/meminfo": MEMINFO,
        "proc/self/statm": "100000 25600 500 1 0 9000 0\n",
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": mounts,
        "proc/pressure/memory": (
            "some avg10=1.25 avg60=0.40 avg300=0.10 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        ),
        **files,
    }
    for name, text in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


V2_MOUNT = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "33 25 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:12 - cgroup cgroup rw,memory\n31 25 0:27 / /sys/fs/cgroup/cpu"
    " rw - cgroup cgroup rw,cpu,cpuacct\n"
)


def v2(path: str, limit: str, current: int, inactive: int) -> t.Dict[str, str]:
    base = f"sys/fs/cgroup{path}"
    return {
        f"{base}/memory.max": f"{limit}\n",
        f"{base}/memory.current": f"{current}\n",
        f"{base}/memory.stat": (
            f"anon {current - inactive}\nfile {inactive}\ninactive_anon 7\nactive_file 0\ninactive_file {inactive}\n"
        ),
    }


def v1(path: str, limit: int, usage: int, inactive: int) -> t.Dict[str, str]:
    base = f"sys/fs/cgroup/memory{path}"
    return {
        f"{base}/memory.limit_in_bytes": f"{limit}\n",
        f"{base}/memory.usage_in_bytes": f"{usage}\n",
        f"{base}/memory.stat": f"cache 1\nrss 2\ninactive_file 99\ntotal_cache 5\ntotal_inactive_file {inactive}\n",
    }


CASES: t.Dict[str, t.Tuple[t.Dict[str, str], str, str, str, float]] = {
    "plain host": ({}, "0::/\n", V2_MOUNT, "host", HOST_PERCENT),
    "v2 no limit": (
        v2("/system.slice/pam.service", "max", GIB, 0),
        "0::/system.slice/pam.service\n",
        V2_MOUNT,
        "host",
        HOST_PERCENT,
    ),
    "v2 unit limit": (
        v2("/system.slice/pam.service", str(512 * MIB), 410 * MIB, 0),
        "0::/system.slice/pam.service\n",
        V2_MOUNT,
        "cgroup",
        80.08,
    ),
    "v2 page cache is not used memory": (
        v2("/a", str(512 * MIB), 410 * MIB, 256 * MIB),
        "0::/a\n",
        V2_MOUNT,
        "cgroup",
        30.08,
    ),
    "v2 cache that is in use often can go too, dirty pages cannot": (
        {
            **v2("/a", str(512 * MIB), 410 * MIB, 0),
            "sys/fs/cgroup/a/memory.stat": (
                f"active_file {200 * MIB}\ninactive_file {66 * MIB}\nfile_dirty {10 * MIB}\n"
            ),
        },
        "0::/a\n",
        V2_MOUNT,
        "cgroup",
        30.08,
    ),
    "v2 memory.high": (
        {**v2("/a", "max", 290 * MIB, 0), "sys/fs/cgroup/a/memory.high": f"{300 * MIB}\n"},
        "0::/a\n",
        V2_MOUNT,
        "cgroup",
        96.67,
    ),
    "v1 cache of a container": (
        {
            **v1("", 512 * MIB, 402 * MIB, 193 * MIB),
            "sys/fs/cgroup/memory/memory.stat": (
                f"cache 1\nactive_file 5\ntotal_inactive_file {193 * MIB}\ntotal_active_file {157 * MIB}\ntotal_dirty"
                f" {2 * MIB}\n"
            ),
        },
        "4:memory:/\n",
        V1_MOUNT,
        "cgroup",
        10.55,
    ),
    "ZFS": (
        {
            "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {4 << 20} kB\n",
            "proc/spl/kstat/zfs/arcstats": f"13 1 0x01 147\nname type data\nc_min 4 {2 * GIB}\nsize 4 {50 * GIB}\n",
        },
        "0::/\n",
        V2_MOUNT,
        "host",
        18.75,
    ),
    "ZFS of the machine around a container": (
        {
            "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {4 << 20} kB\n",
            "proc/spl/kstat/zfs/arcstats": f"13 1 0x01 147\nname type data\nc_min 4 {2 * GIB}\nsize 4 {90 * GIB}\n",
        },
        "0::/\n",
        V2_MOUNT,
        "host",
        93.75,
    ),
    "huge pages": (
        {
            "proc/meminfo": (
                f"MemTotal: {755 << 20} kB\nMemFree: 1 kB\nMemAvailable: {17 << 20} kB\nHugetlb: {720 << 20} kB\n"
            )
        },
        "0::/\n",
        V2_MOUNT,
        "host",
        51.43,
    ),
    "v2 the tightest ancestor counts": (
        {**v2("/a", str(GIB), 900 * MIB, 0), **v2("/a/b", "max", 300 * MIB, 0)},
        "0::/a/b\n",
        V2_MOUNT,
        "cgroup",
        87.89,
    ),
    "v2 namespace": (v2("", str(512 * MIB), 256 * MIB, 0), "0::/\n", V2_MOUNT, "cgroup", 50.0),
    "v2 limit above the host is none": (v2("/a", str(100 * GIB), GIB, 0), "0::/a\n", V2_MOUNT, "host", HOST_PERCENT),
    "v1 container": (v1("", 512 * MIB, 410 * MIB, 0), "4:memory:/\n1:cpu:/\n", V1_MOUNT, "cgroup", 80.08),
    "v1 host view": (
        v1("/docker/abc", 512 * MIB, 410 * MIB, 100 * MIB),
        "4:memory:/docker/abc\n",
        V1_MOUNT,
        "cgroup",
        60.55,
    ),
    "v1 unlimited": (v1("/x", 9223372036854771712, 410 * MIB, 0), "4:memory:/x\n", V1_MOUNT, "host", HOST_PERCENT),
    "v1 mount of a subtree": (
        v1("", 512 * MIB, 256 * MIB, 0),
        "4:memory:/docker/abc\n",
        V1_MOUNT.replace("0:29 / /sys", "0:29 /docker/abc /sys"),
        "cgroup",
        50.0,
    ),
    "hybrid: memory on v1, v2 beside it": (
        {**v1("/pam", 512 * MIB, 410 * MIB, 0)},
        "4:memory:/pam\n0::/pam\n",
        V1_MOUNT + V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        "cgroup",
        80.08,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_percent_of_the_tightest_limit(case: str, tmp_path: Path, app_modules: Modules) -> None:
    files, cgroup, mounts, scope, percent = CASES[case]
    reader = app_modules("monitoring.memory_optimizer").MemoryReader(
        root=tree(tmp_path, files, cgroup=cgroup, mounts=mounts), limit_bytes=0
    )
    reading = reader.read()
    reader.close()
    assert (reading.scope, reading.percent) == (scope, pytest.approx(percent, abs=0.02))
    assert reading.rss_bytes == 25600 * os.sysconf("SC_PAGE_SIZE")
    assert reading.psi_some_avg10 == 1.25


def test_a_budget_for_the_process_counts(tmp_path: Path, app_modules: Modules) -> None:
    root = tree(tmp_path, {}, cgroup="0::/\n", mounts=V2_MOUNT)
    reading = app_modules("monitoring.memory_optimizer").MemoryReader(root=root, limit_bytes=200 * MIB).read()
    assert (reading.scope, reading.percent) == ("process", 50.0)


def test_without_proc_nothing_is_claimed(tmp_path: Path, app_modules: Modules) -> None:
    reading = app_modules("monitoring.memory_optimizer").MemoryReader(root=str(tmp_path), limit_bytes=0).read()
    assert reading.percent == 0.0 and reading.rss_bytes == 0


class FakeHeap:
    """A heap that frees what it is told to; the reader sees it."""

    usable = True
    why_not = ""

    def __init__(self, reader: FakeReader, predicted: int, freed: int) -> None:
        self.reader, self.predicted, self.freed, self.trims = reader, predicted, freed, 0

    def predict(self) -> int:
        return self.predicted

    def trim(self) -> bool:
        self.trims += 1
        self.reader.rss -= self.freed
        return self.freed > 0


class FakeReader:
    def __init__(self, make: t.Any) -> None:
        self.make, self.percent, self.rss = make, 50.0, 100 * MIB

    def read(self) -> t.Any:
        return self.make(self.percent, "host", 0, 24 * GIB, self.percent, 24 * GIB, 2 * GIB, self.rss, self.rss, 0.0)


@pytest.fixture
def parts(app_modules: Modules, monkeypatch: pytest.MonkeyPatch) -> t.Tuple[t.Any, FakeReader, FakeHeap]:
    for name in ("DISABLE_MEMORY_OPTIMIZER", "DISABLE_MONITORING", "MEMORY_OPTIMIZATION_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    module = app_modules("monitoring.memory_optimizer")
    reader = FakeReader(module.MemoryReading)
    heap = FakeHeap(reader, 400 * MIB, 380 * MIB)
    optimizer = module.MemoryOptimizer(reader=reader, heap=heap)
    optimizer._floor = 100 * MIB
    return optimizer, reader, heap


async def test_trims_under_pressure_where_it_pays(parts: t.Any) -> None:
    optimizer, reader, heap = parts
    reader.percent, reader.rss = 70.0, 600 * MIB
    result = await optimizer._tick()
    assert heap.trims == 1 and result["freed_bytes"] == 380 * MIB and result["predicted_bytes"] == 400 * MIB
    assert {"pause_ms", "duration_ms", "rss_before", "rss_after"} <= set(result)
    reader.rss = 600 * MIB
    assert await optimizer._tick() is None and heap.trims == 1, "not again at once: at most one percent of a core"


@pytest.mark.parametrize(
    ("percent", "rss", "predicted"), [(50.0, 600, 150), (70.0, 120, 400), (70.0, 600, 50), (70.0, 2000, 200)]
)
async def test_leaves_alone_what_does_not_pay(parts: t.Any, percent: float, rss: int, predicted: int) -> None:
    """No pressure and little waste; nothing grown; less than 64 MB; less than 15 % of the process."""
    optimizer, reader, heap = parts
    reader.percent, reader.rss, heap.predicted = percent, rss * MIB, predicted * MIB
    await optimizer._tick()
    assert heap.trims == 0


async def test_memory_in_use_is_asked_again_ever_less_often(parts: t.Any) -> None:
    """A burst in progress is not worth a trim; once it is over it is, though RSS is the same."""
    optimizer, reader, heap = parts
    reader.percent, reader.rss, heap.predicted = 70.0, 600 * MIB, 10 * MIB
    waits = []
    for _ in range(9):
        optimizer._next_allowed = 0.0
        await optimizer._tick()
        waits.append(round(optimizer._next_allowed - time.monotonic()))
    assert waits == [2, 4, 8, 16, 32, 64, 120, 120, 120] and heap.trims == 0
    reader.rss = 700 * MIB
    optimizer._next_allowed = 0.0
    await optimizer._tick()
    assert round(optimizer._next_allowed - time.monotonic()) == 2, "it has grown: something happens"
    heap.predicted = 400 * MIB
    optimizer._next_allowed = 0.0
    await optimizer._tick()
    assert heap.trims == 1


async def test_what_was_in_use_during_a_burst_is_asked_for_afterwards(parts: t.Any) -> None:
    """A trim amid a burst cannot free what is in use; later that is waste, though RSS is the same and there is no
    pressure any more.
    """
    optimizer, reader, heap = parts
    reader.percent, reader.rss, heap.predicted, heap.freed = 70.0, 600 * MIB, 200 * MIB, 190 * MIB
    await optimizer._tick()
    assert heap.trims == 1 and reader.rss == 410 * MIB
    reader.percent, heap.predicted = 45.0, 10 * MIB
    optimizer._next_allowed = 0.0
    assert (await optimizer._tick())["skipped"] == "not worth it", "the burst is not over"
    heap.predicted, heap.freed = 100 * MIB, 95 * MIB
    optimizer._next_allowed = 0.0
    assert (await optimizer._tick())["freed_bytes"] == 95 * MIB and heap.trims == 2
    heap.predicted, asked = 10 * MIB, 0
    for _ in range(10):
        optimizer._next_allowed = 0.0
        asked += await optimizer._tick() is not None
    assert asked == 2, "four times in all, then it is left alone"


async def test_backs_off_when_three_trims_freed_nothing(parts: t.Any) -> None:
    optimizer, reader, heap = parts
    heap.freed = 0
    reader.percent, reader.rss = 70.0, 900 * MIB
    for _ in range(3):
        optimizer._next_allowed = 0.0
        optimizer._floor = 100 * MIB
        await optimizer._tick()
    assert heap.trims == 3
    waits = optimizer._next_allowed - time.monotonic()
    assert 50 < waits <= 60
    for _ in range(12):
        optimizer._note_payment(False)
    assert 400 < optimizer._next_allowed - time.monotonic() <= 3600, "doubles, up to an hour"


async def test_memory_that_comes_back_at_once_was_needed(parts: t.Any) -> None:
    optimizer, reader, heap = parts
    reader.percent, reader.rss = 70.0, 600 * MIB
    await optimizer._tick()
    optimizer._pending = (0.0, *optimizer._pending[1:])
    reader.rss = 590 * MIB
    optimizer._judge_last(reader.read())
    assert list(optimizer._paid)[-1] is False


async def test_the_emergency_empties_caches_and_asks_for_a_restart(parts: t.Any) -> None:
    optimizer, reader, heap = parts
    emptied: t.List[str] = []
    asked: t.List[str] = []

    async def expensive() -> None:
        emptied.append("expensive")

    def broken() -> None:
        raise RuntimeError("broken")

    optimizer.register_shrinker("expensive", expensive, cost=5)
    optimizer.register_shrinker("broken", broken, cost=3)
    optimizer.register_shrinker("cheap", lambda: emptied.append("cheap"), cost=1)
    optimizer.request_restart = lambda reason, details: asked.append(reason)
    reader.percent, reader.rss = 95.0, 900 * MIB
    result = await optimizer._tick()
    assert result["shrunk"] == ["cheap", "expensive"] and emptied == [
        "cheap",
        "expensive",
    ], "cheapest first, a broken one costs itself only"
    assert asked == ["memory"], "still above 90 % afterwards"
    assert optimizer.shedding
    await optimizer._tick()
    assert len(optimizer.results) == 1, "one emergency a minute"


async def test_emergencies_that_free_nothing_become_rare_and_the_restart_is_asked_for_all_the_same(
    parts: t.Any,
) -> None:
    """The host is full of somebody else's memory: our caches must not be emptied every minute because of it."""
    optimizer, reader, heap = parts
    emptied: t.List[int] = []
    asked: t.List[str] = []
    optimizer.register_shrinker("cache", lambda: emptied.append(1))
    optimizer.request_restart = lambda reason, details: asked.append(reason)
    heap.predicted = heap.freed = 0
    reader.percent, reader.rss = 88.0, 900 * MIB
    for _ignored in range(120):  # two hours, a minute each
        optimizer.last_emergency_cleanup -= 60
        optimizer._next_allowed = float("inf")  # the lower tiers have a test of their own
        await optimizer._tick()
    assert 3 <= len(emptied) <= 8, emptied
    assert asked == []
    reader.percent = 93.0
    await optimizer._tick()
    assert asked == ["memory"], "not only after the next clean-up, which may be an hour away"
    reader.percent = 40.0
    await optimizer._tick()
    reader.percent = 88.0
    optimizer.last_emergency_cleanup -= 60
    before = len(emptied)
    await optimizer._tick()
    assert len(emptied) == before + 1, "a new emergency is met at once"


@pytest.mark.parametrize(
    ("name", "value"),
    [("DISABLE_MEMORY_OPTIMIZER", "true"), ("DISABLE_MONITORING", "1"), ("MEMORY_OPTIMIZATION_ENABLED", "false")],
)
async def test_kill_switches(parts: t.Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    optimizer, reader, heap = parts
    monkeypatch.setenv(name, value)
    await optimizer.start()
    assert not optimizer.is_running
    reader.percent, reader.rss = 95.0, 900 * MIB
    await optimizer._optimize_memory()
    assert heap.trims == 0
    assert name in (await optimizer.optimize("emergency"))["skipped"]


async def test_starts_stops_and_touches_nothing_of_others(parts: t.Any) -> None:
    import functools
    import gc

    @functools.lru_cache
    def cached(number: int) -> int:
        return number

    cached(1)
    optimizer, _, _ = parts
    modules, thresholds = set(sys.modules), gc.get_threshold()
    await optimizer.start()
    await optimizer.start()
    assert optimizer.is_running and gc.get_freeze_count() > 0
    await optimizer._aggressive_cleanup()
    await optimizer._emergency_cleanup()
    await optimizer.stop()
    await optimizer.stop()
    assert not optimizer.is_running and gc.get_freeze_count() == 0
    assert cached.cache_info().currsize == 1
    assert set(sys.modules) >= modules and gc.get_threshold() == thresholds


async def test_statistics_keep_their_keys(app_modules: Modules) -> None:
    optimizer = app_modules("monitoring.memory_optimizer").MemoryOptimizer()
    await optimizer.get_memory_stats()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    stats = await optimizer.get_memory_stats()
    assert stats["process"]["cpu_percent"] > 0, "since it was asked last"
    assert set(stats) >= {"timestamp", "system", "process", "garbage_collection", "network", "optimization"}
    for section, keys in {
        "system": (
            "total_mb available_mb used_mb percent swap_total_mb swap_used_mb swap_percent cpu_percent disk_total_gb"
            " disk_used_gb disk_percent"
        ),
        "process": "rss_mb vms_mb percent num_threads cpu_percent num_fds",
        "garbage_collection": "collections counts thresholds",
        "network": "bytes_sent bytes_recv packets_sent packets_recv",
        "optimization": (
            "service_running warning_threshold critical_threshold emergency_threshold optimization_interval"
            " optimization_count last_emergency_cleanup"
        ),
    }.items():
        assert set(stats[section]) >= set(keys.split()), section


def test_the_real_heap_predicts_what_a_trim_frees(app_modules: Modules, tmp_path: Path) -> None:
    """In a process of its own: 200 MB allocated in pieces and freed; at least 80 % of the prediction comes back."""
    import subprocess

    program = """
import sys, random; sys.path.insert(0, sys.argv[1])
from app.monitoring.memory_optimizer import Heap, MemoryReader
random.seed(3)
keep = []; waste = [bytes(random.randrange(600, 30000)) for _ in range(14000)]
keep = waste[::50]; del waste
heap, reader = Heap(), MemoryReader(limit_bytes=0)
if not heap.usable: print("unusable", heap.why_not); sys.exit()
predicted = heap.predict(); before = reader.read().rss_bytes; heap.trim(); print(predicted, before - reader.read().rss_bytes)
"""
    root = next(path for path in sys.path if (Path(path) / "app" / "monitoring" / "memory_optimizer.py").exists())
    words = subprocess.run(
        [sys.executable, "-c", program, root], capture_output=True, text=True, check=True
    ).stdout.split()
    if words[0] == "unusable":
        pytest.skip(f"no glibc heap here: {' '.join(words[1:])}")
    predicted, freed = int(words[0]), int(words[1])
    assert predicted > 100 * MIB
    assert 0.8 * predicted <= freed <= 1.05 * predicted


async def test_disk_cleanup_stays_in_its_directories(
    app_modules: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    own.mkdir()
    foreign.mkdir()
    week = time.time() - 8 * 86400
    for path in (own / "old.tmp", own / "old.log", foreign / "precious", own / "young.log"):
        path.write_text("x" * 1000)
        os.utime(path, (week, week) if path.name != "young.log" else (time.time() - 86400 * 2,) * 2)
    (own / "link").symlink_to(foreign / "precious")
    (own / "folder-link").symlink_to(foreign)
    monkeypatch.setenv("DISK_CLEANUP_DIRS", str(own))
    result = await app_modules("monitoring.memory_optimizer").MemoryOptimizer()._cleanup_disk_space()
    assert result["files"] == 2
    assert sorted(path.name for path in own.iterdir()) == ["folder-link", "link", "young.log"]
    assert (foreign / "precious").exists()
    monkeypatch.delenv("DISK_CLEANUP_DIRS")
    assert (await app_modules("monitoring.memory_optimizer").MemoryOptimizer()._cleanup_disk_space())["files"] == 0


def test_the_tiers_rise_whatever_is_set(app_modules: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_WARNING_THRESHOLD", "80")
    optimizer = app_modules("monitoring.memory_optimizer").MemoryOptimizer()
    assert (
        optimizer.memory_warning_threshold,
        optimizer.memory_critical_threshold,
        optimizer.memory_emergency_threshold,
    ) == (80, 80, 85)


@pytest.mark.parametrize(("warning", "critical"), [("150", "0.75"), ("0", "101"), ("80", "")])
def test_monitor_and_optimizer_read_the_same_tiers(
    app_modules: Modules, monkeypatch: pytest.MonkeyPatch, warning: str, critical: str
) -> None:
    """An alert at one limit and a clean-up at another would contradict each other."""
    monkeypatch.setenv("MEMORY_WARNING_THRESHOLD", warning)
    monkeypatch.setenv("MEMORY_CRITICAL_THRESHOLD", critical)
    optimizer = app_modules("monitoring.memory_optimizer").MemoryOptimizer()
    limits = app_modules("core.performance_monitor").PerformanceMonitor().thresholds["memory_percent"]
    assert limits == {"warning": optimizer.memory_warning_threshold, "critical": optimizer.memory_critical_threshold}


@pytest.mark.parametrize("ticks", range(4))
async def test_a_cancellation_is_not_lost_whatever_comes_with_it(app_modules: Modules, ticks: int) -> None:
    within = app_modules("monitoring.memory_optimizer").within
    inner = asyncio.get_running_loop().create_future()
    waiting = asyncio.Event()

    async def wait() -> t.Any:
        waiting.set()
        return await inner

    task = asyncio.ensure_future(within(wait(), 60))
    await waiting.wait()
    inner.set_result("in time")
    for _ in range(ticks):
        await asyncio.sleep(0)
    came_first = task.done()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled() or came_first
    assert await within(asyncio.sleep(0, "done"), 60) == "done"
    with pytest.raises(asyncio.TimeoutError):
        await within(asyncio.sleep(60), 0.01)


async def test_two_clean_ups_do_not_run_at_once(parts: t.Any) -> None:
    optimizer, reader, heap = parts
    reader.rss = 600 * MIB
    first, second = await asyncio.gather(optimizer.optimize(), optimizer.optimize())
    assert {bool(first["skipped"]), bool(second["skipped"])} == {False, True} and heap.trims == 1


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e999", "lots", "", "-5", "65 %"])
def test_a_number_of_the_environment_that_is_none_is_the_default(
    app_modules: Modules, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A typing error must not keep the backend from starting, nor switch its monitoring off."""
    memory, performance = app_modules("monitoring.memory_optimizer"), app_modules("core.performance_monitor")
    for name in ("MEMORY_LIMIT_MB", "MEMORY_WARNING_THRESHOLD", "MONITORING_INTERVAL", "CPU_CRITICAL_THRESHOLD"):
        monkeypatch.setenv(name, text)
    assert memory.MemoryReader()._budget == 0
    assert memory.MemoryOptimizer().memory_warning_threshold == 65
    monitor = performance.PerformanceMonitor()
    assert monitor.check_interval == 5 and monitor.thresholds["cpu_percent"] == {"warning": 70, "critical": 85}


def test_limit_of_a_parent_that_a_container_does_not_see(app_modules: Modules, tmp_path: Path) -> None:
    """Version 1: the own limit file says "none", the parent's is out of sight, the statistics know it."""
    module = app_modules("monitoring.memory_optimizer")
    proc, mount = tmp_path / "proc", tmp_path / "cg"
    (proc / "self").mkdir(parents=True)
    mount.mkdir()
    (proc / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 15000000 kB\n")
    (proc / "self" / "cgroup").write_text("5:memory:/docker/abc\n")
    (proc / "self" / "mountinfo").write_text("31 23 0:27 /docker/abc /cg ro - cgroup cgroup rw,memory\n")
    (mount / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (mount / "memory.usage_in_bytes").write_text(f"{450 << 20}\n")
    (mount / "memory.stat").write_text(f"hierarchical_memory_limit {512 << 20}\ntotal_inactive_file {50 << 20}\n")
    reader = module.MemoryReader(root=str(tmp_path))
    assert reader._cgroup_usage(16_000_000 << 10) == [(400 << 20, 512 << 20)]


async def test_clock_that_was_set_back_stops_no_emergency(app_modules: Modules) -> None:
    module = app_modules("monitoring.memory_optimizer")
    now = time.time()
    assert module.passed(now + 86_400, 60), "noted before the clock was set back by a day"
    assert module.passed(now - 61, 60) and not module.passed(now - 5, 60)


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ("7f00 r-xp 0 00:00 0 /lib/ld-musl-x86_64.so.1", "musl"),
        ("7f00 r-xp 0 00:00 0 /usr/lib/libjemalloc.so.2", "jemalloc"),
    ],
)
def test_allocator_that_is_not_trimmed_is_named_once_in_the_log(
    app_modules: Modules, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, maps: str, words: str
) -> None:
    module = app_modules("monitoring.memory_optimizer")
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "_lines", lambda path: [maps])
    if words == "musl":
        monkeypatch.setattr(module.ctypes, "CDLL", lambda _name: object())
    module._SAID.clear()
    assert [words in module.Heap().why_not and not module.Heap().usable for _ in range(2)] == [True, True]
    lines = [record.getMessage() for record in caplog.records if words in record.getMessage()]
    assert len(lines) == 1, lines
