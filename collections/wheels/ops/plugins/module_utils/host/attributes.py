# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a file has beside its content, owner and mode: access lists, extended attributes and with them security labels.
And what keeps it from being changed: an attribute of its inode (``chattr``), its mount, a missing right.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import struct
import typing as t

from ..core.results import OpsError
from .safe_tree import mount_id

#: Extended attributes that the kernel derives from one inode and its content: on another file they would be wrong.
_OF_ONE_INODE: t.Tuple[str, ...] = ("security.evm", "security.ima", "trusted.overlay.", "user.overlay.")
ACCESS_LIST = "system.posix_acl_access"
#: FS_IOC_GETFLAGS of linux/fs.h: _IOR('f', 1, long).
_GETFLAGS = 2 << 30 | struct.calcsize("l") << 16 | ord("f") << 8 | 1
#: Bits of FS_IOC_GETFLAGS, with the word for each and the letter of chattr(1).
_KEEPING: t.Tuple[t.Tuple[int, str, str], ...] = ((0x10, "immutable", "i"), (0x20, "append-only", "a"))


def extended(file: t.Union[int, str]) -> t.Dict[str, bytes]:
    """The access list, extended attributes and security label of a file, by name; those that belong to its inode alone
    are left out.

    ``file``: a descriptor, or its name below ``/proc/self/fd`` where it is of O_PATH kind.
    """
    found: t.Dict[str, bytes] = {}
    try:
        names = os.listxattr(file)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    for name in names:
        if name.startswith(_OF_ONE_INODE):
            continue
        try:
            found[name] = os.getxattr(file, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
    return found


def as_text(values: t.Mapping[str, bytes]) -> t.Dict[str, str]:
    """Extended attributes as JSON can hold them; ``from_text`` reads them."""
    return {name: base64.b64encode(value).decode() for name, value in values.items()}


def from_text(values: t.Mapping[str, str]) -> t.Dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in values.items()}


def set_extended(descriptor: int, wanted: t.Mapping[str, bytes]) -> None:
    """Gives an open file exactly these (see ``extended``); set the mode afterwards, the owner before.

    A label that the kernel gave and that is not among them stays: it cannot be taken away. Raises ``OpsError`` for one
    that this user may not set.
    """
    present = extended(descriptor)
    name = ""
    try:
        for name in present.keys() - wanted.keys():
            if not name.startswith("security."):
                os.removexattr(descriptor, name)
        for name, value in wanted.items():
            if present.get(name) != value:
                os.setxattr(descriptor, name, value)
    except OSError as error:
        raise OpsError(
            f"The extended attribute {name} cannot be kept: {error.strerror}.",
            hint=f"Nothing was changed. Run as root, or remove it with setfattr -x {name}.",
        ) from error


def keeping(descriptor: int) -> t.List[t.Tuple[str, str]]:
    """The attributes of an open file's inode that keep it from being changed: each a word and chattr's letter."""
    buffer = bytearray(struct.calcsize("l"))
    try:
        fcntl.ioctl(descriptor, _GETFLAGS, buffer)
    except OSError:
        return []  # a filesystem without them
    flags = struct.unpack_from("=I", buffer)[0]
    return [(word, letter) for bit, word, letter in _KEEPING if flags & bit]


def _mount(descriptor: int) -> t.List[str]:
    """The fields of ``mountinfo`` (proc(5)) for the mount of an open file; empty where they cannot be read."""
    wanted = str(mount_id(descriptor))
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                if fields[0] == wanted:
                    return fields
    except OSError:
        pass
    return []


def mount_point(descriptor: int) -> str:
    """Where the filesystem of an open file is mounted; empty where that cannot be seen."""
    fields = _mount(descriptor)
    if not fields:
        return ""
    # Space, tab, newline and backslash are written as octal numbers.
    return os.fsdecode(os.fsencode(fields[4]).decode("unicode_escape").encode("latin-1"))


def is_read_only(descriptor: int) -> bool:
    """Whether an open file lies on a filesystem or a mount that is read-only."""
    return bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)


def is_filesystem_read_only(path: str) -> bool:
    """Whether the filesystem of a path is read-only for everybody; one that is not there, or cannot be seen, is not.

    A mount of our own sandbox that is read-only (ProtectSystem of systemd) says nothing of the filesystem: its own
    options are the last field of ``mountinfo``.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fields = _mount(descriptor)
    finally:
        os.close(descriptor)
    return bool(fields) and "ro" in fields[-1].split(",")


def require_writable(path: str) -> None:
    """Raises ``OpsError`` where a path lies on a filesystem or mount that is read-only, ``OSError`` where it is not
    there.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if is_read_only(descriptor):
            raise _read_only(path, descriptor)
    finally:
        os.close(descriptor)


def require_changeable(directory: int, path: str, descriptor: int) -> None:
    """Raises ``OpsError`` that names what keeps an open file, or its name in an open directory, from being changed.

    ``path`` is for the message.
    """
    place = os.path.dirname(path)
    for opened, name in ((descriptor, path), (directory, place)):
        if is_read_only(opened):
            raise _read_only(name, opened)
        for word, letter in keeping(opened):
            raise OpsError(
                f"{name} has the attribute {word} (chattr +{letter}).", hint=f"Remove it with chattr -{letter} {name}."
            )
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=directory, effective_ids=True):
        raise OpsError(
            f"This user may not change names in {place}: {os.strerror(errno.EACCES)}.",
            hint="Run as root (become: true), or as the owner of the directory.",
        )


def _read_only(path: str, descriptor: int) -> OpsError:
    mount = mount_point(descriptor)
    return OpsError(
        f"{path} lies on a filesystem that is mounted read-only{f', at {mount}' if mount else ''}.",
        hint="The kernel does that after an error of the disk: look at dmesg. Else remount it with mount -o remount,rw.",
    )


def explanation(path: str, error: OSError, descriptor: int = -1) -> OpsError:
    """What an error of the operating system on a path means, and what to do.

    ``descriptor``: of the directory of the path, where it is open.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mount = mount_point(descriptor) if descriptor >= 0 else ""
        return OpsError(
            f"The disk quota for {path} is used up."
            if error.errno == errno.EDQUOT
            else f"The filesystem of {path}{f', mounted at {mount},' if mount else ''} is full.",
            hint="Remove something first, for example with disk_cleanup.",
        )
    if error.errno == errno.EROFS and descriptor >= 0:
        return _read_only(path, descriptor)
    hints = {
        errno.EACCES: "Run as root (become: true), or as the owner of the file and its directory.",
        errno.EPERM: "Look at its attributes (lsattr), and at who owns it and its directory.",
        errno.EIO: "The disk has an error: look at dmesg.",
        errno.EBUSY: "Something is mounted there, or it is in use.",
    }
    return OpsError(
        f"{path} cannot be changed: {error.strerror or error}.",
        hint=hints.get(error.errno or 0, "It is as it was. Run it again."),
    )
