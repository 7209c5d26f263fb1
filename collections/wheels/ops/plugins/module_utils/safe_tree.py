# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Walks and removes below one directory through descriptors only, so that no symlink, rename or mount can lead elsewhere.

Every directory is opened relative to its parent's descriptor with O_NOFOLLOW and compared with what was seen there: device and inode. A bind
mount of the same filesystem has the same device, but another inode than the directory under it. Names are removed relative to such a descriptor.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import operator
import os
import stat
import typing as t

from . import holders
from .results import OpsError

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: The times of a status, the one first that is the newest of almost every file. As whole seconds they are its items 9, 8 and 7.
_TIMES = ("st_ctime_ns", "st_mtime_ns", "st_atime_ns")
#: One open descriptor a level; whoever nests deeper than this hides something.
MAX_DEPTH = 200
#: Directories in which a mistake costs a machine or its data. None of them is cleaned as a whole.
DANGEROUS: t.Tuple[str, ...] = (
    "/", "/bin", "/boot", "/dev", "/efi", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/lost+found", "/media", "/mnt", "/opt", "/proc",
    "/root", "/run", "/sbin", "/srv", "/sys", "/usr", "/var", "/var/backups", "/var/cache", "/var/lib", "/var/lib/apt", "/var/lib/containers",
    "/var/lib/docker", "/var/lib/dpkg", "/var/lib/mysql", "/var/lib/postgresql", "/var/lib/redis", "/var/lib/systemd", "/var/mail", "/var/spool",
)  # fmt: skip
#: Nothing below them is ours to clean.
DANGEROUS_BELOW: t.Tuple[str, ...] = (
    "/bin", "/boot", "/dev", "/efi", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr", "/var/lib/dpkg", "/var/lib/postgresql",
    "/var/lib/mysql", "/var/lib/redis", "/var/lib/docker", "/var/lib/containers",
)  # fmt: skip
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
        """Any order will do: it lets a heap of files hold directories (one inode is seen twice where somebody moves it meanwhile)."""
        return (self.device, self.inode) < (other.device, other.inode)

    def names(self) -> t.List[str]:
        """The names that lead here from the root, without it."""
        found: t.List[str] = []
        node: t.Optional[Directory] = self
        while node is not None and node.parent is not None:
            found.append(node.name)
            node = node.parent
        return found[::-1]


def absolute(path: str, name: str) -> str:
    """A path without ``..``, made normal. Raises ``OpsError`` that names the option."""
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise OpsError(f"{name} is {path!r}.", hint="Give an absolute path without '..'.")
    return os.path.normpath(path).replace("//", "/")


def require_safe(path: str, name: str = "path") -> str:
    """The real path of a directory that may be cleaned. Raises ``OpsError`` for one that must not be, before anything is opened."""
    path = absolute(path, name)
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
        _before, found, after = os.read(info, 4096).partition(b"mnt_id:")
    finally:
        os.close(info)
    return int(after.split(None, 1)[0]) if found else -1


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


def _exists(name: str, parent: int) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return True


