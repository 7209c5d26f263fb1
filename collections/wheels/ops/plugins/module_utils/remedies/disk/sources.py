# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What takes room and belongs to a program that clears it itself: the journal, the package cache, our own backups; and
files that are deleted but open.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import re
import shutil
import stat
import subprocess
import time
import typing as t

from ...checks.disk import directory_bytes
from ...core.results import OpsError
from ...host import open_files, processes, subprocesses
from ...state.deployments import ROLLED_BACK, Journal

#: Where each kind lies unless a path is given.
PLACES: t.Dict[str, str] = {
    "journal": "/var/log/journal",
    "packages": "/var/cache/apt/archives",
    "core_dumps": "/var/lib/systemd/coredump",
    "backups": "/var/lib/wheels-ops",
}
#: Kinds that their program clears as a whole or not at all.
WHOLE: t.FrozenSet[str] = frozenset({"packages"})
#: Deleted files that are open and smaller (bytes on disk) are not worth a word.
DELETED_MIN_BYTES = 1 << 20
_SECONDS = 300
#: An archived journal: the time of its first entry, in microseconds, in its name.
_ARCHIVED = re.compile(
    r".+@(?:[0-9a-f]{32}-[0-9a-f]{16}-([0-9a-f]{16})\.journal|([0-9a-f]{16})-[0-9a-f]{16}\.journal~)"
)


def _run(words: t.Sequence[str]) -> None:
    program = shutil.which(words[0])
    if not program:
        package = {"journalctl": "systemd", "apt-get": "apt"}.get(words[0], words[0])
        raise OpsError(
            f"{words[0]} is not installed.", hint=f"Install the package {package}, or leave this source out."
        )
    try:
        done = subprocesses.run([program, *words[1:]], timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise OpsError(f"{words[0]} did not end within {_SECONDS} s.", hint="Run it by hand.") from error
    if done.returncode:
        raise OpsError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}", hint="Run as root.")


