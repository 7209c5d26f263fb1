# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The rotated parts of a log: their names, writing them, compressing them, and how many are kept.

Everything is done relative to the descriptor of the log's directory. A part is written under a hidden name, synced and
renamed: what has its final name is whole.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import re
import stat
import time
import typing as t
from dataclasses import dataclass, field

from ...core.results import OpsError
from ...host import attributes, extents, open_files

_STAMP = r"\.[0-9]{8}T[0-9]{6}Z(?:-[0-9]+)?(?:\.gz)?"
_READ = 1 << 20
#: Level 6 takes twice the time for 3 % less.
_LEVEL = 4
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Ownership:
    """Mode, user and group of a file; None for a user and group that are left as they come. And what it has beside
    them: its access list, extended attributes and security label.
    """

    mode: int
    uid: t.Optional[int] = None
    gid: t.Optional[int] = None
    extended: t.Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, descriptor: int) -> Ownership:
        status = os.fstat(descriptor)
        return cls(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, attributes.extended(descriptor))

    def as_record(self) -> t.Dict[str, t.Any]:
        """What JSON can hold of it; ``from_record`` reads it."""
        return {
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
            "extended": attributes.as_text(self.extended),
        }

    @classmethod
    def from_record(cls, facts: t.Mapping[str, t.Any]) -> Ownership:
        """A record of an earlier version of this collection has no ``extended``."""
        return cls(facts["mode"], facts["uid"], facts["gid"], attributes.from_text(facts.get("extended", {})))

    def apply(self, descriptor: int) -> None:
        """Raises ``OpsError`` where only root may give a file away."""
        status = os.fstat(descriptor)
        uid = -1 if self.uid is None or self.uid == status.st_uid else self.uid
        gid = -1 if self.gid is None or self.gid == status.st_gid else self.gid
        try:
            if (uid, gid) != (-1, -1):
                os.fchown(descriptor, uid, gid)
            attributes.set_extended(descriptor, self.extended)
            os.fchmod(descriptor, self.mode)
        except PermissionError as error:
            raise OpsError(
                "A rotated log cannot be given to its owner.", hint="Run as root, or leave owner and group out."
            ) from error


def is_part(name: str) -> bool:
    """Whether a name is one that we give to a rotated part."""
    return re.search(rf"{_STAMP}\Z", name) is not None


def parts(directory: int, name: str) -> t.List[str]:
    """The rotated parts of a log, newest first."""
    pattern = re.compile(re.escape(name) + _STAMP)
    return sorted((entry for entry in os.listdir(directory) if pattern.fullmatch(entry)), key=_order, reverse=True)


def _order(part: str) -> t.Tuple[str, int]:
    found = re.search(r"\.([0-9]{8}T[0-9]{6}Z)(?:-([0-9]+))?(?:\.gz)?\Z", part)
    return (found[1], int(found[2] or 0)) if found else (part, 0)


