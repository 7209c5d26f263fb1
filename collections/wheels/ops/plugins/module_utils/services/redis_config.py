# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a Redis will come back: the settings that it runs with beside those that its next start will read, and the dump
that is set aside before.

A Redis that keeps a dump and finds ``appendonly yes`` in its configuration file starts with what the append-only file
says. Where there is none yet it starts empty, and its next save replaces the dump by nothing (redis.io, "Redis
persistence": switch by CONFIG SET first).
"""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
import stat
import time
import typing as t
from dataclasses import dataclass, field

from ..core.results import OpsError
from ..host import processes

#: Settings that decide from where Redis reads its data when it starts. ``save`` decides only what it keeps from then
#: on.
DECISIVE: t.Tuple[str, ...] = ("appendonly", "dir", "dbfilename", "appenddirname", "appendfilename")
_DEFAULTS: t.Mapping[str, str] = {
    "appendonly": "no",
    "dbfilename": "dump.rdb",
    "appenddirname": "appendonlydir",
    "appendfilename": "appendonly.aof",
    "save": "3600 1 300 100 60 10000",
}
_LARGEST = 1 << 20
#: Dumps that stay beside the one in use; older ones of ours are removed.
KEPT = 3
_MARK = ".wheels-ops-"


def read(path: str, *, root: str = "", files: t.Optional[t.List[str]] = None, depth: int = 0) -> t.Dict[str, str]:
    """The directives of a configuration file that are of interest here, with those of files that it includes, as Redis
    reads them: the last counts, ``save`` adds up. ``root`` stands before every path; every file that was read is added
    to ``files``. Raises ``OSError`` or ``ValueError`` where one cannot be read.
    """
    settings: t.Dict[str, str] = {}
    if files is not None:
        files.append(root + path)
    for line in _text(root + path).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = shlex.split(line)
        name, values = (words[0].lower() if words else ""), words[1:]
        if name == "include" and values and depth < 16:
            for other in sorted(glob.glob(root + values[0])) if glob.has_magic(values[0]) else [root + values[0]]:
                included = read(other[len(root) :], root=root, files=files, depth=depth + 1)
                if "save" in included:
                    included["save"] = _saves(settings.get("save"), included["save"])
                settings.update(included)
        elif name == "save":
            settings["save"] = _saves(settings.get("save"), " ".join(values))
        elif name in DECISIVE and values:
            settings[name] = values[0]
    return settings


def _saves(before: t.Optional[str], more: str) -> str:
    return f"{before or ''} {more}".strip() if more else ""


def _text(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold us
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is no regular file")
        return file.read(_LARGEST)


@dataclass(frozen=True)
class Outlook:
    """What the next start will do. ``differences``: setting to (running, in the file). ``unknown``: why that could not
    be compared. ``root``: what stands before the server's paths to reach them from here.
    """

    running: t.Mapping[str, str] = field(default_factory=dict)
    differences: t.Mapping[str, t.Tuple[str, str]] = field(default_factory=dict)
    unknown: str = ""
    root: str = ""

    @property
    def certain(self) -> bool:
        """Whether the next start is known to read what this server writes now."""
        return not self.unknown and not set(self.differences) & set(DECISIVE)

    def why_lost(self) -> str:
        """Why the next start would not read what this server keeps; empty where it would, or where that is not known.

        An append-only file that is on now and off in the file loses nothing: a dump that is written before is what that
        start reads.
        """
        reasons = []
        for name, (now, then) in self.differences.items():
            if name == "appendonly" and then == "yes":
                reasons.append(
                    "its configuration file turns appendonly on, which is off now: it would start from an append-only"
                    " file that holds none of this"
                )
            elif name in ("dir", "dbfilename") or (
                name in DECISIVE and name != "appendonly" and self.running.get("appendonly") == "yes"
            ):
                reasons.append(
                    f"its configuration file says {name} {then}, it runs with {now}: it would read another file than it"
                    " wrote"
                )
        return "; ".join(reasons)

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {
            "differences": {name: {"running": now, "file": then} for name, (now, then) in self.differences.items()},
            "not_compared": self.unknown,
        }


def outlook(client: t.Any, members: t.Collection[int]) -> Outlook:
    """Compares a running server with its configuration file. ``members``: the processes of its service. Raises what
    redis-py raises for INFO and CONFIG GET.
    """
    server = client.info("server")
    running = {name: value for name in (*DECISIVE, "save") for value in client.config_get(name).values()}
    path, pid = str(server.get("config_file") or ""), int(server.get("process_id") or 0)
    begun = processes.start_time(pid) if pid in members else None
    if begun is None:
        return Outlook(
            running, unknown="it runs where its files cannot be seen (a container, or another user's process)"
        )
    root = f"/proc/{pid}/root" if os.access(f"/proc/{pid}/root", os.X_OK) else ""
    reconfigured = _reconfigured(client)
    if not path:
        return Outlook(
            running,
            unknown="it was reconfigured while it ran (CONFIG SET), and has no configuration file"
            if reconfigured
            else "",
            root=root,
        )
    try:
        files: t.List[str] = []
        file_settings = {**_DEFAULTS, **read(path, root=root, files=files)}
        if not reconfigured and all(max(os.stat(file).st_mtime, os.stat(file).st_ctime) < begun for file in files):
            return Outlook(running, root=root)  # what differs was said on the command line, and will be said again
    except (OSError, ValueError) as error:
        return Outlook(
            running,
            unknown=f"its configuration file {path} cannot be read: {getattr(error, 'strerror', None) or error}",
            root=root,
        )
    different = {
        name: (running[name], file_settings[name])
        for name in running
        if name in file_settings and _differ(name, running[name], file_settings[name])
    }
    return Outlook(running, different, root=root)


def _differ(name: str, now: str, then: str) -> bool:
    if name == "dir":
        # A relative one counts from where the server was started, which is not known any more.
        return os.path.isabs(then) and os.path.realpath(now) != os.path.realpath(then)
    return now.split() != then.split()


def _reconfigured(client: t.Any) -> bool:
    """Whether settings may have been changed since the start.

    Redis 6 does not tell CONFIG SET from CONFIG GET: it may.
    """
    statistics = client.info("commandstats")
    return any(f"cmdstat_config{suffix}" in statistics for suffix in ("", "|set", "|resetstat", "|rewrite"))


def set_aside(directory: str, name: str, *, root: str = "", now: t.Optional[float] = None) -> str:
    """Keeps the dump as it is now under a name of ours beside it, and gives that name; the newest ``KEPT`` stay.

    A hard link: Redis replaces its dump by a rename and never writes into it, so the old one stays whole, with its
    owner and mode, without room for a second one, and an interruption leaves all or nothing. Raises ``OpsError`` where
    it cannot be done.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    try:
        where = os.open(root + directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.stat(name, dir_fd=where, follow_symlinks=False).st_mode):
                raise OpsError(f"{directory}/{name} is no regular file.", hint="Look who put it there.")
            copies = sorted(entry for entry in os.listdir(where) if entry.startswith(name + _MARK))
            name_aside = f"{name}{_MARK}{stamp}"
            with contextlib.suppress(FileExistsError):  # one of the same second holds the same
                os.link(name, name_aside, src_dir_fd=where, dst_dir_fd=where, follow_symlinks=False)
            for old in [entry for entry in copies if entry != name_aside][: -(KEPT - 1)]:
                os.unlink(old, dir_fd=where)
        finally:
            os.close(where)
    except OSError as error:
        raise OpsError(
            f"{directory}/{name} could not be set aside: {error.strerror}.",
            hint="Run as root, or as the user of Redis.",
        ) from error
    return os.path.join(directory, name_aside)
