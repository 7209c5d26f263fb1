# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits as they lie in cgroup v1, v2, both at once, nested and in containers: recorded trees, with the roots passed
in.
"""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.support.recorded_host import MIB, Host
from wheels_ops.host import memory_pressure

V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "36 31 0:33 / /sys/fs/cgroup/memory rw shared:16 - cgroup cgroup rw,memory\n"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_unit_with_memory_max(host: Host) -> None:
    host.process(V2_MOUNT, "0::/system.slice/pam-backend.service\n")
    host.v2("/system.slice/pam-backend.service", str(512 * MIB), 420 * MIB, cache=20 * MIB)
    host.v2("/system.slice", "max", 2000 * MIB)
    scope = host.scope()
    assert scope is not None and scope.path == "/system.slice/pam-backend.service"
    assert scope.percent == pytest.approx(100 * 400 / 512)


def test_the_tightest_of_all_ancestors_counts(host: Host) -> None:
    host.process(V2_MOUNT, "0::/pod.slice/a/b\n")
    host.v2("/pod.slice/a/b", str(512 * MIB), 100 * MIB)
    host.v2("/pod.slice/a", "max", 950 * MIB)
    host.v2("/pod.slice", str(1000 * MIB), 950 * MIB)
    scope = host.scope()
    assert scope is not None and scope.path == "/pod.slice" and scope.percent == pytest.approx(95)


def test_a_container_with_a_namespace_of_its_own(host: Host) -> None:
    host.process(V2_MOUNT, "0::/\n")
    host.v2("", str(512 * MIB), 410 * MIB)
    scope = host.scope()
    assert scope is not None and scope.path == "/" and scope.percent == pytest.approx(100 * 410 / 512)


def test_v1_of_a_container_without_a_namespace(host: Host) -> None:
    mount = "36 31 0:33 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    host.process(mount, "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n")
    host.v1("", 512 * MIB, 470 * MIB, cache=150 * MIB)
    scope = host.scope()
    assert scope is not None and scope.percent == pytest.approx(100 * 320 / 512)


def test_hybrid_memory_on_v1_and_an_empty_v2(host: Host) -> None:
    unified = "42 31 0:39 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    host.process(V1_MOUNT + unified, "4:memory:/user.slice/x\n0::/user.slice/x\n")
    host.v1("/user.slice/x", 256 * MIB, 64 * MIB)
    host.v1("/user.slice", 9223372036854771712, 90 * MIB)
    scope = host.scope()
    assert scope is not None and scope.path == "/user.slice/x" and scope.percent == pytest.approx(25)


@pytest.mark.parametrize("limit", ["max", str(64 * 1024**3), "0"])
def test_no_limit_is_none(host: Host, limit: str) -> None:
    host.process(V2_MOUNT, "0::/a\n")
    host.v2("/a", limit, 100 * MIB)
    assert host.scope() is None


def test_a_process_outside_of_our_namespace_shows_only_the_top(host: Host) -> None:
    host.process(V2_MOUNT, "0::/../other\n")
    host.v2("", str(100 * MIB), 50 * MIB)
    host.v2("/other", str(10 * MIB), 10 * MIB)
    scope = host.scope()
    assert scope is not None and scope.limit_bytes == 100 * MIB


def test_a_process_that_ended_is_none(host: Host) -> None:
    host.process(V2_MOUNT, "0::/a\n")
    assert memory_pressure.cgroup(78, proc=host.proc, root=str(host.root)) is None


def test_a_mount_point_with_a_space(host: Host) -> None:
    host.process(V2_MOUNT.replace("/sys/fs/cgroup", "/odd\\040place"), "0::/a\n")
    host.write("odd place/a/memory.max", str(100 * MIB))
    host.write("odd place/a/memory.current", str(50 * MIB))
    scope = host.scope()
    assert scope is not None and scope.percent == pytest.approx(50)


def test_the_host_counts_cache_as_available(host: Host) -> None:
    scope = memory_pressure.host(host.proc)
    assert scope.percent == pytest.approx(100 * 4_000_000 / 24_683_952)


GIB = 1024 * 1024 * 1024


def meminfo(total: int, available: int, more: str = "") -> str:
    """In GiB."""
    return f"MemTotal: {total * 1024**2} kB\nMemFree: {1024**2} kB\nMemAvailable: {available * 1024**2} kB\n{more}"


def arcstats(size: int, least: int) -> str:
    """In GiB, as /proc/spl/kstat/zfs/arcstats has it."""
    return (
        f"13 1 0x01 147 39984 1 2\nname                            type data\nhits 4 77\nc_min 4 {least * GIB}\nc 4"
        f" {size * GIB}\nsize 4 {size * GIB}\n"
    )


@pytest.mark.parametrize(
    ("size", "least", "more", "percent"),
    [
        (50, 2, "", 100 * 12 / 64),
        (50, 50, "", 100 * 60 / 64),
        (1, 2, "", 100 * 60 / 64),
        (60, 0, "", 0.0),
        (
            50,
            2,
            f"AnonPages: {20 * 1024**2} kB\nShmem: {4 * 1024**2} kB\n",
            100 * 24 / 64,
        ),  # what processes hold is never the cache
        (61, 2, "", 100 * 60 / 64),  # larger than all that is in use: it is another machine's (lxcfs)
    ],
    ids=[
        "down to c_min",
        "at c_min",
        "below c_min",
        "all of it",
        "not below what processes hold",
        "of another machine",
    ],
)
def test_the_cache_of_zfs_can_be_had(host: Host, size: int, least: int, more: str, percent: float) -> None:
    host.write("proc/meminfo", meminfo(64, 4, more))
    host.write("proc/spl/kstat/zfs/arcstats", arcstats(size, least))
    assert memory_pressure.host(host.proc).percent == pytest.approx(percent)


@pytest.mark.parametrize(
    ("more", "percent"),
    [
        ("HugePages_Total: 720\nHugePages_Free: 720\nHugepagesize: 1048576 kB\n", 100 * 18 / 35),
        (
            "HugePages_Total: 720\nHugePages_Free: 100\nHugepagesize: 1048576 kB\n",
            100 * 18 / 35,
        ),  # those in use are set aside as well
        (
            f"HugePages_Total: 0\nHugepagesize: 2048 kB\nHugetlb: {720 * 1024**2} kB\n",
            100 * 18 / 35,
        ),  # of another size than the default
        ("HugePages_Total: 0\nHugePages_Free: 0\nHugepagesize: 2048 kB\nHugetlb: 0 kB\n", 100 * 738 / 755),
    ],
)
def test_huge_pages_are_neither_in_use_nor_free(host: Host, more: str, percent: float) -> None:
    host.write("proc/meminfo", meminfo(755, 17, more))
    scope = memory_pressure.host(host.proc)
    assert scope.percent == pytest.approx(percent)
    assert scope.limit_bytes == (755 if "Hugetlb: 0" in more else 35) * GIB


def test_kernels_without_memavailable(host: Host) -> None:
    host.write("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 400 kB\n")
    assert memory_pressure.host(host.proc).percent == pytest.approx(60)


def test_page_cache_that_is_in_use_often_can_go_too_and_what_is_dirty_cannot(host: Host) -> None:
    host.process(V2_MOUNT, "0::/a\n")
    host.v2("/a", str(400 * MIB), 380 * MIB)
    statistics = {
        "anon": 40,
        "inactive_file": 10,
        "active_file": 300,
        "file_dirty": 8,
        "file_writeback": 2,
        "slab_reclaimable": 20,
    }
    host.write("sys/fs/cgroup/a/memory.stat", "".join(f"{name} {size * MIB}\n" for name, size in statistics.items()))
    scope = host.scope()
    assert scope is not None and scope.percent == pytest.approx(100 * (380 - 300 - 20) / 400)


def test_page_cache_of_a_container_on_v1(host: Host) -> None:
    host.process(V1_MOUNT, "4:memory:/docker/x\n")
    host.v1("/docker/x", 512 * MIB, 402 * MIB)
    statistics = {
        "cache": 393,
        "active_file": 1,
        "total_inactive_file": 193,
        "total_active_file": 201,
        "total_dirty": 1,
        "total_writeback": 0,
    }
    host.write(
        "sys/fs/cgroup/memory/docker/x/memory.stat",
        "".join(f"{name} {size * MIB}\n" for name, size in statistics.items()),
    )
    host.write("sys/fs/cgroup/memory/docker/x/memory.failcnt", "17\n")
    host.write("sys/fs/cgroup/memory/docker/x/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    scope = host.scope()
    assert scope is not None and scope.used_bytes == 9 * MIB and scope.stalls is None
    assert scope.events == {"failcnt": 17, "oom_kill": 2}


@pytest.mark.parametrize(
    ("most", "high", "limit"), [("max", 300, 300), (400, 300, 300), (300, 400, 300), (300, "max", 300), (300, 0, 300)]
)
def test_the_lower_of_memory_max_and_memory_high_is_the_limit(host: Host, most: t.Any, high: t.Any, limit: int) -> None:
    host.process(V2_MOUNT, "0::/a\n")
    host.v2("/a", str(most * MIB) if isinstance(most, int) else most, 290 * MIB)
    host.write("sys/fs/cgroup/a/memory.high", f"{high * MIB if isinstance(high, int) else high}\n")
    host.write("sys/fs/cgroup/a/memory.events", "low 0\nhigh 556267\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n")
    host.write(
        "sys/fs/cgroup/a/memory.pressure",
        "some avg10=96.40 avg60=0 avg300=0 total=1\nfull avg10=95.10 avg60=0 avg300=0 total=1\n",
    )
    scope = host.scope()
    assert scope is not None and scope.limit_bytes == limit * MIB and scope.stalled == 95.1
    assert scope.as_dict()["events"] == {"high": 556267, "max": 3, "oom": 1, "oom_kill": 1}


def test_the_group_whose_tasks_wait_goes_before_the_fuller_one(host: Host) -> None:
    host.process(V2_MOUNT, "0::/pod/a\n")
    host.v2("/pod", str(1000 * MIB), 950 * MIB)
    host.v2("/pod/a", str(500 * MIB), 100 * MIB)
    assert memory_pressure.cgroup(77, proc=host.proc, root=str(host.root)).path == "/pod"  # type: ignore[union-attr]  # None fails the test as well
    host.write(
        "sys/fs/cgroup/pod/a/memory.pressure",
        "some avg10=90.00 avg60=0 avg300=0 total=1\nfull avg10=80.00 avg60=0 avg300=0 total=1\n",
    )
    assert memory_pressure.cgroup(77, proc=host.proc, root=str(host.root)).path == "/pod/a"  # type: ignore[union-attr]  # None fails the test as well


@pytest.mark.parametrize(
    ("full", "said"), [(9.99, ""), (10.0, "10.0 % of the last 10 s"), (95.0, "95.0 % of the last 10 s")]
)
def test_psi_decides_where_there_is_one(full: float, said: str) -> None:
    scope = memory_pressure.Scope("host", "/", 100, 99, {"some_avg10": 99.0, "full_avg10": full}, {"max": 900})
    earlier = memory_pressure.Scope("host", "/", 100, 99, None, {"max": 1})
    assert (said in memory_pressure.pressed(scope, earlier)) if said else memory_pressure.pressed(scope, earlier) == ""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"max": 3}, {"max": 3}, ""),
        ({"max": 3}, {"max": 5}, "max rose by 2"),
        ({}, {"max": 5}, ""),
        ({"max": 3}, {"max": 1}, ""),
    ],
)
def test_without_psi_events_decide(before: t.Dict[str, int], after: t.Dict[str, int], said: str) -> None:
    now, earlier = (memory_pressure.Scope("cgroup", "/a", 100, 99, None, events) for events in (after, before))
    assert memory_pressure.pressed(now, earlier) == said
    assert memory_pressure.pressed(now) == ""


def test_events_of_the_machine(host: Host) -> None:
    assert memory_pressure.host(host.proc).events == {} and memory_pressure.host(host.proc).stalled is None
    host.write(
        "proc/vmstat", "nr_free_pages 5\nallocstall_dma 0\nallocstall_normal 3\nallocstall_movable 4\noom_kill 1\n"
    )
    assert memory_pressure.host(host.proc).events == {"allocstall": 7, "oom_kill": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=3.00 avg60=0 avg300=0 total=1\n",
            {"some_avg10": 12.5, "full_avg10": 3.0},
        ),
        ("", None),
    ],
)
def test_pressure_stalls(tmp_path: Path, text: str, expected: t.Optional[t.Dict[str, float]]) -> None:
    path = tmp_path / "memory"
    path.write_text(text)
    assert memory_pressure.stalls(str(path)) == expected
    assert memory_pressure.stalls(str(tmp_path / "none")) is None
