# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""All checks of a host, side by side: what ``health_info``, the health monitor and the proof of a playbook run."""

from __future__ import annotations

import time
import typing as t
from dataclasses import dataclass, field

from ..core.results import OpsError
from ..health import check as health
from ..health import scores
from ..health.subjects import NAMES
from ..health.thresholds import DEFAULTS, LOG_MAX_BYTES, Thresholds
from ..services.manager import open_manager
from ..services.model import Service, parse_services
from . import celery, cors, cpu, database, dead_peer, disk, http, memory, redis, rls, tts, websocket
from . import services as services_check

#: Every subject, in the order of a report.
SUBJECTS: t.Tuple[str, ...] = NAMES

#: Where releases have the chat's socket, where nobody named its path: the later ones first.
WEBSOCKET_PATHS: t.Tuple[str, ...] = ("/api/v1/pam/ws/wheels-ops-health", "/api/v1/pam/ws")
#: What the front end's preflights ask for: its own headers and those of Supabase's client.
CORS_HEADERS: t.Tuple[str, ...] = ("authorization", "content-type", "apikey", "x-client-info")


#: What a check may need, and the variables of an inventory that give it.
NEEDS: t.Mapping[str, str] = {
    "base URL": "wheels_ops_base_url",
    "database DSN": "wheels_ops_database_dsn",
    "Redis URL": "wheels_ops_redis_url",
    "base URL and origin": "wheels_ops_base_url and wheels_ops_cors_origins",
    "WebSocket path": "wheels_ops_base_url and monitoring_websocket_path",
    "speech path": "monitoring_tts_path",
    "service": "wheels_ops_services",
}


@dataclass(frozen=True)
class Options:
    """What there is on a host to be measured. A subject that lacks what it needs is ``skipped``, and says what it needs."""

    subjects: t.Sequence[str] = SUBJECTS
    timeout: float = 60.0
    thresholds: t.Mapping[str, Thresholds] = field(default_factory=dict)
    scope: str = "host"
    base_url: str = ""
    http_paths: t.Sequence[str] = ("/health",)
    health_path: str = http.HEALTH_PATH
    stall_path: str = "/api/memory"
    database_dsn: str = ""
    database_tables: t.Optional[t.Mapping[str, t.Sequence[str]]] = None
    schemas: t.Optional[t.Sequence[str]] = None
    redis_url: str = ""
    cors_origins: t.Sequence[str] = ()
    cors_path: str = "/api/v1/pam/chat"
    websocket_path: str = ""
    websocket_heartbeat_within: float = 0.0
    websocket_dead_peer_within: float = 0.0
    tts_path: str = "/api/v1/tts/test"
    filesystems: t.Sequence[str] = ("/",)
    disk_budgets: t.Mapping[str, int] = field(default_factory=dict)
    logs: t.Sequence[str] = ()
    log_max_bytes: int = LOG_MAX_BYTES
    services: t.Sequence[t.Mapping[str, t.Any]] = ()
    service_manager: str = "auto"
    supervisor_socket: str = ""
    memory_limits_mb: t.Mapping[str, float] = field(default_factory=dict)


def run(options: Options) -> t.Dict[str, t.Any]:
    """Measures and gives ``status``, ``checks`` (in report order), names by outcome, ``scores``, ``duration_ms`` and the time."""
    strange = sorted(set(options.subjects) - set(SUBJECTS))
    if strange:
        raise OpsError(f"Unknown subjects: {', '.join(strange)}.", hint=f"Known are: {', '.join(SUBJECTS)}.")
    started = time.monotonic()
    known = parse_services(options.services) if options.services else []
    calls = _calls(options, known)
    wanted = {name: calls[name] for name in SUBJECTS if name in options.subjects}
    checks = health.measure(wanted, timeout=options.timeout)
    return {
        "status": health.overall(checks),
        "checks": [check.as_dict() for check in checks],
        "failing": [check.name for check in checks if check.status not in ("ok", "skipped")],
        "not_measured": [check.name for check in checks if check.status == "skipped"],
        "left_out": [name for name in SUBJECTS if name not in options.subjects],
        "scores": scores_of(checks, scope=options.scope),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "duration_ms": round((time.monotonic() - started) * 1000, 1),
    }


def scores_of(checks: t.Iterable[health.Check], *, scope: str = "host") -> t.Dict[str, t.Optional[float]]:
    """The scores of one look at a host. Stability is that of a day, of which one look knows nothing: None.

    What was not asked for does not count. Where something that was asked for could not be measured there is no score: the rest alone would
    look better than the host may be.
    """
    checks = list(checks)
    unknown = {check.name for check in checks if check.status == "unknown"}
    found = {check.name: check for check in checks if check.status not in ("skipped", "unknown")}

    def value(name: str, detail: str = "") -> t.Optional[float]:
        if name not in found:
            return None
        measured = found[name].details.get(detail) if detail else found[name].value
        return float(measured) if isinstance(measured, (int, float)) else None

    return {
        "performance": (
            None
            if unknown & {"memory", "cpu", "disk"}
            else scores.performance(
                memory_percent=value("memory"),
                cpu_percent=value("cpu", "host_percent" if scope == "host" else "services_percent"),
                disk_percent=value("disk"),
                loop_lag_ms=value("cpu", "stall_ms"),
            )
        ),
        "stability": None,
        "user_experience": (
            None
            if "http" in unknown
            else scores.user_experience(response_time_ms=value("http"), error_rate=value("http", "error_rate_percent"))
        ),
    }


