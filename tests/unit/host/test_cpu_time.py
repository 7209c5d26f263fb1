# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose CPU time it is: real hogs beside psutil, and recorded groups."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import wait_until
from wheels_ops.host import cpu_time, processes

TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def hog(change: str) -> t.Iterator[int]:
    """A process at work, which has changed its own priority."""
    program = f"import os\n{change}\nprint('up', flush=True)\nwhile True: pass"
    # A session of its own would count by its own nice (sched(7)): beside us its own decides.
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("change", "yields"),
    [
        ("os.nice(19)", True),
        ("os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))", True),
        ("os.nice(2)", False),
        ("pass", False),
    ],
)
def test_what_yields_to_us_is_told_from_what_does_not(change: str, yields: bool) -> None:
    if not yields and os.getpriority(os.PRIO_PROCESS, 0) >= 8:
        pytest.skip("this run is nice itself, so whatever it starts yields")
    with hog(change) as pid:
        before = cpu_time.look([os.getpid()])
        first = psutil.Process(pid).cpu_times()
        wait_until(lambda: psutil.Process(pid).cpu_times().user > first.user + 0.3, what="the hog to work")
        last = psutil.Process(pid).cpu_times()
        after = cpu_time.look([os.getpid()])
        assert after.processes[pid].yields is yields
    seconds = last.user + last.system - first.user - first.system
    percent = 100.0 * seconds * TICKS / (after.total - before.total)
    # By itself: whatever else is nice on this machine is left out.
    only = {pid: after.processes[pid]}
    user = after.processes[pid].user - before.processes[pid].user
    nice = user if after.processes[pid].nice > 0 else 0
    alone = (
        cpu_time.Moment(0, 0, before.total, {pid: before.processes[pid]}),
        cpu_time.Moment(nice, 0, after.total, only),
    )
    found = cpu_time.shares(*alone)[0]
    assert found == (pytest.approx(percent, rel=0.5) if yields else 0.0)


def test_steal_is_read_from_the_kernels_column(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "pids", lambda: [])
    lines = iter(["cpu  10 2 0 100 0 0 0 5 0 0\n", "cpu  20 2 0 130 0 0 0 65 0 0\n"])

    def opened(path: str, **_: t.Any) -> t.Any:
        assert path == "/proc/stat"
        (tmp_path / "stat").write_text(next(lines))
        return (tmp_path / "stat").open()

    monkeypatch.setattr(cpu_time, "open", opened, raising=False)
    before, after = cpu_time.look(), cpu_time.look()
    assert cpu_time.shares(before, after) == (0.0, 60.0)


def tree(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy of cgroup v2 with one service; its files are written by the caller."""
    group = directory / "system.slice/web.service"
    group.mkdir(parents=True)
    monkeypatch.setattr(cpu_time, "_UNIFIED", (str(directory),))
    own = [processes.ControlGroup("0", (), "/system.slice/web.service")]
    monkeypatch.setattr(processes, "control_groups", lambda pid: own)
    return group


def test_a_quota_of_the_service_or_of_its_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tree(tmp_path, monkeypatch)
    (group / "cpu.max").write_text("max 100000\n")
    (group / "cpu.stat").write_text("usage_usec 5\nnr_periods 1\nnr_throttled 1\n")
    assert cpu_time.quotas([7]) == {}
    (group.parent / "cpu.max").write_text("50000 100000\n")
    (group.parent / "cpu.stat").write_text("usage_usec 5\nnr_periods 40\nnr_throttled 30\nthrottled_usec 9\n")
    assert cpu_time.quotas([7, 8]) == {"/system.slice": (40, 30)}


def test_the_pressure_of_the_services_own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tree(tmp_path, monkeypatch)
    assert cpu_time.pressure([7]) == {}
    (group / "cpu.pressure").write_text("some avg10=61.50 avg60=1.00 avg300=0.00 total=9\n")
    assert cpu_time.pressure([7]) == {"/system.slice/web.service": 61.5}


def test_the_group_that_counts_is_the_nearest_with_the_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tree(tmp_path, monkeypatch)
    assert cpu_time.control_group(7) == "/"
    (group.parent / "cpu.weight").write_text("100\n")
    assert cpu_time.control_group(7) == "/system.slice"
    (group / "cpu.weight").write_text("100\n")
    assert cpu_time.control_group(7) == "/system.slice/web.service"