def journal_files(path: str, age: float = 0.0) -> t.List[t.Tuple[str, int]]:
    """Archived journals that begin longer than ``age`` seconds ago, and their bytes, the oldest first, as journalctl
    sorts them when it vacuums. Those that are written to are never among them.
    """
    limit = (time.time() - age) * 1e6
    found = []
    for directory in [path, *(entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))]:
        for entry in os.scandir(directory):
            named = _ARCHIVED.fullmatch(entry.name)
            if named:
                status = entry.stat(follow_symlinks=False)
                # journalctl takes the time of the file where that is older than the one in its name.
                begun = min(int(named[1] or named[2], 16), status.st_mtime_ns // 1000)
                if begun < limit:
                    found.append((begun, entry.path, status.st_blocks * 512))
    return [(name, size) for _begun, name, size in sorted(found)]


def packages(path: str) -> t.List[t.Tuple[str, int]]:
    """Downloaded packages: they can be downloaded again.

    Raises ``OpsError`` for another directory, as apt would empty that too.
    """
    found = []
    for directory in (path, os.path.join(path, "partial")):
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(directory):
                if directory == path and not entry.name.endswith(".deb") and entry.name not in ("lock", "partial"):
                    raise OpsError(f"{path} is no cache of packages: it holds {entry.name}.", hint="Leave path out.")
                if entry.is_file(follow_symlinks=False) and entry.name != "lock":
                    found.append((entry.path, entry.stat(follow_symlinks=False).st_blocks * 512))
    return found


def backups(path: str, age: float, keep_newest: int) -> t.List[t.Tuple[str, int]]:
    """Originals of deployments that were taken back, oldest first.

    What a rollback may still need is never among them.
    """
    journal = Journal(path)
    ended = [journal.directory(entry["id"]) for entry in journal.all() if entry["state"] == ROLLED_BACK]
    old = [place for place in ended[: len(ended) - keep_newest] if time.time() - place.stat().st_mtime >= age]
    return [(str(place), directory_bytes(str(place))) for place in old]


def foresee(kind: str, path: str, age: float, keep_newest: int) -> t.List[t.Tuple[str, int]]:
    """What a source of this kind would give, with bytes. Raises ``OpsError`` where it may not be read."""
    try:
        if kind == "journal":
            return journal_files(path, age)
        if kind == "packages":
            found = packages(path)
            if found and os.geteuid():  # said before, as apt refuses only when it runs
                raise OpsError(f"apt-get clears {path} for root alone.", hint="Run as root, or leave this source out.")
            return found
        return backups(path, age, keep_newest)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OpsError(f"Cannot read {error.filename or path}: {error.strerror}.", hint="Run as root.") from error


def _vacuum(path: str, names: t.Sequence[str]) -> None:
    """Has journalctl remove just these archived journals, the oldest of their directories.

    It is told how many files may stay, those that are written to among them: by size it counts those or not, by its
    version, and by time it removes none for ``0s`` and knows no target.
    """
    for directory in sorted({os.path.dirname(name) for name in names}):
        stay = 0
        with contextlib.suppress(FileNotFoundError):
            stay = sum(
                entry.name.endswith((".journal", ".journal~")) and entry.path not in names
                for entry in os.scandir(directory)
            )
        # No number at all means no limit to it.
        limit = f"--vacuum-files={stay}" if stay else "--vacuum-size=1"
        _run(["journalctl", f"--directory={directory}", limit])


def clear(kind: str, path: str, _age: float, names: t.Sequence[str]) -> None:
    """Has the program that owns a source clear it; ``names`` are those that were foreseen."""
    if kind == "journal":
        _vacuum(path, names)
    elif kind == "packages":
        _run(["apt-get", "-o", f"Dir::Cache::archives={path}/", "clean"])
    else:
        for name in names:
            shutil.rmtree(name)  # by descriptors on Linux; the state directory is ours alone


def deleted_but_open(
    devices: t.Collection[int],
    found: open_files.Open,
    *,
    least: int = DELETED_MIN_BYTES,
    patterns: t.Sequence[str] = (),
) -> t.List[t.Dict[str, t.Any]]:
    """Files without a name on ``devices`` that take room until their owner lets go: largest first, each with its
    process and unit.

    Those of ``least`` bytes on disk, and smaller ones only where ``release`` would empty them: every other program has
    scratch files of a page.
    """
    entries = []
    for identity, owners in found.files.items():
        for owner in owners:
            if owner.fd is None or not owner.deleted or identity[0] not in devices:
                continue
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{owner.pid}/fd/{owner.fd}")
                if status.st_nlink == 0 and status.st_blocks and stat.S_ISREG(status.st_mode):
                    name = owner.path.removesuffix(" (deleted)")
                    size = status.st_blocks * 512
                    entry = {
                        **owner.as_dict(),
                        "path": name,
                        "bytes": size,
                        "unit": unit_of(owner.pid),
                        "inode": identity[1],
                    }
                    if size >= least or releasable(entry, patterns):
                        entries.append(entry)
                    break  # one owner is enough to know whom to ask; the bytes count once
    return sorted(entries, key=lambda entry: -t.cast(int, entry["bytes"]))


def deleted_images(devices: t.Collection[int], *, sys: str = "/sys") -> t.List[t.Dict[str, t.Any]]:
    """Deleted images behind loop devices, in the form of ``deleted_but_open``: the kernel holds them, no process does.

    ``bytes`` is their length; what they take is no more. One whose directory is gone too may lie anywhere: it is named.
    """
    entries = []
    for place in sorted(glob.glob(f"{sys}/block/loop*/loop/backing_file")):
        device = place[len(f"{sys}/block/") :].partition("/")[0]
        try:
            with open(place, encoding="utf-8", errors="surrogateescape") as file:
                path = file.read().rstrip("\n")
            with open(f"{sys}/block/{device}/size", encoding="ascii") as file:
                size = int(file.read()) * 512
        except (OSError, ValueError):
            continue  # it was detached meanwhile
        if not path.endswith(" (deleted)"):
            continue
        path = path[: -len(" (deleted)")]
        try:
            elsewhere = os.stat(os.path.dirname(path)).st_dev not in devices
        except OSError:
            elsewhere = False
        if not elsewhere:
            entries.append(
                {
                    "path": path,
                    "bytes": size,
                    "pid": None,
                    "command": device,
                    "unit": "",
                    "fd": None,
                    "append": False,
                    "writes": False,
                    "inode": None,
                }
            )
    return entries


def unit_of(pid: int) -> str:
    """The systemd unit of a process, empty where there is none."""
    try:
        names = [group.path.rpartition("/")[2] for group in processes.control_groups(pid)]
    except OSError:
        return ""
    return next((name for name in reversed(names) if name.endswith((".service", ".scope"))), "")


def releasable(entry: t.Mapping[str, t.Any], patterns: t.Sequence[str]) -> bool:
    """Whether a deleted file is a log that may be emptied: its old name matches, and its owner appends to it."""
    matches = any(fnmatch.fnmatchcase(os.path.basename(entry["path"]), pattern) for pattern in patterns)
    return bool(matches and entry["append"] and entry["writes"])


def release(entry: t.Mapping[str, t.Any]) -> bool:
    """Empties one deleted log that is ``releasable``; True where it did.

    It has to have no name still: nobody but its owner can read it any more.
    """
    try:
        descriptor = os.open(f"/proc/{entry['pid']}/fd/{entry['fd']}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if status.st_nlink or status.st_ino != entry["inode"] or not stat.S_ISREG(status.st_mode):
            return False
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
    return True
