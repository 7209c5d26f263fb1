# SPDX-License-Identifier: GPL-3.0-or-later
"""A recorded /proc and /sys, and the scopes of memory that they show."""

from __future__ import annotations

import typing as t
from pathlib import Path

from wheels_ops.host import memory_pressure

MIB = 1024 * 1024
#: As a machine of 24 GB shows it.
MEMINFO = (
    "MemTotal:       24683952 kB\nMemFree:         1683952 kB\nMemAvailable:   20683952 kB\nSwapTotal:             0"
    " kB\n"
)


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
        self.write(
            f"sys/fs/cgroup{path}/memory.stat",
            f"anon {current - cache}\nfile {cache}\ninactive_file {cache}\nactive_file 0\nfile_dirty 0\n",
        )

    def v1(self, path: str, limit: int, usage: int, cache: int = 0) -> None:
        self.write(f"sys/fs/cgroup/memory{path}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"sys/fs/cgroup/memory{path}/memory.usage_in_bytes", f"{usage}\n")
        self.write(
            f"sys/fs/cgroup/memory{path}/memory.stat", f"cache {cache}\ninactive_file 0\ntotal_inactive_file {cache}\n"
        )

    def scope(self) -> t.Optional[memory_pressure.Scope]:
        return memory_pressure.cgroup(77, proc=self.proc, root=str(self.root))


def scope(
    percent: float, full: t.Optional[float], events: t.Optional[t.Dict[str, int]] = None
) -> memory_pressure.Scope:
    stalls = None if full is None else {"some_avg10": full, "full_avg10": full}
    return memory_pressure.Scope("host", "/", 1000 * MIB, int(percent * 10 * MIB), stalls, events or {})
