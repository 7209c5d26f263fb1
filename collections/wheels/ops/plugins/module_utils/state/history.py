# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The history of what was done to a host: one ``HistoryRecord`` a line, as JSON.

The file is bounded, written under a lock and readable by the health API, whose dashboard shows the same keys
(``app/wheels_ops/dashboard.py``; it cannot import this file, so a test feeds it what the writers write).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import re
import time
import typing as t
from calendar import timegm
from dataclasses import dataclass, field
from pathlib import Path

from ..core.redaction import redact_value
from ..core.results import OpsError
from ..host.files import write_atomically
from . import documents

#: The file of the recovery, the playbooks and the health API in the state directory.
FILE = "history.jsonl"
#: Above this many bytes the older half is dropped.
MAX_BYTES = 2_000_000
_TIME = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-6][0-9]Z")
_STAMP = "%Y-%m-%dT%H:%M:%SZ"

HEALTHY, NOT_HEALTHY = "healthy", "not healthy"

_TEXTS = ("time", "action", "trigger", "host", "run_id", "subject", "outcome", "started_at", "awx_schedule")
_NAMES = ("before", "after", "not_checked", "errors")
_OBJECTS = ("results", "requests", "problems")
_NUMBERS = ("awx_job_id", "duration_s", "bytes_freed")
_MAPPINGS = ("checks", "scores")


@dataclass(frozen=True)
class HistoryRecord:
    """What one run found and did.

    ``before`` and ``after`` are the names of the checks that failed before and after it, ``not_checked`` those that
    were skipped in the last health run; ``after`` is None where nothing was checked afterwards. ``results`` has an
    object for each remedy, ``problems`` one for each change of a problem (``state/problems.py``), ``checks`` the status
    of each check by name (of the monitor). ``awx_job_id`` and ``awx_schedule`` are of the job that ran it. ``extra``
    holds every other key of the line, and every key of ours whose value has another shape, so that no reader loses what
    a writer wrote.
    """

    time: str = ""
    action: str = ""
    trigger: str = ""
    host: str = ""
    run_id: str = ""
    subject: str = ""
    before: t.Tuple[str, ...] = ()
    after: t.Optional[t.Tuple[str, ...]] = None
    not_checked: t.Tuple[str, ...] = ()
    outcome: str = ""
    errors: t.Tuple[str, ...] = ()
    results: t.Tuple[t.Mapping[str, t.Any], ...] = ()
    requests: t.Tuple[t.Mapping[str, t.Any], ...] = ()
    problems: t.Tuple[t.Mapping[str, t.Any], ...] = ()
    checks: t.Mapping[str, str] = field(default_factory=dict)
    scores: t.Mapping[str, t.Any] = field(default_factory=dict)
    started_at: str = ""
    awx_schedule: str = ""
    awx_job_id: t.Optional[float] = None
    duration_s: t.Optional[float] = None
    bytes_freed: t.Optional[float] = None
    extra: t.Mapping[str, t.Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, entry: t.Mapping[str, t.Any]) -> HistoryRecord:
        """A record out of a line or out of a task's ``record``; raises nothing, whatever the values are."""
        entry = _renamed(entry)
        values: t.Dict[str, t.Any] = {}
        extra: t.Dict[str, t.Any] = {}
        for key, value in entry.items():
            convert = _CONVERTERS.get(key)
            converted = convert(value) if convert else None
            if converted is None:
                extra[str(key)] = value
            else:
                values[key] = converted
        return cls(**values, extra=extra)

    def as_json(self) -> t.Dict[str, t.Any]:
        """The line as an object: what is set, and ``extra``."""
        entry = {name: getattr(self, name) for name in _CONVERTERS}
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in entry.items()
            if value is not None and (name == "after" or value not in ("", (), {}))
        }
        return {**self.extra, **values}

    def completed(self, now: float) -> HistoryRecord:
        """The record as it is written at ``now``: with its time, the outcome that ``after`` says, and the duration."""
        seconds = self.duration_s
        begun = seconds_of(self.started_at)
        if seconds is None and begun is not None:
            seconds = round(max(0.0, now - begun), 1)
        outcome = self.outcome
        if self.after is not None and (not outcome or outcome == HEALTHY):
            outcome = outcome_of(self.after, self.not_checked)
        return dataclasses.replace(
            self, time=time.strftime(_STAMP, time.gmtime(now)), outcome=outcome, duration_s=seconds
        )

    @property
    def seconds(self) -> t.Optional[float]:
        """When it was written, in seconds since the epoch; None where the line does not say it."""
        return seconds_of(self.time)

    @property
    def healthy(self) -> bool:
        """Whether every check was made and passed."""
        return self.outcome == HEALTHY and not self.not_checked

    @property
    def healthy_in_part(self) -> bool:
        """Whether every check that was made passed, and some were not made."""
        return not self.healthy and self.outcome.partition(",")[0] == HEALTHY


