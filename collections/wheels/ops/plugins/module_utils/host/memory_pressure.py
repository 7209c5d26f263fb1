# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Memory as the kernel accounts it: the host, the tightest cgroup around a process (v1, v2, both at once), and pressure
stalls (PSI).

A percentage says how much is in use that could not be had back at once. Whether that hurts anybody, the kernel says
itself: by the time that tasks wait for memory (PSI), or by how often it ran into a limit where it was built without
PSI.

``proc`` and ``root`` are given by tests, which record whole trees.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t
from dataclasses import dataclass, field

from ..core.results import OpsError
from . import processes

#: Percent of ten seconds in which every task that could run waited for memory, from which that is pressure. A
#: judgement: systemd-oomd ends processes at 60 % for 30 s, and a machine that merely reads many files stays below 5.
STALLED = 10.0


@dataclass(frozen=True)
class Scope:
    """What bounds a process: ``host``, or the cgroup at ``path``. ``used_bytes`` leaves out caches that can go at once.

    ``limit_bytes`` of a cgroup is the lower of what ends processes (memory.max) and what freezes them (memory.high).
    ``stalls`` as of ``stalls()``, None without PSI; ``events`` counts since boot or the cgroup's start how often a
    limit was met.
    """

    kind: str
    path: str
    limit_bytes: int
    used_bytes: int
    stalls: t.Optional[t.Mapping[str, float]] = None
    events: t.Mapping[str, int] = field(default_factory=dict)

    @property
    def percent(self) -> float:
        return 100.0 * self.used_bytes / max(1, self.limit_bytes)

    @property
    def stalled(self) -> t.Optional[float]:
        """Percent of the last ten seconds in which all tasks waited for memory; None where the kernel does not say."""
        return None if self.stalls is None else self.stalls.get("full_avg10")

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {
            "kind": self.kind,
            "path": self.path,
            "limit_bytes": self.limit_bytes,
            "used_bytes": self.used_bytes,
            "percent": round(self.percent, 1),
            "stalls": None if self.stalls is None else dict(self.stalls),
            "events": dict(self.events),
        }


def pressed(now: Scope, earlier: t.Optional[Scope] = None) -> str:
    """What the kernel says of pressure in a scope; empty where it reports none.

    Without PSI the events since ``earlier`` decide.
    """
    if now.stalled is not None:
        return f"all tasks waited for memory {now.stalled:.1f} % of the last 10 s" if now.stalled >= STALLED else ""
    if earlier is None:
        return ""
    more = {name: count - earlier.events.get(name, count) for name, count in now.events.items()}
    return ", ".join(f"{name} rose by {count}" for name, count in sorted(more.items()) if count > 0)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def meminfo(proc: str = "/proc") -> t.Dict[str, int]:
    """/proc/meminfo in bytes; the HugePages_ lines are counts."""
    try:
        lines = _text(f"{proc}/meminfo").splitlines()
    except OSError as error:
        raise OpsError(f"Cannot read {proc}/meminfo: {error.strerror}.") from error
    rows = ((name, rest.split()) for name, _colon, rest in (line.partition(":") for line in lines))
    return {name: int(words[0]) * (1 if name.startswith("HugePages_") else 1024) for name, words in rows if words}


def host(proc: str = "/proc") -> Scope:
    """The machine. MemAvailable is the kernel's own estimate of what can be had without swapping: page cache counts as
    available.

    Two things it does not know of: the cache of ZFS (ARC), which shrinks to ``c_min`` on demand but counts as the
    kernel's own memory (htop and arc_summary take the same part off), and the pool of huge pages, which nothing but its
    users can have, so that it is neither in use nor free.
    """
    values = meminfo(proc)
    pool = values.get("Hugetlb", values.get("HugePages_Total", 0) * values.get("Hugepagesize", 0))
    total = values["MemTotal"] - (pool if pool < values["MemTotal"] else 0)
    available = values["MemAvailable"] if "MemAvailable" in values else values.get("MemFree", 0)
    used = max(0, total - available)
    # In a container with a /proc of its own (lxcfs) the ARC is the host's, and no part of what is used here: processes'
    # memory never is.
    used = max(min(used, values.get("AnonPages", 0) + values.get("Shmem", 0)), used - _arc(proc, used))
    return Scope("host", "/", total, used, stalls(f"{proc}/pressure/memory"), _met(proc))


def _arc(proc: str, used: int) -> int:
    """Bytes that the cache of ZFS gives back on demand; 0 without ZFS, and where it is larger than all that is in use
    here.
    """
    try:
        rows = (line.split() for line in _text(f"{proc}/spl/kstat/zfs/arcstats").splitlines())
        values = {fields[0]: int(fields[2]) for fields in rows if len(fields) == 3 and fields[2].isdigit()}
    except OSError:
        return 0
    size = values.get("size", 0)
    return max(0, size - values.get("c_min", 0)) if size <= used else 0


def _met(proc: str) -> t.Dict[str, int]:
    """How often a task of this machine had to free memory itself before it got some, and how often one was ended for
    want of it.
    """
    try:
        rows = [line.split() for line in _text(f"{proc}/vmstat").splitlines()]
    except OSError:
        return {}
    values = {fields[0]: int(fields[1]) for fields in rows if len(fields) == 2 and fields[1].isdigit()}
    stalled = [count for name, count in values.items() if name.startswith("allocstall")]
    return {
        **({"allocstall": sum(stalled)} if stalled else {}),
        **({"oom_kill": values["oom_kill"]} if "oom_kill" in values else {}),
    }


