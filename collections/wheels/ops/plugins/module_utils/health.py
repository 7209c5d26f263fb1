# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A C(Check) and how several are measured side by side."""

from __future__ import annotations

import concurrent.futures
import time
import typing as t
from dataclasses import asdict, dataclass, field

from .results import OpsError
from .thresholds import Status, Thresholds, worst


@dataclass(frozen=True)
class Check:
    """One measured subject. ``remedy`` names the module or step that cures it, empty where nothing is wrong."""

    name: str
    status: Status
    value: t.Any = None
    unit: str = ""
    thresholds: t.Dict[str, t.Optional[float]] = field(default_factory=dict)
    message: str = ""
    remedy: str = ""
    duration_ms: float = 0.0
    details: t.Dict[str, t.Any] = field(default_factory=dict)

    def as_dict(self) -> t.Dict[str, t.Any]:
        return asdict(self)


def unknown(name: str, why: str, **details: t.Any) -> Check:
    """A subject that could not be measured."""
    return Check(name=name, status="unknown", message=why, details=details)


def graded(name: str, value: float, unit: str, limits: Thresholds, *, message: str, remedy: str, **details: t.Any) -> Check:
    """A check whose status follows from its value; the remedy is named only where one is needed."""
    status = limits.status(value)
    return Check(
        name=name,
        status=status,
        value=value,
        unit=unit,
        thresholds=limits.as_dict(),
        message=message,
        remedy=remedy if status not in ("ok", "skipped") else "",
        details=details,
    )


def measure(subjects: t.Mapping[str, t.Callable[[], Check]], *, timeout: float = 30.0) -> t.List[Check]:
    """Runs every subject in a thread of its own and gives the checks in the order of ``subjects``.

    A subject that raises or that is not done within ``timeout`` seconds (counted for all together) is ``unknown``.
    """
    started = time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(subjects)), thread_name_prefix="check")
    futures = {name: pool.submit(_timed, name, call) for name, call in subjects.items()}
    checks = []
    for name, future in futures.items():
        left = max(0.0, timeout - (time.monotonic() - started))
        try:
            checks.append(future.result(timeout=left))
        except concurrent.futures.TimeoutError:
            checks.append(unknown(name, f"No answer within {timeout:g} s."))
    # A hung probe must not hold the report back: its thread is left to end with the process.
    pool.shutdown(wait=False)
    return checks


def _timed(name: str, call: t.Callable[[], Check]) -> Check:
    started = time.monotonic()
    try:
        check = call()
    except OpsError as error:
        check = unknown(name, str(error), **error.details)
    except Exception as error:  # one broken probe must not take the others with it
        check = unknown(name, f"{type(error).__name__}: {error}")
    return Check(**{**check.as_dict(), "name": name, "duration_ms": round((time.monotonic() - started) * 1000, 1)})


def overall(checks: t.Iterable[Check]) -> Status:
    """The worst status of all that was measured."""
    return worst(check.status for check in checks if check.status != "skipped")
