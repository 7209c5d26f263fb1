# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The programs' links in a directory that may be somebody else's, made and removed through descriptors: nobody leads us
to another directory.
"""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t
import warnings
from pathlib import Path

from ..core.results import OpsError
from ..host import files

#: What a program of the backend's own that cannot run is called while our link is in its place.
ASIDE = ".original"
#: A program is not larger; what is, is not read.
_LARGEST = 1_000_000
_HINT = "Nothing is put behind it: name the directory itself with monitoring_link_dir, or set that to the empty string."


def run(
    links: t.Mapping[str, str], directory: str, *, state: str, check_mode: bool
) -> t.Tuple[t.List[t.Dict[str, t.Any]], t.List[str]]:
    """Makes (``present``) or removes (``absent``) each link of ``links`` (path below ``directory``: target). What is
    not ours is left alone, but for a program that is no valid Python: it is put aside under its name and ``ASIDE``, and
    is back when the link is removed.

    Gives the actions, and what there is to say. Without the directory there is nothing to do. Raises ``OpsError`` where
    another user's link is in the way, and where a link cannot be made.
    """
    actions: t.List[t.Dict[str, t.Any]] = []
    sentences: t.List[str] = []
    for name, target in links.items():
        place = Path(directory) / name
        if not directory or not os.path.lexists(directory):
            continue
        try:
            now = _read(place)
            if state == "present" and now is None and _is_broken(place):
                aside = place.with_name(place.name + ASIDE)
                if os.path.lexists(aside):
                    sentences.append(
                        f"{place} cannot run and was left alone, as {aside} is there already; ours is {target}."
                    )
                    continue
                actions.append({"action": "put aside", "target": str(place), "changed": True, "kept": str(aside)})
                if not check_mode:
                    _rename(place, aside)
                now = ""
            if state == "present" and now == "":
                actions.append({"action": "link", "target": str(place), "changed": True})
                if not check_mode:
                    _make(place, target)
            elif state == "absent" and now == target:
                actions.append({"action": "unlink", "target": str(place), "changed": True})
                if not check_mode:
                    _remove(place, target)
                now = ""
            if state == "absent" and now == "" and os.path.lexists(place.with_name(place.name + ASIDE)):
                actions.append({"action": "put back", "target": str(place), "changed": True})
                if not check_mode:
                    _rename(place.with_name(place.name + ASIDE), place)
            elif state == "present" and now not in ("", target):
                sentences.append(
                    f"{place} is not ours and was left alone; ours is {target}. Move the old one away and run this"
                    " again."
                )
        except OSError as error:
            raise OpsError(
                f"Cannot link {place}: {error.strerror}.",
                hint="Give the user of this task the right, or set monitoring_link_dir.",
            ) from error
    return actions, sentences


def _open(path: Path) -> int:
    try:
        return files.open_real_directory(path)
    except OpsError as error:
        link = next(
            (
                each
                for each in (path, *path.parents)
                if each.is_symlink() and each.lstat().st_uid not in (0, os.geteuid())
            ),
            path,
        )
        raise OpsError(f"{link} is a link that belongs to another user.", hint=_HINT) from error


def _read(place: Path) -> t.Optional[str]:
    """Where a link leads; the empty string where nothing is, None for what is no link."""
    try:
        parent = _open(place.parent)
    except FileNotFoundError:
        return ""
    try:
        os.stat(place.name, dir_fd=parent, follow_symlinks=False)
        with contextlib.suppress(OSError):
            return os.readlink(place.name, dir_fd=parent)
        return None
    except FileNotFoundError:
        return ""
    finally:
        os.close(parent)


def _is_broken(place: Path) -> bool:
    """Whether a file is a program that this Python refuses to compile. Nothing of it is run."""
    parent = _open(place.parent)
    try:
        descriptor = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)
    with open(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return False
        content = stream.read(_LARGEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of theirs
        try:
            compile(content, str(place), "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return True
        except (RecursionError, MemoryError):
            return False  # nothing is known of it
    return False


def _rename(source: Path, target: Path) -> None:
    parent = _open(source.parent)
    try:
        os.rename(source.name, target.name, src_dir_fd=parent, dst_dir_fd=parent)
        os.fsync(parent)
    finally:
        os.close(parent)


def _make(place: Path, target: str) -> None:
    files.make_directories(place.parent, mode=0o755)
    parent = _open(place.parent)
    try:
        os.symlink(target, place.name, dir_fd=parent)
        os.fsync(parent)
    finally:
        os.close(parent)


def _remove(place: Path, target: str) -> None:
    parent = _open(place.parent)
    try:
        if os.readlink(place.name, dir_fd=parent) == target:
            os.unlink(place.name, dir_fd=parent)
            os.fsync(parent)
    finally:
        os.close(parent)