def outcome_of(failing: t.Collection[str], not_checked: t.Collection[str]) -> str:
    """The outcome of a run in a few words. Only what was measured is healthy: ``healthy, 2 not checked``."""
    if failing:
        return NOT_HEALTHY
    return f"{HEALTHY}, {len(not_checked)} not checked" if not_checked else HEALTHY


def seconds_of(stamp: str) -> t.Optional[float]:
    """A time of the history in seconds since the epoch, None for another text."""
    try:
        return float(timegm(time.strptime(stamp, _STAMP)))
    except ValueError:
        return None


def _text(value: t.Any) -> t.Optional[str]:
    return value if isinstance(value, str) else None


def _names(value: t.Any) -> t.Optional[t.Tuple[str, ...]]:
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else None


def _objects(value: t.Any) -> t.Optional[t.Tuple[t.Mapping[str, t.Any], ...]]:
    if isinstance(value, (list, tuple)) and all(isinstance(entry, dict) for entry in value):
        return tuple(value)
    return None


def _number(value: t.Any) -> t.Optional[float]:
    # A template of ansible-core before 2.19 gives the text of a number.
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,15}(\.\d{1,9})?", value):
        value = float(value) if "." in value else int(value)
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return t.cast(float, value) if usable else None


def _mapping(value: t.Any) -> t.Optional[t.Mapping[str, t.Any]]:
    return value if isinstance(value, dict) else None


_CONVERTERS: t.Mapping[str, t.Callable[[t.Any], t.Any]] = {
    **dict.fromkeys(_TEXTS, _text),
    **dict.fromkeys(_NAMES, _names),
    **dict.fromkeys(_OBJECTS, _objects),
    **dict.fromkeys(_NUMBERS, _number),
    **dict.fromkeys(_MAPPINGS, _mapping),
}


def _renamed(entry: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Any]:
    """A line with the names of today: lines of the monitor had ``failing`` and ``duration_ms`` once."""
    if "checks" not in entry or "failing" not in entry or "after" in entry:
        return entry
    entry = dict(entry)
    entry["after"] = entry.pop("failing")
    milliseconds = _number(entry.get("duration_ms"))
    if milliseconds is not None and "duration_s" not in entry:
        entry["duration_s"] = milliseconds / 1000
        del entry["duration_ms"]
    return entry


def append(path: Path, record: HistoryRecord, *, max_bytes: int = MAX_BYTES) -> HistoryRecord:
    """Add one record with the time in UTC, and return it as written.

    Readers see whole lines only: the file is replaced when it is cut, and a line is written with one call otherwise.
    A line that a crash left unfinished is ended first. Raises ``OpsError`` where the file is a link or cannot be
    written.
    """
    # The health API and monthly reports show it, and part of it is what the backend wrote.
    entry = redact_value(record.completed(time.time()).as_json())
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
                tail = path.read_bytes()[-max_bytes // 2 :]
                write_atomically(path, tail[tail.index(b"\n") + 1 :], mode=0o644)
    except OSError as error:
        raise OpsError(
            f"Cannot write the history {path}: {error.strerror}.",
            hint="Name a state directory that this user may write.",
        ) from error
    return HistoryRecord.from_json(entry)


def read(path: Path, limit: int = 50) -> t.List[HistoryRecord]:
    """The newest ``limit`` records, newest first; lines that are no records are passed over."""
    return read_and_count(path, limit)[0]


def read_and_count(path: Path, limit: int = 50) -> t.Tuple[t.List[HistoryRecord], int]:
    """``read``, and how many lines of the whole file are no records: objects with no other ``time`` than ``append``
    writes.
    """
    content = documents.content(path, hint="Look at the file; move it away.")
    entries, damaged = documents.objects(content or b"")
    usable = [
        entry
        for entry in entries
        if "time" not in entry or (isinstance(entry["time"], str) and _TIME.fullmatch(entry["time"]))
    ]
    damaged += len(entries) - len(usable)
    return [HistoryRecord.from_json(entry) for entry in usable[: -limit - 1 : -1]], damaged


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
