# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whose CPU time it is: of processes that yield (nice, SCHED_IDLE), of other guests of the hypervisor (steal), and of
nobody, because a quota throttles.

A busy CPU hurts only where those who want it do not get it: what yields is taken away the moment that another process
wants to run.
"""

from __future__ import annotations

import os
import re
import typing as t
from dataclasses import dataclass

from . import memory_pressure, processes

#: From this nice value on a process yields: its weight is a tenth of an ordinary one's (sched(7); 110 of 1024).
YIELDS = 10
#: Where the hierarchy of cgroup v2 is mounted, also beside v1.
_UNIFIED = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


@dataclass(frozen=True)
class _Process:
    user: int
    system: int
    start: int
    nice: int
    idle: bool
    yields: bool


@dataclass(frozen=True)
class Moment:
    """CPU time up to one moment, in ticks. ``nice``, ``steal`` and ``total`` are those of /proc/stat."""

    nice: int
    steal: int
    total: int
    processes: t.Mapping[int, _Process]


def control_group(pid: int) -> str:
    """The group whose weight decides about a process's CPU: the nearest one for which the cpu controller is on, ``/``
    where there is none; empty where the process is gone.
    """
    try:
        groups = processes.control_groups(pid)
    except OSError:
        return ""
    first = next((group.path for group in groups if "cpu" in group.controllers), "")
    if first:
        return first
    path = next((group.path for group in groups if group.hierarchy == "0"), "")
    while path.strip("/"):
        if any(os.path.exists(f"{mount}{path}/cpu.weight") for mount in _UNIFIED):
            return path
        path = path.rpartition("/")[0]
    return "/"


def autogroup(pid: int) -> t.Tuple[str, int]:
    """Name and nice of the group that the kernel makes of a session (sched(7)); empty where there is none.

    Between two sessions only this nice counts: the hog of a cron job yields to a service of systemd only with both
    changed.
    """
    try:
        with (
            open(f"/proc/{pid}/autogroup", encoding="ascii") as file,
            open("/proc/sys/kernel/sched_autogroup_enabled", encoding="ascii") as switch,
        ):
            match = re.fullmatch(r"(\S+) nice (-?\d+)\s*", file.read())
            return (match[1], int(match[2])) if match and switch.read().strip() == "1" else ("", 0)
    except OSError:
        return "", 0


def look(services: t.Collection[int] = ()) -> Moment:
    """The CPU time up to now. A process yields where it does so to ``services``: in another control group or session
    its own nice counts for nothing.
    """
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(word) for word in file.readline().split()[1:9]]
    groups = {control_group(pid) for pid in services} - {""}
    sessions = {autogroup(pid)[0] for pid in services}
    every = {}
    for pid in processes.pids():
        facts = processes.stat(pid)
        if facts is None:
            continue
        idle = facts.policy == os.SCHED_IDLE
        low = idle or facts.nice >= YIELDS
        yields = low and pid not in services and _effective(pid, groups, sessions)
        every[pid] = _Process(facts.user, facts.system, facts.start, facts.nice, idle, yields)
    return Moment(fields[1], fields[7] if len(fields) > 7 else 0, sum(fields), every)


def _effective(pid: int, groups: t.Collection[str], sessions: t.Collection[str]) -> bool:
    group = control_group(pid)
    if groups and group not in groups:
        return False
    if group != "/":
        return True  # sessions count among processes that are in no group
    session, nice = autogroup(pid)
    return not session or session in sessions or nice >= YIELDS


def shares(before: Moment, after: Moment) -> t.Tuple[float, float]:
    """(percent of all CPU time used by processes that yield, percent taken by other guests) between two moments.

    The kernel counts the user time of every process with a nice above 0 by itself, also of one that has ended since;
    that of SCHED_IDLE and all system time is counted by process.
    """
    nothing = _Process(0, 0, 0, 0, False, False)
    ticks = after.nice - before.nice
    for pid, now in after.processes.items():
        earlier = before.processes.get(pid, nothing)
        if earlier.start != now.start:
            earlier = nothing
        user, system = now.user - earlier.user, now.system - earlier.system
        if now.yields:
            ticks += system + (user if now.nice <= 0 else 0)
        elif now.nice > 0:
            ticks -= user
    total = max(1, after.total - before.total)
    stolen = 100.0 * max(0, after.steal - before.steal) / total
    return min(100.0, 100.0 * max(0, ticks) / total), stolen


def quotas(pids: t.Iterable[int]) -> t.Dict[str, t.Tuple[int, int]]:
    """The groups around processes that have a quota (``CPUQuota``, ``docker --cpus``): periods so far, and those in
    which it was used up, by the group's path.
    """
    counts: t.Dict[str, t.Tuple[int, int]] = {}
    for pid in pids:
        try:
            groups = processes.control_groups(pid)
        except OSError:
            continue
        for group in groups:
            if group.hierarchy == "0":
                mounts, limit = list(_UNIFIED), "cpu.max"
            elif "cpu" in group.controllers:
                mounts, limit = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"], "cpu.cfs_quota_us"
            else:
                continue
            path = group.path.rstrip("/")
            while True:
                for mount in mounts:
                    counts.update(_periods(f"{mount}{path}", path or "/", limit))
                if not path:
                    break
                path = path.rpartition("/")[0]
    return counts


def _periods(directory: str, path: str, limit: str) -> t.Dict[str, t.Tuple[int, int]]:
    try:
        with open(f"{directory}/{limit}", encoding="ascii") as file:
            if file.read().split()[0] in ("max", "-1"):
                return {}
        with open(f"{directory}/cpu.stat", encoding="ascii") as file:
            values = dict(line.split() for line in file if len(line.split()) == 2)
        return {path: (int(values["nr_periods"]), int(values["nr_throttled"]))}
    except (OSError, KeyError, ValueError, IndexError):
        return {}


def pressure(pids: t.Iterable[int]) -> t.Dict[str, float]:
    """Percent of the last ten seconds in which something in the group of a process waited for a CPU (PSI some avg10),
    by the group's path; only cgroup v2 says so.
    """
    waits = {}
    for pid in pids:
        try:
            path = next((group.path for group in processes.control_groups(pid) if group.hierarchy == "0"), "/")
        except OSError:
            continue
        for mount in _UNIFIED:
            stalls = memory_pressure.stalls(f"{mount}{path}/cpu.pressure") if path != "/" else None
            if stalls and "some_avg10" in stalls:
                waits[path] = stalls["some_avg10"]
    return waits
