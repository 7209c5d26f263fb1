# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an application says of its own health, in JSON: the only one who knows whether *its* logins work is the
application.

The shapes that are read: health+json (draft-inadarei-api-health-check-06: ``status``, ``checks`` with lists of
``{"status", "output"}``), which the deployed backend answers under ``/api/v1/system/health``; and what other releases
and frameworks answer, one word under ``status`` or ``overall_status`` and an object or a list of components under
``checks``, ``components``, ``services`` or ``dependencies``; either of them alone, as a list of components, as a
component by its own name, or inside ``data``, ``detail`` (an exception of FastAPI) or ``result``. Components may have
components. A status that nobody understands is ``unknown``: it is not health.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ..core.redaction import redact
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
            "active",
            "fine",
            "idle",
            "live",
            "normal",
            "online",
            "running",
            "serving",
            "success",
            "successful",
            "true",
        ),
        "ok",
    ),
    **dict.fromkeys(
        (
            "warn",
            "warning",
            "degraded",
            "partial",
            "impaired",
            "limited",
            "yellow",
            # It will be well, or was: not now.
            "starting",
            "starting_up",
            "starting up",
            "initializing",
            "initialising",
            "booting",
            "loading",
            "warming_up",
            "warming up",
            "pending",
            "recovering",
            "restarting",
            "migrating",
            "maintenance",
            "draining",
            "stopping",
            "shutting_down",
            "shutting down",
        ),
        "warning",
    ),
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
            "disaster",
            "fatal",
            "false",
            "major_outage",
            "partial_outage",
            "out_of_service",
            "outofservice",
            "out of service",
        ),
        "critical",
    ),
    # It does not know itself, which is no good news.
    "unknown": "unknown",
}
#: Words of a component that nobody switched on: nothing is said of it.
_SWITCHED_OFF = frozenset(
    (
        "disabled",
        "inactive",
        "n/a",
        "na",
        "none",
        "not configured",
        "not_configured",
        "off",
        "optional",
        "skip",
        "skipped",
    )
)
#: Hold a truth value: 1 and 0 are one as well.
_TRUTHS = ("healthy", "is_healthy", "ok", "up", "alive", "ready", "available", "success")
_OVERALL = ("status", "overall_status", "overall", "state", "health", *_TRUTHS)
_PARTS = ("checks", "components", "services", "dependencies", "details")
#: A component that stands beside the status by its own name: ``{"status": "ok", "database": "error"}``.
_COMPONENT = re.compile(
    r"(?:.*_)?(?:db|database|postgres(?:ql)?|redis|cache|celery|broker|rabbitmq|queue|workers?|beat|scheduler"
    r"|storage|supabase|api|backend|upstream)(?:_(?:status|health|connection))?",
    re.IGNORECASE,
)
_AROUND = ("data", "detail", "result", "health")
#: Levels that are read: more is no report of health.
_DEEPEST = 5
_REASONS = ("output", "error", "message", "reason", "detail")
#: Components that the suite measures itself: resources of the host (in which the application's own thresholds would
#: count a second time), the time and the errors of answers, and what is asked of the application from outside as users
#: ask it (CORS, sockets, speech). The history of a process (``process:stability``) is what was, not what is. Everything
#: else counts: the logins to database, Redis and broker are the application's own.
MEASURED_OUTSIDE = frozenset(
    {subject.name for subject in REGISTRY if not subject.backend_reports} | {"eventloop", "load", "process", "system"}
)
#: The same for a run that sees no host: what the application says of the host's resources is all that is known of them.
MEASURED_FROM_AFAR = (
    MEASURED_OUTSIDE
    - {subject.name for subject in REGISTRY if subject.needs_host}
    - {
        "eventloop",
        "load",
        "system",
    }
)
#: Of a text that the application gives: enough for a reason, too little for a page of a traceback.
_LONGEST = 120


@dataclass(frozen=True)
class SelfReport:
    """``reasons`` made the status, the worst first; ``left_out`` are components that are not well and are measured from
    outside.
    """

    status: Status
    reasons: t.Tuple[str, ...] = ()
    left_out: t.Tuple[str, ...] = ()


@dataclass(frozen=True)
class Unreadable:
    """What should have been a document and cannot be read. ``reason`` is a clause."""

    reason: str


def grade(word: t.Any) -> t.Optional[Status]:
    """The status that a word or a truth value stands for; None for one that says nothing of health."""
    if isinstance(word, bool):
        return "ok" if word else "critical"
    return _WORDS.get(word.strip().lower()) if isinstance(word, str) else None


