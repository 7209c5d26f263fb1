# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rotates logs while they are written, by what their writers can bear, without losing or doubling a line.

Which way is taken is decided file by file, from who has it open:

- nobody writes it (the kernel gives a lease): ``rename``, and a fresh file in its place
- the writer can be told to reopen: ``logrotate`` renames and tells it; the old file is compressed when nobody writes it
  any more
- every writer appends (O_APPEND) and the filesystem can: ``collapse``, the head is archived, then taken out in place
- a writer does not append: ``punch``, the archived head becomes a hole; the file's length goes on growing, the disk
  does not
- ``copytruncate`` loses what is written between its two steps: only with ``allow_loss``

Each way writes down what it is about to do before its first irreversible step. A run that was killed is finished by the
next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import stat
import time
import typing as t
from dataclasses import dataclass, field, replace

from ...core import units
from ...core.options import absolute_path, choice, in_range, not_empty
from ...core.results import OpsError, Result
from ...health.thresholds import LOG_MAX_BYTES
from ...host import attributes, extents, open_files
from ...host.files import write_atomically
from ...host.safe_tree import DANGEROUS_BELOW, mount_id, open_directory
from . import archive, logrotate, other_policies
from .archive import Ownership, disk_bytes

#: How often a log is looked at again whose writer opens it for every line.
_ATTEMPTS = 25
_RECORD = ".rotation"
STRATEGIES: t.Tuple[str, ...] = ("auto", "rename", "logrotate", "collapse", "punch", "copytruncate")
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Options:
    """How logs are rotated.

    ``max_size`` in bytes on disk; ``reopen`` is the command that tells the writers to open their logs again.
    """

    max_size: int = LOG_MAX_BYTES
    strategy: str = "auto"
    keep: int = 7
    compress: bool = True
    allow_loss: bool = False
    reopen: t.Tuple[str, ...] = ()
    reopen_timeout: float = 30.0
    mode: t.Optional[int] = None
    uid: t.Optional[int] = None
    gid: t.Optional[int] = None


def find(patterns: t.Sequence[str]) -> t.List[str]:
    """The regular files that the patterns name, without our own rotated parts; links are not followed.

    A log that a killed run had just renamed away is there too: what it wrote down names it.
    """
    return sorted({path for pattern in patterns for path in matching(pattern)})


def matching(pattern: str) -> t.Set[str]:
    """What one pattern names; see ``find``."""
    found = set()
    pattern = log_pattern(pattern)
    directory, name = os.path.split(pattern)
    for path in glob.glob(pattern):
        if archive.is_part(path):
            continue
        try:
            regular = stat.S_ISREG(os.lstat(path).st_mode)
        except FileNotFoundError:
            continue
        except OSError:
            regular = True  # listed, but in a directory that this user may not enter: its turn says so
        if regular:
            found.add(path)
    for path in glob.glob(os.path.join(directory, f".{name}{_RECORD}")):
        found.add(os.path.join(os.path.dirname(path), os.path.basename(path)[1 : -len(_RECORD)]))
    return found


def unmatched(patterns: t.Sequence[str]) -> t.List[str]:
    """A sentence for each path or pattern that names no log now: it may be mistyped, or the log is not written yet."""
    sentences = []
    for pattern in dict.fromkeys(patterns):
        if matching(pattern):
            continue
        link = os.path.islink(pattern)
        directory = os.path.dirname(re.split(r"[*?\[]", pattern, maxsplit=1)[0])
        why = (
            "it is a link, and links are passed over"
            if link
            else ""
            if os.path.isdir(directory)
            else f"there is no directory {directory}"
        )
        sentences.append(f"{pattern} in paths matches no log" + (f": {why}." if why else "."))
    return sentences


def log_pattern(pattern: str) -> str:
    """A path or pattern of ``paths``, made normal.

    Raises ``OpsError`` for one that reaches what is no log: ``/``, files of the system, a directory.
    """
    pattern = absolute_path("paths", pattern)
    other_policies.require_no_container(pattern)
    literal = os.path.dirname(re.split(r"[*?\[]", pattern, maxsplit=1)[0])
    if literal == "/" or any(literal == top or literal.startswith(top + "/") for top in DANGEROUS_BELOW):
        raise OpsError(
            f"paths is {pattern!r}, and {literal} holds no logs.",
            hint="Name logs in a directory of their own, for example /var/log/app/*.log.",
        )
    if os.path.isdir(pattern):
        raise OpsError(
            f"paths is {pattern!r}, which is a directory.", hint=f"Name its logs, for example {pattern}/*.log."
        )
    return pattern


