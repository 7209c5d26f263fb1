# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an application says of its own health, in JSON: the only one who knows whether *its* logins work is the application.

The shapes that are read: health+json (draft-inadarei-api-health-check-06: ``status``, ``checks`` with lists of ``{"status", "output"}``), which
the deployed backend answers under ``/api/v1/system/health``; and what other releases and frameworks answer, one word under ``status`` or
``overall_status`` and an object or a list of components under ``checks``, ``components``, ``services`` or ``dependencies``; either of them alone,
as a list of components, or inside ``data``, ``detail`` (an exception of FastAPI) or ``result``. Components may have components.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..health.subjects import REGISTRY
from ..health.thresholds import STATUSES, Status, worst

_WORDS: t.Dict[str, Status] = {
    **dict.fromkeys(
        (
            "pass",
            "passed",
            "passing",
            "ok",
            "up",
            "healthy",
            "good",
            "green",
            "ready",
            "alive",
            "operational",
            "available",
            "connected",
        ),
        "ok",
    ),
    **dict.fromkeys(("warn", "warning", "degraded", "partial", "impaired", "limited", "yellow"), "warning"),
    **dict.fromkeys(
        (
            "fail",
            "failed",
            "failing",
            "failure",
            "error",
            "errored",
            "down",
            "unhealthy",
            "critical",
            "emergency",
            "red",
            "dead",
            "broken",
            "unavailable",
            "not_available",
            "not_ready",
            "not ready",
            "offline",
            "disconnected",
            "unreachable",
            "timeout",
            "outage",
            "bad",
            "ko",
            "not ok",
            "not_ok",
            "nok",
            "not healthy",
            "not_healthy",
            "crashed",
            "stopped",
        ),
        "critical",
    ),
    # It does not know itself, which is no good news.
    "unknown": "unknown",
}
_OVERALL = ("status", "overall_status", "overall", "state", "health", "healthy", "ok")
_PARTS = ("checks", "components", "services", "dependencies")
_AROUND = ("data", "detail", "result", "health")
#: Levels that are read: more is no report of health.
_DEEPEST = 5
_REASONS = ("output", "error", "message", "reason", "detail")
#: Components that the suite measures itself: resources of the host (in which the application's own thresholds would count a second time), the time
#: and the errors of answers, and what is asked of the application from outside as users ask it (CORS, sockets, speech). The history of a process
#: (``process:stability``) is what was, not what is. Everything else counts: the logins to database, Redis and broker are the application's own.
MEASURED_OUTSIDE = frozenset(
    {subject.name for subject in REGISTRY if not subject.backend_reports} | {"eventloop", "load", "process", "system"}
)
#: Of a text that the application gives: enough for a reason, too little for a page of a traceback.
_LONGEST = 120


@dataclass(frozen=True)
class SelfReport:
    """``reasons`` made the status, the worst first; ``left_out`` are components that are not well and are measured from outside."""

    status: Status
    reasons: t.Tuple[str, ...] = ()
    left_out: t.Tuple[str, ...] = ()


def grade(word: t.Any) -> t.Optional[Status]:
    """The status that a word or a truth value stands for; None for one that says nothing of health."""
    if isinstance(word, bool):
        return "ok" if word else "critical"
    return _WORDS.get(word.strip().lower()) if isinstance(word, str) else None


def read(document: t.Any) -> t.Optional[SelfReport]:
    """What a document says; None where it says nothing of health."""
    if isinstance(document, str) and grade(document) not in (None, "ok"):
        document = {"status": document}
    elif isinstance(document, list):
        document = {"components": document}
    if not isinstance(document, dict):
        return None
    said = _read(document)
    inside = [
        found
        for key in _AROUND
        if isinstance(document.get(key), dict)
        for found in [_read(document[key])]
        if found is not None
    ]
    return max([*([said] if said else []), *inside], key=lambda found: STATUSES.index(found.status), default=None)


def _read(document: t.Mapping[str, t.Any]) -> t.Optional[SelfReport]:
    words = [
        (str(document[key]), status)
        for key in _OVERALL
        if key in document
        for status in [grade(document[key])]
        if status is not None
    ]
    overall = worst(status for _word, status in words) if words else None
    parts = [entry for key in _PARTS for entry in _entries(document.get(key))]
    if overall is None and not parts:
        return None
    bad = [(name, status, why) for name, status, why in parts if status != "ok"]
    counted = [
        (name, status, why)
        for name, status, why in bad
        if name.lower().rpartition(".")[2].split(":")[0] not in MEASURED_OUTSIDE
    ]
    counted.sort(key=lambda entry: -STATUSES.index(entry[1]))
    left_out = tuple(f"{name} ({status})" for name, status, _why in bad if (name, status, _why) not in counted)
    if counted:
        # An application that calls itself well does without this component: worth a look, no outage.
        status = "warning" if overall == "ok" else counted[0][1]
        return SelfReport(
            status,
            tuple(f"{name} is {status}" + (f" ({why})" if why else "") for name, status, why in counted),
            left_out,
        )
    if overall in (None, "ok") or left_out:
        return SelfReport("ok", (), left_out)
    why = _why(document)
    word = next(word for word, status in words if status == overall)
    return SelfReport(str(overall), (f"its status is {word}" + (f" ({why})" if why else ""),), left_out)


def _entries(found: t.Any, level: int = 1) -> t.Iterator[t.Tuple[str, Status, str]]:
    """(name, status, reason) of every component that has a status."""
    if isinstance(found, list):
        for number, entry in enumerate(found):
            name = (
                str(entry.get("name") or entry.get("component") or number) if isinstance(entry, dict) else str(number)
            )
            yield from _entry(name, entry, level)
    elif isinstance(found, dict):
        for name, entry in found.items():
            yield from _entry(str(name), entry, level)


def _entry(name: str, entry: t.Any, level: int) -> t.Iterator[t.Tuple[str, Status, str]]:
    if level > _DEEPEST:
        return
    if isinstance(entry, list):
        statuses = [found for each in entry for found in _entry(name, each, level + 1)]
        if statuses:
            yield max(statuses, key=lambda found: STATUSES.index(found[1]))
        return
    if isinstance(entry, dict):
        grades = [status for key in _OVERALL if key in entry for status in [grade(entry[key])] if status is not None]
        if grades:
            yield name, worst(grades), _why(entry)
        for key in _PARTS:
            for inner, grade_inside, why in _entries(entry.get(key), level + 1):
                yield f"{name}.{inner}", grade_inside, why
        return
    status = grade(entry)
    if status is not None:
        yield name, status, ""


def _why(entry: t.Mapping[str, t.Any]) -> str:
    text = next((entry[key] for key in _REASONS if isinstance(entry.get(key), str) and entry[key].strip()), "")
    text = " ".join(text.split())
    # A driver's error may quote a whole connection string.
    text = " ".join("***" if "://" in word or "password" in word.lower() else word for word in text.split())
    return text[:_LONGEST]