def stalls(path: str = "/proc/pressure/memory") -> t.Optional[t.Dict[str, float]]:
    """Percent of time in which some, or all, tasks waited for memory (or for what ``path`` is about), over the last 10
    s; None where the kernel has no PSI.
    """
    try:
        text = _text(path)
    except OSError:
        return None  # not built in, or turned off: reading it fails with EOPNOTSUPP
    matches = re.findall(r"^(some|full) avg10=([0-9.]+)", text, re.M)
    return {f"{kind}_avg10": float(value) for kind, value in matches} or None


@dataclass(frozen=True)
class _Mount:
    version: int
    root: str
    point: str


def _mounts(proc: str) -> t.List[_Mount]:
    """The cgroup hierarchies that can hold memory limits, as this process sees them."""
    mounts = []
    for line in _text(f"{proc}/self/mountinfo").splitlines():
        head, _dash, right = line.partition(" - ")
        fields, kind = head.split(), right.split()
        if len(fields) < 5 or not kind:
            continue
        unescaped = [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field) for field in fields[3:5]]
        if kind[0] == "cgroup2":
            mounts.append(_Mount(2, *unescaped))
        elif kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            mounts.append(_Mount(1, *unescaped))
    return mounts


def _directories(pid: t.Union[int, str], proc: str, root: str) -> t.Iterator[t.Tuple[int, str, str]]:
    """The cgroup directories of a process, innermost first, up to the hierarchy's top: version, directory, path in the
    hierarchy.
    """
    mounts = _mounts(proc)
    for group in processes.control_groups(pid, proc=proc):
        path = group.path
        version = 2 if group.hierarchy == "0" and not group.controllers else 1 if "memory" in group.controllers else 0
        for mount in mounts:
            if mount.version != version:
                continue
            if mount.root not in ("", "/") and (path == mount.root or path.startswith(mount.root + "/")):
                inner = path[len(mount.root) :]
            elif mount.root in ("", "/") and "/.." not in path:
                inner = path
            else:
                inner = ""  # the process is outside of what is mounted here: only the top can be seen
            inner = inner.strip("/")
            while True:
                yield version, os.path.join(root + mount.point, inner) if inner else root + mount.point, "/" + inner
                if not inner:
                    break
                inner = inner.rpartition("/")[0]


def _number(path: str) -> t.Optional[int]:
    try:
        text = _text(path).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _statistics(directory: str) -> t.Dict[str, int]:
    try:
        return {
            fields[0]: int(fields[1])
            for fields in (line.split() for line in _text(f"{directory}/memory.stat").splitlines())
            if len(fields) == 2
        }
    except OSError:
        return {}


def cgroup(pid: t.Union[int, str] = "self", *, proc: str = "/proc", root: str = "") -> t.Optional[Scope]:
    """The cgroup around a process that is nearest to its limit; None where nothing limits it, or less than the machine
    does.
    """
    total = meminfo(proc)["MemTotal"]
    tightest: t.Optional[Scope] = None
    try:
        for version, directory, path in _directories(pid, proc, root):
            limits = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
            maxima = [value for value in (_number(f"{directory}/{name}") for name in limits) if value]
            limit = min(maxima, default=None)
            usage = _number(f"{directory}/{'memory.current' if version == 2 else 'memory.usage_in_bytes'}")
            if limit is None or usage is None or limit >= total:
                continue
            used = max(0, usage - file_cache(directory, version) - _statistics(directory).get("slab_reclaimable", 0))
            scope = Scope("cgroup", path, limit, used, stalls(f"{directory}/memory.pressure"), _events(directory))
            if tightest is None or _tightness(scope) > _tightness(tightest):
                tightest = scope
    except (OSError, ValueError):
        return None  # the process ended meanwhile, or there are no cgroups
    return tightest


def _tightness(scope: Scope) -> t.Tuple[bool, float]:
    """One whose tasks wait for memory goes before one that is merely fuller."""
    return bool(pressed(scope)), scope.percent


def _events(directory: str) -> t.Dict[str, int]:
    """How often a cgroup met its limits: high, max, oom and oom_kill of v2, failcnt and oom_kill of v1."""
    counters = {}
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(OSError):
            rows = [line.split() for line in _text(f"{directory}/{name}").splitlines()]
            counters.update(
                {
                    fields[0]: int(fields[1])
                    for fields in rows
                    if len(fields) == 2 and fields[0] in ("high", "max", "oom", "oom_kill")
                }
            )
    count = _number(f"{directory}/memory.failcnt")
    return counters if count is None else {**counters, "failcnt": count}


def own_directory(pid: int, *, proc: str = "/proc", root: str = "") -> str:
    """The innermost cgroup v2 directory of a process that accounts memory; empty where there is none."""
    try:
        for version, directory, path in _directories(pid, proc, root):
            if version == 2 and path != "/" and os.path.exists(f"{directory}/memory.current"):
                return directory
    except (OSError, ValueError):
        return ""
    return ""


def file_cache(directory: str, version: int = 2) -> int:
    """Bytes of file cache that a cgroup is charged for and that are not dirty, not shared memory: what was used often
    as well as what was not.
    """
    values = _statistics(directory)
    clean, dirty = ("inactive_file", "active_file"), ("file_dirty", "file_writeback")
    if version == 1:
        clean, dirty = ("total_inactive_file", "total_active_file"), ("total_dirty", "total_writeback")
    return max(0, sum(values.get(name, 0) for name in clean) - sum(values.get(name, 0) for name in dirty))


def anonymous(directory: str) -> int:
    return _statistics(directory).get("anon", 0)


def swap_total(proc: str = "/proc") -> int:
    return meminfo(proc).get("SwapTotal", 0)
