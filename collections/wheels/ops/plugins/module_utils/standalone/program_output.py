# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What both programs give: the keys that callers of the first versions know, and how a run ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
import typing as t
from pathlib import Path

from ..core.results import OpsError
from ..health.thresholds import STATUSES
from ..host.files import write_atomically
from ..report import report
from .launcher import UNKNOWN
from .settings import Settings

#: Nagios' exit status.
EXIT: t.Dict[str, int] = {"ok": 0, "warning": 1, "critical": 2, "emergency": 2, "unknown": UNKNOWN}
#: What the first version called the status of one check.
SEVERITY: t.Dict[str, str] = {
    "ok": "low",
    "skipped": "low",
    "unknown": "medium",
    "warning": "medium",
    "critical": "high",
    "emergency": "critical",
}
#: What the first version called the whole, by its worst severity.
OVERALL: t.Dict[str, t.Tuple[str, str]] = {
    "critical": ("critical", "At least one check is in an emergency: act now."),
    "high": ("unhealthy", "At least one check is critical."),
    "medium": ("degraded", "At least one check needs a look."),
    "low": ("healthy", "Every check is healthy."),
}
#: Who does what the programs cannot: by the remedy that a check names.
PLAYBOOK = "the playbook deploy"
GIGABYTE = 1024.0**3


class DeadlineExceeded(Exception):
    """The run took longer than it may."""


def is_quiet(check: t.Mapping[str, t.Any]) -> bool:
    """Whether nobody has to look at it: it is healthy, or was not made."""
    return check["status"] in ("ok", "skipped")


def recommendation(check: t.Mapping[str, t.Any], *, outside: bool = False) -> str:
    """What a person does about a check, in one sentence; empty where nothing is wrong. ``outside``: where there is no
    host to run a playbook or a remedy on.
    """
    remedy = check.get("remedy", "")
    if is_quiet(check):
        return ""
    if outside and remedy:
        return FROM_OUTSIDE.get(remedy, "Look at the message; the remedies of wheels.ops need a host.")
    if remedy in ("sql_script", "rls_repair"):
        return "Repair the database: the playbook deploy, or python3 scripts/automated_recovery.py --repair-database."
    if remedy in ("managed_files", "tts_engine"):
        return "Install the repaired files: the playbook deploy."
    if remedy:
        return f"Run python3 scripts/automated_recovery.py ({remedy})."
    return (
        "Find out why it could not be measured; the message says more."
        if check["status"] == "unknown"
        else "Look at the message; no remedy is known."
    )


#: remedy -> what is done about it where there is no host.
FROM_OUTSIDE: t.Mapping[str, str] = {
    "sql_script": "Repair the database: `psql -f sql/critical_database_fixes.sql`.",
    "rls_repair": "Repair the policies: `wheels-ops rls repair`.",
    "managed_files": "Install the patched files into the build: `wheels-ops patch install`.",
    "tts_engine": "Install the patched files into the build: `wheels-ops patch install`.",
    "service_restart": "Restart the service where it runs, and read its log there.",
}


def detailed(check: t.Mapping[str, t.Any], *, outside: bool = False) -> t.Dict[str, t.Any]:
    """One check with the keys of the first version beside ours.

    What was not measured is not there; ``healthy`` is None for a skipped check.
    """
    skipped = check["status"] == "skipped"
    entry = {
        **check,
        "healthy": None if skipped else check["status"] == "ok",
        "severity": SEVERITY[check["status"]],
        "skipped": skipped,
    }
    if entry["healthy"] is False:
        entry.update(issue=check["message"], recommendation=recommendation(check, outside=outside))
    entry.update({key: value for key, value in _measures(check).items() if value is not None})
    return entry


