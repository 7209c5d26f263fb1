# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits as they lie in cgroup v1, v2, both at once, nested and in containers: recorded trees, with the roots passed in."""

from __future__ import annotations

import struct
import typing as t
from pathlib import Path

import pytest

from wheels_ops import heap, pressure
from wheels_ops.remedies import memory_rungs
from wheels_ops.results import OpsError

MIB = 1024 * 1024
#: As a machine of 24 GB shows it.
MEMINFO = "MemTotal:       24683952 kB\nMemFree:         1683952 kB\nMemAvailable:   20683952 kB\nSwapTotal:             0 kB\n"
V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "36 31 0:33 / /sys/fs/cgroup/memory rw shared:16 - cgroup cgroup rw,memory\n"


class Host:
    """A recorded /proc and /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", MEMINFO)

    @property
    def proc(self) -> str:
        return str(self.root / "proc")

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def process(self, mounts: str, cgroup: str) -> None:
        self.write("proc/self/mountinfo", mounts)
        self.write("proc/77/cgroup", cgroup)

    def v2(self, path: str, limit: str, current: int, cache: int = 0) -> None:
        self.write(f"sys/fs/cgroup{path}/memory.max", f"{limit}\n")
        self.write(f"sys/fs/cgroup{path}/memory.current", f"{current}\n")
        self.write(f"sys/fs/cgroup{path}/memory.stat", f"anon {current - cache}\nfile {cache}\ninactive_file {cache}\nactive_file 0\nfile_dirty 0\n")

    def v1(self, path: str, limit: int, usage: int, cache: int = 0) -> None:
        self.write(f"sys/fs/cgroup/memory{path}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"sys/fs/cgroup/memory{path}/memory.usage_in_bytes", f"{usage}\n")
        self.write(f"sys/fs/cgroup/memory{path}/memory.stat", f"cache {cache}\ninactive_file 0\ntotal_inactive_file {cache}\n")

    def scope(self) -> t.Optional[pressure.Scope]:
        return pressure.cgroup(77, proc=self.proc, root=str(self.root))


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
    assert pressure.cgroup(78, proc=host.proc, root=str(host.root)) is None


def test_a_mount_point_with_a_space(host: Host) -> None:
    host.process(V2_MOUNT.replace("/sys/fs/cgroup", "/odd\\040place"), "0::/a\n")
    host.write("odd place/a/memory.max", str(100 * MIB))
    host.write("odd place/a/memory.current", str(50 * MIB))
    scope = host.scope()
    assert scope is not None and scope.percent == pytest.approx(50)


def test_the_host_counts_cache_as_available(host: Host) -> None:
    scope = pressure.host(host.proc)
    assert scope.percent == pytest.approx(100 * 4_000_000 / 24_683_952)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=3.00 avg60=0 avg300=0 total=1\n", {"some_avg10": 12.5, "full_avg10": 3.0}),
        ("", None),
    ],
)
def test_pressure_stalls(tmp_path: Path, text: str, expected: t.Optional[t.Dict[str, float]]) -> None:
    path = tmp_path / "memory"
    path.write_text(text)
    assert pressure.stalls(str(path)) == expected
    assert pressure.stalls(str(tmp_path / "none")) is None


def test_reclaim_asks_for_file_cache_only_and_counts_it_apart(host: Host) -> None:
    """The kernel's file is a plain one here, so what was written to it can be read."""
    host.v2("/a", "max", 300 * MIB, cache=100 * MIB)
    directory = str(host.root / "sys/fs/cgroup/a")
    host.write("sys/fs/cgroup/a/memory.reclaim", "")
    outcome = memory_rungs.reclaim(directory, proc=host.proc)
    assert Path(directory, "memory.reclaim").read_text() == f"{100 * MIB} swappiness=0"
    assert outcome.details == {"cache_bytes_freed": 0, "anonymous_bytes": 0}


def test_reclaim_of_nothing_is_said(host: Host) -> None:
    host.v2("/a", "max", 300 * MIB)
    with pytest.raises(OpsError, match="holds no file cache"):
        memory_rungs.reclaim(str(host.root / "sys/fs/cgroup/a"), proc=host.proc)


SMAPS = """\
55d0c1c00000-55d0d1c00000 rw-p 00000000 00:00 0                          [heap]
Rss:              262144 kB
Anonymous:        262144 kB
Swap:                  0 kB
7f3a00000000-7f3a02000000 rw-p 00000000 00:00 0
Rss:               30000 kB
Anonymous:         30000 kB
Swap:                  4 kB
7f3a02000000-7f3a04000000 ---p 00000000 00:00 0
Rss:                   0 kB
Anonymous:             0 kB
7f3a11000000-7f3a19000000 rw-p 00000000 00:00 0
Rss:              100000 kB
Anonymous:        100000 kB
Swap:                  0 kB
7f3a20000000-7f3a20100000 r-xp 00000000 fe:00 1234                       /usr/lib/x86_64-linux-gnu/libc.so.6
Rss:                1000 kB
Anonymous:             0 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                 100 kB
Anonymous:           100 kB
"""


def test_the_heap_is_told_from_small_objects(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "smaps").write_text(SMAPS)
    found = heap.look(5, proc=str(tmp_path))
    assert found.trim_bound == (262144 + 30000) * 1024  # the heap, and the arena with its guard
    assert found.other_anonymous == 100000 * 1024  # a mapping that merely is large
    assert found.swap == 4096 and found.allocator == "glibc"


@pytest.mark.parametrize(("library", "name"), [("libjemalloc.so.2", "jemalloc"), ("libmimalloc.so.2.0", "mimalloc"), ("ld-musl-x86_64.so.1", "musl")])
def test_other_allocators_are_not_trimmed(tmp_path: Path, library: str, name: str) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "smaps").write_text(SMAPS.replace("libc.so.6", library))
    found = heap.look(5, proc=str(tmp_path))
    assert found.allocator == name and found.trim_bound == 0


def test_small_objects_that_end_where_a_heap_could_are_told_from_one_by_its_head(tmp_path: Path) -> None:
    """The kernel lays pymalloc's memory at multiples of 2 MiB: by its position alone, every 32nd such mapping looks like a heap."""
    (tmp_path / "5").mkdir()
    mappings = [("04000000-04800000", 8192), ("09a00000-10000000", 90000), ("13f00000-18000000", 66000), ("18000000-1c000000", 0)]
    access = {"18000000-1c000000": "---p"}
    text = "".join(f"{name} {access.get(name, 'rw-p')} 00000000 00:00 0\nRss: {size} kB\nAnonymous: {size} kB\n" for name, size in mappings)
    (tmp_path / "5" / "smaps").write_text(text)
    arena = 64 * 1024 * 1024
    with (tmp_path / "5" / "mem").open("wb") as memory:
        memory.truncate(0x20000000)
        for address, head in ((0x4000000, (0x4000030, 0, 8192 * 1024, 8192 * 1024)), (0x14000000, (0x4000030, 0x4000000, arena, arena))):
            memory.seek(address)
            memory.write(struct.pack("@PPNN", *head))
        memory.seek(0xC000000)
        memory.write(struct.pack("@PPNN", 7, 0xC0001A0, 0xC0021A0, 0xC0041A0))  # a pool of pymalloc's
    found = heap.look(5, proc=str(tmp_path))
    assert found.trim_bound == 8192 * 1024 + min(arena, 66000 * 1024)
    assert found.other_anonymous == 90000 * 1024 + 66000 * 1024 - arena
