# SPDX-License-Identifier: GPL-3.0-or-later
"""How the memory check grades recorded trees of /proc and /sys: percentages, and the kernel's own word of pressure."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import typing as t
from pathlib import Path

import pytest

from wheels_ops.checks import memory
from wheels_ops.checks.context import HostContext, Options
from wheels_ops.core.results import OpsError
from wheels_ops.health.check import Check
from wheels_ops.health.thresholds import Thresholds
from wheels_ops.host import processes

MIB = 1 << 20
#: Above any number that the kernel gives a process here, so that no real one is measured.
PID = 4_999_999


class Tree:
    """A recorded machine of 1000 kB, calm and empty until something is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.used(10.0)
        self.stalls("proc/pressure/memory", 0.0)
        self.write("proc/self/mountinfo", "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        self.write("proc/self/cgroup", "0::/\n")
        self.write(f"proc/{PID}/cgroup", "0::/app\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def used(self, percent: float) -> None:
        self.write(
            "proc/meminfo",
            f"MemTotal: 10000000 kB\nMemFree: 1 kB\nMemAvailable: {int(10000000 - percent * 100000)} kB\n",
        )

    def stalls(self, name: str, full: float) -> None:
        self.write(
            name,
            f"some avg10=99.00 avg60=0.00 avg300=0.00 total=1\nfull avg10={full:.2f} avg60=0.00 avg300=0.00 total=1\n",
        )

    def group(self, path: str, percent: float, full: t.Optional[float] = None, limit: str = "memory.max") -> None:
        where = f"sys/fs/cgroup{path}"
        self.write(f"{where}/{limit}", f"{1000 * MIB}\n")
        self.write(f"{where}/memory.current", f"{int(percent * 10 * MIB)}\n")
        if full is not None:
            self.stalls(f"{where}/memory.pressure", full)

    def check(self, services: t.Sequence[str] = (), **options: t.Any) -> t.Any:
        members = {name: [PID] for name in services}
        return memory.check(
            members, options.pop("limits", {}), proc=str(self.root / "proc"), root=str(self.root), **options
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("percent", "status", "over"),
    [
        (65.0, "ok", ""),
        (65.1, "warning", "65"),
        (75.0, "warning", "65"),
        (75.1, "critical", "75"),
        (85.0, "critical", "75"),
        (85.1, "emergency", "85"),
    ],
)
def test_the_limits_of_the_host(tree: Tree, percent: float, status: str, over: str) -> None:
    tree.used(percent)
    found = tree.check()
    assert (found.name, found.status, found.value, found.unit) == ("memory", status, percent, "%")
    assert found.message == f"the host uses {percent} % of its memory" + (f", over {over} %." if over else ".")
    assert found.remedy == ("" if status == "ok" else "memory_trim")
    assert found.thresholds == {"warning": 65, "critical": 75, "emergency": 85}
    assert found.details["host"]["percent"] == percent and found.details["host"]["total_bytes"] == 10000000 * 1024
    assert found.details["host"]["available_bytes"] == pytest.approx((100 - percent) * 100000 * 1024, rel=1e-4)


@pytest.mark.parametrize(
    ("full", "status"),
    [
        (10.0, "ok"),
        (10.01, "warning"),
        (30.0, "warning"),
        (30.01, "critical"),
        (60.0, "critical"),
        (60.01, "emergency"),
    ],
)
def test_tasks_that_wait_for_memory_count_whatever_the_percentage(tree: Tree, full: float, status: str) -> None:
    tree.stalls("proc/pressure/memory", full)
    found = tree.check()
    assert (found.status, found.value) == (status, 10.0) and found.details["stalls"]["full_avg10"] == pytest.approx(
        full
    )
    assert ("All tasks of the host waited for memory" in found.message) is (status != "ok")
    assert "the host uses 10.0 % of its memory." in found.message
    assert found.remedy == ("" if status == "ok" else "memory_trim")


def test_the_worse_of_percentage_and_pressure_decides(tree: Tree) -> None:
    tree.used(90.0)
    tree.stalls("proc/pressure/memory", 12.0)
    assert tree.check().status == "emergency"
    tree.used(70.0)
    tree.stalls("proc/pressure/memory", 50.0)
    found = tree.check()
    assert found.status == "critical" and "over 65 %" in found.message and "50.0 %" in found.message


@pytest.mark.parametrize(("path", "name"), [("", "the container"), ("/app", "web in its cgroup")])
def test_the_tightest_scope_is_named(tree: Tree, path: str, name: str) -> None:
    tree.group(path, 80.0)
    found = tree.check(["web"])
    assert (found.status, found.value) == ("critical", 80.0) and found.message.startswith(f"{name} uses 80.0 %")
    assert (found.details["container"] if not path else found.details["cgroups"]["web"])["percent"] == 80.0


@pytest.mark.parametrize(("path", "name"), [("", "the container"), ("/app", "web in its cgroup")])
def test_a_group_that_is_frozen_at_memory_high_is_seen(tree: Tree, path: str, name: str) -> None:
    tree.group(path, 40.0, full=95.0, limit="memory.high")
    found = tree.check(["web"])
    assert found.status == "emergency" and f"All tasks of {name} waited for memory 95.0 %" in found.message


def test_scope_services_leaves_the_host_and_its_container_out(tree: Tree) -> None:
    tree.used(99.0)
    tree.stalls("proc/pressure/memory", 99.0)
    tree.write("proc/self/cgroup", "0::/other\n")
    tree.group("/other", 99.0)
    tree.group("/app", 20.0)
    found = tree.check(["web"], scope="services")
    assert (
        (found.status, found.value) == ("ok", 20.0) and "host" not in found.details and "container" not in found.details
    )


def test_nothing_to_measure_is_no_health(tree: Tree) -> None:
    with pytest.raises(OpsError, match="no memory to measure"):
        tree.check(["web"], scope="services")
    with pytest.raises(OpsError, match="no memory to measure"):
        memory.check({"web": []}, {}, scope="services")


def test_a_service_that_does_not_run_uses_nothing_that_could_be_healthy(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "resident_bytes", lambda pids: 10 * MIB * len(list(pids)))
    with pytest.raises(OpsError, match="web does not run: its memory cannot be measured"):
        memory.check({"web": []}, {"web": 100.0}, scope="services")
    beside = memory.check({"web": [], "worker": [1]}, {"web": 100.0, "worker": 100.0}, scope="services")
    assert (beside.status, beside.value, beside.remedy) == ("unknown", 10.0, "")
    assert beside.message.endswith("The memory of web, which does not run, was not measured.")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_is_refused(tree: Tree, limit: float) -> None:
    with pytest.raises(OpsError, match=f"The memory limit of web must be greater than 0 MiB, got {limit}"):
        tree.check(limits={"web": limit})


def test_a_service_against_its_own_limit(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident_bytes", lambda pids: 70 * MIB * len(list(pids)))
    found = tree.check(["web"], limits={"web": 100.0})
    assert (found.status, found.value) == (
        "warning",
        70.0,
    ) and found.message == "web uses 70.0 % of its memory, over 65 %."
    assert found.details["services"]["web"] == {
        "percent": 70.0,
        "resident_bytes": 70 * MIB,
        "limit_bytes": 100 * MIB,
        "processes": 1,
    }
    assert tree.check(limits={"web": 100.0}).details["services"]["web"]["processes"] == 0
    assert tree.check(["web"], limits={"web": 100.0}, thresholds=Thresholds(70, 80)).status == "ok"
    assert "over" not in tree.check(["web"], limits={"web": 100.0}, thresholds=Thresholds(None, 90)).message


def test_what_a_process_holds_is_what_the_kernel_calls_resident() -> None:
    # A process of its own: one that is a fork shares its pages with its parent, and only its share of them counts.
    program = "import sys; held = b'x' * (64 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        own = memory.resident_bytes([process.pid])
        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        process.kill()
    assert own == pytest.approx(resident, rel=0.15)
    assert memory.resident_bytes([PID]) == 0
    assert memory.resident_bytes([]) == 0


def test_percentages_have_one_decimal(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident_bytes", lambda _pids: 2 * MIB)
    tree.used(12.345)
    found = tree.check(["web"], limits={"web": 3.0})
    assert found.value == 66.7 and found.details["services"]["web"]["percent"] == 66.7
    assert found.details["host"]["percent"] == 12.3


#: What the kernel says of two processes of one service: of a new one every line, of an old kernel the sum alone.
NEW = {
    "/proc/1/smaps_rollup": {"Pss": 100, "Pss_Anon": 60, "Pss_Shmem": 10},
    "/proc/1/status": {"RssFile": 30, "VmRSS": 120},
}
BIG = {
    "/proc/2/smaps_rollup": {"Pss": 100, "Pss_Anon": 5, "Pss_Shmem": 1},
    "/proc/2/status": {"RssFile": 50, "VmRSS": 120},
}
OLD = {"/proc/3/smaps_rollup": {"Pss": 200}, "/proc/3/status": {"RssFile": 5, "VmRSS": 300}}
HIDDEN = {"/proc/4/status": {"RssFile": 5, "VmRSS": 400}}


@pytest.mark.parametrize(
    ("pids", "kilobytes"),
    [
        ([1], 100),
        ([1, 2], 126),
        ([2, 1], 126),
        ([3], 200),
        ([4], 400),
        ([5], 0),
        ([5, 1, 5, 4], 500),
        ([3, 1], 300),
        ([], 0),
    ],
)
def test_shared_pages_count_once(monkeypatch: pytest.MonkeyPatch, pids: t.List[int], kilobytes: int) -> None:
    """A fourth process hides its pages, a fifth one has ended."""
    files = {**NEW, **BIG, **OLD, **HIDDEN}

    def read(pid: int, name: str) -> t.Dict[str, int]:
        path = f"/proc/{pid}/{name}"
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    monkeypatch.setattr(processes, "kilobytes", read)
    assert memory.resident_bytes(pids) == kilobytes * 1024


def test_only_kilobytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text(
        "Name: python\nThreads: 3\nVmRSS:\t  120 kB\nSize: 7 MB\nOdd: 1 2 kB\nPss:  5 kB\n"
    )
    assert processes.kilobytes(7, "status", proc=str(tmp_path)) == {"VmRSS": 120, "Pss": 5}


def test_the_longest_wait_is_named(tree: Tree) -> None:
    tree.stalls("proc/pressure/memory", 20.0)
    tree.group("/app", 40.0, full=50.0)
    found = tree.check(["web"])
    assert found.status == "critical" and found.message.startswith(
        "All tasks of web in its cgroup waited for memory 50.0 %"
    )


@pytest.mark.parametrize("status", ["ok", "warning", "critical", "emergency"])
def test_memory_of_the_services_is_graded_as_it_was_measured(monkeypatch: pytest.MonkeyPatch, status: t.Any) -> None:
    measured = Check("memory", status, 1.0)
    monkeypatch.setattr(memory, "check", lambda *words, **options: measured)
    context = HostContext((), lambda: t.cast("t.Any", None))
    assert memory.measure(context, Options()).status == status


def test_a_group_without_a_limit_of_its_own_waits_for_memory(tree: Tree) -> None:
    """Its tasks may wait although nothing but the machine bounds them: the group says so, the host's average hides it."""
    tree.group("/app", 40.0, full=50.0)
    tree.write("sys/fs/cgroup/app/memory.max", "max\n")
    found = tree.check(["web"])
    assert found.status == "critical"
    assert "All tasks of web in its cgroup waited for memory 50.0 %" in found.message


def test_services_that_cannot_be_named_are_not_called_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    def pids() -> t.Dict[str, t.Set[int]]:
        raise OpsError("systemctl does not answer.")

    monkeypatch.setattr(memory, "check", lambda *_words, **_options: Check("memory", "ok", message="Fine."))
    result = memory.measure(t.cast("HostContext", types.SimpleNamespace(pids=pids)), Options())
    assert (result.status, "The memory of the services was not measured: systemctl" in result.message) == (
        "unknown",
        True,
    )
