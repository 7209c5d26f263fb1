# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``production_health_monitor.py``: the checks of ``health_info`` from outside the backend, for cron, Nagios, or a
person at night.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import functools
import json
import socket
import sys
import time
import typing as t
from dataclasses import replace

from ..checks import suite
from ..core.results import OpsError
from ..core.version import VERSION
from ..health import scores
from ..health.subjects import NAMES, REGISTRY
from ..report import alerts, metrics, page
from ..report import report as reports
from ..state import history, problems
from ..state.history import HistoryRecord
from . import program_output, report_options
from .settings import Settings, load

Report = t.Dict[str, t.Any]
#: One line a run, about 600 bytes: some three weeks at one run in 15 minutes.
HISTORY, HISTORY_BYTES = "monitor.jsonl", 1_000_000
DAY = 86400.0
#: Below so many runs of the last day a share of them says nothing.
ENOUGH = 12


class ProductionHealthMonitor:
    """Measures a host from outside.

    One look is ``run_all_checks()``; each check can be had alone, with the keys of the first version.
    """

    def __init__(self, settings: t.Optional[Settings] = None) -> None:
        self.settings = settings if settings is not None else load()
        self.checks: t.Dict[str, t.Callable[[], t.Coroutine[t.Any, t.Any, t.Dict[str, t.Any]]]] = {
            name: functools.partial(self.check, name) for name in NAMES
        }
        self.issues_found: t.List[t.Dict[str, t.Any]] = []
        self.recommendations: t.List[str] = []

    async def run_all_checks(self) -> Report:
        """Every check, side by side; a check that raises or hangs is ``unknown`` and counts as an issue."""
        # Raises what nothing can be measured with: settings that make no sense.
        health = await asyncio.to_thread(suite.run, self.settings.checks, self.settings.view)
        return self.report_of(health)

    def report_of(self, health: t.Mapping[str, t.Any]) -> Report:
        """The report of one look, without any secret: the keys of the first version and those of ``health_info``."""
        outside = self.settings.view.outside
        results = {check["name"]: program_output.detailed(check, outside=outside) for check in health["checks"]}
        self.issues_found = self.settings.scrubbed(
            [
                program_output.issue(check, outside=outside)
                for check in health["checks"]
                if not program_output.is_quiet(check)
            ]
        )
        self.recommendations = list(dict.fromkeys(each["recommendation"] for each in self.issues_found))
        seconds = health["duration_ms"] / 1000
        return t.cast(
            Report,
            self.settings.scrubbed(
                {
                    "timestamp": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                    "duration_seconds": round(seconds, 2),
                    "summary": self.generate_summary(results, seconds),
                    "detailed_results": results,
                    "issues_found": self.issues_found,
                    "recommendations": self.recommendations,
                    **health,
                    "settings": self.settings.source,
                    "notes": list(self.settings.notes),
                }
            ),
        )

    def generate_summary(
        self, results_by_check: t.Mapping[str, t.Mapping[str, t.Any]], duration: float
    ) -> t.Dict[str, t.Any]:
        return program_output.summary(results_by_check, duration)

    async def check(self, subject: str) -> t.Dict[str, t.Any]:
        """One subject alone."""
        health = await asyncio.to_thread(
            suite.run, replace(self.settings.checks, subjects=(subject,)), self.settings.view
        )
        return t.cast("t.Dict[str, t.Any]", self.settings.scrubbed(program_output.detailed(health["checks"][0])))

    # The names of the first version.

    async def check_memory_usage(self) -> t.Dict[str, t.Any]:
        return await self.check("memory")

    async def check_disk_usage(self) -> t.Dict[str, t.Any]:
        return await self.check("disk")

    async def check_cpu_usage(self) -> t.Dict[str, t.Any]:
        return await self.check("cpu")

    async def check_database_health(self) -> t.Dict[str, t.Any]:
        return await self.check("database")

    async def check_redis_health(self) -> t.Dict[str, t.Any]:
        return await self.check("redis")

    async def check_tts_services(self) -> t.Dict[str, t.Any]:
        return await self.check("tts")

    async def check_websocket_health(self) -> t.Dict[str, t.Any]:
        return await self.check("websocket")

    async def check_cors_configuration(self) -> t.Dict[str, t.Any]:
        return await self.check("cors")

    async def check_rls_policies(self) -> t.Dict[str, t.Any]:
        return await self.check("rls")

    async def check_http_answers(self) -> t.Dict[str, t.Any]:
        return await self.check("http")

    async def check_celery_health(self) -> t.Dict[str, t.Any]:
        return await self.check("celery")

    async def check_services(self) -> t.Dict[str, t.Any]:
        return await self.check("services")


