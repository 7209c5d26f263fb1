# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Memory as the kernel accounts it: the host, the tightest cgroup around a process (v1, v2, both at once), and pressure stalls (PSI).

``proc`` and ``root`` are given by tests, which record whole trees.
"""

from __future__ import annotations

import os
import re
import typing as t
from dataclasses import dataclass

from .results import OpsError


@dataclass(frozen=True)
class Scope:
    """What bounds a process: ``host``, or the cgroup at ``path``. ``used_bytes`` leaves out file cache that can go at once."""

    kind: str
    path: str
    limit_bytes: int
    used_bytes: int

    @property
    def percent(self) -> float:
        return 100.0 * self.used_bytes / max(1, self.limit_bytes)

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {"kind": self.kind, "path": self.path, "limit_bytes": self.limit_bytes, "used_bytes": self.used_bytes, "percent": round(self.percent, 1)}


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def meminfo(proc: str = "/proc") -> t.Dict[str, int]:
    """/proc/meminfo in bytes."""
    try:
        lines = _text(f"{proc}/meminfo").splitlines()
    except OSError as error:
        raise OpsError(f"Cannot read {proc}/meminfo: {error.strerror}.") from error
    return {name: int(rest.split()[0]) * 1024 for name, _colon, rest in (line.partition(":") for line in lines) if rest.split()[:1]}


def host(proc: str = "/proc") -> Scope:
    """The machine. MemAvailable is the kernel's own estimate of what can be had without swapping: page cache counts as available."""
    values = meminfo(proc)
    total = values["MemTotal"]
    return Scope("host", "/", total, total - values.get("MemAvailable", values["MemFree"]))


def stalls(path: str = "/proc/pressure/memory") -> t.Optional[t.Dict[str, float]]:
    """Percent of time in which some, or all, tasks waited for memory, over the last 10 s; None where the kernel has no PSI."""
    try:
        text = _text(path)
    except OSError:
        return None  # not built in, or turned off: reading it fails with EOPNOTSUPP
    found = re.findall(r"^(some|full) avg10=([0-9.]+)", text, re.M)
    return {f"{kind}_avg10": float(value) for kind, value in found} or None


@dataclass(frozen=True)
class _Mount:
    version: int
    root: str
    point: str


def _mounts(proc: str) -> t.List[_Mount]:
    """The cgroup hierarchies that can hold memory limits, as this process sees them."""
    found = []
    for line in _text(f"{proc}/self/mountinfo").splitlines():
        left, _dash, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or not kind:
            continue
        unescaped = [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field) for field in fields[3:5]]
        if kind[0] == "cgroup2":
            found.append(_Mount(2, *unescaped))
        elif kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            found.append(_Mount(1, *unescaped))
    return found


def _directories(pid: t.Union[int, str], proc: str, root: str) -> t.Iterator[t.Tuple[int, str, str]]:
    """The cgroup directories of a process, innermost first, up to the hierarchy's top: version, directory, path in the hierarchy."""
    mounts = _mounts(proc)
    for line in _text(f"{proc}/{pid}/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" and not controllers else 1 if "memory" in controllers.split(",") else 0
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
        return {fields[0]: int(fields[1]) for fields in (line.split() for line in _text(f"{directory}/memory.stat").splitlines()) if len(fields) == 2}
    except OSError:
        return {}


def cgroup(pid: t.Union[int, str] = "self", *, proc: str = "/proc", root: str = "") -> t.Optional[Scope]:
    """The cgroup around a process that is nearest to its limit; None where nothing limits it, or less than the machine does."""
    total = meminfo(proc)["MemTotal"]
    tightest: t.Optional[Scope] = None
    try:
        for version, directory, path in _directories(pid, proc, root):
            names = ("memory.max", "memory.current", "inactive_file") if version == 2 else (
                "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
            )  # fmt: skip
            limit, usage = _number(f"{directory}/{names[0]}"), _number(f"{directory}/{names[1]}")
            if limit is None or usage is None or limit >= total or limit == 0:
                continue
            scope = Scope("cgroup", path, limit, max(0, usage - _statistics(directory).get(names[2], 0)))
            if tightest is None or scope.percent > tightest.percent:
                tightest = scope
    except (OSError, ValueError):
        return None  # the process ended meanwhile, or there are no cgroups
    return tightest


def own_directory(pid: int, *, proc: str = "/proc", root: str = "") -> str:
    """The innermost cgroup v2 directory of a process that accounts memory; empty where there is none."""
    try:
        for version, directory, path in _directories(pid, proc, root):
            if version == 2 and path != "/" and os.path.exists(f"{directory}/memory.current"):
                return directory
    except (OSError, ValueError):
        return ""
    return ""


def file_cache(directory: str) -> int:
    """Bytes of file cache that a cgroup is charged for and that are not dirty, not shared memory."""
    values = _statistics(directory)
    return max(0, values.get("inactive_file", 0) + values.get("active_file", 0) - values.get("file_dirty", 0) - values.get("file_writeback", 0))


def anonymous(directory: str) -> int:
    return _statistics(directory).get("anon", 0)


def swap_total(proc: str = "/proc") -> int:
    return meminfo(proc).get("SwapTotal", 0)
