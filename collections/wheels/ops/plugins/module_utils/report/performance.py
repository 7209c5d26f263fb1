# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was measured over weeks, and what follows from it: the performance report, and advice on thresholds. Nothing is
changed.

The backend keeps a row for every metric and quarter of an hour, 35 days long, in ``metrics.sqlite``; what recovery did
lies in ``history.jsonl``. A figure that nobody measured is not there: where there is too little, the report says how
little.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import stat
import tempfile
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ..core.options import in_range
from ..core.options import url as require_url
from ..core.results import OpsError
from ..core.units import readable
from ..health.thresholds import DEFAULTS, Thresholds
from ..host import files
from ..state import history
from ..state.history import HistoryRecord

#: Seconds of one row, and how many days of them the backend keeps.
SLOT = 900
KEPT_DAYS = 35
SLOTS_A_DAY = 86400 // SLOT
#: A file that the backend's user made must not keep us for ever.
_READ_SECONDS = 20.0
#: Nor fill our memory: a hundred metrics for as long as the backend keeps them.
_ROWS = 100 * KEPT_DAYS * SLOTS_A_DAY
#: How often a database that changes meanwhile is copied; the backend writes a few times a minute.
_COPIES = 10
#: As many records as ``recovery_history_info`` gives; the file holds no more than some thousands.
_RECORDS = 10_000

#: threshold -> the backend's metric, its unit, the subject of the health check that it stands for
MEASURES: t.Mapping[str, t.Tuple[str, str, str]] = {
    "memory": ("memory_percent", "%", "memory"),
    "cpu": ("cpu_percent", "%", "cpu"),
    "disk": ("disk_percent", "%", "disk"),
    "response_time_ms": ("response_time_ms", "ms", "http"),
    "error_rate": ("error_rate", "%", "http"),
}
#: Those for which another limit can be right: a host may well work at 80 % CPU, but a disk that fills up is never
#: normal.
_ADJUSTABLE: t.Mapping[str, t.Tuple[float, float]] = {"memory": (5, 40), "cpu": (5, 40), "response_time_ms": (50, 100)}
#: An alert that is on for more than one hour in twenty is not read any more.
OFTEN_PERCENT = 5.0
#: What a lowered limit leaves above the highest that is usual.
_ROOM = 1.25


@dataclass(frozen=True)
class Slot:
    """One metric in one quarter of an hour."""

    at: float
    total: float
    count: float
    low: float
    high: float

    @property
    def mean(self) -> float:
        return self.total / self.count


Series = t.Mapping[str, t.Sequence[Slot]]


def read_store(path: Path, since: float) -> t.Dict[str, t.List[Slot]]:
    """metric -> its quarter hours since then, oldest first.

    Raises ``OpsError`` where the file is missing or is no such history.
    """
    hint = "The playbook deploy brings a backend that keeps its metrics."
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise OpsError(f"The backend keeps no metrics in {path}.", hint=hint) from None
    except OSError as error:
        raise OpsError(f"Cannot read the metrics in {path}: {error.strerror}.", hint="Run as root.") from error
    if not stat.S_ISREG(status.st_mode):
        raise OpsError(f"{path} is no regular file, so it is not read.", hint="Look who put it there.")
    end = time.monotonic() + _READ_SECONDS
    try:
        with tempfile.TemporaryDirectory(prefix="wheels-ops-") as place:
            rows = _rows(_copy(path, Path(place)), since, end)
        slots: t.Dict[str, t.List[Slot]] = {}
        for name, slot, *values in rows:
            total, count, low, high = (float(value) for value in values)
            slots.setdefault(str(name), []).append(Slot(float(slot) * SLOT, total, count, low, high))
    except OSError as error:
        raise OpsError(
            f"Cannot read the metrics in {path}: {error.strerror}.", hint="A copy of them has to fit into TMPDIR."
        ) from error
    except (sqlite3.Error, OverflowError, TypeError, ValueError) as error:
        raise OpsError(
            f"The metrics in {path} cannot be read: {error}.",
            hint="The backend begins them anew at its next start if they are damaged.",
        ) from error
    return slots


def _copy(path: Path, place: Path) -> Path:
    """A copy of the database and of its writer's log in a directory of ours.

    SQLite gives a log, which it opens for writing, to the owner of the database: run as root beside files of the
    backend's user, it would give away whatever file has the log's name as a second one. So it never opens anything in
    his directory.
    """
    log = path.with_name(f"{path.name}-wal")
    for _attempt in range(_COPIES):
        before = _stamps(path, log)
        for source in (path, log):
            content = files.read_regular(source)
            target = place / source.name
            if content is None:
                target.unlink(missing_ok=True)
                continue
            files.require_single(source, content[1])
            target.write_bytes(content[0])
        if _stamps(path, log) == before:
            return place / path.name
    raise OpsError(f"The metrics in {path} change while they are copied.", hint="Run it again.")


