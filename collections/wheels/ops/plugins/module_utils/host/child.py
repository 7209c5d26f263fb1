# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What stands between us and a program of another user: gives up every right, then becomes the program, or reads his
files for us.

``run_as`` hands the source of this file to our own interpreter, so that nothing is done between ``fork`` and ``exec``
of a process that has threads. It imports the standard library alone. Its settings come as JSON through one descriptor,
and what it reports goes as a line of JSON through another; neither is inherited by the program.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import fnmatch
import glob
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import sys
import typing as t

# prctl(2), unshare(2), netdevice(7)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8914, 0x1, 0x40
#: What Python executes when it is imported or found.
_CODE = (".py", ".pyc", ".so", ".pth")
_MAX_PROBLEMS = 5
_MAX_LINKS = 40
Settings = t.Dict[str, t.Any]


class _Trust:
    """Collects what somebody else than ``uids`` may write."""

    def __init__(self, settings: Settings) -> None:
        self._uids = set(settings["uids"])
        self._gids = set(settings["gids"])
        self.problems: t.List[str] = []

    def check(self, path: str, status: os.stat_result, *, link: bool = False) -> None:
        reason = self._reason(path, status, link)
        if reason and len(self.problems) < _MAX_PROBLEMS:
            problem = f"{path} {reason}"
            if problem not in self.problems:
                self.problems.append(problem)

    def _reason(self, path: str, status: os.stat_result, link: bool) -> str:
        if status.st_uid not in self._uids:
            return f"belongs to user {status.st_uid}"
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if link or sticky:  # names in a sticky directory are changed by their owners alone
            return ""
        if status.st_mode & stat.S_IWOTH:
            return "may be written by everybody"
        if status.st_mode & stat.S_IWGRP:
            if status.st_gid not in self._gids:
                return f"may be written by group {status.st_gid}"
            try:
                os.getxattr(path, "system.posix_acl_access")
            except OSError:
                return ""
            return "has an access list that lets others write"
        return ""

    def chain(self, path: str) -> str:
        """Every directory above a path, through every link, and the file itself; gives its real path."""
        prefix = "/"
        pending = [part for part in path.split("/") if part][::-1]
        links = 0
        while pending:
            self.check(prefix, os.stat(prefix))
            part = pending.pop()
            if part == "..":
                prefix = os.path.dirname(prefix)
                continue
            place = os.path.join(prefix, part)
            status = os.lstat(place)
            self.check(place, status, link=stat.S_ISLNK(status.st_mode))
            if not stat.S_ISLNK(status.st_mode):
                prefix = place
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(f"{path} leads through too many links")
            target = os.readlink(place)
            if target.startswith("/"):
                prefix = "/"
            pending += [word for word in target.split("/") if word not in ("", ".")][::-1]
        return prefix

    def below(self, top: str) -> None:
        """Every directory and every file of code below one."""
        for place, _directories, names in os.walk(top, onerror=_raise):
            self.check(place, os.stat(place))
            for name in names:
                if name.endswith(_CODE):
                    path = os.path.join(place, name)
                    self.check(path, os.stat(path) if os.path.exists(path) else os.lstat(path))


def _raise(error: OSError) -> t.NoReturn:
    raise error


def _site_packages(interpreter: str) -> t.List[str]:
    """The packages of the virtual environment that an interpreter belongs to, found without running it; none where it
    belongs to no environment.
    """
    prefix = os.path.dirname(os.path.dirname(interpreter))
    if not os.path.isfile(os.path.join(prefix, "pyvenv.cfg")):
        return []
    return sorted(
        {
            os.path.realpath(path)
            for path in glob.glob(os.path.join(glob.escape(prefix), "lib*", "python*", "site-packages"))
        }
    )


def inspect(settings: Settings) -> t.Dict[str, t.Any]:
    """Whether others may write the programs, the virtual environments they belong to, or ``directories``."""
    trust = _Trust(settings)
    for path in settings["programs"]:
        real = trust.chain(path)
        for packages in _site_packages(path):
            trust.chain(packages)
            trust.below(packages)
        for library in glob.glob(os.path.join(glob.escape(os.path.dirname(os.path.dirname(real))), "lib", "python*")):
            trust.check(library, os.stat(library))
    for directory in settings["directories"]:
        if os.path.isdir(directory):
            trust.chain(directory)
            trust.below(directory)
    return {"problems": trust.problems}


