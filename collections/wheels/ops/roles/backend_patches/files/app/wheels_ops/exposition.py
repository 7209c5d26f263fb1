# SPDX-License-Identifier: MIT
"""The metrics of this process, or of all workers, for Prometheus; written by ``prometheus_client``.

Where a service has several workers, every worker keeps its numbers in files of ``PROMETHEUS_MULTIPROC_DIR``, and
whichever worker is asked adds all of them up: counters and histograms of every worker that has been, gauges of those
that live. Gauges are as old as the last sample of their worker (``MONITORING_INTERVAL``). A directory of the operator's
is to be empty when the service starts, on a file system of this machine, as the files are mapped into memory; without
one the workers take their own (``workers``). Where that cannot be, as ``prometheus_client`` was imported before us, the
numbers are those of the worker that answers, and each carries the label ``worker``.

Units are Prometheus' base units: seconds, bytes, and ratios from 0 to 1 instead of percent.
"""

from __future__ import annotations

import glob
import importlib
import os
import struct
import sys
import time
import typing as t

from app.core.logging import get_logger
from app.core.performance_monitor import BUCKETS
from app.wheels_ops import workers

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: The package decides with its import whether it shares its numbers.
if VARIABLE not in os.environ and "prometheus_client" not in sys.modules and workers.metrics_directory():
    os.environ[VARIABLE] = workers.metrics_directory()

try:
    prometheus_client: t.Any = importlib.import_module("prometheus_client")
    multiprocess: t.Any = importlib.import_module("prometheus_client.multiprocess")
except ImportError:  # the rest of the health API works without it
    prometheus_client = multiprocess = None

logger = get_logger(__name__)

INSTALL = (
    "/metrics needs the package prometheus-client. Install it for the backend's Python: pip install prometheus-client"
)
#: What a gauge holds that has no value now. It is not shown: labels cannot be removed from the files of several
#: workers. None of our gauges is negative otherwise.
GONE = -1.0
#: A file this young may belong to a worker that has opened and not yet mapped it.
YOUNG_SECONDS = 10.0


class Measure(t.NamedTuple):
    """A metric of the monitor as Prometheus gets it. ``mode`` says how the gauges of several workers become one."""

    name: str
    text: str
    factor: float = 1.0
    mode: str = "livemostrecent"


#: By the monitor's name. What each worker measures of the same host is shown once, what it measures of itself is added
#: up, or the worst of it is shown.
MEASURES: t.Dict[str, Measure] = {
    "memory_percent": Measure("pam_memory_ratio", "Memory in use, of host or container, whichever is tighter", 0.01),
    "cpu_percent": Measure("pam_cpu_ratio", "Processor time in use on this host", 0.01),
    "disk_percent": Measure("pam_disk_ratio", "Space in use on the fullest file system", 0.01),
    "disk_inodes_percent": Measure("pam_disk_inodes_ratio", "Inodes in use on the fullest file system", 0.01),
    "psi_memory": Measure("pam_psi_memory_ratio", "Time in which some task waited for memory, last 10 seconds", 0.01),
    "load_1m": Measure("pam_load_1m", "Load average of one minute"),
    "process_memory_mb": Measure("pam_process_memory_bytes", "Resident memory, all workers", float(1 << 20), "livesum"),
    "process_cpu_percent": Measure("pam_process_cpu_ratio", "Processors that all workers keep busy", 0.01, "livesum"),
    "loop_lag_ms": Measure("pam_loop_lag_seconds", "Longest stall of the event loop, worst worker", 0.001, "livemax"),
    "loop_blocked_percent": Measure(
        "pam_loop_blocked_ratio", "Time in which the event loop was blocked, last minute, worst worker", 0.01, "livemax"
    ),
    "response_time_ms": Measure(
        "pam_response_time_seconds", "Mean time to the first byte over 15 seconds, slowest worker", 0.001, "livemax"
    ),
    "response_p95_ms": Measure(
        "pam_response_p95_seconds", "95th percentile of the same, slowest worker", 0.001, "livemax"
    ),
    "error_rate": Measure("pam_error_ratio", "Requests that failed over 15 seconds, worst worker", 0.01, "livemax"),
    "requests_per_second": Measure("pam_requests_per_second", "Requests a second, all workers", 1.0, "livesum"),
    "active_connections": Measure("pam_active_connections", "WebSocket connections, all workers", 1.0, "livesum"),
    "cache_hit_rate": Measure("pam_cache_hit_ratio", "Reads that the cache answered", 0.01),
    "db_query_ms": Measure("pam_db_query_seconds", "Time of select 1, slowest worker", 0.001, "livemax"),
    "db_pool_size": Measure("pam_db_pool_size", "Database connections, all workers", 1.0, "livesum"),
    "db_pool_in_use": Measure("pam_db_pool_in_use", "Database connections in use, all workers", 1.0, "livesum"),
    "celery_queue_depth": Measure("pam_celery_queue_depth", "Tasks that wait"),
    "celery_queue_age_s": Measure("pam_celery_queue_age_seconds", "Time that the oldest task has waited"),
}
_SCORES = ("performance", "stability", "user_experience")
_STATES = {"pass": 0, "warn": 1, "fail": 2}


