# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading and writing files below directories that somebody else may own.

Every directory is opened by its descriptor, one name at a time, with O_NOFOLLOW, and every name is read, made, renamed
or removed relative to such a descriptor: whoever swaps a directory for a link, at any moment, is refused and never
followed. Owner, mode and time are set by the descriptor of a new file before it takes its name, so that whoever kills
us leaves the old file or the new one, complete.

A new file is written as ``.NAME.TOKEN.wheels-ops`` under an exclusive ``flock``. A writer that was killed holds no lock
any more: what it left is told apart from the file of a writer that lives, and is removed by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import typing as t
from pathlib import Path

from ..core.results import OpsError
from . import attributes
from .safe_tree import open_directory

SUFFIX = ".wheels-ops"
#: A file of a backend or of ours is never larger. Reading stops here, so that a sparse file of a terabyte does no harm.
MAX_BYTES = 64 * 2**20
#: As many links as the kernel follows (``path_resolution(7)``).
_MAX_LINKS = 40
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PASS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_HINT = "Nothing of it was changed. Give the user of this task the right, or room."


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def real_directory(path: t.Union[str, Path]) -> str:
    """The path of a directory without links.

    Raises ``OpsError`` for a link that nobody should follow, ``OSError`` where there is no directory.
    """
    descriptor, real = _follow(str(path))
    os.close(descriptor)
    return real


def open_real_directory(path: t.Union[str, Path]) -> int:
    """A descriptor of a directory, which the caller closes. Raises as ``real_directory`` does."""
    return _follow(str(path))[0]


def _follow(path: str) -> t.Tuple[int, str]:
    """A descriptor of a directory and its real path.

    A link is followed where root or this user made it in a directory of such a user; a link of anybody else only to a
    directory of his own, where he can write anyway (the rule of systemd's CHASE_SAFE).
    """
    trusted = {0, os.geteuid()}
    stack = [os.open("/", _PASS | os.O_DIRECTORY)]
    names: t.List[str] = []
    pending = [name for name in os.path.abspath(path).split("/") if name][::-1]
    owners: t.Set[int] = set()
    links = 0
    try:
        while pending:
            name = pending.pop()
            if name == "..":
                if names:
                    names.pop()
                    os.close(stack.pop())
                continue
            entry = os.open(name, _PASS, dir_fd=stack[-1])
            status = os.fstat(entry)
            if not stat.S_ISLNK(status.st_mode):
                names.append(name)
                stack.append(entry)
                continue
            try:
                target = os.readlink("", dir_fd=entry)
            finally:
                os.close(entry)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            above = os.fstat(stack[-1])
            owners |= {status.st_uid, above.st_uid} - trusted
            if above.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not above.st_mode & stat.S_ISVTX:
                owners.add(-1)
            if target.startswith("/"):
                while len(stack) > 1:
                    os.close(stack.pop())
                names.clear()
            pending += [part for part in target.split("/") if part not in ("", ".")][::-1]
        real = "/" + "/".join(names)
        descriptor = os.open(".", _DIRECTORY, dir_fd=stack[-1])
        if owners - {os.fstat(descriptor).st_uid}:
            os.close(descriptor)
            raise OpsError(
                f"{path} leads through a symbolic link of another user to {real}.",
                hint="Files are not written through links: name the real directory.",
            )
        return descriptor, real
    finally:
        for entry in stack:
            os.close(entry)


def _refuse_link(path: str, error: OSError) -> None:
    """Raises ``OpsError`` for the errors of a name that is a link or a file where a directory belongs."""
    if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and os.path.islink(path)):
        raise OpsError(
            f"{path} is a symbolic link.", hint="Files are not written through links: name the real directory."
        ) from error


def _parts(path: Path, below: str) -> t.List[str]:
    parts = list(path.parts)
    top = list(Path(below).parts)
    if parts[: len(top)] != top or ".." in parts or len(parts) == len(top):
        raise OpsError(f"{str(path)!r} is not a path below {below}.")
    return parts[len(top) :]