class Tree:
    """One directory that may be cleaned, kept open. A context manager."""

    def __init__(self, path: str, *, protect: t.Collection[str] = (), recurse: bool = True) -> None:
        """``protect``: absolute paths that are neither entered nor removed, by name and by identity."""
        self.path = require_safe(path)
        self.recurse = recurse
        self._protected_paths = {os.path.normpath(entry) for entry in protect}
        self._protected: t.Set[holders.Identity] = set()
        for entry in protect:
            with contextlib.suppress(OSError):
                status = os.stat(entry)
                self._protected.add((status.st_dev, status.st_ino))
        try:
            self._root = open_directory(self.path)
        except OSError as error:
            raise OpsError(f"Cannot open {self.path}: {error.strerror}.", hint="Name a directory that exists and that this user may read.") from error
        status = os.fstat(self._root)
        self.device = status.st_dev
        self.mount = mount_id(self._root)
        self.node = Directory(None, "", status.st_dev, status.st_ino)
        #: Why entries were left, by reason.
        self.skipped: t.Counter[str] = collections.Counter()
        self._cache: t.OrderedDict[Directory, int] = collections.OrderedDict()
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            self.close()
            raise OpsError(f"Everyone may rename files in {self.path}, as it lacks the sticky bit.", hint=f"chmod +t {self.path}")
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

    def walk(
        self, *, named: t.Optional[t.Callable[[str], object]] = None, until: t.Optional[int] = None, by: t.Sequence[str] = ("st_mtime_ns",)
    ) -> t.Iterator[t.Tuple[Directory, str, os.stat_result]]:
        """Every regular file that may be removed: its directory, name and status.

        ``named``: only files for whose name it gives something true. ``until``: only files of which every time in ``by`` is at most that, in
        nanoseconds since 1970. What is left alone is counted in ``skipped``: ``special`` (links, sockets, pipes, devices), ``young`` (later than
        ``until``), ``hardlink``, ``mount``, ``protected``, ``data`` (below a marker of ``DATA_MARKERS``), ``deep``, ``unreadable``, ``changed``
        (another directory took its name).
        """
        self.skipped.clear()
        # The newest time of almost every file is the first of these.
        times = sorted(by, key=_TIMES.index)
        yield from self._walk(lambda directory, descriptor, inner: self._files(directory, descriptor, inner, named, until, times))

    def _walk(
        self, files: t.Callable[[Directory, int, t.List[t.Tuple[str, int]]], t.Iterator[t.Tuple[Directory, str, os.stat_result]]]
    ) -> t.Iterator[t.Tuple[Directory, str, os.stat_result]]:
        # Each level: the directory, its descriptor, and the names of directories in it that are still to be entered.
        levels: t.List[t.Tuple[Directory, int, t.List[t.Tuple[str, int]]]] = []
        fresh: t.Optional[t.Tuple[Directory, int]] = (self.node, os.dup(self._root))
        try:
            while fresh or levels:
                if fresh:
                    directory, descriptor = fresh
                    inner: t.List[t.Tuple[str, int]] = []
                    levels.append((directory, descriptor, inner))
                    fresh = None
                    yield from files(directory, descriptor, inner)
                directory, descriptor, inner = levels[-1]
                if not inner:
                    levels.pop()
                    os.close(descriptor)
                    continue
                name, inode = inner.pop()
                if len(levels) >= MAX_DEPTH:
                    self.skipped["deep"] += 1
                    continue
                opened = self._enter(descriptor, name, inode)
                if opened is not None:
                    fresh = (Directory(directory, name, self.device, inode), opened)
        finally:
            for _directory, descriptor, _inner in levels:
                os.close(descriptor)
            if fresh:
                os.close(fresh[1])

    def _files(
        self,
        directory: Directory,
        descriptor: int,
        inner: t.List[t.Tuple[str, int]],
        named: t.Optional[t.Callable[[str], object]],
        until: t.Optional[int],
        times: t.Sequence[str],
    ) -> t.Iterator[t.Tuple[Directory, str, os.stat_result]]:
        """The files of one directory; ``inner`` gets the directories in it. What most files end at comes first: this runs a million times."""
        skipped, device = self.skipped, self.device
        protects = bool(self._protected or self._protected_paths)
        moments = [operator.attrgetter(name) for name in times]
        # The whole seconds of the first time, by their place in a status: that is looked up faster than an attribute.
        place = 9 - _TIMES.index(times[0])
        seconds = float("inf") if until is None else until // 10**9
        unmarked = False
        young = 0
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    try:
                        if not entry.is_file(follow_symlinks=False):
                            if not entry.is_dir(follow_symlinks=False):
                                skipped["special"] += named is None or bool(named(entry.name))
                            elif self.recurse:
                                inner.append((entry.name, entry.inode()))
                            continue
                        if named is not None and not named(entry.name):
                            continue
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # removed meanwhile
                    if status[place] > seconds or (until is not None and any(moment(status) > until for moment in moments)):
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
                    elif status.st_dev != device:
                        skipped["mount"] += 1
                    elif status.st_nlink != 1:
                        skipped["hardlink"] += 1
                    elif protects and self.is_protected(directory, entry.name, status):
                        skipped["protected"] += 1
                    else:
                        yield directory, entry.name, status
            if inner and not unmarked and self._is_data(descriptor):
                young = 0
                inner.clear()
        except OSError:
            skipped["unreadable"] += 1
        finally:
            if young:
                skipped["young"] += young

    def _is_data(self, descriptor: int) -> bool:
        found = any(_exists(marker, descriptor) for marker in DATA_MARKERS)
        if found:
            self.skipped["data"] += 1
        return found

    def _enter(self, parent: int, name: str, inode: t.Optional[int]) -> t.Optional[int]:
        """Opens a directory inside another if it is still the one that was seen, on our filesystem and mount."""
        try:
            descriptor = os.open(name, _OPEN, dir_fd=parent)
        except OSError as error:
            # ELOOP and ENOTDIR: it became a link or a file since it was listed.
            self.skipped["changed" if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT) else "unreadable"] += 1
            return None
        status = os.fstat(descriptor)
        why = ""
        if status.st_dev != self.device:
            why = "mount"
        elif inode is None or status.st_ino != inode:
            # A listing shows the directory under a mount, and opening it leads to what is mounted: only the same inode is the same directory.
            why = "mount" if mount_id(descriptor) != self.mount else "" if inode is None else "changed"
        elif (status.st_dev, status.st_ino) in self._protected:
            why = "protected"
        if why:
            self.skipped[why] += 1
            os.close(descriptor)
            return None
        return descriptor

    def descriptor_of(self, directory: Directory) -> t.Optional[int]:
        """A descriptor of a directory that was walked, found again from the root; None if it is not there any more. Kept open for the next use."""
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

    def remove(self, parent: int, name: str, seen: os.stat_result, *, is_open: t.Callable[[holders.Identity], t.Optional[bool]], dry: bool = False) -> str:
        """Unlinks a file that is still the one that was seen and that nobody has open. Gives ``removed``, or why it was left; ``dry`` only tells.

        ``is_open`` is asked where the kernel gives no lease. ``open``: somebody has it open. ``unseen``: somebody may, whom we cannot see.
        ``changed``: it is another file, or was written since. ``refused``: no right, read-only, a mount point or immutable.
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
            if (status.st_dev, status.st_ino, status.st_mtime_ns) != (seen.st_dev, seen.st_ino, seen.st_mtime_ns) or status.st_nlink != 1:
                return "changed"
            with holders.lease(descriptor) if descriptor >= 0 else contextlib.nullcontext() as free:
                if free is None:
                    known = is_open((status.st_dev, status.st_ino))
                    if known is None:
                        return "unseen"
                    free = not known
                if not free:
                    return "open"
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