def note(settings: Settings, report: Report) -> None:
    """Adds the run to the bounded history, and to the report the stability that the runs of the last day show."""
    path = settings.state_dir / HISTORY
    checked = {name: result["status"] for name, result in report["detailed_results"].items() if not result["skipped"]}
    skipped = [name for name, result in report["detailed_results"].items() if result["skipped"]]
    history.append(
        path,
        HistoryRecord(
            action="monitor",
            trigger=program_output.trigger(),
            host=socket.gethostname(),
            after=tuple(report["failing"]),
            not_checked=tuple(skipped),
            checks=checked,
            scores=report["scores"],
            duration_s=round(report["duration_ms"] / 1000, 3),
            extra={"status": report["status"]},
        ),
        max_bytes=HISTORY_BYTES,
    )
    since = time.time() - DAY
    recent = [record for record in history.read(path, 2000) if (record.seconds or 0) >= since]
    serving = [record.checks["http"] for record in recent if "http" in record.checks]
    if len(serving) >= ENOUGH:
        up = sum(status in ("ok", "warning") for status in serving)
        report["scores"]["stability"] = scores.stability(uptime_percent=100.0 * up / len(serving))


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _head(settings: Settings, report: Report, host: str) -> t.Dict[str, t.Any]:
    """What the page has beside the report: title, facts and the last day of this host."""
    head: t.Dict[str, t.Any] = {
        "title": f"wheels.ops: {host}",
        "facts": {"took": f"{report['duration_seconds']:.1f} s"},
    }
    if settings.view.outside:
        return {
            **head,
            "advice": functools.partial(program_output.recommendation, outside=True),
            "runbook_url": settings.runbook_url,
        }
    state = settings.state_dir
    try:
        since = {problem.subject: problem.since for problem in problems.read(state).problems}
    except OpsError:
        since = {}
    past = page.Past(
        measured=history.read(state / HISTORY, 2000),
        done=history.read(state / history.FILE, 200),
        since=since,
        now=time.time(),
    )
    return {**head, "past": past, "runbook_url": settings.runbook_url}


def performance_data(report: Report) -> str:
    """What was measured, as Nagios plugins have it: ``'label'=value[unit];warning;critical``.

    https://nagios-plugins.org/doc/guidelines.html, section 2.6: the units it knows are s, ms, %, B, c and none.
    """
    words = []
    for check in report["checks"]:
        value = check["value"]
        if check["status"] == "skipped" or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        unit = {"%": "%", "percent": "%", "ms": "ms", "s": "s"}.get(check["unit"], "")
        limits = check.get("thresholds") or {}
        bounds = [
            f"{limits[name]:g}" if isinstance(limits.get(name), (int, float)) else ""
            for name in ("warning", "critical")
        ]
        words.append(f"{check['name']}={value:.10g}{unit};{';'.join(bounds)}".rstrip(";"))
    return " ".join(words)


def text(report: Report, *, plugin: bool = False) -> str:
    """For a person, and for a monitor that shows the first line; as a ``plugin`` with performance data after ``|``."""
    summary = report["summary"]
    head = f"{report['status'].upper()}: {summary['healthy_checks']} of {summary['total_checks']} checks are healthy"
    head += f"; not healthy: {', '.join(report['failing'])}" if report["failing"] else ""
    head += "".join(
        f"; skipped: {', '.join(names)}: {reason}" for reason, names in reports.not_measured(report).items()
    )
    lines = [f"{head} ({report['duration_seconds']:.1f} s)", "", reports.listing(report)]
    scores = {name.replace("_", " "): value for name, value in report["scores"].items() if value is not None}
    if scores:
        lines += ["", "scores     " + ", ".join(f"{name} {value:g}" for name, value in scores.items())]
    if report["recommendations"]:
        lines += ["", "What to do"]
        by_advice: t.Dict[str, t.List[str]] = {}
        for each in report["issues_found"]:
            by_advice.setdefault(each["recommendation"], []).append(each["check"])
        lines += [f"  {', '.join(names)}: {advice}" for advice, names in by_advice.items()]
    lines += [f"note: {each}" for each in report["notes"]]
    if plugin:
        # What follows a bar is data, wherever it stands.
        lines = [line.replace("|", "/") for line in lines]
        data = performance_data(report)
        lines[0] += f" | {data}" if data else ""
    return "\n".join(lines)


async def main(settings: t.Optional[Settings] = None) -> Report:
    """Measures once, and notes it in the history where this is the host; gives the report."""
    monitor = ProductionHealthMonitor(settings)
    report = await monitor.run_all_checks()
    if monitor.settings.view.outside:
        return report
    try:
        note(monitor.settings, report)
    except OpsError as error:
        # On a full disk the look is worth more than its line in the history.
        report["notes"].append(str(error))
    return report