def _calls(options: Options, known: t.Sequence[Service]) -> t.Dict[str, t.Callable[[], health.Check]]:
    def limits(name: str) -> Thresholds:
        return options.thresholds.get(name, DEFAULTS[name])

    def pids() -> t.Dict[str, t.Set[int]]:
        if not known:
            return {}
        # Where nothing answers for the services, this subject is unknown; the others are measured all the same.
        manager = open_manager(options.service_manager, options.supervisor_socket)
        states = manager.states([service.unit for service in known])
        return {service.name: manager.pids(states[service.unit]) for service in known if states[service.unit].pid}

    def needs(name: str, what: str, present: t.Any, call: t.Callable[[], health.Check]) -> t.Callable[[], health.Check]:
        if present:
            return call
        return lambda: health.Check(
            name=name, status="skipped", message=f"Not measured: no {what} is given. Set {NEEDS[what]}."
        )

    def measure_cpu() -> health.Check:
        members = {pid for group in pids().values() for pid in group}
        return cpu.check(
            members,
            scope=options.scope,
            base_url=options.base_url,
            heavy=options.stall_path,
            light=options.http_paths[0],
            thresholds=limits("cpu"),
            response=limits("response_time_ms"),
        )

    def measure_http() -> health.Check:
        return http.check(
            options.base_url,
            paths=options.http_paths,
            health_path=options.health_path,
            settle=min(http.SETTLE, options.timeout / 2),
            response=limits("response_time_ms"),
            errors=limits("error_rate"),
        )

    def measure_celery() -> health.Check:
        # Beat is asked for where it is one of the services; a backend without periodic tasks has none.
        beat = any(service.gate.type == "beat" or "beat" in f"{service.name} {service.unit}" for service in known)
        return celery.check(options.redis_url, waiting=limits("waiting_tasks"), expect_beat=beat)

    def measure_cors() -> health.Check:
        return cors.check(options.base_url, options.cors_origins, headers=CORS_HEADERS, path=options.cors_path)

    def measure_websocket() -> health.Check:
        origin = options.cors_origins[0] if options.cors_origins else ""
        path, _mark, query = options.websocket_path.partition("?")
        assumed = path == WEBSOCKET_PATHS[0]
        anonymous = not any(word.startswith("token=") and word != "token=" for word in query.split("&"))
        check = health.Check(name="websocket", status="unknown")
        address = ""
        for candidate in WEBSOCKET_PATHS if assumed else (path,):
            address = "ws" + options.base_url[len("http") :] + candidate + _mark + query
            tried = websocket.check(
                address,
                origin=origin,
                ping="json",
                heartbeat_within=options.websocket_heartbeat_within,
                anonymous=anonymous,
                assumed_path=assumed,
                thresholds=limits("websocket_ms"),
            )
            check = check if check.message and tried.status == "unknown" else tried
            if tried.status != "unknown":
                break
        if options.websocket_dead_peer_within:
            check = dead_peer.add_to(check, address, within=options.websocket_dead_peer_within, origin=origin)
        return check

    return {
        "memory": lambda: memory.check(
            pids(), options.memory_limits_mb, scope=options.scope, thresholds=limits("memory")
        ),
        "cpu": measure_cpu,
        "disk": lambda: disk.check(
            options.filesystems,
            budgets=options.disk_budgets,
            logs=options.logs,
            log_max_bytes=options.log_max_bytes,
            thresholds=limits("disk"),
        ),
        "database": needs(
            "database",
            "database DSN",
            options.database_dsn,
            lambda: database.check(options.database_dsn, required=options.database_tables),
        ),
        "rls": needs(
            "rls",
            "database DSN",
            options.database_dsn,
            lambda: rls.check(options.database_dsn, schemas=options.schemas),
        ),
        "redis": needs(
            "redis", "Redis URL", options.redis_url, lambda: redis.check(options.redis_url, thresholds=limits("memory"))
        ),
        "http": needs("http", "base URL", options.base_url, measure_http),
        "cors": needs("cors", "base URL and origin", options.base_url and options.cors_origins, measure_cors),
        "websocket": needs(
            "websocket", "WebSocket path", options.base_url and options.websocket_path, measure_websocket
        ),
        "tts": needs(
            "tts",
            "speech path" if options.base_url else "base URL",
            options.base_url and options.tts_path,
            lambda: tts.check(options.base_url, path=options.tts_path),
        ),
        "celery": needs("celery", "Redis URL", options.redis_url, measure_celery),
        "services": needs(
            "services",
            "service",
            known,
            lambda: services_check.check(
                options.services, manager=options.service_manager, supervisor_socket=options.supervisor_socket
            ),
        ),
    }
