# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Processes and listening sockets as /proc shows them; each of its files has one reader, here.

Own processes need no right, those of others need root. ``proc`` is where /proc is mounted; tests give another
directory.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import struct
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ..core.results import OpsError

_LISTEN, _ESTABLISHED = "0A", "01"


@dataclass(frozen=True)
class Listener:
    """A socket in LISTEN: ``address`` as text, ``inode`` as the kernel numbers it."""

    address: str
    port: int
    inode: int


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


@dataclass(frozen=True)
class Stat:
    """What proc(5) says of a process in /proc/PID/stat.

    ``state`` is a letter; times are in clock ticks, ``start`` counts from the boot. ``policy`` is that of
    sched(7), as ``nice`` of its first thread.
    """

    state: str
    parent: int
    user: int
    system: int
    start: int
    nice: int = 0
    policy: int = 0

    @property
    def cpu_seconds(self) -> float:
        """User and system time, in seconds."""
        return (self.user + self.system) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ControlGroup:
    """A line of /proc/PID/cgroup: hierarchy 0 without controllers is that of cgroup v2."""

    hierarchy: str
    controllers: t.Tuple[str, ...]
    path: str


def pids() -> t.List[int]:
    """Every process there is."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def stat(pid: int, *, proc: str = "/proc") -> t.Optional[Stat]:
    """None where the process is gone."""
    try:
        # The command stands in brackets and may hold anything: fields count from the last bracket.
        fields = _read(f"{proc}/{pid}/stat").rpartition(")")[2].split()
        policy = int(fields[38]) if len(fields) > 38 else 0
        return Stat(
            fields[0], int(fields[1]), int(fields[11]), int(fields[12]), int(fields[19]), int(fields[16]), policy
        )
    except (OSError, IndexError, ValueError):
        return None


def status(pid: t.Union[int, str]) -> t.Dict[str, str]:
    """The lines of /proc/PID/status by their names; ``self`` is this process. Raises ``OSError`` where it is gone."""
    rows = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {name: value.strip() for name, _colon, value in rows}


def kilobytes(pid: int, name: str, *, proc: str = "/proc") -> t.Dict[str, int]:
    """The lines ``Name:   123 kB`` of a file of a process (``status``, ``smaps_rollup``).

    Raises ``OSError`` where it is gone.
    """
    fields = (line.split() for line in _read(f"{proc}/{pid}/{name}").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in fields if len(words) == 3 and words[2] == "kB"}


def control_groups(pid: t.Union[int, str], *, proc: str = "/proc") -> t.List[ControlGroup]:
    """The control group of a process in each hierarchy. Raises ``OSError`` where it is gone."""
    lines = (line.split(":", 2) for line in _read(f"{proc}/{pid}/cgroup").splitlines())
    return [
        ControlGroup(words[0], tuple(filter(None, words[1].split(","))), words[2]) for words in lines if len(words) == 3
    ]


def uptime() -> float:
    """Seconds since the boot."""
    return float(_read("/proc/uptime").split()[0])


def parents() -> t.Dict[int, int]:
    """The parent of every process that is not a zombie."""
    every = ((pid, stat(pid)) for pid in pids())
    return {pid: facts.parent for pid, facts in every if facts is not None and facts.state != "Z"}


def ancestors(pid: int) -> t.Set[int]:
    """A process and all that it descends from, as far as they are still there."""
    every = parents()
    line: t.Set[int] = set()
    while pid in every and pid not in line:
        line.add(pid)
        pid = every[pid]
    return line


def inner_pid(pid: int) -> int:
    """The number of a process in its own PID namespace, that of a container for example; 0 where it is gone."""
    try:
        return int(status(pid).get("NSpid", str(pid)).split()[-1])
    except OSError:
        return 0


def tree(root: int) -> t.Set[int]:
    """A process and all its descendants; empty where it is gone."""
    children: t.Dict[int, t.List[int]] = {}
    every = parents()
    if root not in every:
        return set()
    for pid, parent in every.items():
        children.setdefault(parent, []).append(pid)
    members, waiting = {root}, [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in members:
                members.add(pid)
                waiting.append(pid)
    return members


def command_line(pid: int) -> t.List[str]:
    """The words a process was started with; empty where it is gone or a kernel thread."""
    try:
        words = _read(f"/proc/{pid}/cmdline").split("\0")
    except OSError:
        return []
    return words[:-1] if words and not words[-1] else words


def program(pid: t.Union[int, str], *, proc: str = "/proc") -> str:
    """The kernel's name of it, at most 15 characters; empty where it is gone."""
    try:
        return _read(f"{proc}/{pid}/comm").strip()
    except OSError:
        return ""


