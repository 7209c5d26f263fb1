# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Walks and removes below one directory through descriptors only, so that no symlink, rename or mount can lead
elsewhere.

Every directory is opened relative to its parent's descriptor with O_NOFOLLOW and compared with what was seen there:
device and inode. A bind mount of the same filesystem has the same device, but another inode than the directory under
it. Names are removed relative to such a descriptor.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import functools
import operator
import os
import pickle
import re
import signal
import stat
import struct
import threading
import time
import typing as t

from ..core.options import absolute_path
from ..core.results import OpsError
from . import open_files

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: The times of a status, the one first that is the newest of almost every file. As whole seconds they are its items 9,
#: 8 and 7.
_TIMES = ("st_ctime_ns", "st_mtime_ns", "st_atime_ns")
#: One open descriptor a level; whoever nests deeper than this hides something.
MAX_DEPTH = 200
#: A walk that has taken so many seconds is shared with a second process; forking one and reading its result takes about
#: a tenth of that.
SHARE_AFTER = 0.1
#: The directories that are shared are drawn in so many lots at most: their numbers fit into one pipe.
_LOTS = 4096
_LOT = struct.Struct("=I")
#: A regular file that may be removed: its directory, name and status.
Seen = t.Tuple["Directory", str, os.stat_result]
T = t.TypeVar("T")
_Named = t.Optional[t.Callable[[str], object]]
#: Directories that are empty as a rule, and are used all the same. None of them goes for being empty.
KEPT_EMPTY = re.compile(r"lost\+found|\.(?:X11|ICE|XIM|font|Test)-unix|systemd-private-.+|snap-private-tmp|snap\..+")
#: Directories in which a mistake costs a machine or its data. None of them is cleaned as a whole.
DANGEROUS: t.Tuple[str, ...] = (
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/efi",
    "/etc",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/lost+found",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/usr",
    "/var",
    "/var/backups",
    "/var/cache",
    "/var/lib",
    "/var/lib/apt",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/dpkg",
    "/var/lib/mysql",
    "/var/lib/postgresql",
    "/var/lib/redis",
    "/var/lib/systemd",
    "/var/mail",
    "/var/spool",
)
#: Nothing below them is ours to clean.
DANGEROUS_BELOW: t.Tuple[str, ...] = (
    "/bin",
    "/boot",
    "/dev",
    "/efi",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/dpkg",
    "/var/lib/postgresql",
    "/var/lib/mysql",
    "/var/lib/redis",
    "/var/lib/docker",
    "/var/lib/containers",
)
#: A directory that holds one of these is somebody's data, whatever its files are called and however old they are.
DATA_MARKERS: t.FrozenSet[str] = frozenset({"PG_VERSION", ".git"})


class Directory:
    """A directory as it was seen: its name in its parent, and its identity. Small, as there may be many."""

    __slots__ = ("device", "inode", "name", "parent")

    def __init__(self, parent: t.Optional[Directory], name: str, device: int, inode: int) -> None:
        self.parent = parent
        self.name = name
        self.device = device
        self.inode = inode

    def __lt__(self, other: Directory) -> bool:
        """Any order will do: it lets a heap of files hold directories (one inode is seen twice where somebody moves it
        meanwhile).
        """
        return (self.device, self.inode) < (other.device, other.inode)

    def names(self) -> t.List[str]:
        """The names that lead here from the root, without it."""
        result: t.List[str] = []
        node: t.Optional[Directory] = self
        while node is not None and node.parent is not None:
            result.append(node.name)
            node = node.parent
        return result[::-1]


class Leftover(t.NamedTuple):
    """An empty directory or a dangling link: the newest moment in it, how high it lies (negated depth: what is inside
    comes first), where, its status, and its bytes on disk.
    """

    moment: int
    height: int
    directory: Directory
    name: str
    status: os.stat_result
    size: int


def require_safe(path: str, name: str = "path") -> str:
    """The real path of a directory that may be cleaned.

    Raises ``OpsError`` for one that must not be, before anything is opened.
    """
    path = absolute_path(name, path)
    if os.path.islink(path):
        raise OpsError(f"{path} is a symbolic link.", hint="Name the directory itself.")
    real = os.path.realpath(path)
    home = os.path.dirname(real) == "/home"
    below = next((top for top in DANGEROUS_BELOW if real.startswith(top + "/")), "")
    if real in DANGEROUS or home or below:
        why = f"it lies below {below}" if below else "too much depends on it"
        raise OpsError(f"{real} is not cleaned: {why}.", hint="Name a directory of temporary files.")
    return real