def _stamps(*paths: Path) -> t.List[t.Tuple[int, int, int]]:
    stamps = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            stamps.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return stamps


def _rows(path: Path, since: float, end: float) -> t.List[t.Tuple[t.Any, ...]]:
    database = sqlite3.connect(path, timeout=5)
    try:
        database.execute("pragma trusted_schema = off")
        database.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        return database.execute(
            "select m.name, s.slot, s.total, s.count, s.low, s.high from sample s join metric m on m.id = s.metric"
            " where s.step = ? and s.slot >= ? and s.count > 0 order by s.slot limit ?",
            (SLOT, math.ceil(since / SLOT), _ROWS),
        ).fetchall()
    finally:
        database.close()


def ask_backend(base_url: str, token: str, days: int, timeout: float) -> t.Dict[str, t.Any]:
    """The backend's own report. Raises ``OpsError`` where there is none."""
    import requests

    url = f"{base_url}/api/v1/system/performance/report"
    require_url("base_url", base_url)
    try:
        answer = requests.get(url, params={"days": str(days)}, headers={"X-Ops-Token": token}, timeout=timeout)
        if answer.status_code in (401, 403):
            raise OpsError(
                "The application refuses the ops token.", hint="Give the one that it was deployed with in token_file."
            )
        if answer.status_code != 200:
            raise OpsError(f"The application answered {answer.status_code} to {url}.", hint="Look into its log.")
        body = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise OpsError(
            f"The application gave no performance report at {url}: {type(error).__name__}.",
            hint="Look whether it runs.",
        ) from error
    if not isinstance(body, dict) or not isinstance(body.get("metrics_summary"), dict):
        raise OpsError(f"Unexpected response from {url}: no performance report.", hint="Check what listens there.")
    return body


def summarise(series: Series, thresholds: t.Mapping[str, Thresholds]) -> t.Dict[str, t.Dict[str, t.Any]]:
    """metric -> mean, lowest and highest value, 95th percentile of the quarter hours, their number; with a threshold
    also the share above it.
    """
    limits = {metric: thresholds.get(name, DEFAULTS[name]) for name, (metric, _unit, _subject) in MEASURES.items()}
    summary = {}
    for name, slots in sorted(series.items()):
        means = [slot.mean for slot in slots]
        entry: t.Dict[str, t.Any] = {
            "mean": round(sum(slot.total for slot in slots) / sum(slot.count for slot in slots), 3),
            "lowest": round(min(slot.low for slot in slots), 3),
            "highest": round(max(slot.high for slot in slots), 3),
            "p95": round(percentile(means, 95), 3),
            "quarter_hours": len(slots),
        }
        if name in limits:
            entry["above_warning_percent"] = _share(means, limits[name].warning)
        summary[name] = entry
    return summary


def recoveries(records: t.Iterable[HistoryRecord], since: float) -> t.Dict[str, t.Any]:
    """What ``history.jsonl`` says of the time since then: runs of recover by outcome, trigger and failing check; runs
    of maintenance.
    """
    runs: t.Dict[str, t.Any] = {
        "runs": 0,
        "healthy": 0,
        "healthy_in_part": 0,
        "not_healthy": 0,
        "failing": {},
        "triggers": {},
        "maintenance_runs": 0,
        "bytes_freed": 0,
    }
    for record in records:
        if (record.seconds or 0) < since:
            continue
        if record.action == "recover":
            runs["runs"] += 1
            state = "healthy" if record.healthy else "healthy_in_part" if record.healthy_in_part else "not_healthy"
            runs[state] += 1
            _count(runs["triggers"], [record.trigger or "unknown"])
            _count(runs["failing"], record.before)
        elif record.action == "maintenance":
            runs["maintenance_runs"] += 1
            runs["bytes_freed"] += int(record.bytes_freed or 0)
    return runs


def _count(counts: t.Dict[str, int], names: t.Iterable[str]) -> None:
    for name in names:
        counts[name] = counts.get(name, 0) + 1


def advise(
    series: Series, thresholds: t.Mapping[str, Thresholds], failing: t.Mapping[str, int], minimum_days: int
) -> t.List[t.Dict[str, t.Any]]:
    """One entry for every threshold: what the quarter hours say about its warning limit.

    ``failing`` counts how often recovery had to act on each subject: where it had to, the limit told the truth and is
    not raised.
    """
    return [
        _advice(name, series.get(MEASURES[name][0], ()), thresholds.get(name, DEFAULTS[name]), failing, minimum_days)
        for name in MEASURES
    ]