def environment(pid: int, names: t.Collection[str]) -> t.Dict[str, str]:
    """Some variables that a process was started with; empty where it is gone or may not be read."""
    try:
        return {name: value for name, value in _environ(pid).items() if name in names}
    except OSError:
        return {}


def _environ(pid: int) -> t.Dict[str, str]:
    """Raises ``OSError``."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = (word.partition(b"=") for word in file.read().split(b"\0"))
        return {os.fsdecode(name): os.fsdecode(value) for name, sign, value in pairs if sign}


def hidden(pid: int, name: str = "environ") -> bool:
    """Whether a process is somebody else's, whose environment (or memory map, ``smaps``) this user may not read.

    The mode of the file does not say: the kernel looks at who opens it.
    """
    try:
        with open(f"/proc/{pid}/{name}", "rb"):
            return False
    except OSError as error:
        return isinstance(error, PermissionError)


def ending(pid: int) -> bool:
    """Whether a process has given its memory back: what is left of it belongs to root, also where its user asks
    (proc(5), /proc/PID).
    """
    try:
        return "VmSize" not in status(pid)
    except OSError:
        return True


def directory_of(pid: int) -> str:
    """Its working directory; empty where it is gone or may not be looked into."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def open_paths(pid: int) -> t.Set[str]:
    """The files that a process has open; empty where it is gone or may not be looked into."""
    paths = set()
    try:
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            try:
                paths.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass
    return {path for path in paths if path.startswith("/")}


def has_open(pid: int, paths: t.Iterable[str]) -> bool:
    """Whether a process has one of these files open; False where it is gone or may not be looked into."""
    return not open_paths(pid).isdisjoint(os.path.realpath(path) for path in paths)


def start_time(pid: int) -> t.Optional[float]:
    """When it was started, in seconds since the epoch, to a hundredth; None where it is gone."""
    facts = stat(pid)
    # Not by btime of /proc/stat: that is a whole second.
    return None if facts is None else time.time() - (uptime() - facts.start / os.sysconf("SC_CLK_TCK"))


