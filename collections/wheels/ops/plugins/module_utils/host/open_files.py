# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who has a file open: the processes that /proc names, and the kernel's own word by a lease.

/proc names owners and flags, but shows nothing of other users' processes to a user who is not root. A write lease is
granted only where no other open of the inode exists anywhere, in whatever container or namespace, and holds off new
ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import typing as t
from dataclasses import dataclass, field

from . import processes

Identity = t.Tuple[int, int]


@dataclass(frozen=True)
class Holder:
    """One open file of one process. ``fd`` is None for a mapping.

    ``append``: every write goes to the end, wherever that is then.
    """

    pid: int
    command: str
    fd: t.Optional[int]
    path: str
    append: bool
    writes: bool
    deleted: bool = False

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {"pid": self.pid, "command": self.command, "fd": self.fd, "append": self.append, "writes": self.writes}


@dataclass
class Open:
    """Open regular files by (device, inode), and how many processes could not be looked into."""

    files: t.Dict[Identity, t.List[Holder]] = field(default_factory=dict)
    unreadable: int = 0

    def of(self, identity: Identity) -> t.List[Holder]:
        return self.files.get(identity, [])


def _flags(proc: str, pid: str, fd: str) -> int:
    with open(f"{proc}/{pid}/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("flags:"):
                return int(line.split()[1], 8)
    return 0


def open_files(
    identities: t.Optional[t.Collection[Identity]] = None, *, proc: str = "/proc", mappings: bool = True
) -> Open:
    """One pass over every process: all open regular files, or only those of ``identities``.

    Our own descriptors are left out.
    """
    result = Open()
    own = str(os.getpid())
    mapped: t.Set[str] = set()
    for pid in os.listdir(proc):
        if not pid.isdigit() or pid == own:
            continue
        try:
            descriptors = os.listdir(f"{proc}/{pid}/fd")
        except PermissionError:
            result.unreadable += 1
            continue
        except OSError:
            continue  # it ended meanwhile
        for fd in descriptors:
            _look(result, identities, proc, pid, fd)
        if mappings:
            _look_at_maps(result, identities, proc, pid, mapped)
    return result


def open_directories(proc: str = "/proc") -> t.Set[Identity]:
    """Directories that a process has open, works in, or has for its root."""
    result: t.Set[Identity] = set()
    own = str(os.getpid())
    for pid in os.listdir(proc):
        if not pid.isdigit() or pid == own:
            continue
        names = ["cwd", "root"]
        with contextlib.suppress(OSError):
            names += [f"fd/{fd}" for fd in os.listdir(f"{proc}/{pid}/fd")]
        for name in names:
            with contextlib.suppress(OSError):
                status = os.stat(f"{proc}/{pid}/{name}")
                if stat.S_ISDIR(status.st_mode):
                    result.add((status.st_dev, status.st_ino))
    return result


def _look(result: Open, identities: t.Optional[t.Collection[Identity]], proc: str, pid: str, fd: str) -> None:
    name = f"{proc}/{pid}/fd/{fd}"
    try:
        path = os.readlink(name)
        if not path.startswith("/"):
            return
        status = os.stat(name)
        identity = (status.st_dev, status.st_ino)
        if not stat.S_ISREG(status.st_mode) or (identities is not None and identity not in identities):
            return
        flags = _flags(proc, pid, fd)
    except OSError:
        return  # closed meanwhile
    holder = Holder(
        int(pid),
        processes.program(pid, proc=proc),
        int(fd),
        path,
        bool(flags & os.O_APPEND),
        (flags & os.O_ACCMODE) != os.O_RDONLY,
        deleted=status.st_nlink == 0,
    )
    result.files.setdefault(identity, []).append(holder)


def _look_at_maps(
    result: Open, identities: t.Optional[t.Collection[Identity]], proc: str, pid: str, visited: t.Set[str]
) -> None:
    """Files that are mapped may be open no more.

    Each distinct file is looked at once: all processes map the same libraries.
    """
    try:
        with open(f"{proc}/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) < 6 or fields[4] == "0":
            continue
        path = fields[5].rstrip("\n")
        key = f"{fields[3]} {fields[4]} {path}"
        if key in visited or not path.startswith("/"):
            continue
        visited.add(key)
        major, _colon, minor = fields[3].partition(":")
        identity = (os.makedev(int(major, 16), int(minor, 16)), int(fields[4]))
        # btrfs and overlayfs show a device here that stat does not: ask by the path, in the process' own view of it.
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(f"{proc}/{pid}/root{path}")
            if status.st_ino == identity[1]:
                identity = (status.st_dev, status.st_ino)
        if identities is None or identity in identities:
            deleted = path.endswith(" (deleted)")
            result.files.setdefault(identity, []).append(
                Holder(
                    int(pid),
                    processes.program(pid, proc=proc),
                    None,
                    path,
                    False,
                    "w" in fields[1] and "s" in fields[1],
                    deleted,
                )
            )


@contextlib.contextmanager
def lease(descriptor: int, *, writers_only: bool = False) -> t.Iterator[t.Optional[bool]]:
    """Asks the kernel whether anyone else has the file of ``descriptor`` open: True nobody has, False somebody, None it
    cannot say.

    ``writers_only``: readers do not count; ``descriptor`` has to be open for reading only. With True, whoever opens the
    file inside the block (for writing, with ``writers_only``) waits in open() until the block ends, at most for
    /proc/sys/fs/lease-break-time.
    """
    free: t.Optional[bool] = None
    try:
        # A waiting opener is told to us by SIGIO, whose default is to kill; SIGURG is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, int(signal.SIGURG))
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK if writers_only else fcntl.F_WRLCK)
        free = True
    except OSError as error:
        # EINVAL: the filesystem has no leases; EACCES: not our file and no CAP_LEASE.
        free = False if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) else None
    try:
        yield free
    finally:
        if free:
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def wanted_by_another(descriptor: int) -> bool:
    """Whether somebody waits in open() for a file that we hold a lease of ``writers_only`` on."""
    return int(fcntl.fcntl(descriptor, fcntl.F_GETLEASE)) != fcntl.F_RDLCK