def stage(settings: Settings) -> t.Dict[str, t.Any]:
    """Copies a tree without what ``left_out`` names, and ``files`` (base64) over it.

    Without ``destination`` the tree is looked at alone.
    """
    trust = _Trust(settings)
    source, destination = settings["source"], settings["destination"]
    trust.chain(source)
    _copy(source, destination, settings["left_out"], trust)
    for relative, content in settings["files"].items() if destination else ():
        target = os.path.join(destination, relative)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.lexists(target):
            os.unlink(target)  # one that is read-only is replaced, not written to
        with open(target, "wb") as file:
            file.write(base64.b64decode(content))
    return {"problems": trust.problems}


def _copy(source: str, destination: str, left_out: t.Sequence[str], trust: _Trust) -> bool:
    """Copies one directory; whether there is code in it. What this user may not read, he could not import either."""
    code = False
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
    except PermissionError:
        return False
    for entry in entries:
        if any(fnmatch.fnmatch(entry.name, pattern) for pattern in left_out):
            continue
        target = os.path.join(destination, entry.name) if destination else ""
        if entry.is_dir(follow_symlinks=False):
            if target:
                os.mkdir(target)
            code |= _copy(entry.path, target, left_out, trust)
            continue
        is_code = entry.name.endswith(_CODE)
        code |= is_code
        if entry.is_symlink():
            if os.path.exists(entry.path):
                trust.check(entry.path, os.stat(entry.path))
                if target:
                    os.symlink(os.readlink(entry.path), target)
        elif entry.is_file(follow_symlinks=False):
            if is_code:
                trust.check(entry.path, entry.stat(follow_symlinks=False))
            if target:
                try:
                    shutil.copyfile(entry.path, target)
                    shutil.copymode(entry.path, target)
                except PermissionError:
                    continue
    if code:
        trust.check(source, os.stat(source))
    return code


def packages(settings: Settings) -> t.Dict[str, t.Any]:
    """The version of every package in the virtual environment of ``interpreter``, and the names that can be imported;
    nothing of it is run.
    """
    places = _site_packages(settings["interpreter"])
    entries = [entry for place in places for entry in os.listdir(place)]
    # The names of these directories are specified ("Recording installed projects", packaging.python.org).
    matches = (re.fullmatch(r"(.+)-([^-]+)(?:\.dist-info|-py[\d.]+\.egg-info)", entry) for entry in entries)
    versions = {match[1]: match[2] for match in matches if match}
    modules = sorted({entry.split(".")[0] for entry in entries})
    return {"environment": bool(places), "versions": versions, "modules": modules}


def _leave_network(libc: t.Any) -> bool:
    """A network of our own with nothing but a loopback; whether the kernel gave one."""
    if libc.unshare(_CLONE_NEWNET) != 0:
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            fcntl.ioctl(link, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP | _IFF_RUNNING))
    except OSError:
        pass  # a program that wants the loopback is told that it is down
    return True


def _give_up(settings: Settings, libc: t.Any) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        # The kernel ends this before it ends a service.
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("800")
    except OSError:
        pass
    if os.geteuid() == 0 and settings["uid"] != 0:
        os.setgroups(settings["groups"])
        os.setresgid(settings["gid"], settings["gid"], settings["gid"])
    if set(os.getresuid()) != {settings["uid"]}:
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    if set(os.getresuid()) != {settings["uid"]}:
        raise PermissionError("The rights of root could not be given up.")
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.umask(0o022)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def main(settings_in: int, report_out: int) -> None:
    """Reads its settings, gives up every right, and executes ``words`` or one of the actions above."""
    os.set_inheritable(report_out, False)
    with os.fdopen(settings_in, "rb") as stream:
        settings: Settings = json.loads(stream.read())
    libc = ctypes.CDLL(None, use_errno=True)
    report: t.Dict[str, t.Any] = {"network": True}
    try:
        if not settings["network"]:
            report["network"] = not _leave_network(libc)
        _give_up(settings, libc)
        os.chdir(settings["cwd"])
        if settings["action"] != "exec":
            report["result"] = {"inspect": inspect, "stage": stage, "packages": packages}[settings["action"]](settings)
            os.write(report_out, json.dumps(report).encode() + b"\n")
            return
        os.write(report_out, json.dumps(report).encode() + b"\n")
        os.execve(settings["words"][0], settings["words"], settings["environment"])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        place = getattr(error, "filename", None)
        os.write(
            report_out, json.dumps({**report, "error": f"{reason} ({place})" if place else reason}).encode() + b"\n"
        )
        os._exit(126)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
