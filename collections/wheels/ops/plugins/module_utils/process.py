# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What /proc says of one running process."""

from __future__ import annotations

import os
import shutil
import typing as t
from pathlib import Path

from .results import OpsError


def environment_of(pid: int) -> t.Dict[str, str]:
    """The environment that a process was started with. Needs its user or root."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError as error:
        raise OpsError(
            f"Cannot read the environment of process {pid}: {error.strerror}.",
            hint="Run this task as that process's user, or as root.",
        ) from error
    pairs = (entry.split(b"=", 1) for entry in raw.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, value in pairs}


def user_of(pid: int) -> int:
    """The number of the user whose rights a process has (its effective one)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise OpsError(
            f"Cannot look at process {pid}: {error.strerror}.", hint="Run this task as that process's user, or as root."
        ) from error
    return next(int(line.split()[2]) for line in status.splitlines() if line.startswith("Uid:"))


def interpreter_of(pid: int) -> str:
    """The Python that a process runs under, by the path that finds its virtual environment; empty if it is no Python.

    ``/proc/PID/exe`` is the real file, outside the virtual environment; the first word of the command line is the path
    that was called, and a script's ``#!`` line is already resolved by the kernel into that word.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        exe = os.readlink(f"/proc/{pid}/exe")
        cwd = os.readlink(f"/proc/{pid}/cwd")
    except OSError as error:
        raise OpsError(
            f"Cannot look at process {pid}: {error.strerror}.", hint="Run this task as that process's user, or as root."
        ) from error
    if "python" not in Path(exe).name:
        return ""
    called = os.fsdecode(words[0]) if words and words[0] else exe
    if "/" not in called:
        called = shutil.which(called, path=environment_of(pid).get("PATH", os.defpath)) or exe
    path = Path(cwd, called)
    return str(path) if path.exists() and os.path.realpath(path) == exe else exe