def cpu_demand(pid: int) -> float:
    """Seconds in which its threads ran or waited for a free CPU, so far: on a host that is too busy, one at work gets
    little. 0 where it is gone.

    By schedstat, nanoseconds; a kernel that was built without it has only the time that they ran.
    """
    try:
        threads = [_read(f"/proc/{pid}/task/{thread}/schedstat").split() for thread in os.listdir(f"/proc/{pid}/task")]
        return sum(int(words[0]) + int(words[1]) for words in threads) / 1e9
    except (OSError, IndexError, ValueError):
        pass
    facts = stat(pid)
    return facts.cpu_seconds if facts is not None else 0.0


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal (SIGSTOP), so that SIGCONT lets it go on."""
    facts = stat(pid)
    return facts is not None and facts.state == "T"


def all_stopped(pids: t.Collection[int]) -> int:
    """The lowest of some processes where every one of them is stopped (by SIGSTOP, or a debugger) or ended; 0 where one
    can run.
    """
    stopped = []
    for pid in sorted(pids):
        facts = stat(pid)
        if facts is None:
            continue
        if facts.state in "Tt":
            stopped.append(pid)
        elif facts.state != "Z":
            return 0
    return stopped[0] if stopped else 0


def connected(port: int, pids: t.Optional[t.Collection[int]] = None) -> t.Dict[int, int]:
    """The processes, among ``pids`` or all that may be read, with a TCP connection to a remote port, by their local
    port. A socket that a process has passed on to its children is the parent's. Raises ``OpsError`` as ``holders``
    does.
    """
    local: t.Dict[int, int] = {}
    for name in ("tcp", "tcp6"):
        for space in sorted(pids)[:1] if pids else ["self"]:
            try:
                lines = _read(f"/proc/{space}/net/{name}").splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                fields = line.split()
                if fields[3] == _ESTABLISHED and int(fields[2].rpartition(":")[2], 16) == port:
                    local[int(fields[9])] = int(fields[1].rpartition(":")[2], 16)
    if not local:
        return {}
    above = parents()
    result = {}
    for inode, owners in holders(local, pids).items():
        first = sorted(pid for pid in owners if above.get(pid) not in owners)
        if first:
            result[local[inode]] = first[0]
    return result


def _address(text: str) -> str:
    raw = bytes.fromhex(text)
    # The kernel prints each 32-bit word in the byte order of the machine.
    words = struct.unpack(f"={len(raw) // 4}I", raw)
    packed = struct.pack(f">{len(words)}I", *words)
    return str(ipaddress.ip_address(packed))


def listening(pids: t.Collection[int]) -> t.List[Listener]:
    """The TCP sockets that any of ``pids``, which share a network namespace, listens on. Raises ``OpsError`` as
    ``holders`` does.
    """
    every = listeners(0, pid=min(pids)) if pids else []
    owners = holders([listener.inode for listener in every], pids) if every else {}
    return [listener for listener in every if owners[listener.inode]]


def listeners(port: int, *, pid: t.Optional[int] = None) -> t.List[Listener]:
    """The sockets that listen on a TCP port, 0 for any, in the network namespace of ``pid``."""
    result = []
    for name in ("tcp", "tcp6"):
        try:
            lines = _read(f"/proc/{pid or 'self'}/net/{name}").splitlines()[1:]
        except OSError:
            continue  # no IPv6 here, or the process ended
        for line in lines:
            fields = line.split()
            host, _colon, number = fields[1].rpartition(":")
            if fields[3] == _LISTEN and port in (0, int(number, 16)):
                result.append(Listener(_address(host), int(number, 16), int(fields[9])))
    return result


def answering(port: int, host: str, *, pid: t.Optional[int] = None) -> t.List[Listener]:
    """The listening sockets that a connection to ``host`` may reach: an exact address goes before a wildcard."""
    every = listeners(port, pid=pid)
    try:
        targets = {
            str(ipaddress.ip_address(entry[4][0])) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        }
    except (OSError, ValueError):
        targets = set()
    mapped = {f"::ffff:{target}" for target in targets} | {
        str(ipaddress.ip_address(f"::ffff:{target}")) for target in targets if ":" not in target
    }
    exact = [listener for listener in every if listener.address in targets | mapped]
    return exact or [listener for listener in every if listener.address in ("0.0.0.0", "::")]


def holders(inodes: t.Collection[int], pids: t.Optional[t.Iterable[int]] = None) -> t.Dict[int, t.Set[int]]:
    """For each socket inode the processes that have it open, among ``pids`` or all that may be read.

    Raises ``OpsError`` where none of ``pids`` is seen to hold a socket and one of them may not be looked into.
    """
    links = {f"socket:[{inode}]": inode for inode in inodes}
    result: t.Dict[int, t.Set[int]] = {inode: set() for inode in inodes}
    closed: t.List[int] = []
    for pid in parents() if pids is None else pids:
        try:
            for entry in os.listdir(f"/proc/{pid}/fd"):
                try:
                    inode = links.get(os.readlink(f"/proc/{pid}/fd/{entry}"))
                except FileNotFoundError:
                    continue
                if inode is not None:
                    result[inode].add(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            if not ending(pid):
                closed.append(pid)
    if pids is not None and closed and not all(result.values()):
        raise OpsError(
            f"Which sockets process {closed[0]} holds cannot be read.",
            hint="Run as root or as the user of the service (become: true), or set verify_owner to false in its gate.",
        )
    return result


def environment_of(pid: int) -> t.Dict[str, str]:
    """The environment that a process was started with. Needs its user or root."""
    try:
        return _environ(pid)
    except OSError as error:
        raise OpsError(
            f"Cannot read the environment of process {pid}: {error.strerror}.",
            hint="Run this task as that process's user, or as root.",
        ) from error


def user_of(pid: int) -> int:
    """The number of the user whose rights a process has (its effective one)."""
    try:
        return int(status(pid)["Uid"].split()[1])
    except OSError as error:
        raise OpsError(
            f"Cannot look at process {pid}: {error.strerror}.", hint="Run this task as that process's user, or as root."
        ) from error


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