def _advice(
    name: str, slots: t.Sequence[Slot], limits: Thresholds, failing: t.Mapping[str, int], minimum_days: int
) -> t.Dict[str, t.Any]:
    metric, unit, subject = MEASURES[name]
    entry: t.Dict[str, t.Any] = {
        "name": name,
        "metric": metric,
        "unit": unit,
        "warning": limits.warning,
        "advised_warning": None,
        "verdict": "unknown",
        "quarter_hours": len(slots),
        "above_warning_percent": None,
        "p99": None,
        "reason": "",
        "settings": {},
    }
    if limits.warning is None:
        return {**entry, "reason": "It has no warning limit."}
    if len(slots) < minimum_days * SLOTS_A_DAY:
        basis = f"Measured in {len(slots)} quarter hours" if slots else "Nothing was measured"
        return {
            **entry,
            "reason": (
                f"{basis}; advice needs {minimum_days * SLOTS_A_DAY} of them, which are {minimum_days} whole days."
            ),
        }
    means = [slot.mean for slot in slots]
    above, usual, acted = _share(means, limits.warning), percentile(means, 99), failing.get(subject, 0)
    entry.update(above_warning_percent=above, p99=round(usual, 3), verdict="keep")
    observation = (
        f"{above:g} % of {len(slots)} quarter hours were above {limits.warning:g} {unit}, 99 % were at or below"
        f" {usual:.4g} {unit}"
    )
    step, lowest = _ADJUSTABLE.get(name, (0.0, 0.0))
    raised, lowered = (
        (_round_up(usual, step), max(lowest, _round_up(usual * _ROOM, step))) if step else (math.inf, math.inf)
    )
    if above > OFTEN_PERCENT:
        ceiling = limits.critical if limits.critical is not None else math.inf
        if acted:
            reason = (
                f"{observation}, and recovery found {subject} failing {acted} times: the limit tells the truth. Cure the"
                " cause."
            )
        elif not step:
            reason = f"{observation}. Cure the cause: a higher limit would only hide it."
        elif raised >= ceiling:
            reason = (
                f"{observation}, which is too near the critical limit {ceiling:g} {unit} to raise the other. Cure the cause,"
                " or give the host more."
            )
        else:
            reason = (
                f"{observation}, and recovery never found {subject} failing: an alert that is on so often is not read."
            )
            entry.update(advised_warning=raised, verdict="raise")
        entry["verdict"] = "raise" if entry["advised_warning"] else "cure"
    elif step and not above and not acted and limits.warning - lowered >= 2 * step:
        reason = f"{observation}: with a lower limit something unusual shows earlier."
        entry.update(advised_warning=lowered, verdict="lower")
    else:
        reason = f"{observation}."
    if entry["advised_warning"]:
        # The role environment gives it to the backend as well.
        entry["settings"] = {"wheels_ops_thresholds": {name: {"warning": entry["advised_warning"]}}}
    return {**entry, "reason": reason}


def percentile(values: t.Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank); of values that were measured, never
    between two.
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _share(values: t.Sequence[float], limit: t.Optional[float]) -> float:
    return round(100.0 * sum(1 for value in values if limit is not None and value > limit) / len(values), 2)


def _round_up(value: float, step: float) -> float:
    return math.ceil(value / step) * step


@dataclass(frozen=True)
class Options:
    """What a report is made of."""

    state_dir: str
    days: int
    minimum_days: int
    thresholds: t.Mapping[str, Thresholds]
    metrics_file: str = ""
    base_url: str = ""
    token: str = ""
    timeout: float = 30.0