def _open(path: Path, below: str) -> int:
    """A descriptor of a directory. ``below``: the real path of a directory under which no link at all is followed.

    Raises ``OSError``.
    """
    if not below:
        return _follow(str(path))[0]
    if str(path) == below:
        return open_directory(below) if below != "/" else os.open("/", _DIRECTORY)
    descriptor = open_directory(below)
    place = below
    try:
        for name in _parts(path, below):
            place = os.path.join(place, name)
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                _refuse_link(place, error)
                raise
            os.close(descriptor)
            descriptor = inner
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def nearest(path: Path, *, below: str) -> t.Tuple[t.List[Path], os.stat_result]:
    """The directories that are missing on the way to a file, the innermost first, and the status of the innermost that
    is there.
    """
    missing = []
    for parent in path.parents:
        try:
            descriptor = _open(parent, below)
        except FileNotFoundError:
            missing.append(parent)
            continue
        except OSError as error:
            raise OpsError(f"Cannot open {parent}: {error.strerror}.") from error
        try:
            return missing, os.fstat(descriptor)
        finally:
            os.close(descriptor)
    raise OpsError(f"{below} does not exist.")


def read_regular(path: Path, below: str = "") -> t.Optional[t.Tuple[bytes, os.stat_result]]:
    """A file's content and status; None where there is none.

    Raises ``OpsError`` for what is no regular file, without opening it (a FIFO would block, a device may act), and for
    one of more than ``MAX_BYTES``.
    """
    try:
        directory = _open(path.parent, below)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OpsError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        before = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
        _require_regular(path, before)
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            status = os.fstat(descriptor)
            _require_regular(path, status)
            return _read_all(path, descriptor), status
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        _refuse_link(str(path), error)
        raise OpsError(f"Cannot read {path}: {error.strerror}.") from error
    finally:
        os.close(directory)


def _require_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OpsError(
            f"{path} is a symbolic link.",
            hint="Files are not written through links: name the real file, or remove the link.",
        )
    if not stat.S_ISREG(status.st_mode):
        raise OpsError(f"{path} is not a regular file.", hint="Nothing was changed. Remove it, or move it away.")
    if status.st_size > MAX_BYTES:
        raise OpsError(
            f"{path} must have at most {MAX_BYTES} bytes, got {status.st_size}.",
            hint="Nothing was changed. Is it the right file?",
        )


def _read_all(path: Path, descriptor: int) -> bytes:
    parts: t.List[bytes] = []
    length = 0
    while True:
        part = os.read(descriptor, 2**20)
        if not part:
            return b"".join(parts)
        parts.append(part)
        length += len(part)
        if length > MAX_BYTES:
            raise OpsError(
                f"{path} must have at most {MAX_BYTES} bytes, and grows while it is read.",
                hint="Nothing was changed. Is it the right file?",
            )


def require_single(path: Path, status: os.stat_result) -> None:
    """Raises ``OpsError`` for a file with a second name, which may be somebody else's."""
    if status.st_nlink > 1:
        raise OpsError(
            f"{path} has {status.st_nlink} hard links.",
            hint="Nothing was changed. Replace it with a copy of its own (cp it, and mv the copy over it).",
        )


def temporary_name(name: str, token: str) -> str:
    """The name under which a file is written before it takes its own.

    ``token``: 8 hexadecimal digits that nobody can guess.
    """
    return f".{name}.{token}{SUFFIX}"


def new_token() -> str:
    return secrets.token_hex(4)


def make_directories(
    path: Path,
    *,
    below: str = "",
    mode: int = 0o700,
    owner: t.Optional[t.Tuple[int, int]] = None,
    ours: t.Collection[Path] = (),
) -> None:
    """Makes a directory with ``mode``, and those above it that are missing, which everybody may pass. Raises
    ``OSError`` or ``OpsError``.

    ``ours``: directories that get ``owner`` (uid, gid; where we may set it) and ``mode`` whether they are missing or
    not: a run that was killed may have made them and come no further.
    """
    missing: t.List[Path] = []
    descriptor = -1
    for place in [path, *path.parents]:
        try:
            descriptor = _open(place, below)
            break
        except FileNotFoundError:
            if str(place) in (below, "/"):
                raise
            missing.append(place)
    try:
        for directory in ours:
            if directory not in missing:
                present = _open(directory, below)
                try:
                    _own(present, mode, owner)
                finally:
                    os.close(present)
        for directory in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory.name, mode if directory == path or directory in ours else 0o755, dir_fd=descriptor)
            inner = os.open(directory.name, _DIRECTORY, dir_fd=descriptor)
            try:
                if directory in ours:
                    _own(inner, mode, owner)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
                descriptor = inner
    finally:
        os.close(descriptor)


