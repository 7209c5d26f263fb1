# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The history of what was done to a host: one JSON object a line, bounded, written under a lock, readable by the health API."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
import typing as t
from pathlib import Path

from ..core.redaction import redact_value
from ..core.results import OpsError
from ..host.files import write_atomically
from . import documents

#: Above this many bytes the older half is dropped.
MAX_BYTES = 2_000_000
_TIME = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-6][0-9]Z")


def append(path: Path, record: t.Mapping[str, t.Any], *, max_bytes: int = MAX_BYTES) -> t.Dict[str, t.Any]:
    """Adds one record with the time in UTC and gives it as written.

    Readers see whole lines only: the file is replaced when it is cut, and a line is written with one call otherwise. A line that a
    crash left unfinished is ended first. Raises ``OpsError`` where the file is a link or cannot be written.
    """
    # The health API and monthly reports show it, and part of it is what the backend wrote.
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **redact_value(dict(record))}
    line = (json.dumps(entry, default=str, sort_keys=True) + "\n").encode()
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _locked(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, (b"\n" if torn else b"") + line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if size + len(line) > max_bytes:
                kept = path.read_bytes()[-max_bytes // 2 :]
                write_atomically(path, kept[kept.index(b"\n") + 1 :], mode=0o644)
    except OSError as error:
        raise OpsError(
            f"Cannot write the history {path}: {error.strerror}.",
            hint="Name a state directory that this user may write.",
        ) from error
    return entry


def read(path: Path, limit: int = 50) -> t.List[t.Dict[str, t.Any]]:
    """The newest ``limit`` records, newest first; lines that are no records are passed over."""
    return read_and_count(path, limit)[0]


def read_and_count(path: Path, limit: int = 50) -> t.Tuple[t.List[t.Dict[str, t.Any]], int]:
    """``read``, and how many lines of the whole file are no records: objects with no other ``time`` than ``append`` writes."""
    content = documents.content(path, hint="Look at the file; move it away.")
    entries, damaged = documents.objects(content or b"")
    records = [
        entry
        for entry in entries
        if "time" not in entry or (isinstance(entry["time"], str) and _TIME.fullmatch(entry["time"]))
    ]
    damaged += len(entries) - len(records)
    return records[::-1][:limit], damaged


@contextlib.contextmanager
def _locked(path: Path) -> t.Iterator[None]:
    # A sidecar, because the file itself is replaced when it is cut.
    descriptor = os.open(
        path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