def tell(settings: Settings, report: Report) -> t.Tuple[str, ...]:
    """Tells whoever is configured of problems that begin or end; gives warnings. One measurement is no problem yet; the
    next run that finds it is.
    """
    if not settings.alerts:
        return ()
    checks = report["checks"]
    outcome = alerts.record(
        settings.state_dir,
        checks,
        checks,
        [],
        settings.alerts,
        socket.gethostname(),
        confirmed=False,
        runbook_url=settings.runbook_url,
    )
    return outcome.warnings


def parser() -> argparse.ArgumentParser:
    program_parser = argparse.ArgumentParser(
        prog="production_health_monitor.py",
        description=(
            f"Measures this host from outside: {', '.join(subject.title for subject in REGISTRY)}. Changes nothing."
        ),
        epilog=(
            "Exit status: 0 everything is healthy, 1 warning, 2 critical, 3 unknown. Secrets belong into the"
            " configuration (/etc/wheels-ops/monitor.json, mode 0600) or into REDIS_URL and DATABASE_URL, never onto a"
            " command line."
        ),
    )
    program_parser.add_argument(
        "--config", default="", metavar="FILE", help="configuration to read instead of /etc/wheels-ops/monitor.json"
    )
    report_options.add(program_parser)
    program_parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION} (wheels.ops)")
    return program_parser


def run(words: t.Optional[t.Sequence[str]] = None) -> int:
    """The command line; gives the exit status. What is unknown is 3, in one line on standard error."""
    options = parser().parse_args(words)
    return measure_and_report(options, lambda: load(options.config), socket.gethostname())


def measure_and_report(
    options: argparse.Namespace,
    load_settings: t.Callable[[], Settings],
    host: str,
    wording: t.Callable[[Report], Report] = lambda report: report,
) -> int:
    """Measures once with these settings, and reports in the forms of ``report_options``; gives the exit status.

    ``host``: what is looked at. ``wording`` gives a report in the words of the program.
    """
    start = time.monotonic()
    settings = None
    try:
        settings = load_settings()
        if options.only:
            settings = replace(
                settings,
                checks=replace(settings.checks, subjects=tuple(filter(None, options.only.replace(" ", "").split(",")))),
            )
        with program_output.deadline(settings.deadline):
            report = wording(_looked(settings, start))
    except (OpsError, program_output.DeadlineExceeded) as error:
        return program_output.report_unknown(str(error), settings, as_json=options.json)
    except KeyboardInterrupt:
        return program_output.report_unknown("Interrupted.", settings, as_json=options.json)
    except Exception as error:  # exit status 1, that of a traceback, would say: a warning
        return program_output.report_unknown(
            f"Internal error in wheels.ops; please report it: {type(error).__name__}: {error}",
            settings,
            as_json=options.json,
        )
    failure = program_output.write_report(options.output, report)
    # Nobody reads a file of another user's, but node_exporter reads the metrics, which have no message in them.
    failure = (
        program_output.write_text(
            options.prometheus, lambda: metrics.text(report, host, settings.runbook_url), report, 0o644
        )
        and failure
    )
    failure = (
        program_output.write_text(options.html, lambda: page.page(report, **_head(settings, report, host)), report)
        and failure
    )
    if not (options.quiet and report["status"] == "ok"):
        shown = json.dumps(report, indent=1, default=str) if options.json else text(report, plugin=not _is_terminal())
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()
    # Last, and outside of the deadline: a receiver that does not answer delays no report.
    for warning in tell(settings, report):
        sys.stderr.write(f"{warning}\n")
    return program_output.exit_status(report["status"]) or (0 if failure else program_output.UNKNOWN)


def _looked(settings: Settings, start: float) -> Report:
    """One run at a time; where our state cannot be written the host is measured all the same, and that is said. From
    another machine there is no state.
    """
    if settings.view.outside:
        return asyncio.run(main(settings))
    with contextlib.ExitStack() as stack:
        lock = settings.state_dir / "monitor.lock"
        recorded = True
        try:
            lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.touch(0o600)
        except OSError as error:
            recorded = False
            settings = replace(
                settings,
                notes=(*settings.notes, f"Nothing is kept of this run: cannot write {lock}: {error.strerror}."),
            )
        if recorded:
            stack.enter_context(program_output.exclusive(lock, settings.deadline / 2))
        remaining = settings.deadline - (time.monotonic() - start) - 1.0
        settings = replace(
            settings, checks=replace(settings.checks, timeout=max(1.0, min(settings.checks.timeout, remaining)))
        )
        return asyncio.run(main(settings))
