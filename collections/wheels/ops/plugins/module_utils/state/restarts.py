# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Restarts that were made, over runs: what the budget and the cool-down count, and which restarts were planned."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
import typing as t
from pathlib import Path

from ..core.results import OpsError
from ..host.files import write_atomically
from . import directory as state_directory
from . import documents

DEFAULT_STATE_DIR = "/var/lib/wheels-ops"
#: How a restart ended that the manager refused, so that nothing was changed.
REFUSED = "refused"
#: Lines are short (about 300 bytes); the file is cut to the newer half above this.
_MAX_BYTES = 1 << 20


def state_dir(path: str = "") -> Path:
    """The directory of our state on this host.

    Raises ``OpsError`` for one that is not absolute (the next run would look elsewhere), and for one that somebody else
    can change.
    """
    return state_directory.require(path or os.environ.get("WHEELS_OPS_STATE_DIR") or DEFAULT_STATE_DIR)


def require_writable(directory: Path) -> None:
    """Raises ``OpsError`` where our state could not be written; makes nothing, so that check mode can ask."""
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise OpsError(
            f"The state directory {directory} cannot be written: {os.strerror(errno.EACCES)}.",
            hint="Run as root, or set state_dir.",
        )


class Ledger:
    """``restarts.jsonl`` in the state directory; a lock beside it keeps two runs from overlapping."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "restarts.jsonl"
        #: The lines of the file that were no entries when it was last read.
        self.damaged = 0

    @contextlib.contextmanager
    def locked(self) -> t.Iterator[None]:
        """Holds the lock of restarts. It ends with the process, even with one that is killed.

        Raises ``OpsError`` where another run has it.
        """
        try:
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            descriptor = os.open(
                self._directory / "restarts.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640
            )
        except OSError as error:
            raise OpsError(
                f"The state directory {self._directory} cannot be written: {error.strerror}.",
                hint="Run as root, or set state_dir.",
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OpsError(
                    "Another run restarts services on this host.",
                    hint="Wait for it to end; the lock ends with its process.",
                ) from None
            yield
        finally:
            os.close(descriptor)

    def read(self) -> t.List[t.Dict[str, t.Any]]:
        """All entries, oldest first.

        A line that is none, as one that was cut by a crash, is passed over and counted in ``damaged``.
        """
        content = documents.content(
            self.path,
            hint="Look at the file; move it away, or run as root. Without it no restart is counted against the budget.",
        )
        records, self.damaged = documents.objects(content or b"")
        entries = [entry for entry in records if documents.number(entry.get("time"))]
        self.damaged += len(records) - len(entries)
        return entries

    def add(self, **entry: t.Any) -> None:
        """Appends one entry with the present time and syncs it: what counts against the budget is on disk before it is
        done.
        """
        line = (json.dumps({"time": round(time.time(), 3), **entry}, default=str) + "\n").encode()
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            try:
                size = os.fstat(descriptor).st_size
                # A line that a crash left unfinished would swallow this one.
                torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, (b"\n" if torn else b"") + line)
                os.fsync(descriptor)
                size += len(line)
            finally:
                os.close(descriptor)
            if size > _MAX_BYTES:
                self._shorten()
        except OSError as error:
            raise OpsError(
                f"{self.path} cannot be written: {error.strerror}.", hint="Give the state directory room and rights."
            ) from None

    def _shorten(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        write_atomically(self.path, b"".join(lines[len(lines) // 2 :]), mode=0o640)

    def starts(self, service: str, window: float) -> t.List[float]:
        """When a service was started or restarted by us within the last ``window`` seconds, oldest first.

        A clock that was put back leaves entries of the future; they count as of now.
        """
        now = time.time()
        times: t.List[float] = []
        for entry in self.read():
            if entry.get("service") != service:
                continue
            if entry.get("event") == "begin":
                times.append(min(now, entry["time"]))
            elif entry.get("outcome") == REFUSED and times:
                times.pop()  # its manager did not do it: that is no restart
        return [start for start in times if start > now - window]

    def blocked(self, service: str, *, max_restarts: int, window: float, cooldown: float) -> str:
        """Why a service may not be restarted now; empty where it may."""
        return self.blocked_until(service, max_restarts=max_restarts, window=window, cooldown=cooldown)[0]

    def blocked_until(self, service: str, *, max_restarts: int, window: float, cooldown: float) -> t.Tuple[str, float]:
        """(why a service may not be restarted now, until when in seconds since the epoch); an empty text and 0 where it
        may.
        """
        now = time.time()
        starts = self.starts(service, max(window, cooldown))
        if starts and cooldown and now - starts[-1] < cooldown:
            remaining = cooldown - (now - starts[-1])
            return (
                f"it was restarted {now - starts[-1]:.0f} s ago; the cool-down of {cooldown:g} s lasts {remaining:.0f} s"
                " more",
                now + remaining,
            )
        inside = [start for start in starts if start > now - window]
        if max_restarts and len(inside) >= max_restarts:
            until = inside[-max_restarts] + window
            return (
                f"its budget of {max_restarts} restarts in {window:g} s is spent; one is free again in"
                f" {until - now:.0f} s",
                until,
            )
        return "", 0.0