def _measures(check: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    """What the first version called the measures of a check; subjects that it did not have are shown by the keys of
    every check alone.
    """
    measures = FIRST_VERSION.get(check["name"])
    return measures(check, check.get("details") or {}) if measures else {}


def _memory(check: t.Mapping[str, t.Any], details: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    host = details.get("host") or {}
    resident = [service["resident_bytes"] for service in (details.get("services") or {}).values()]
    return {
        "memory_percent": host.get("percent", check["value"]),
        "process_memory_mb": round(sum(resident) / 1024**2, 1) if resident else None,
        "available_memory_gb": round(host["available_bytes"] / GIGABYTE, 2) if "available_bytes" in host else None,
    }


def _disk(check: t.Mapping[str, t.Any], details: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    systems = list((details.get("filesystems") or {}).values())
    fullest = max(systems, key=lambda use: use["percent"]) if systems else {}
    return {
        "disk_percent": fullest.get("percent", check["value"]),
        "free_space_gb": round(fullest["available_bytes"] / GIGABYTE, 2) if "available_bytes" in fullest else None,
        "total_space_gb": round(fullest["total_bytes"] / GIGABYTE, 2) if "total_bytes" in fullest else None,
    }


def _cpu(_check: t.Mapping[str, t.Any], details: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    return {
        "system_cpu_percent": details.get("host_percent"),
        "process_cpu_percent": details.get("services_percent"),
        "cpu_count": details.get("cores"),
        "load_average": list(details["load"]) if "load" in details else None,
    }


def _redis(check: t.Mapping[str, t.Any], details: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    return {
        "connected": "version" in details if check["status"] != "skipped" else None,
        "memory_usage_mb": (
            round(details["used_memory_bytes"] / 1024**2, 1) if "used_memory_bytes" in details else None
        ),
        "connected_clients": details.get("connected_clients"),
        "redis_version": details.get("version"),
        "error": check["message"] if not is_quiet(check) and "version" not in details else None,
    }


def _tts(check: t.Mapping[str, t.Any], details: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    if check["status"] not in ("ok", "critical"):
        return {}
    engine = details.get("engine", "none")
    works = check["status"] == "ok"
    return {
        "working_engines": [engine] if works else [],
        "failed_engines": [] if works else [engine],
        "engine_status": {engine: works},
    }


def _issues(check: t.Mapping[str, t.Any], _details: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    return {"issues": [] if is_quiet(check) else [check["message"]]}


#: subject -> the measures of its check and its details, by the keys of the first version; None where one was not
#: measured.
FIRST_VERSION: t.Mapping[str, t.Callable[[t.Mapping[str, t.Any], t.Mapping[str, t.Any]], t.Dict[str, t.Any]]] = {
    "memory": _memory,
    "disk": _disk,
    "cpu": _cpu,
    "redis": _redis,
    "tts": _tts,
    "websocket": _issues,
    "cors": _issues,
}


def issue(check: t.Mapping[str, t.Any], *, outside: bool = False) -> t.Dict[str, t.Any]:
    return {
        "check": check["name"],
        "issue": check["message"],
        "severity": SEVERITY[check["status"]],
        "recommendation": recommendation(check, outside=outside),
    }


def summary(results: t.Mapping[str, t.Mapping[str, t.Any]], duration: float) -> t.Dict[str, t.Any]:
    """The summary of the first version, over everything that was asked for: a skipped check is neither healthy nor an
    issue.
    """
    measured = {name: result for name, result in results.items() if not result.get("skipped")}
    bad = [result for result in measured.values() if not result.get("healthy")]
    levels = [str(result.get("severity", "medium")) for result in bad]
    counts = {level: levels.count(level) for level in ("critical", "high", "medium", "low")}
    worst = next((level for level, count in counts.items() if count), "low")
    status, message = OVERALL[worst]
    if not measured:
        status, message = "degraded", "Nothing could be measured: no check has what it needs."
    elif not bad and len(measured) < len(results):
        message = report.summary({"checks": list(results.values())})
    good = len(measured) - len(bad)
    return {
        "overall_status": status,
        "overall_message": message,
        "total_checks": len(measured),
        "healthy_checks": good,
        "unhealthy_checks": len(bad),
        "skipped_checks": len(results) - len(measured),
        "health_percentage": round(100.0 * good / len(measured), 1) if measured else 0.0,
        "issues_by_severity": counts,
        "total_issues": len(bad),
        "check_duration_seconds": round(duration, 2),
    }


def exit_status(status: str) -> int:
    return EXIT[status] if status in STATUSES and status != "skipped" else UNKNOWN


@contextlib.contextmanager
def exclusive(path: Path, wait: float) -> t.Iterator[None]:
    """Holds a lock that ends with its process.

    Raises ``OpsError`` where another run has it for more than ``wait`` seconds.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OpsError(
            f"Cannot write {path}: {error.strerror}.",
            hint="Run as root, or name a directory of yours with WHEELS_OPS_STATE_DIR.",
        ) from None
    try:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    who = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                    raise OpsError(
                        f"Another run (process {who or 'unknown'}) holds {path}.",
                        hint="Wait for it; the lock ends with its process.",
                    ) from None
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def deadline(seconds: float) -> t.Iterator[None]:
    """Raises ``DeadlineExceeded`` in the main thread when the time is over, whatever it waits for."""

    def over(_number: int, _frame: t.Any) -> t.NoReturn:
        raise DeadlineExceeded(f"No result within {seconds:g} s.")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_report(path: str, report: t.Dict[str, t.Any]) -> bool:
    """The report as JSON in one file, replaced as a whole, readable by its owner only; False, and a note in the report,
    where that fails.

    A full disk is no reason to lose what was measured.
    """
    return write_text(path, lambda: json.dumps(report, indent=1, default=str) + "\n", report)


def write_text(path: str, content: t.Callable[[], str], report: t.Dict[str, t.Any], mode: int = 0o600) -> bool:
    """One further file of a run, replaced as a whole; False, and a note in the report, where that fails."""
    try:
        if path and Path(path).is_dir():
            raise OpsError(f"{path} is a directory.", hint="Name a file.")
        if path:
            write_atomically(Path(path), content().encode(), mode=mode)
    except OpsError as error:
        report["notes"].append(str(error))
        return False
    return True


def report_unknown(message: str, settings: t.Optional[Settings], *, as_json: bool) -> int:
    """Ends a run without a report: one line, without any secret."""
    text = message if settings is None else settings.scrubbed(message)
    sys.stdout.write(json.dumps({"status": "unknown", "msg": text}) + "\n" if as_json else f"UNKNOWN: {text}\n")
    return UNKNOWN


def leave(status: int) -> t.NoReturn:
    """Ends the process at once: a probe that hangs in a thread must not hold it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def trigger() -> str:
    """What started this program: ``timer`` (a unit of systemd), ``manual`` (a terminal) or ``scheduled`` (cron, another
    program).
    """
    if "INVOCATION_ID" in os.environ and "JOURNAL_STREAM" in os.environ:
        return "timer"
    return "manual" if sys.stdin is not None and sys.stdin.isatty() else "scheduled"
