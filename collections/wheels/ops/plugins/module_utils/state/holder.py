# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The id of a process that holds a lock, and whether that process still runs.

    HOST:PID:START:MACHINE-BOOT-NAMESPACE

``START`` is in clock ticks since boot, against reused process ids. ``MACHINE`` is six digits of the SHA-256 of the
machine id, ``BOOT`` eight of the kernel's boot id, ``NAMESPACE`` the inode of the process' PID namespace: two hosts of
one name, and two containers of one kernel, cannot ask each other for their processes. An id without the last field is
of an earlier version.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import typing as t
from pathlib import Path

from ..host import processes

ALIVE, DEAD, UNKNOWN = "alive", "dead", "unknown"
_ID = re.compile(
    r"(?P<host>[^:]+):(?P<pid>[0-9]{1,10}):(?P<start>[0-9]*)(?::(?P<machine>[^:-]*)-(?P<boot>[^:-]*)-(?P<namespace>[^:-]*))?"
)


def started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where there is none, or none that still works (a
    zombie).
    """
    facts = processes.stat(pid)
    return "" if facts is None or facts.state in "ZXx" else str(facts.start)


def machine() -> t.Tuple[str, str, str]:
    """MACHINE, BOOT and NAMESPACE of this process; an empty text for what this system does not say."""
    boot = _text("/proc/sys/kernel/random/boot_id")[:8]
    identity = _text("/etc/machine-id")
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = ""
    return hashlib.sha256(identity.encode()).hexdigest()[:6] if identity else "", boot, namespace


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def name_of(pid: int) -> str:
    """The id of a process of this host."""
    return f"{socket.gethostname()}:{pid}:{started(pid)}:{'-'.join(machine())}"


def judge(holder: str) -> str:
    """``alive``, ``dead``, or ``unknown`` for a process that cannot be asked from here."""
    match = _ID.fullmatch(holder)
    if match is None or match["host"] != socket.gethostname():
        return UNKNOWN
    if match["machine"] is not None:
        identity, boot, namespace = machine()
        if match["boot"] != boot:
            # No process outlives a boot, but only the machine id says that it is the boot of the same machine.
            return DEAD if identity and match["machine"] == identity else UNKNOWN
        if match["namespace"] != namespace:
            return UNKNOWN
    return _judge_process(int(match["pid"]), match["start"])


def _judge_process(pid: int, start: str) -> str:
    now = started(pid)
    if now:
        return ALIVE if now == start else DEAD
    if os.path.exists(f"/proc/{pid}"):
        return DEAD  # a zombie
    try:
        os.kill(pid, 0)
    except PermissionError:
        return UNKNOWN  # /proc hides the processes of other users
    except (ProcessLookupError, OverflowError):
        return DEAD
    return UNKNOWN
