# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who can change a directory that root trusts: what is kept in the state directory decides what root
writes elsewhere.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import typing as t
from pathlib import Path

from ..core.options import absolute_path
from ..core.results import OpsError

_MAX_LINKS = 40
#: Debian gives /usr/local and /var/local to this group (policy, section 9.1.2), which may install what root runs. No
#: program is setgid to it.
_ADMINISTRATORS = ("staff", 50)


def require(
    directory: t.Union[str, Path], *, name: str = "state directory", setting: str = "wheels_ops_state_dir"
) -> Path:
    """The directory, which need not exist yet. Raises ``OpsError`` where somebody else could put his own in its place.

    It, and every directory above it, has to belong to root or to the user of this process, and may be writable by
    nobody else. Accepted above it: a directory with the sticky bit that root owns (/tmp), in which nobody can rename
    what belongs to others. A group that has no member but its user of the same name counts as that user, and Debian's
    group ``staff`` (/var/local) as root while nobody is in it. Symbolic links on the way are checked like directories,
    and followed.

    ``name``, ``setting``: what it is, and the variable that names it, for the message.
    """
    path = Path(directory)
    absolute_path(setting.replace("wheels_ops_", ""), str(directory))
    links = 0
    place, names = Path("/"), list(path.parts[1:])
    _check(place, path, last=False, words=(name, setting))
    while names:
        place = place / names.pop(0)
        status = _check(place, path, last=not names, words=(name, setting))
        if status is None:
            break
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MAX_LINKS:
                raise OpsError(f"The {name} {path} leads through a loop of links.", hint="Name the real directory.")
            target = Path(os.readlink(place))
            names = [*(target.parts[1:] if target.is_absolute() else target.parts), *names]
            place = Path("/") if target.is_absolute() else place.parent
        elif not stat.S_ISDIR(status.st_mode):
            raise OpsError(
                f"The {name} {path} cannot be written: {place} is no directory.",
                hint=f"Move it away, or name another with {setting}.",
            )
        while names and names[0] in ("..", "."):
            place = place.parent if names.pop(0) == ".." else place
    return path


def _check(place: Path, whole: Path, *, last: bool, words: t.Tuple[str, str]) -> t.Optional[os.stat_result]:
    name, setting = words
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OpsError(
            f"The {name} {whole} cannot be reached: {place}: {error.strerror}.", hint="Run as root, or name another."
        ) from error
    where = "it" if place == whole else f"{place} above it"
    if status.st_uid not in (0, os.geteuid()):
        raise OpsError(
            f"The {name} {whole} is refused: {where} belongs to {_user(status.st_uid)}, who can change what is kept"
            " there.",
            hint=f"Give it to root (chown root: {place}), or name another directory with {setting}.",
        )
    if stat.S_ISLNK(status.st_mode):
        return status
    mode = stat.S_IMODE(status.st_mode)
    writable_by_others = mode & stat.S_IWOTH or (
        mode & stat.S_IWGRP and (not _own_group(status.st_gid) or _has_access_list(place))
    )
    sticky_of_root = mode & stat.S_ISVTX and status.st_uid == 0 and not last
    if writable_by_others and not sticky_of_root:
        members = _members(status.st_gid) if _of_administrators(status.st_gid) and not mode & stat.S_IWOTH else []
        if members:
            raise OpsError(
                f"The {name} {whole} is refused: {where} has the mode {mode:04o}, so that the members of the group"
                f" {_ADMINISTRATORS[0]} ({', '.join(members)}) can change what is kept there.",
                hint=f"Take the right from the group (chmod g-w {place}), or name another directory with {setting}.",
            )
        raise OpsError(
            f"The {name} {whole} is refused: {where} has the mode {mode:04o}, so that others can change what is kept"
            " there.",
            hint=f"Take the right from them (chmod go-w {place}), or name another directory with {setting}.",
        )
    return status


def _own_group(gid: int) -> bool:
    """Whether nobody but root and the user of this process is in a group."""
    if gid == 0 or (_of_administrators(gid) and not _members(gid)):
        return True
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == gid and set(group.gr_mem) <= {user.pw_name}


def _of_administrators(gid: int) -> bool:
    """Whether it is Debian's group ``staff``, by its name and its number, which is the same on every system."""
    try:
        return (grp.getgrgid(gid).gr_name, gid) == _ADMINISTRATORS
    except KeyError:
        return False


def _members(gid: int) -> t.List[str]:
    """Who is in a group, root and the user of this process aside, also those whose first group it is."""
    primary = {user.pw_name for user in pwd.getpwall() if user.pw_gid == gid}
    return sorted((primary | set(grp.getgrgid(gid).gr_mem)) - {"root", _user(os.geteuid())})


def _has_access_list(place: Path) -> bool:
    """Whether a directory has an access list; the bits of its group are then what any user in the list may have at most
    (``acl(5)``).
    """
    try:
        return bool(os.getxattr(place, "system.posix_acl_access", follow_symlinks=False))
    except OSError:
        return False


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