class Metrics:
    """Our metrics in a registry of their own, beside whatever the application registers. Raises OSError, ValueError."""

    def __init__(self, directory: t.Optional[str]) -> None:
        self.directory = directory
        if directory is not None:
            if not directory:
                raise ValueError("it is empty")
            os.makedirs(directory, exist_ok=True)
        self.registry = prometheus_client.CollectorRegistry()
        self.measures = {
            name: self._gauge(measure.name, measure.text, measure.mode) for name, measure in MEASURES.items()
        }
        self.checks = self._gauge("pam_health_check", "0 pass, 1 warn, 2 fail", "livemax", "check")
        self.skipped = self._gauge("pam_health_check_skipped", "1 where a check is not made", "livemax", "check")
        self.scores = self._gauge("pam_health_score", "0 to 100, see docs/scores.md", "livemostrecent", "score")
        self.alerts = self._gauge("pam_alerts_active", "Alerts that are raised now", "livemax", "metric", "level")
        self.in_flight = self._gauge("pam_requests_in_flight", "Requests being served", "livesum")
        self.freed = self._gauge("pam_memory_freed_bytes", "What the last clean-ups gave back", "livesum")
        self.cleanups = prometheus_client.Counter(
            "pam_memory_cleanups_total", "Memory clean-ups done", registry=self.registry
        )
        labels = ("method", "route")
        self.errors = prometheus_client.Counter(
            "pam_request_errors_total", "Requests answered 5xx", labels, registry=self.registry
        )
        self.durations = prometheus_client.Histogram(
            "pam_request_duration_seconds",
            "Time to the first byte of the answer",
            labels,
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._routes: t.Dict[str, t.Tuple[t.Any, t.Any]] = {}
        self._shown: t.Dict[t.Any, t.Set[t.Tuple[str, ...]]] = {}
        self._cleanups = 0

    def _gauge(self, name: str, text: str, mode: t.Any, *labels: str) -> t.Any:
        return prometheus_client.Gauge(name, text, labels, registry=self.registry, multiprocess_mode=mode)

    def record(self, route: str, seconds: float, failed: bool) -> None:
        """Counts one request: ``route`` is its method and route template."""
        children = self._routes.get(route)
        if children is None:
            method, _ignored, path = route.partition(" ")
            labels = (method, path or route)
            children = self._routes[route] = (self.durations.labels(*labels), self.errors.labels(*labels))
        children[0].observe(seconds)
        if failed:
            children[1].inc()

    def update(self, monitor: t.Any, requests: t.Any, board: t.Any, optimizer: t.Any) -> None:
        """Sets every gauge to what is known now."""
        for name, measure in MEASURES.items():
            metric = monitor.current.get(name)
            absent = 0.0 if measure.mode == "livesum" else GONE
            self.measures[name].set(absent if metric is None else measure.factor * metric.value)
        self._show(self.checks, {(name,): _STATES[status] for name, (status, _ignored) in board.states().items()})
        self._show(self.skipped, {(name,): 1 for name in dict(board.notes)})
        scores = board.scores()
        self._show(self.scores, {(name,): scores[name] for name in _SCORES if scores[name] is not None})
        alerts = dict(monitor.active_alerts)
        self._show(self.alerts, {(name, alert.level.value): 1 for name, alert in alerts.items()})
        self.in_flight.set(requests.in_flight)
        self.freed.set(max(0, sum(result["freed_bytes"] for result in optimizer.results)))
        self.cleanups.inc(max(0, optimizer.optimization_count - self._cleanups))
        self._cleanups = optimizer.optimization_count

    def _show(self, gauge: t.Any, values: t.Mapping[t.Tuple[str, ...], float]) -> None:
        """Sets a gauge for these labels, and ``GONE`` for those that it had before and has no more."""
        labels = self._shown.setdefault(gauge, set())
        for key in labels.difference(values):
            gauge.labels(*key).set(GONE)
        for key, value in values.items():
            gauge.labels(*key).set(value)
        labels.update(values)

    def text(self) -> bytes:
        """The answer to a scrape. Reads files where there are several workers: not for an event loop."""
        if self.directory is None:
            of = workers.describe()["of"]
            return t.cast(bytes, prometheus_client.generate_latest(_Shown(self.registry, alone=of == 1)))
        _forget_dead_workers(self.directory)
        collector = _Shown(multiprocess.MultiProcessCollector(None, self.directory))
        for attempt in range(3):
            try:
                return t.cast(bytes, prometheus_client.generate_latest(collector))
            except (OSError, ValueError, struct.error):  # a worker that begins has made its file and not yet filled it
                if attempt == 2:
                    raise
                time.sleep(0.05)
        raise AssertionError("unreachable")


class _Shown:
    """What a collector gives, without gauges that have no value, and without the times at which counters were
    created."""

    def __init__(self, collector: t.Any, *, alone: bool = True) -> None:
        self._collector, self._alone = collector, alone

    def collect(self) -> t.Iterator[t.Any]:
        for family in sorted(self._collector.collect(), key=lambda family: str(family.name)):
            if family.name.startswith("pam_"):
                family.samples = [
                    sample
                    for sample in family.samples
                    if not sample.name.endswith("_created") and not (family.type == "gauge" and sample.value == GONE)
                ]
                if not self._alone:
                    own = {"worker": str(os.getpid())}
                    family.samples = [sample._replace(labels={**sample.labels, **own}) for sample in family.samples]
            if family.samples:
                yield family


def _forget_dead_workers(directory: str) -> None:
    """Removes the gauges of workers that are gone, whoever ended them. Their counters stay: what was counted was."""
    for path in glob.glob(os.path.join(glob.escape(directory), "gauge_live*_*.db")):
        pid = path[:-3].rpartition("_")[2]
        if pid.isdigit() and int(pid) != os.getpid() and not _is_in_use(path, int(pid)):
            multiprocess.mark_process_dead(int(pid), directory)


def _is_in_use(path: str, pid: int) -> bool:
    """Whether process ``pid`` has mapped the file: another process may have got the number of one that is dead."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as source:
            maps = source.read()
        if os.path.realpath(path) in maps:
            return True
        return bool(maps) and time.time() - os.stat(path).st_mtime < YOUNG_SECONDS
    except (FileNotFoundError, ProcessLookupError):
        return not os.path.isdir("/proc/self")  # without /proc nothing is known of other processes
    except OSError:  # a process of another user
        return True


_metrics: t.Optional[Metrics] = None
_problem = INSTALL if prometheus_client is None else ""
if prometheus_client is not None:
    try:
        _metrics = Metrics(os.environ.get(VARIABLE))
    except (OSError, ValueError) as error:
        _problem = f"/metrics is not available: {VARIABLE} cannot be used ({type(error).__name__}). The log says why."
        logger.error(f"📊 {VARIABLE} cannot be used: {error}")
elif os.environ.get(VARIABLE):
    logger.warning(f"📊 {INSTALL}")


def unavailable() -> str:
    """Why there are no metrics and what to do about it; empty where there are."""
    return _problem


def content_type() -> str:
    return str(prometheus_client.CONTENT_TYPE_LATEST)


def observe(monitor: t.Any, requests: t.Any, board: t.Any, optimizer: t.Any) -> None:
    """Begins to count the requests of this process and, beside other workers, to share its gauges with each sample."""
    metrics = _metrics
    if metrics is None or requests.observer is not None:
        return

    def record(route: str, seconds: float, failed: bool) -> None:
        """No request may fail because it cannot be counted, as where the directory's file system is full."""
        try:
            metrics.record(route, seconds, failed)
        except Exception as error:
            requests.observer = None
            logger.error(f"📊 /metrics counts no more requests: {type(error).__name__}: {error}")

    def share(_values: t.Mapping[str, float]) -> None:
        try:
            metrics.update(monitor, requests, board, optimizer)
        except Exception as error:
            monitor.observers.remove(share)
            logger.error(f"📊 /metrics shows old gauges of this worker: {type(error).__name__}: {error}")

    requests.observer = record
    if metrics.directory is not None:
        monitor.observers.append(share)


def update(monitor: t.Any, requests: t.Any, board: t.Any, optimizer: t.Any) -> None:
    """Sets the gauges of this process to what is known now."""
    if _metrics is not None:
        _metrics.update(monitor, requests, board, optimizer)


def text() -> bytes:
    """The answer to a scrape; blocks while it reads the files of several workers."""
    return _metrics.text() if _metrics is not None else b""