def _own(descriptor: int, mode: int, owner: t.Optional[t.Tuple[int, int]]) -> None:
    status = os.fstat(descriptor)
    if owner is not None and owner != (status.st_uid, status.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, *owner)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        os.fchmod(descriptor, mode)


def write_atomically(
    path: Path,
    content: bytes,
    *,
    mode: int = 0o600,
    owner: t.Optional[t.Tuple[int, int]] = None,
    below: str = "",
    token: str = "",
    mtime_ns: t.Optional[int] = None,
    extended: t.Optional[t.Mapping[str, bytes]] = None,
) -> None:
    """Writes beside the target and renames over it. ``owner`` is (uid, gid), given where we may set it.

    ``extended``: the access list, extended attributes and security label; without it those of the file that is
    replaced. With an access list the mode's group bits are the most that it grants: they stay as they are then.

    ``below``: the real path of a directory under which no link is followed; without it links are followed as
    ``real_directory`` does. ``token``: of the temporary name, where a journal knows it and sweeps what is left; without
    it this call removes what an earlier one left. Raises ``OpsError`` that names the path and what stands in the way
    (read-only, full, no right, a link).
    """
    directory = -1
    temporary = ""
    try:
        directory = _open(path.parent, below)
        if not token:
            _sweep_matching(directory, re.escape(path.name))
        temporary = temporary_name(path.name, token or new_token())
        descriptor = _create(directory, temporary)
        try:
            _write_all(descriptor, content)
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, *owner)
            _set_attributes(directory, path.name, descriptor, mode, extended)
            if mtime_ns is not None:
                os.utime(descriptor, ns=(mtime_ns, mtime_ns))
            os.fsync(descriptor)
            os.replace(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
            temporary = ""
        finally:
            os.close(descriptor)
        os.fsync(directory)
    except OSError as error:
        raise OpsError(f"Cannot write {path}: {error.strerror}.", hint=_HINT) from error
    finally:
        if directory >= 0:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
            os.close(directory)


def _set_attributes(
    directory: int, name: str, descriptor: int, mode: int, wanted: t.Optional[t.Mapping[str, bytes]]
) -> None:
    """Gives a new file its mode and what else belongs to it: ``wanted``, or that of the file it replaces."""
    if wanted is None:
        wanted, status = _attributes(directory, name)
        if status is not None and attributes.ACCESS_LIST in wanted:
            mode = mode & ~stat.S_IRWXG | status.st_mode & stat.S_IRWXG
        elif status is None:
            wanted = attributes.extended(descriptor)  # a new file has what its directory says
    attributes.set_extended(descriptor, wanted)
    os.fchmod(descriptor, mode)


def _attributes(directory: int, name: str) -> t.Tuple[t.Dict[str, bytes], t.Optional[os.stat_result]]:
    """What a regular file has beside its content, and its status; None where there is no such file."""
    try:
        # It need not be ours to read.
        descriptor = os.open(name, _PASS, dir_fd=directory)
    except FileNotFoundError:
        return {}, None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return {}, None
        return attributes.extended(f"/proc/self/fd/{descriptor}"), status
    finally:
        os.close(descriptor)


def read_extended(path: Path, *, below: str = "") -> t.Dict[str, bytes]:
    """The access list, extended attributes and security label of a regular file; see ``attributes.extended``.

    Raises ``OSError`` or ``OpsError``.
    """
    directory = _open(path.parent, below)
    try:
        return _attributes(directory, path.name)[0]
    finally:
        os.close(directory)


def sync_filesystem(path: str) -> None:
    """Has a filesystem write what it holds back, and give back what was removed (syncfs(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)


def _create(directory: int, name: str) -> int:
    """A new file that is locked: whoever finds it knows that its writer lives."""
    while True:
        try:
            descriptor = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
            )
        except FileExistsError:
            # Of a run that was killed: nobody else can guess the name.
            if not _sweep_name(directory, name):
                raise
            continue
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # swept between its creation and its lock


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _sweep_matching(directory: int, name: str) -> None:
    """Removes what earlier calls left of the files that a regular expression names: temporary files of this user or the
    directory's owner.
    """
    pattern = re.compile(rf"\.{name}\.[a-z0-9_]{{8}}{re.escape(SUFFIX)}")
    owners = {os.geteuid(), os.fstat(directory).st_uid}
    with contextlib.suppress(OSError):
        for entry in os.listdir(directory):
            if pattern.fullmatch(entry) and os.stat(entry, dir_fd=directory, follow_symlinks=False).st_uid in owners:
                _sweep_name(directory, entry)


def sweep_directory(path: Path) -> None:
    """Removes every temporary file of a dead writer in a directory of ours."""
    with contextlib.suppress(OSError, OpsError):
        directory = _open(path, "")
        try:
            _sweep_matching(directory, ".+")
        finally:
            os.close(directory)


def _sweep_name(directory: int, name: str, *, dry: bool = False) -> bool:
    """Removes a temporary file whose writer is dead; whether there was one.

    What is no regular file, or is locked, stays.
    """
    descriptor = -1
    try:
        before = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(before.st_mode) or before.st_nlink != 1:
            return False
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        after = os.fstat(descriptor)
        if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino) or not after.st_nlink:
            return False
        if not dry:
            os.unlink(name, dir_fd=directory)
            os.fsync(directory)
        return True
    except OSError:
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def sweep(path: Path, token: str, *, below: str, dry: bool = False) -> bool:
    """Removes the temporary file that a killed writer of ``path`` left under ``token``; whether there was one.

    ``dry`` only tells.
    """
    try:
        directory = _open(path.parent, below)
    except (OSError, OpsError):
        return False
    try:
        return _sweep_name(directory, temporary_name(path.name, token), dry=dry)
    finally:
        os.close(directory)


def remove(path: Path, *, below: str) -> None:
    """Removes a file that is there, and what Python compiled of it. Raises ``OSError`` or ``OpsError``."""
    directory = _open(path.parent, below)
    try:
        os.unlink(path.name, dir_fd=directory)
        if path.suffix == ".py":
            _remove_compiled(directory, f"{path.stem}.")
        os.fsync(directory)
    finally:
        os.close(directory)


def _remove_compiled(directory: int, prefix: str = "") -> None:
    with contextlib.suppress(OSError):
        cache = os.open("__pycache__", _DIRECTORY, dir_fd=directory)
        try:
            for name in os.listdir(cache):
                if name.startswith(prefix) and ".pyc" in name:
                    os.unlink(name, dir_fd=cache)
        finally:
            os.close(cache)


def remove_empty(path: Path, *, below: str) -> bool:
    """Removes a directory that holds nothing, or nothing but what Python compiled; whether it is gone."""
    try:
        parent = _open(path.parent, below)
    except FileNotFoundError:
        return True
    try:
        with contextlib.suppress(OSError):
            directory = os.open(path.name, _DIRECTORY, dir_fd=parent)
            try:
                if not set(os.listdir(directory)) - {"__pycache__"}:
                    _remove_compiled(directory)
                    with contextlib.suppress(FileNotFoundError):
                        os.rmdir("__pycache__", dir_fd=directory)
            finally:
                os.close(directory)
        try:
            os.rmdir(path.name, dir_fd=parent)
            os.fsync(parent)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True
    finally:
        os.close(parent)


def set_time(path: Path, mtime_ns: int, *, below: str) -> None:
    """Sets the time of change of a regular file or a directory. Raises ``OSError`` or ``OpsError``."""
    directory = _open(path.parent, below)
    try:
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(descriptor)
    finally:
        os.close(directory)


def listing(path: Path, *, below: str) -> t.Tuple[str, int]:
    """A digest of the names in a directory, and its time of change in nanoseconds.

    Raises ``OSError`` or ``OpsError``.
    """
    descriptor = _open(path, below)
    try:
        names = "\0".join(sorted(os.listdir(descriptor)))
        return sha256(os.fsencode(names)), os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