def _graded(key: str, value: t.Any) -> t.Optional[Status]:
    """What the value under a key of health stands for: None: nothing; ``unknown``: not understood."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,3}\s*", value):
        value = int(value)
    if isinstance(value, bool) or (value in (0, 1) and key in _TRUTHS):
        return grade(bool(value))
    if isinstance(value, (int, float)):
        # The code of the answer, once more. 0 and 1 are well or not, depending on who wrote it.
        return None if 200 <= value < 400 else "critical" if 400 <= value < 600 else "unknown"
    if value is None or (isinstance(value, str) and key in ("status", "overall_status", "overall", "state", "health")):
        return grade(value) or "unknown"
    return grade(value)


def _words(document: t.Mapping[str, t.Any]) -> t.List[t.Tuple[str, Status]]:
    """(word, status) of what a document or a component says of itself as a whole."""
    words = [
        (document[key], status)
        for key in _OVERALL
        if key in document
        for status in [_graded(key, document[key])]
        if status is not None
    ]
    # "state" may be that of an address: what nobody understands counts where nothing else does.
    sure = [(word, status) for word, status in words if status != "unknown" or grade(word) == "unknown"]
    return [(_say(word, status), status) for word, status in sure or words]


def _say(word: t.Any, status: Status) -> str:
    return f"{str(word)[:40]}, which cannot be understood" if status == "unknown" and grade(word) is None else str(word)


def read(document: t.Any, measured: t.Collection[str] = MEASURED_OUTSIDE) -> t.Optional[SelfReport]:
    """What a document says; None where it says nothing of health. Components in ``measured`` do not count."""
    if isinstance(document, Unreadable):
        return SelfReport("unknown", (document.reason,))
    if isinstance(document, str):
        word = _first_word(document)
        document = {"status": word} if grade(word) not in (None, "ok") else None
    elif isinstance(document, list):
        document = {"components": document}
    if not isinstance(document, dict):
        return None
    report = _read(document, measured)
    inside = [
        report_part
        for key in _AROUND
        if isinstance(document.get(key), dict)
        for report_part in [_read(document[key], measured)]
        if report_part is not None
    ]
    return max(
        [*([report] if report else []), *inside],
        key=lambda report_part: STATUSES.index(report_part.status),
        default=None,
    )


def _first_word(text: str) -> str:
    """``critical`` of ``CRITICAL: no database`` and of ``status=critical``; the text itself where it is one word."""
    match = re.match(r"\s*(?:status\s*[:=]\s*)?([a-z][a-z_ ]*?)\s*(?:[:;,.!(\n]| -|$)", text, re.IGNORECASE)
    return match[1] if match else text


def _read(document: t.Mapping[str, t.Any], measured: t.Collection[str]) -> t.Optional[SelfReport]:
    words = _words(document)
    overall = worst(status for _word, status in words) if words else None
    parts = [entry for key in _PARTS for entry in _entries(document.get(key))]
    parts += [
        entry
        for name, value in document.items()
        if name not in (*_OVERALL, *_PARTS, *_AROUND) and (isinstance(value, dict) or _COMPONENT.fullmatch(str(name)))
        for entry in _entry(str(name), value, 1)
    ]
    if overall is None and not parts:
        problem = next((document[key] for key in ("error", "errors") if document.get(key)), None)
        return SelfReport("warning", (f"an error ({_why({'error': str(problem)})})",)) if problem else None
    bad = [(name, status, why) for name, status, why in parts if status != "ok"]
    counted = [
        (name, status, why)
        for name, status, why in bad
        if name.lower().rpartition(".")[2].split(":")[0] not in measured
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


def _entries(value: t.Any, level: int = 1) -> t.Iterator[t.Tuple[str, Status, str]]:
    """(name, status, reason) of every component that has a status."""
    if isinstance(value, list):
        for number, entry in enumerate(value):
            name = (
                str(entry.get("name") or entry.get("component") or number) if isinstance(entry, dict) else str(number)
            )
            yield from _entry(name, entry, level)
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _entry(str(name), entry, level)


def _entry(name: str, entry: t.Any, level: int) -> t.Iterator[t.Tuple[str, Status, str]]:
    if level > _DEEPEST:
        if isinstance(entry, dict) and _words(entry):
            yield name, "unknown", f"more than {_DEEPEST} levels deep"
        return
    if isinstance(entry, list):
        statuses = [found for each in entry for found in _entry(name, each, level + 1)]
        if statuses:
            yield max(statuses, key=lambda found: STATUSES.index(found[1]))
        return
    if isinstance(entry, dict):
        if any(isinstance(word, str) and word.strip().lower() in _SWITCHED_OFF for word in _values(entry)):
            return
        words = _words(entry)
        if words:
            overall = worst(status for _word, status in words)
            word = [word for word, status in words if status == overall][0]
            yield name, overall, _why(entry) or (f"its status is {word}" if "understood" in word else "")
        for key, value in entry.items():
            if key in _PARTS or isinstance(value, dict):
                inside = _entries(value, level + 1) if key in _PARTS else _entry(str(key), value, level + 1)
                for inner, grade_inside, why in inside:
                    yield f"{name}.{inner}", grade_inside, why
        return
    status = grade(entry)
    if status is not None:
        yield name, status, ""


def _values(entry: t.Mapping[str, t.Any]) -> t.Iterator[t.Any]:
    return (entry[key] for key in _OVERALL if key in entry)


def _why(entry: t.Mapping[str, t.Any]) -> str:
    text = next((entry[key] for key in _REASONS if isinstance(entry.get(key), str) and entry[key].strip()), "")
    text = " ".join(redact(text).split())
    # A driver's error may quote a whole connection string.
    text = " ".join("***" if "://" in word or "password" in word.lower() else word for word in text.split())
    return text[:_LONGEST]
