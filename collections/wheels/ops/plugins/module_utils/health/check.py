# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A C(Check) and how several are measured side by side.

What could not be measured is one of two things. The rule for every check and every error:

* ``critical`` where the subject was asked and cannot be used: refused, no answer to one question within the time for
  it, no connection free, a wrong password, an error for an answer. The application has the same server and mostly the
  same login; and where it has another, a person has to look. Monitoring plugins for Nagios do the same.
* ``unknown`` where we could not ask for a reason of our own: an option that makes no sense, a name that does not
  resolve, a library or a right that we lack, the time limit for all checks together, a check that breaks. A check
  raises ``OpsError`` then, or gives ``unknown``.

Where several things are wrong with one subject, its status is that of the worst, and the message begins with it
(``conclude``).
"""

from __future__ import annotations

import socket
import threading
import time
import typing as t
from dataclasses import asdict, dataclass, field

from ..core.packages import package_of
from ..core.redaction import redact_value
from ..core.results import OpsError
from .thresholds import STATUSES, Status, Thresholds, worst


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
        # A server's own words are among it.
        return t.cast("t.Dict[str, t.Any]", redact_value(asdict(self)))


def unknown(name: str, why: str, **details: t.Any) -> Check:
    """A subject that could not be measured."""
    return Check(name=name, status="unknown", message=why, details=details)


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw of its subject.

    ``text`` is a clause without a full stop, ``remedy`` what cures this one.
    """

    status: Status
    text: str
    remedy: str = ""


def conclude(name: str, findings: t.Iterable[Finding], *, fine: str, **further: t.Any) -> Check:
    """A check from what was found. The worst finding gives the status, begins the message and names the remedy; the
    others follow.

    ``fine`` is the clause for a subject with which nothing is wrong; findings that are ``ok`` are remarks and stand
    behind it.
    """
    ordered = sorted(findings, key=lambda finding: -STATUSES.index(finding.status))
    wrong = [finding for finding in ordered if finding.status not in ("ok", "skipped")]
    parts = [finding.text for finding in ordered] if wrong else [fine, *(finding.text for finding in ordered)]
    message = "; ".join(part.rstrip(".") for part in parts) + "."
    if message.split()[0].rstrip(",;:.").isalpha():  # not the name of a service, a path or a URL
        message = message[0].upper() + message[1:]
    status = wrong[0].status if wrong else "ok"
    return Check(name=name, status=status, message=message, remedy=wrong[0].remedy if wrong else "", **further)


def is_ours(error: t.Optional[BaseException]) -> bool:
    """Whether an error of connecting has a reason of our own: a host name that does not resolve here, or a right that
    we lack.

    Libraries wrap the error of the socket several times, as a cause, a context, an argument or a ``reason``.
    """
    visited: t.Set[int] = set()
    while error is not None and id(error) not in visited:
        if isinstance(error, (socket.gaierror, PermissionError)):
            return True
        visited.add(id(error))
        inner = getattr(error, "reason", None) or next(
            (word for word in error.args if isinstance(word, BaseException)), None
        )
        error = error.__cause__ or (inner if isinstance(inner, BaseException) else None) or error.__context__
    return False


def graded(
    name: str, value: float, unit: str, limits: Thresholds, *, message: str, remedy: str, **details: t.Any
) -> Check:
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
    start = time.monotonic()
    answers: t.Dict[str, Check] = {}

    def call_one(name: str, call: t.Callable[[], Check]) -> None:
        answers[name] = _timed(name, call)

    # A probe that hangs in the kernel (a dead NFS server) must hold back neither the report nor the end of the process:
    # the interpreter waits at its exit for every thread of an executor, and for none of these.
    threads = [
        threading.Thread(target=call_one, args=(name, call), name=f"check {name}", daemon=True)
        for name, call in subjects.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, timeout - (time.monotonic() - start)))
    measured = dict(answers)
    return [measured.get(name) or unknown(name, f"No answer within {timeout:g} s.") for name in subjects]


def _timed(name: str, call: t.Callable[[], Check]) -> Check:
    start = time.monotonic()
    try:
        check = call()
    except OpsError as error:
        check = unknown(name, str(error), **error.details)
    except ImportError as error:
        check = unknown(
            name,
            f"The library {package_of(error)} is not installed for the Python of this check. The playbook prepare"
            " installs it.",
        )
    except Exception as error:  # one broken probe must not take the others with it
        check = unknown(name, f"{type(error).__name__}: {error}")
    return Check(**{**check.as_dict(), "name": name, "duration_ms": round((time.monotonic() - start) * 1000, 1)})


def overall(checks: t.Iterable[Check]) -> Status:
    """The worst status of all that was measured."""
    return worst(check.status for check in checks if check.status != "skipped")