def report(options: Options, *, notes: t.Sequence[str] = (), now: t.Optional[float] = None) -> t.Dict[str, t.Any]:
    """Everything that was measured in the last ``days``.

    ``notes`` says what could not be had, beginning with the caller's.
    """
    in_range("days", options.days, 1, KEPT_DAYS, hint="The backend keeps no more.")
    in_range("minimum_days", options.minimum_days, 1, options.days, hint="It cannot exceed days.")
    moment = time.time() if now is None else now
    since = moment - 86400 * options.days
    remarks = list(notes)
    series: t.Dict[str, t.List[Slot]] = {}
    backend: t.Dict[str, t.Any] = {}
    try:
        series = read_store(Path(options.metrics_file or Path(options.state_dir) / "metrics" / "metrics.sqlite"), since)
    except OpsError as error:
        remarks.append(str(error))
    if options.base_url and options.token:
        try:
            backend = ask_backend(options.base_url, options.token, options.days, options.timeout)
        except OpsError as error:
            remarks.append(str(error))
    recovery = recoveries(history.read(Path(options.state_dir) / history.FILE, _RECORDS), since)
    content = {
        "generated_at": _stamp(moment),
        "since": _stamp(since),
        "days": options.days,
        "quarter_hours": max((len(slots) for slots in series.values()), default=0),
        "metrics": summarise(series, options.thresholds),
        "recovery": recovery,
        "backend": {
            key: backend[key]
            for key in ("alert_summary", "scores", "slowest_routes", "recommendations", "source")
            if key in backend
        },
        "advice": advise(series, options.thresholds, recovery["failing"], options.minimum_days),
        "notes": remarks,
    }
    return {**content, "report_lines": report_lines(content), "advice_lines": advice_lines(content)}


def _stamp(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def report_lines(content: t.Mapping[str, t.Any]) -> t.List[str]:
    """The performance report for a terminal."""
    lines = [
        f"{content['since']} to {content['generated_at']}: measured in {content['quarter_hours']} of"
        f" {content['days'] * SLOTS_A_DAY} quarter hours"
    ]
    if content["metrics"]:
        lines += [
            "",
            f"{'metric':22}{'mean':>10}{'95 % below':>12}{'highest':>10}{'above warning':>15}{'quarter hours':>15}",
        ]
        for name, row in content["metrics"].items():
            above = f"{row['above_warning_percent']:g} %" if "above_warning_percent" in row else "-"
            lines.append(
                f"{name:22}{row['mean']:>10.5g}{row['p95']:>12.5g}{row['highest']:>10.5g}{above:>15}{row['quarter_hours']:>15}"
            )
    else:
        lines.append("There is no measured history, so there are no figures.")
    recovery = content["recovery"]
    lines += [
        "",
        f"recover ran {recovery['runs']} times: {recovery['healthy']} ended healthy, {recovery['not_healthy']} did not.",
    ]
    if recovery["healthy_in_part"]:
        lines[-1] += f" {recovery['healthy_in_part']} ended healthy with checks that were not made."
    if recovery["failing"]:
        lines.append(
            "What was failing: " + ", ".join(f"{name} {count} times" for name, count in _most(recovery["failing"]))
        )
        lines.append(
            "What started it: " + ", ".join(f"{name} {count} times" for name, count in _most(recovery["triggers"]))
        )
    lines.append(
        f"Maintenance changed something {recovery['maintenance_runs']} times and freed {readable(recovery['bytes_freed'])}."
    )
    backend = content["backend"]
    if backend.get("alert_summary"):
        lines.append(
            "Alerts of the backend: " + ", ".join(f"{name} {count}" for name, count in backend["alert_summary"].items())
        )
    for row in backend.get("slowest_routes", [])[:5]:
        lines.append(
            f"Slow since its last start: {row['route']}: 95 % within {row['p95_ms']:g} ms of {row['requests']} requests"
        )
    lines += [f"Advice of the backend: {line}" for line in backend.get("recommendations", [])]
    return lines + [f"Not known: {note}" for note in content["notes"]]


def advice_lines(content: t.Mapping[str, t.Any]) -> t.List[str]:
    """The advice for a terminal: a line a threshold, then what to write into the inventory."""
    lines, settings = [], {}  # type: t.List[str], t.Dict[str, t.Dict[str, t.Any]]
    for entry in content["advice"]:
        words = {
            "raise": f"raise to {entry['advised_warning']}",
            "lower": f"lower to {entry['advised_warning']}",
            "cure": "keep, and cure",
        }
        lines.append(f"{entry['name']:17}{words.get(entry['verdict'], entry['verdict']):16}{entry['reason']}")
        for name, values in entry["settings"].items():
            settings.setdefault(name, {}).update(values)
    if settings:
        lines += [
            "",
            (
                "Nothing was changed. To follow it, put into the inventory, beside what these variables hold already,"
                " and run the playbook deploy:"
            ),
        ]
    for name, values in sorted(settings.items()):
        lines.append(f"{name}:")
        for key, value in values.items():
            lines.append(
                f"  {key}: " + (f"{{warning: {value['warning']:g}}}" if isinstance(value, dict) else f'"{value}"')
            )
    return lines + [f"Not known: {note}" for note in content["notes"]]


def _most(counts: t.Mapping[str, int]) -> t.List[t.Tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