def free_name(directory: int, name: str) -> str:
    """A name for the next part, without ``.gz``; later than every part that is there, so that names sort as the lines
    do.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    newest = [_order(part) for part in parts(directory, name)[:1]]
    if not newest or newest[0] < (stamp, 0):
        return f"{name}.{stamp}"
    return f"{name}.{newest[0][0]}-{newest[0][1] + 1}"


def partial_name(part: str) -> str:
    return f".{part}.partial"


def sync(directory: int) -> None:
    # The directory's descriptor may be of O_PATH kind for a caller without read permission: then there is nothing to
    # sync with.
    with contextlib.suppress(OSError):
        os.fsync(directory)


def write_part(
    directory: int,
    part: str,
    source: int,
    start: int,
    end: int,
    *,
    compress: bool,
    owner: Ownership,
    stop: t.Optional[t.Callable[[], bool]] = None,
) -> t.Optional[int]:
    """Writes bytes ``start`` to ``end`` of ``source`` under the hidden name of ``part``, synced, and gives its size.

    None, and nothing is left, where ``stop`` said so on the way. Raises ``OpsError`` when there is no room.
    """
    hidden = partial_name(part)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(hidden, dir_fd=directory)  # of a run that was killed; the directory is locked by us
    target = os.open(hidden, _NEW, 0o600, dir_fd=directory)
    done = False
    try:
        with os.fdopen(os.dup(target), "wb", buffering=0) as raw, contextlib.ExitStack() as stack:
            sink: t.Any = (
                stack.enter_context(gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=raw))
                if compress
                else raw
            )
            position = start
            while position < end:
                block = os.pread(source, min(_READ, end - position), position)
                if not block:
                    raise OpsError(
                        "The log became shorter while it was read.",
                        hint="Somebody else rotates it: let only one do it.",
                    )
                written = 0
                while written < len(block):
                    written += sink.write(block[written:])
                position += len(block)
                if stop is not None and stop():
                    return None
        status = os.fstat(source)
        owner.apply(target)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(target)
        done = True
        return os.fstat(target).st_size
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OpsError(
                "There is no room for the rotated part.",
                hint="The log is as it was. Remove something first, for example with disk_cleanup.",
            ) from error
        raise
    finally:
        os.close(target)
        if not done:
            with contextlib.suppress(OSError):
                os.unlink(hidden, dir_fd=directory)


def sweep(directory: int, name: str) -> None:
    """Removes what killed runs left half written."""
    pattern = re.compile(rf"\.{re.escape(name)}(?:{_STAMP}\.partial|\.rotation\.new)")
    for entry in os.listdir(directory):
        if pattern.fullmatch(entry):
            os.unlink(entry, dir_fd=directory)


def same_content(directory: int, plain: str, packed: str) -> bool:
    """Whether a compressed part holds exactly the bytes of a plain one, but for a hole at its beginning: what was there
    is in an earlier part.
    """
    with contextlib.ExitStack() as stack:
        # Not to wait for the other end of a named pipe that took the place of either.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        one = stack.enter_context(os.fdopen(os.open(plain, flags, dir_fd=directory), "rb"))
        other = stack.enter_context(os.fdopen(os.open(packed, flags, dir_fd=directory), "rb"))
        if not all(stat.S_ISREG(os.fstat(file.fileno()).st_mode) for file in (one, other)):
            return False
        one.seek(extents.first_data(one.fileno(), os.fstat(one.fileno()).st_size))
        unpacked = stack.enter_context(gzip.GzipFile(fileobj=other, mode="rb"))
        try:
            while True:
                left = one.read(_READ)
                if left != unpacked.read(_READ):
                    return False
                if not left:
                    return True
        except (EOFError, OSError):
            return False


def compress_part(directory: int, part: str, owner: t.Optional[Ownership] = None) -> t.Optional[str]:
    """Compresses a plain part that nobody writes to, and removes it; gives the new name. None while somebody has it
    open for writing.

    Interrupted anywhere, the next call goes on: the plain part goes only when the compressed one is whole and says the
    same.
    """
    packed = f"{part}.gz"
    source = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        with open_files.lease(source, writers_only=True) as free:
            if free is None:
                status = os.fstat(source)
                seen = open_files.open_files({(status.st_dev, status.st_ino)})
                free = not seen.unreadable and not any(
                    holder.writes for holder in seen.of((status.st_dev, status.st_ino))
                )
                leased = False
            else:
                leased = free
            if not free:
                return None
            if packed in os.listdir(directory):
                if same_content(directory, part, packed):
                    os.unlink(part, dir_fd=directory)
                    return packed
                os.unlink(packed, dir_fd=directory)
            status = os.fstat(source)
            owner = owner or Ownership.of(source)
            wrote = write_part(
                directory,
                packed,
                source,
                extents.first_data(source, status.st_size),
                status.st_size,
                compress=True,
                owner=owner,
                stop=(lambda: open_files.wanted_by_another(source)) if leased else None,
            )
            if wrote is None or os.fstat(source).st_size != status.st_size:
                return None
            os.rename(partial_name(packed), packed, src_dir_fd=directory, dst_dir_fd=directory)
            sync(directory)
            os.unlink(part, dir_fd=directory)
    finally:
        os.close(source)
    return packed


def retire(
    directory: int, name: str, keep: int, *, check_mode: bool = False, coming: int = 0
) -> t.List[t.Tuple[str, int]]:
    """Removes the oldest parts of a log beyond ``keep``, and gives their names and bytes on disk.

    ``coming``: parts that are still to be made.
    """
    gone = []
    for part in parts(directory, name)[max(0, keep - coming) :]:
        status = os.stat(part, dir_fd=directory, follow_symlinks=False)
        if not check_mode:
            os.unlink(part, dir_fd=directory)
        gone.append((part, status.st_blocks * 512))
    return gone


def line_boundary(descriptor: int, start: int, size: int, block: int, rest: int) -> t.Tuple[int, bool]:
    """The last multiple of ``block`` below ``size`` at which a line begins, and True; where none is near enough, just
    the last and False.

    Near enough is what leaves at most half of what lies between ``start`` and ``size``, and at most ``rest`` bytes.
    With lines of 100 bytes one block in a hundred begins with a line: the cut costs some blocks of newest lines, and no
    line is torn.
    """
    last = (size - 1) // block * block
    lowest = max(start + (size - start) // 2, size - rest)
    for cut in range(last, lowest, -block):
        if os.pread(descriptor, 1, cut - 1) == b"\n":
            return cut, True
    return last, False


def disk_bytes(status: os.stat_result) -> int:
    """What a log takes: its bytes on disk, but not the blocks that a filesystem set aside beyond its end."""
    return min(status.st_size, status.st_blocks * 512)