def trusted_directory(path: str) -> str:
    """The real path of a log's directory.

    Raises ``OpsError`` where a link of somebody else leads there, or the system's own files lie there.
    """
    step = "/"
    for name in path.strip("/").split("/"):
        step = os.path.join(step, name)
        status = os.lstat(step)
        if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
            raise OpsError(
                f"{step} is a link that belongs to somebody else.", hint="Name the directory that it leads to."
            )
    real = os.path.realpath(path)
    if any(real == top or real.startswith(top + "/") for top in DANGEROUS_BELOW):
        raise OpsError(f"{real} holds no logs.", hint="Name a directory of logs.")
    return real


class _Head(t.NamedTuple):
    """From where to where a log is taken out in place, whether a line begins there, and where the edges of the chunks
    lie in the file and on the device.
    """

    start: int
    cut: int
    whole: bool
    edges: t.List[int]
    places: t.List[t.Optional[int]]


class _OpenedAgain(OpsError):
    """A writer opens the log for every line, so the moment to rename it never came. The log is as it was."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"A writer keeps reopening {path}.",
            hint="Say with reopen how it is told to reopen, or run it again.",
        )


class Log:
    """One log in its directory, both open. A context manager that holds the directory's lock."""

    def __init__(self, path: str, options: Options, check_mode: bool) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.options = options
        self.check_mode = check_mode
        self.directory_path = trusted_directory(os.path.dirname(path))
        self.directory = open_directory(self.directory_path)
        self.holders: t.List[open_files.Holder] = []
        self.unreadable = 0
        #: Why a part of the last rotation stayed as it was; the log itself was rotated.
        self.unfinished: t.Optional[OpsError] = None

    def __enter__(self) -> Log:
        if not self.check_mode:
            try:
                fcntl.flock(self.directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self.directory)
                raise OpsError(
                    f"Another run rotates logs in {self.directory_path}.",
                    hint="Wait for it to end; the lock ends with its process.",
                ) from None
        return self

    def __exit__(self, *_ignored: object) -> None:
        os.close(self.directory)

    @property
    def record(self) -> str:
        """Where a rotation that has begun is written down."""
        return f".{self.name}{_RECORD}"

    def status(self) -> os.stat_result:
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def ownership(self) -> Ownership:
        """Of the log, as it is now."""
        descriptor = os.open(self.name, _READ_FLAGS, dir_fd=self.directory)
        try:
            return Ownership.of(descriptor)
        finally:
            os.close(descriptor)

    def of_part(self, own: Ownership) -> Ownership:
        """Of the rotated part: the log's own, but where the options say otherwise."""
        options = self.options
        return replace(
            own,
            mode=own.mode if options.mode is None else options.mode,
            uid=own.uid if options.uid is None else options.uid,
            gid=own.gid if options.gid is None else options.gid,
        )

    def refusal(self, error: t.Union[OSError, OpsError]) -> OpsError:
        return error if isinstance(error, OpsError) else attributes.explanation(self.path, error, self.directory)

    def require_changeable(self) -> None:
        """Raises ``OpsError`` that names what keeps the log from being rotated, whatever the way."""
        descriptor = os.open(self.name, _READ_FLAGS, dir_fd=self.directory)
        try:
            attributes.require_changeable(self.directory, self.path, descriptor)
        finally:
            os.close(descriptor)

    def look_for_holders(self) -> None:
        status = self.status()
        seen = open_files.open_files({(status.st_dev, status.st_ino)}, mappings=False)
        self.holders, self.unreadable = seen.of((status.st_dev, status.st_ino)), seen.unreadable

    def writers(self) -> t.List[open_files.Holder]:
        return [holder for holder in self.holders if holder.writes]

    # What has begun is written down, and finished by the next run.

    def begin(self, facts: t.Mapping[str, t.Any]) -> None:
        hidden = f"{self.record}.new"
        descriptor = os.open(
            hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.directory
        )
        try:
            os.write(descriptor, json.dumps(facts).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(hidden, self.record, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        archive.sync(self.directory)

    def end(self) -> None:
        os.unlink(self.record, dir_fd=self.directory)
        archive.sync(self.directory)

    def abandon(self) -> None:
        """Removes what a rotation that failed has begun, unless its part is there: then the next run finishes it."""
        with contextlib.suppress(OSError, OpsError):
            facts = self.begun()
            if facts is not None and facts["part"] not in os.listdir(self.directory):
                self.end()
            archive.sweep(self.directory, self.name)

    def begun(self) -> t.Optional[t.Dict[str, t.Any]]:
        try:
            descriptor = os.open(self.record, _READ_FLAGS, dir_fd=self.directory)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()):
                raise OpsError(
                    f"{self.directory_path}/{self.record} is not ours.",
                    hint="Unexpected owner. Inspect and remove the file.",
                )
            try:
                return t.cast(t.Dict[str, t.Any], json.loads(file.read()))
            except ValueError as error:
                raise OpsError(
                    f"{self.directory_path}/{self.record} cannot be read: {error}.", hint="Look at it, and remove it."
                ) from error

    def finish(self) -> t.Optional[t.Dict[str, t.Any]]:
        """Finishes what an earlier run had begun; gives an action, or None."""
        facts = self.begun()
        if facts is None:
            if not self.check_mode:
                archive.sweep(self.directory, self.name)
            return None
        action: t.Dict[str, t.Any] = {
            "action": "finish",
            "target": self.path,
            "changed": True,
            "strategy": facts["strategy"],
            "rotated_to": facts["part"],
        }
        if self.check_mode:
            return action
        names = set(os.listdir(self.directory))
        if facts["strategy"] in ("rename", "logrotate"):
            if facts["part"] in names:
                self._create(Ownership.from_record(facts))
                if facts["strategy"] == "logrotate" and self.options.reopen:
                    self._tell_writers(facts["part"])
        elif facts["part"] in names:
            self._take_out(facts)
        self.end()
        archive.sweep(self.directory, self.name)
        return action

    # The ways to rotate.

    def choose(self, *, opened_again: bool = False) -> str:
        """The strategy for this log now. Raises ``OpsError`` where none is safe.

        ``opened_again``: a writer came back while the log was to be renamed. That nobody writes it at one moment says
        nothing then.
        """
        wanted = self.options.strategy
        for _attempt in range(_ATTEMPTS):
            self.look_for_holders()
            writers = self.writers()
            free = not opened_again and self._unwritten(writers)
            if free or writers:
                break
            time.sleep(0.02)  # a writer that opens the log for every line was there, and is gone
        if wanted == "copytruncate":
            return wanted
        # A log that is itself a mount point, as in containers, cannot be renamed, whoever writes it.
        mounted = self._is_mount_point()
        if mounted and wanted in ("rename", "logrotate"):
            raise OpsError(
                f"{self.path} is a mount point, and cannot be renamed.",
                hint="Choose strategy auto, or rotate it where it is mounted from.",
            )
        if free and not mounted and wanted in ("auto", "rename", "logrotate"):
            return "rename"
        if not free and not writers:
            if opened_again and not self.unreadable:
                raise _OpenedAgain(self.path)
            raise OpsError(
                f"{self.path} is open for writing by a process that this user cannot inspect.",
                hint="Run as root, on the host itself and not in a container.",
            )
        if wanted == "rename":
            names = ", ".join(f"{holder.command} ({holder.pid})" for holder in writers)
            raise OpsError(
                f"{self.path} is being written by {names}, who would go on writing the renamed file.",
                hint="Choose strategy auto.",
            )
        if wanted == "logrotate" or (
            wanted == "auto" and self.options.reopen and not mounted and logrotate.installed()
        ):
            logrotate.require()
            return "logrotate"
        append = all(holder.append for holder in writers)
        if wanted in ("auto", "collapse") and append and extents.supports(self.directory, "collapse"):
            if not self._has_holes():
                return "collapse"
            if wanted == "collapse":
                raise self._sparse()
        if wanted in ("auto", "punch") and extents.supports(self.directory, "punch"):
            return "punch"
        if self.options.allow_loss:
            return "copytruncate"
        why = (
            "not every writer appends (O_APPEND)" if not append else "its filesystem cannot take a range out of a file"
        )
        raise OpsError(
            f"{self.path} cannot be rotated by {wanted} without losing lines: {why}.",
            hint="Say with reopen how its writer is told to reopen it, or accept lost lines with allow_loss: true.",
        )

    def _is_mount_point(self) -> bool:
        descriptor = os.open(self.name, _READ_FLAGS, dir_fd=self.directory)
        try:
            return mount_id(descriptor) != mount_id(self.directory)
        finally:
            os.close(descriptor)

    def _has_holes(self) -> bool:
        """Whether a hole is in the way of taking the head out: of a log that was punched before, or of a writer that
        does not append.
        """
        descriptor = os.open(self.name, _READ_FLAGS, dir_fd=self.directory)
        try:
            head = self._head(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        return head.start > 0 or None in head.places

    def _sparse(self) -> OpsError:
        return OpsError(
            f"{self.path} has holes, so nothing can be taken out of it safely.", hint="Choose strategy punch or auto."
        )

    def _unwritten(self, writers: t.Sequence[open_files.Holder]) -> bool:
        """Whether nobody has the log open for writing: by the kernel's word, or where it cannot give it, by what /proc
        shows to one who sees all.
        """
        descriptor = os.open(self.name, _READ_FLAGS, dir_fd=self.directory)
        try:
            with open_files.lease(descriptor, writers_only=True) as free:
                return bool(free) if free is not None else not writers and not self.unreadable
        finally:
            os.close(descriptor)

    def rotate(self, strategy: str) -> t.Dict[str, t.Any]:
        """Rotates by ``strategy``, or in check mode says what it would do, and gives the action."""
        started = time.monotonic()
        before = self.status()
        action: t.Dict[str, t.Any] = {
            "action": "rotate",
            "target": self.path,
            "changed": True,
            "strategy": strategy,
            "size_before": before.st_size,
            "disk_before": before.st_blocks * 512,
            "holders": [holder.as_dict() for holder in self.holders],
        }
        part = archive.free_name(self.directory, self.name)
        if self.check_mode:
            packed = ".gz" if self.options.compress else ""
            return {
                **action,
                **self._foreseen(strategy, before),
                "rotated_to": f"{self.directory_path}/{part}{packed}",
                "duration_ms": 0.0,
            }
        ways = {
            "rename": self._rename,
            "logrotate": self._logrotate,
            "collapse": self._in_place,
            "punch": self._in_place,
            "copytruncate": self._copytruncate,
        }
        try:
            more = ways[strategy](strategy, part, before, self.ownership())
        except (OSError, OpsError):
            self.abandon()
            raise
        after = self.status()
        return {
            **action,
            "size_after": after.st_size,
            "disk_after": after.st_blocks * 512,
            **more,
            "rotated_to": f"{self.directory_path}/{more['rotated_to']}",
            "duration_ms": round((time.monotonic() - started) * 1000, 1),
        }

    def _foreseen(self, strategy: str, before: os.stat_result) -> t.Dict[str, t.Any]:
        if strategy in ("collapse", "punch"):
            descriptor = os.open(self.name, _READ_FLAGS, dir_fd=self.directory)
            try:
                head = self._head(descriptor, before.st_size)
            finally:
                os.close(descriptor)
            rest = before.st_size - head.cut
            length = rest if strategy == "collapse" else before.st_size
            return {
                "size_after": length,
                "disk_after": rest,
                "whole_lines": head.whole,
                "archived_bytes": head.cut - head.start,
                "stall_ms": 0.0,
            }
        return {"size_after": 0, "disk_after": 0, **({"reopened_ms": 0.0} if strategy == "logrotate" else {})}

    def _create(self, owner: Ownership) -> None:
        """A fresh log; of one that its writer made meanwhile, what it has beside owner and mode."""
        try:
            descriptor = os.open(
                self.name,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=self.directory,
            )
        except FileExistsError:
            self._complete(owner)
            return
        try:
            owner.apply(descriptor)
        finally:
            os.close(descriptor)

    def _complete(self, owner: Ownership) -> None:
        try:
            descriptor = os.open(self.name, _READ_FLAGS, dir_fd=self.directory)
        except FileNotFoundError:
            return
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_uid == owner.uid:
                replace(owner, mode=stat.S_IMODE(status.st_mode), gid=None).apply(descriptor)
        finally:
            os.close(descriptor)

    def _rename(self, _strategy: str, part: str, before: os.stat_result, own: Ownership) -> t.Dict[str, t.Any]:
        self.begin({"strategy": "rename", "part": part, **own.as_record()})
        for _attempt in range(_ATTEMPTS):
            if self._rename_unwritten(part, own, before):
                break
            time.sleep(0.02)
        else:
            self.end()
            raise _OpenedAgain(self.path)
        archive.sync(self.directory)
        self.end()
        return self._pack(part, own)

    def _pack(self, part: str, own: Ownership) -> t.Dict[str, t.Any]:
        """Compresses a part that was renamed, or gives it to its owner. What fails here is said; the log is rotated."""
        try:
            if self.options.compress:
                return {"rotated_to": archive.compress_part(self.directory, part, self.of_part(own)) or part}
            self._own(part, self.of_part(own))
        except (OSError, OpsError) as error:
            self.unfinished = self.refusal(error)
        return {"rotated_to": part}

    def _rename_unwritten(self, part: str, own: Ownership, before: os.stat_result) -> bool:
        """Renames the log while the kernel holds writers off, and puts a fresh file in its place.

        False where somebody writes it just now.
        """
        descriptor = os.open(self.name, _READ_FLAGS, dir_fd=self.directory)
        try:
            with open_files.lease(descriptor, writers_only=True) as free:
                status = os.fstat(descriptor)
                if (status.st_dev, status.st_ino) != (before.st_dev, before.st_ino):
                    self.end()
                    raise OpsError(
                        f"Somebody replaced {self.path} just now.", hint="Let only one rotate it, then run it again."
                    )
                if free is False:
                    return False
                os.rename(self.name, part, src_dir_fd=self.directory, dst_dir_fd=self.directory)
                self._create(own)
        finally:
            os.close(descriptor)
        return True

    def _logrotate(self, _strategy: str, part: str, _before: os.stat_result, own: Ownership) -> t.Dict[str, t.Any]:
        self.begin({"strategy": "logrotate", "part": part, **own.as_record()})
        if not logrotate.rename(self.directory_path, self.name, part):
            os.rename(self.name, part, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        self._create(own)
        told = self._tell_writers(part)
        self.end()
        return {**self._pack(part, own), **told}

    def _tell_writers(self, part: str) -> t.Dict[str, t.Any]:
        """Tells the writers to reopen, and waits until none writes the renamed file.

        Raises ``OpsError`` that names who goes on; nothing is lost then.
        """
        status = os.stat(part, dir_fd=self.directory, follow_symlinks=False)
        identity = (status.st_dev, status.st_ino)
        begun = time.monotonic()
        told = 0
        while True:
            waited = time.monotonic() - begun
            # Told a second time half way: a signal that comes while a program starts is lost.
            if told == 0 or (told == 1 and waited > self.options.reopen_timeout / 2):
                logrotate.tell(self.options.reopen)
                told += 1
            writers = [
                holder for holder in open_files.open_files({identity}, mappings=False).of(identity) if holder.writes
            ]
            if not writers:
                return {"reopened_ms": round((time.monotonic() - begun) * 1000, 1)}
            if waited > self.options.reopen_timeout:
                names = ", ".join(f"{holder.command} ({holder.pid})" for holder in writers)
                raise OpsError(
                    f"{names} still writes the renamed {self.directory_path}/{part}, {self.options.reopen_timeout:g} s"
                    " after it was told to reopen.",
                    hint="Nothing is lost. Look whether the command in reopen reaches it; the next run tells it again.",
                )
            time.sleep(0.05)

    def _own(self, part: str, owner: Ownership) -> None:
        descriptor = os.open(part, _READ_FLAGS, dir_fd=self.directory)
        try:
            owner.apply(descriptor)
        finally:
            os.close(descriptor)

    def _head(self, descriptor: int, size: int) -> _Head:
        """What of an open log is taken out in place. What stays is half of ``max_size`` at most."""
        start = extents.first_data(descriptor, size)
        cut, whole = archive.line_boundary(
            descriptor, start, size, os.fstatvfs(descriptor).f_bsize, self.options.max_size // 2
        )
        if cut <= start:
            raise OpsError(f"{self.path} has no whole block to take out.", hint="It is smaller than it seemed.")
        edges = [*range(start, cut, extents.CHUNK), cut]
        return _Head(start, cut, whole, edges, [extents.physical(descriptor, edge) for edge in edges])

    def _in_place(self, strategy: str, part: str, before: os.stat_result, own: Ownership) -> t.Dict[str, t.Any]:
        descriptor = os.open(self.name, _WRITE_FLAGS, dir_fd=self.directory)
        try:
            head = self._head(descriptor, os.fstat(descriptor).st_size)
            if strategy == "collapse" and (head.start or None in head.places):
                raise self._sparse()
            name = f"{part}.gz" if self.options.compress else part
            archive.write_part(
                self.directory,
                name,
                descriptor,
                head.start,
                head.cut,
                compress=self.options.compress,
                owner=self.of_part(own),
            )
            facts = {
                "strategy": strategy,
                "part": name,
                "device": before.st_dev,
                "inode": before.st_ino,
                "edges": head.edges,
                "places": head.places,
            }
            self.begin(facts)
            os.rename(archive.partial_name(name), name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            archive.sync(self.directory)
            begun = time.monotonic()
            try:
                self._take_out(facts)
            except OSError:
                if self._is_whole(descriptor, head):
                    # The log still has every line, so the part would double them.
                    os.unlink(name, dir_fd=self.directory)
                raise
            took = time.monotonic() - begun
            self.end()
        finally:
            os.close(descriptor)
        more = (
            {}
            if strategy == "collapse"
            else {"note": "The file's length goes on growing; what it takes on the disk does not."}
        )
        return {
            "rotated_to": name,
            "whole_lines": head.whole,
            "archived_bytes": head.cut - head.start,
            "stall_ms": round(took * 1000, 1),
            **more,
        }

    @staticmethod
    def _is_whole(descriptor: int, head: _Head) -> bool:
        """Whether nothing of a head was taken out yet."""
        return (
            extents.first_data(descriptor, os.fstat(descriptor).st_size) == head.start
            and extents.physical(descriptor, head.start) == head.places[0]
        )

    def _take_out(self, facts: t.Mapping[str, t.Any]) -> None:
        """Takes what is archived out of the live file: what is still in it of that, and nothing else."""
        try:
            descriptor = os.open(self.name, _WRITE_FLAGS, dir_fd=self.directory)
        except FileNotFoundError:
            return
        try:
            status = os.fstat(descriptor)
            edges: t.List[int] = facts["edges"]
            places: t.List[t.Optional[int]] = facts["places"]
            if (status.st_dev, status.st_ino) != (facts["device"], facts["inode"]):
                return  # somebody else rotated it meanwhile
            if facts["strategy"] == "punch":
                for start, end in zip(edges, edges[1:]):
                    extents.punch(descriptor, start, end - start)
                return
            first = extents.physical(descriptor, 0)
            # The blocks at the beginning tell how many chunks are gone already.
            gone = places.index(first) if first in places else len(edges) - 1
            for start, end in list(zip(edges, edges[1:]))[gone:]:
                extents.collapse(descriptor, end - start)
        finally:
            os.close(descriptor)

    def _copytruncate(self, _strategy: str, part: str, before: os.stat_result, own: Ownership) -> t.Dict[str, t.Any]:
        descriptor = os.open(self.name, _WRITE_FLAGS, dir_fd=self.directory)
        try:
            size = os.fstat(descriptor).st_size
            archive.write_part(self.directory, part, descriptor, 0, size, compress=False, owner=self.of_part(own))
            # What came meanwhile is copied without syncing in between: the shorter this is, the less is lost.
            target = os.open(
                archive.partial_name(part),
                os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC,
                dir_fd=self.directory,
            )
            try:
                block = os.pread(descriptor, 1 << 20, size)
                while block:
                    os.write(target, block)
                    size += len(block)
                    block = os.pread(descriptor, 1 << 20, size)
                os.ftruncate(descriptor, 0)
                os.fsync(target)
            finally:
                os.close(target)
            os.rename(archive.partial_name(part), part, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            archive.sync(self.directory)
        finally:
            os.close(descriptor)
        return {
            **self._pack(part, own),
            "note": "Lines that were written during the cut may be lost; how many is not known.",
        }

    def tidy(self, rotated: bool, actions: t.List[t.Dict[str, t.Any]]) -> None:
        """Removes the oldest parts beyond ``keep``, and compresses those that an earlier run had to leave plain; adds
        what was done to ``actions``.
        """
        coming = 1 if rotated and self.check_mode else 0
        retired = archive.retire(
            self.directory, self.name, self.options.keep, check_mode=self.check_mode, coming=coming
        )
        actions += [
            {"action": "delete", "target": f"{self.directory_path}/{part}", "changed": True, "bytes_freed": size}
            for part, size in retired
        ]
        if not self.options.compress or self.unfinished is not None:
            return
        gone = {part for part, _size in retired}
        for part in archive.parts(self.directory, self.name):
            if part.endswith(".gz") or part in gone:
                continue
            packed = f"{part}.gz" if self.check_mode else archive.compress_part(self.directory, part)
            if packed:
                actions.append(
                    {
                        "action": "compress",
                        "target": f"{self.directory_path}/{part}",
                        "changed": True,
                        "rotated_to": packed,
                    }
                )


def options_of(given: t.Mapping[str, t.Any]) -> Options:
    """The options among a caller's parameters; sizes, modes and names of users as people write them.

    Raises ``OpsError`` for nonsense.
    """
    import grp
    import pwd

    taken: t.Dict[str, t.Any] = {
        key: tuple(given[key]) if isinstance(given[key], list) else given[key]
        for key in Options.__dataclass_fields__
        if given.get(key) is not None
    }
    if "max_size" in taken:
        taken["max_size"] = units.size(taken["max_size"], "max_size")
    if "mode" in taken:
        try:
            taken["mode"] = int(str(taken["mode"]), 8)
        except ValueError:
            raise OpsError(f"mode must be octal, got {taken['mode']!r}.", hint="For example 0640.") from None
    for option, key, look_up in (
        ("owner", "uid", lambda name: pwd.getpwnam(name).pw_uid),
        ("group", "gid", lambda name: grp.getgrnam(name).gr_gid),
    ):
        if given.get(option):
            try:
                taken[key] = look_up(given[option])
            except KeyError:
                raise OpsError(
                    f"There is no {option} {given[option]!r} on this host.", hint="Create it first."
                ) from None
    return Options(**taken)


def validate(options: Options) -> None:
    """Refuses nonsense before anything is touched."""
    choice("strategy", options.strategy, STRATEGIES)
    if options.strategy == "copytruncate" and not options.allow_loss:
        raise OpsError(
            "copytruncate loses lines that are written while it cuts.",
            hint="Choose strategy auto, or accept that with allow_loss: true.",
        )
    in_range("keep", options.keep, 1, 1000)
    in_range("max_size", options.max_size, 4096, unit="bytes", hint="For example 50MB.")
    in_range("reopen_timeout", options.reopen_timeout, 1, 600, unit="seconds")
    if options.strategy == "logrotate" and not options.reopen:
        raise OpsError(
            "strategy logrotate does not know how the writers are told to reopen.", hint="Give the command in reopen."
        )
    if options.mode is not None and not 0 <= options.mode <= 0o777:
        raise OpsError(f"mode must be between 0 and 0777, got {options.mode:o}.", hint="For example 0640.")


def run(paths: t.Sequence[str], options: Options, *, check_mode: bool = False, want_diff: bool = False) -> Result:
    """Rotates every log that is over its size; see the module's documentation for the result.

    A log that cannot be rotated safely does not keep the others from it: they are rotated first, then ``OpsError``
    names it.
    """
    validate(options)
    not_empty("paths", paths, hint="For example /var/log/app/*.log.")
    started = time.monotonic()
    logs = find(paths)
    strange = unmatched(paths)  # before a rename: afterwards the log may be its writer's to create
    turns = [_turn(path, options, check_mode) for path in logs]
    actions = [action for turn in turns for action in turn.actions]
    before = {turn.path: turn.before for turn in turns if turn.before is not None}
    after = {turn.path: turn.after for turn in turns if turn.after is not None}
    refused = {turn.path: turn.refusal for turn in turns if turn.refusal is not None}
    rotated = [action for action in actions if action["action"] == "rotate"]
    freed = sum(before.values()) - sum(after.values())
    verb = "would be rotated" if check_mode else "rotated"
    result = Result(
        changed=any(action["changed"] for action in actions),
        before={"bytes": before},
        after={"bytes": after},
        actions=actions,
        msg=f"{len(rotated)} of {len(logs)} logs {verb}; they take {units.readable(freed)} less.",
        diff=[
            {
                "before_header": path,
                "after_header": path,
                "before": f"{before[path]} bytes\n",
                "after": f"{after[path]} bytes\n",
            }
            for path in before
            if want_diff and before[path] != after[path]
        ],
        extra={"rotated": len(rotated), "duration_ms": round((time.monotonic() - started) * 1000, 1)},
        warnings=strange,
    )
    if refused:
        first = next(iter(refused.values()))
        details = {key: value for key, value in result.as_dict().items() if key != "msg"}
        raise OpsError(
            " ".join(error.message for error in refused.values()),
            hint=first.hint,
            refused={path: str(error) for path, error in refused.items()},
            **details,
        )
    return result


@dataclass
class _Turn:
    """What became of one log: its bytes on disk before and after, and why it was left, or not finished."""

    path: str
    actions: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    before: t.Optional[int] = None
    after: t.Optional[int] = None
    refusal: t.Optional[OpsError] = None


def _turn(path: str, options: Options, check_mode: bool) -> _Turn:
    """Rotates one log. Whatever stands in its way is a refusal of this log: the others have their turn."""
    turn = _Turn(path)
    try:
        with Log(path, options, check_mode) as log:
            try:
                finished = log.finish()
                turn.actions += [finished] if finished else []
                turn.before = turn.after = disk_bytes(log.status())
                _one(log, turn)
                turn.refusal = log.unfinished
            except OSError as error:
                if not isinstance(error, FileNotFoundError) or os.path.lexists(path):  # else it was removed meanwhile
                    turn.refusal = log.refusal(error)
            except OpsError as error:
                turn.refusal = error
            if turn.before is not None and not check_mode:
                with contextlib.suppress(OSError):
                    turn.after = disk_bytes(log.status())
    except FileNotFoundError:
        pass  # its directory was removed meanwhile
    except OpsError as error:
        turn.refusal = error
    except OSError as error:
        turn.refusal = attributes.explanation(path, error)
    return turn


def _one(log: Log, turn: _Turn) -> None:
    status = log.status()
    rotated = False
    if disk_bytes(status) > log.options.max_size:
        if status.st_nlink != 1:
            raise OpsError(
                f"{log.path} has {status.st_nlink} hard links.",
                hint="A hard link may lead to a file of somebody else. Remove the other name first.",
            )
        other_policies.require_no_container(f"{log.directory_path}/{log.name}")
        log.require_changeable()
        try:
            turn.actions.append(log.rotate(log.choose()))
        except _OpenedAgain:
            if log.options.strategy != "auto":
                raise
            turn.actions.append(log.rotate(log.choose(opened_again=True)))
        rotated = True
        if log.check_mode:
            turn.after = turn.actions[-1]["disk_after"]
    log.tidy(rotated, turn.actions)


def manage_policy(
    state: str,
    name: str,
    paths: t.Sequence[str],
    options: Options,
    *,
    frequency: str = "daily",
    owner: str = "",
    group: str = "",
    directory: str = logrotate.POLICIES,
    check_mode: bool = False,
    want_diff: bool = False,
) -> Result:
    """Installs (``present``) a permanent policy that logrotate has read and understood, or removes it (``absent``)."""
    path = logrotate.policy_path(name, directory)
    before = logrotate.current(path)
    wanted: t.Optional[str] = None
    sentences: t.List[str] = []
    if state == "present":
        validate(options)
        choice("frequency", frequency, logrotate.FREQUENCIES)
        not_empty("paths", paths, hint="For example /var/log/app/*.log.")
        named = list(dict.fromkeys(log_pattern(entry) for entry in paths))
        wanted = logrotate.policy_text(
            named,
            max_size=options.max_size,
            keep=options.keep,
            frequency=frequency,
            compress=options.compress,
            reopen=options.reopen,
            mode=options.mode,
            owner=owner,
            group=group,
            allow_loss=options.allow_loss,
        )
        for log in (log for entry in named for log in sorted(matching(entry))):
            other_policies.require_no_container(log)
        others = other_policies.others(path, main=logrotate.MAIN if directory == logrotate.POLICIES else "")
        taken, sentences = other_policies.conflicts(named, others)
        if taken:
            raise OpsError(
                f"{', '.join(taken)} rotates one of these logs already:"
                f" {', '.join(dict.fromkeys(log for logs in taken.values() for log in logs))}.",
                hint="Remove it there: logrotate refuses a log that is named twice.",
            )
        logrotate.validated(wanted, others, replaces=path)
        slower = other_policies.slower_than_hourly() if frequency == "hourly" else ""
        if slower:
            sentences.append(
                f"frequency is hourly, but logrotate does not run every hour on this host: {slower}. Set OnCalendar=hourly"
                " with systemctl edit logrotate.timer, or have cron run it every hour."
            )
    changed = wanted != before
    if changed and not os.access(path.parent, os.W_OK | os.X_OK):
        raise OpsError(
            f"Policies in {path.parent} cannot be written: {os.strerror(errno.EACCES)}.",
            hint="Run as root (become: true).",
        )
    if changed and not check_mode:
        if wanted is not None:
            write_atomically(path, os.fsencode(wanted), mode=0o644)
        else:
            path.unlink()
    verb = "install" if wanted is not None else "remove"
    done = f"{'would be ' if check_mode else ''}{'installed' if wanted is not None else 'removed'}"
    return Result(
        changed=changed,
        before={"policy": before},
        after={"policy": wanted},
        actions=[{"action": verb, "target": str(path), "changed": True}] if changed else [],
        msg=f"The policy {path} {done}." if changed else f"The policy {path} is as it should be.",
        diff=(
            [{"before_header": str(path), "after_header": str(path), "before": before or "", "after": wanted or ""}]
            if want_diff and changed
            else []
        ),
        extra={"rotated": 0, "duration_ms": 0.0},
        warnings=[*unmatched(paths), *sentences] if wanted is not None else [],
    )


def run_with(given: t.Mapping[str, t.Any], *, check_mode: bool = False, want_diff: bool = False) -> Result:
    """``run`` or ``manage_policy`` for a caller's parameters."""
    options = options_of(given)
    paths = given.get("paths") or []
    if given.get("state") != "absent":
        logrotate.require_program(options.reopen)
    if given.get("state", "rotated") == "rotated":
        return run(paths, options, check_mode=check_mode, want_diff=want_diff)
    return manage_policy(
        given["state"],
        given["name"],
        paths,
        options,
        frequency=given["frequency"],
        owner=given.get("owner") or "",
        group=given.get("group") or "",
        check_mode=check_mode,
        want_diff=want_diff,
    )