def mount_id(descriptor: int) -> int:
    info = os.open(f"/proc/self/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _before, separator, after = os.read(info, 4096).partition(b"mnt_id:")
    finally:
        os.close(info)
    return int(after.split(None, 1)[0]) if separator else -1


def open_directory(path: str) -> int:
    """Opens an absolute real path one name at a time, following no link. Raises ``OSError``."""
    descriptor = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    names = [name for name in path.split("/") if name]
    try:
        for index, name in enumerate(names):
            flags = _OPEN if index == len(names) - 1 else os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def locked_by_another(descriptor: int) -> bool:
    """Whether somebody holds a BSD lock on an open directory: so a program says that nobody is to clean it
    (systemd-tmpfiles heeds it too).
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EWOULDBLOCK)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _exists(name: str, parent: int) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return True


_Level = t.Tuple[Directory, int, t.List[t.Tuple[str, int]]]
#: The files of one directory, given its descriptor; the directories in it are put into the list.
_Files = t.Callable[[Directory, int, t.List[t.Tuple[str, int]]], t.Iterator[Seen]]
#: Gives the number of the next lot, None when there are no more.
_Draw = t.Callable[[], t.Optional[int]]


def _may_fork() -> bool:
    """Whether a second process pays: not on one processor.

    And a thread that holds a lock while the others are forked would never give it back.
    """
    return len(os.sched_getaffinity(0)) > 1 and threading.active_count() == 1


class _SecondLost(Exception):
    """The second process ended without its result."""


class _Shared(t.Generic[T]):
    """A second process that walks its part of a tree: two of them take 0.6 of the time of one, threads gain nothing
    (one holds the interpreter).
    """

    def __init__(self, consume: t.Callable[[t.Iterator[Seen]], T], after: float) -> None:
        self._consume = consume
        self._after = after
        self._pid = 0
        self._pipes: t.List[int] = []
        self._tried = False

    def due(self) -> bool:
        """Whether the walk is to be shared now; that is tried once."""
        return not self._tried and time.monotonic() >= self._after and _may_fork()

    def start(self, tree: Tree, lots: int, drawn: t.Callable[[_Draw], t.Iterator[Seen]]) -> _Draw:
        """Forks; gives what draws the next lot, None when there are no more.

        Where no process is to be had, it draws all of them.
        """
        self._tried = True
        parent = os.getpid()
        try:
            self._pipes += os.pipe()
            self._pipes += os.pipe()
            pid = os.fork()
        except OSError:
            return functools.partial(next, iter(range(lots)), None)
        lots_out, lots_in, result_out, result_in = self._pipes

        def draw() -> t.Optional[int]:
            # The kernel lets one reader at a time into a pipe, so a lot is never torn.
            lot = os.read(lots_out, _LOT.size)
            return int(_LOT.unpack(lot)[0]) if lot else None

        if pid == 0:
            status = 1
            try:
                os.close(lots_in)
                os.close(result_out)
                tree.skipped.clear()
                result = self._consume(drawn(lambda: draw() if os.getppid() == parent else None))
                with os.fdopen(result_in, "wb") as pipe:
                    pickle.dump((result, tree.skipped), pipe, protocol=4)
                status = 0
            finally:
                os._exit(status)
        self._pid = pid
        os.write(lots_in, b"".join(_LOT.pack(lot) for lot in range(lots)))  # 16 KiB at most, and a pipe takes 64
        for descriptor in (lots_in, result_in):
            os.close(descriptor)
            self._pipes.remove(descriptor)
        return draw

    def result(self) -> t.Optional[t.Tuple[T, t.Counter[str]]]:
        """What the second process found; None where there was none. Raises ``_SecondLost``."""
        if not self._pid:
            return None
        with os.fdopen(self._pipes.pop(), "rb") as pipe:
            content = pipe.read()
        pid, self._pid = self._pid, 0
        if os.waitpid(pid, 0)[1]:
            raise _SecondLost
        return t.cast(t.Tuple[T, t.Counter[str]], pickle.loads(content))  # written by our own child into our own pipe

    def end(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
        for descriptor in self._pipes:
            os.close(descriptor)
        self._pipes = []


class Tree:
    """One directory that may be cleaned, kept open. A context manager."""

    def __init__(self, path: str, *, protect: t.Collection[str] = (), recurse: bool = True) -> None:
        """``protect``: absolute paths that are neither entered nor removed, by name and by identity."""
        self.path = require_safe(path)
        self.recurse = recurse
        self._protected_paths = {os.path.normpath(entry) for entry in protect}
        self._protected: t.Set[open_files.Identity] = set()
        for entry in protect:
            with contextlib.suppress(OSError):
                status = os.stat(entry)
                self._protected.add((status.st_dev, status.st_ino))
        try:
            self._root = open_directory(self.path)
        except OSError as error:
            raise OpsError(
                f"Cannot open {self.path}: {error.strerror}.",
                hint="Name a directory that exists and that this user may read.",
            ) from error
        status = os.fstat(self._root)
        self.device = status.st_dev
        self.mount = mount_id(self._root)
        self.node = Directory(None, "", status.st_dev, status.st_ino)
        #: Why entries were left, by reason.
        self.skipped: t.Counter[str] = collections.Counter()
        self._cache: t.OrderedDict[Directory, int] = collections.OrderedDict()
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            self.close()
            raise OpsError(
                f"Everyone may rename files in {self.path}, as it lacks the sticky bit.", hint=f"chmod +t {self.path}"
            )
        if (status.st_dev, status.st_ino) in self._protected:
            self.close()
            raise OpsError(f"{self.path} is protected.", hint="Take it out of protect, or out of the sources.")

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_ignored: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self._cache.values():
            os.close(descriptor)
        self._cache.clear()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def path_of(self, directory: Directory, name: str) -> str:
        return "/".join([self.path, *directory.names(), name])

    def is_protected(self, directory: Directory, name: str, status: os.stat_result) -> bool:
        if (status.st_dev, status.st_ino) in self._protected:
            return True
        return bool(self._protected_paths) and self.path_of(directory, name) in self._protected_paths

    def gather(
        self,
        consume: t.Callable[[t.Iterator[Seen]], T],
        *,
        named: _Named = None,
        excluded: _Named = None,
        until: t.Optional[int] = None,
        by: t.Sequence[str] = ("st_mtime_ns",),
    ) -> t.List[T]:
        """What ``consume`` makes of every regular file that may be removed: its directory, name and status.

        One result, or two where a long walk was shared with a second process. ``consume`` begins anew at each call,
        sees every file in one of the calls, and gives something that can be pickled. ``named``: only files for whose
        name it gives something true. ``excluded``: no file, and nothing in a directory, for whose name it gives something
        true. ``until``: only files of which every time in ``by`` is at most that, in
        nanoseconds since 1970. What is left alone is counted in ``skipped``: ``special`` (links, sockets, pipes,
        devices), ``dangling_link`` and ``empty_directory`` (old ones; see ``leftovers``), ``young`` (later than
        ``until``), ``excluded``, ``hardlink``, ``mount``, ``protected``, ``locked`` (a directory with a BSD lock),
        ``data`` (below a marker of ``DATA_MARKERS``), ``deep``, ``unreadable``, ``changed`` (another directory took its
        name).
        """
        # The newest time of almost every file is the first of these.
        times = sorted(by, key=_TIMES.index)

        def chosen(directory: Directory, descriptor: int, inner: t.List[t.Tuple[str, int]]) -> t.Iterator[Seen]:
            return self._files(directory, descriptor, inner, named, excluded, until, times)

        shared = _Shared(consume, time.monotonic() + SHARE_AFTER)
        self.skipped.clear()
        if locked_by_another(self._root):
            self.skipped["locked"] += 1
            return []
        try:
            results = [consume(self._below(self.node, os.dup(self._root), 0, chosen, shared))]
            other = shared.result()
        except _SecondLost:
            # It ran out of memory, or somebody ended it: then this process walks alone.
            self.skipped.clear()
            return [consume(self._below(self.node, os.dup(self._root), 0, chosen))]
        finally:
            shared.end()
        if other is not None:
            results.append(other[0])
            self.skipped.update(other[1])
        return results

    def _below(
        self, top: Directory, opened: int, depth: int, files: _Files, shared: t.Optional[_Shared[t.Any]] = None
    ) -> t.Iterator[Seen]:
        """The files of a directory and of all in it.

        ``opened``: its descriptor, which is closed here; ``depth``: how deep it lies below the root.
        """
        levels: t.List[_Level] = []
        fresh: t.Optional[t.Tuple[Directory, int]] = (top, opened)
        try:
            while fresh or levels:
                if fresh:
                    directory, descriptor = fresh
                    inner: t.List[t.Tuple[str, int]] = []
                    levels.append((directory, descriptor, inner))
                    fresh = None
                    yield from files(directory, descriptor, inner)
                    if shared is not None and shared.due():
                        yield from self._share(levels, depth, files, shared)
                directory, descriptor, inner = levels[-1]
                if not inner:
                    levels.pop()
                    os.close(descriptor)
                    continue
                name, inode = inner.pop()
                entered = self._descend(directory, descriptor, depth + len(levels), name, inode)
                if entered is not None:
                    fresh = entered
        finally:
            for _directory, descriptor, _inner in levels:
                os.close(descriptor)
            if fresh:
                os.close(fresh[1])

    def _descend(
        self, directory: Directory, descriptor: int, depth: int, name: str, inode: int
    ) -> t.Optional[t.Tuple[Directory, int]]:
        if depth >= MAX_DEPTH:
            self.skipped["deep"] += 1
            return None
        child = self._enter(descriptor, name, inode)
        return None if child is None else (Directory(directory, name, self.device, inode), child)

    def _share(self, levels: t.Sequence[_Level], depth: int, files: _Files, shared: _Shared[t.Any]) -> t.Iterator[Seen]:
        """Draws the directories that are still to be entered, lot by lot, together with a second process, which has
        inherited the descriptors.
        """
        pending = [
            (directory, descriptor, depth + level, name, inode)
            for level, (directory, descriptor, inner) in enumerate(levels, start=1)
            for name, inode in inner
        ]
        if len(pending) < 2:
            return
        lots = min(len(pending), _LOTS)

        def drawn(draw: _Draw) -> t.Iterator[Seen]:
            lot = draw()
            while lot is not None:
                for directory, descriptor, deep, name, inode in pending[lot::lots]:
                    entered = self._descend(directory, descriptor, deep, name, inode)
                    if entered is not None:
                        yield from self._below(*entered, deep, files)
                lot = draw()

        for _directory, _descriptor, inner in levels:
            inner.clear()
        yield from drawn(shared.start(self, lots, drawn))

    def _files(
        self,
        directory: Directory,
        descriptor: int,
        inner: t.List[t.Tuple[str, int]],
        named: _Named,
        excluded: _Named,
        until: t.Optional[int],
        times: t.Sequence[str],
    ) -> t.Iterator[t.Tuple[Directory, str, os.stat_result]]:
        """The files of one directory; ``inner`` gets the directories in it.

        What most files end at comes first: this runs a million times.
        """
        skipped = self.skipped
        protects = bool(self._protected or self._protected_paths)
        moments = [operator.attrgetter(name) for name in times]
        # The whole seconds of the first time, by their place in a status: that is looked up faster than an attribute.
        place = 9 - _TIMES.index(times[0])
        seconds = float("inf") if until is None else until // 10**9
        unmarked = False
        young = 0
        empty = True
        try:
            # Before it is read, which is an access.
            before = os.fstat(descriptor)
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    empty = False
                    try:
                        if excluded is not None and excluded(entry.name):
                            skipped["excluded"] += 1
                            continue
                        if not entry.is_file(follow_symlinks=False):
                            if not entry.is_dir(follow_symlinks=False):
                                if named is None or named(entry.name):
                                    dangling = entry.is_symlink() and self._is_dangling(descriptor, entry.name)
                                    status = entry.stat(follow_symlinks=False)
                                    old = until is None or all(moment(status) <= until for moment in moments)
                                    skipped["dangling_link" if dangling and old else "special"] += 1
                            elif self.recurse:
                                inner.append((entry.name, entry.inode()))
                            continue
                        if named is not None and not named(entry.name):
                            continue
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # removed meanwhile
                    if status[place] > seconds or (
                        until is not None and any(moment(status) > until for moment in moments)
                    ):
                        young += 1
                        continue
                    # Asked for where it matters: in most directories of a large tree, nothing is old.
                    if not unmarked and self._is_data(descriptor):
                        young = 0
                        inner.clear()
                        return
                    unmarked = True
                    if not stat.S_ISREG(status.st_mode):
                        skipped["special"] += 1  # another took its name since
                    elif status.st_nlink != 1:
                        skipped["hardlink"] += 1
                    elif protects and self.is_protected(directory, entry.name, status):
                        skipped["protected"] += 1
                    else:
                        yield directory, entry.name, status
            if inner and not unmarked and self._is_data(descriptor):
                young = 0
                inner.clear()
            if empty and directory.parent is not None and (named is None or named(directory.name)):
                old = until is None or all(moment(before) <= until for moment in moments)
                if old and not KEPT_EMPTY.fullmatch(directory.name):
                    skipped["empty_directory"] += 1
        except OSError:
            skipped["unreadable"] += 1
        finally:
            if young:
                skipped["young"] += young

    @staticmethod
    def _is_dangling(parent: int, name: str) -> bool:
        try:
            os.stat(name, dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # a loop, or a target that this user may not see
        return False

    def leftovers(
        self,
        *,
        named: _Named,
        excluded: _Named,
        until: int,
        by: t.Sequence[str],
        seen: t.Mapping[open_files.Identity, t.Tuple[os.stat_result, int]],
    ) -> t.List[Leftover]:
        """Empty directories and dangling links that may go, the oldest first and what is inside before what is around
        it.

        A directory that holds nothing but such ones is empty, too. ``seen``: directories from which files were taken:
        their status before that, and how many of the names that are still there are to be taken for gone (in check
        mode). Those that may not go are counted in ``skipped``: ``young``, ``open`` (the working directory of a
        process, or open), ``protected`` (also names of ``KEPT_EMPTY``).
        """
        moments = [operator.attrgetter(name) for name in by]
        used = open_files.open_directories()
        found: t.List[Leftover] = []
        skipped, self.skipped = self.skipped, collections.Counter()

        def may_go(directory: Directory, name: str, status: os.stat_result) -> bool:
            if named is not None and not named(name):
                return False
            why = ""
            if KEPT_EMPTY.fullmatch(name) or self.is_protected(directory, name, status):
                why = "protected"
            elif any(moment(status) > until for moment in moments):
                why = "young"
            elif (status.st_dev, status.st_ino) in used:
                why = "open"
            if why:
                skipped[why] += 1
            return not why

        def look(directory: Directory, descriptor: int, depth: int) -> t.Optional[int]:
            """The newest moment in a directory that would be empty, else None."""
            if self._is_data(descriptor):
                return None
            identity = (directory.device, directory.inode)
            before, gone = seen.get(identity, (None, 0))
            status = before or os.fstat(descriptor)
            newest, left = max(moment(status) for moment in moments), -gone
            with os.scandir(descriptor) as entries:
                names = sorted(entries, key=lambda entry: entry.name)
            for entry in names:
                moment = None
                if not (excluded is not None and excluded(entry.name)):
                    moment = look_at(directory, descriptor, entry, depth)
                if moment is None:
                    left += 1
                else:
                    newest = max(newest, moment)
            return newest if left <= 0 else None

        def look_at(directory: Directory, descriptor: int, entry: os.DirEntry[str], depth: int) -> t.Optional[int]:
            """The moment of a name that goes, else None."""
            try:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    if not self._is_dangling(descriptor, entry.name) or not may_go(directory, entry.name, status):
                        return None
                    moment = max(moment_of(status) for moment_of in moments)
                    found.append(Leftover(moment, -depth, directory, entry.name, status, 0))
                    return moment
                if not stat.S_ISDIR(status.st_mode) or not self.recurse or KEPT_EMPTY.fullmatch(entry.name):
                    return None
                entered = self._descend(directory, descriptor, depth, entry.name, entry.inode())
            except OSError:
                return None
            if entered is None:
                return None
            inner, opened = entered
            try:
                newest = look(inner, opened, depth + 1)
            except OSError:
                return None
            finally:
                os.close(opened)
            status = seen.get((inner.device, inner.inode), (status, 0))[0]
            if newest is None or not may_go(directory, entry.name, status):
                return None
            found.append(Leftover(newest, -depth, directory, entry.name, status, status.st_blocks * 512))
            return newest

        try:
            if not locked_by_another(self._root):
                look(self.node, self._root, 1)
        finally:
            self.skipped = skipped
        return sorted(found, key=lambda leftover: leftover[:2])

    def remove_leftover(self, leftover: Leftover, *, dry: bool = False) -> str:
        """Removes an empty directory or a dangling link. Gives ``removed``, or why it was left; ``dry`` only tells."""
        parent = self.descriptor_of(leftover.directory)
        if parent is None:
            return "changed"
        if dry:
            return "removed"
        try:
            status = os.stat(leftover.name, dir_fd=parent, follow_symlinks=False)
            if (status.st_dev, status.st_ino) != (leftover.status.st_dev, leftover.status.st_ino):
                return "changed"
            if locked_by_another(parent):
                return "locked"
            if stat.S_ISLNK(status.st_mode):
                if not self._is_dangling(parent, leftover.name):
                    return "changed"
                os.unlink(leftover.name, dir_fd=parent)
            else:
                os.rmdir(leftover.name, dir_fd=parent)
        except FileNotFoundError:
            return "changed"
        except OSError as error:
            return "changed" if error.errno == errno.ENOTEMPTY else "refused"
        return "removed"

    def _is_data(self, descriptor: int) -> bool:
        is_data = any(_exists(marker, descriptor) for marker in DATA_MARKERS)
        if is_data:
            self.skipped["data"] += 1
        return is_data

    def _enter(self, parent: int, name: str, inode: t.Optional[int]) -> t.Optional[int]:
        """Opens a directory inside another if it is still the one that was seen, on our filesystem and mount."""
        try:
            try:
                descriptor = os.open(name, _OPEN | os.O_NOATIME, dir_fd=parent)
            except PermissionError:
                descriptor = os.open(name, _OPEN, dir_fd=parent)  # only its owner may leave the time of access alone
        except OSError as error:
            # ELOOP and ENOTDIR: it became a link or a file since it was listed.
            self.skipped["changed" if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT) else "unreadable"] += 1
            return None
        status = os.fstat(descriptor)
        why = ""
        if status.st_dev != self.device:
            why = "mount"
        elif inode is None or status.st_ino != inode:
            # A listing shows the directory under a mount, and opening it leads to what is mounted: only the same inode
            # is the same directory.
            why = "mount" if mount_id(descriptor) != self.mount else "" if inode is None else "changed"
        elif (status.st_dev, status.st_ino) in self._protected:
            why = "protected"
        elif locked_by_another(descriptor):
            why = "locked"
        if why:
            self.skipped[why] += 1
            os.close(descriptor)
            return None
        return descriptor

    def descriptor_of(self, directory: Directory) -> t.Optional[int]:
        """A descriptor of a directory that was walked, found again from the root; None if it is not there any more.

        Kept open for the next use.
        """
        if directory.parent is None:
            return self._root
        cached = self._cache.get(directory)
        if cached is not None:
            self._cache.move_to_end(directory)
            return cached
        parent = self.descriptor_of(directory.parent)
        if parent is None:
            return None
        descriptor = self._enter(parent, directory.name, directory.inode)
        if descriptor is None:
            return None
        self._cache[directory] = descriptor
        # The parents of the newest are the newest before it: dropping the oldest never closes what is in use.
        while len(self._cache) > MAX_DEPTH + 64:
            os.close(self._cache.popitem(last=False)[1])
        return descriptor

    def remove(
        self,
        parent: int,
        name: str,
        seen: os.stat_result,
        *,
        is_open: t.Callable[[open_files.Identity], t.Optional[bool]],
        dry: bool = False,
    ) -> str:
        """Unlinks a file that is still the one that was seen and that nobody has open. Gives ``removed``, or why it was
        left; ``dry`` only tells.

        ``is_open`` is asked where the kernel gives no lease. ``open``: somebody has it open. ``unseen``: somebody may,
        whom we cannot see. ``locked``: somebody holds a lock on its directory. ``changed``: it is another file, or was
        written since. ``mount``: something is mounted on it. ``refused``: no right, read-only or immutable.
        """
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            return "changed"
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                return "open"  # somebody holds a lease on it
            if error.errno != errno.EACCES:
                return "changed"
            descriptor = -1  # not ours to read, though perhaps ours to remove
        try:
            status = os.fstat(descriptor) if descriptor >= 0 else os.stat(name, dir_fd=parent, follow_symlinks=False)
            if (status.st_dev, status.st_ino, status.st_mtime_ns) != (
                seen.st_dev,
                seen.st_ino,
                seen.st_mtime_ns,
            ) or status.st_nlink != 1:
                return "changed"
            # Of an overlay whose layers lie on several filesystems, files have other devices than their directory.
            if status.st_dev != self.device and (descriptor < 0 or mount_id(descriptor) != self.mount):
                return "mount"
            with open_files.lease(descriptor) if descriptor >= 0 else contextlib.nullcontext() as free:
                if free is None:
                    is_held = is_open((status.st_dev, status.st_ino))
                    if is_held is None:
                        return "unseen"
                    free = not is_held
                if not free:
                    return "open"
                if locked_by_another(parent):
                    return "locked"
                if not dry:
                    os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return "changed"
        except OSError:
            return "refused"
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return "removed"
