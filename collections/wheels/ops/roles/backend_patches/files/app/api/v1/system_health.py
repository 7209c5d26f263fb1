# SPDX-License-Identifier: MIT
"""The system health API: ``/api/v1/system/*``, ``/livez``, ``/readyz`` and ``/metrics``.

``router`` is an ordinary FastAPI router, for ``app.include_router(router, prefix="/api/v1")``; it starts the monitor
and the optimizer with the application, but not the checks of the dependencies (``startup``).
``SystemHealthMiddleware(app)`` serves the same routes outside the application's own CSRF, WAF and address-blocking
layers, which otherwise refuse them, and adds them to the application's OpenAPI document.

Answers come from samples (``HealthBoard``), never from waiting for a dependency. Anonymous callers get statuses and
nothing else. Everything that changes something or shows details needs the ops token (``X-Ops-Token`` or
``Authorization: Bearer``): several may be valid at once, so that they can be rotated; without one configured all of
that is refused. Environment: ``WHEELS_OPS_TOKEN`` (comma-separated) or ``WHEELS_OPS_TOKEN_FILE`` (one a line; a line
that begins with ``#`` is a comment), each of at least sixteen characters; ``WHEELS_OPS_STATE_DIR``
(/var/lib/wheels-ops).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import importlib
import json
import os
import platform
import secrets
import socket
import sys
import time
import typing as t
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from app.core.logging import get_logger
from app.core.performance_monitor import AlertLevel, performance_monitor, request_stats
from app.monitoring.memory_optimizer import env_paths, memory_optimizer
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BeforeValidator, Field
from starlette.requests import ClientDisconnect

try:
    rate_limit: t.Any = importlib.import_module("app.wheels_ops.rate_limit")
    workers: t.Any = importlib.import_module("app.wheels_ops.workers")
except ImportError:  # copied by hand without app/wheels_ops
    rate_limit = workers = None

logger = get_logger(__name__)
if rate_limit is None:
    logger.warning(
        "🩺 System health: app/wheels_ops is not installed; there are no checks of database, Redis, Celery, CORS and"
        " speech, no scores, no dashboard and no metrics"
    )

Scope = t.MutableMapping[str, t.Any]
Message = t.MutableMapping[str, t.Any]
Receive = t.Callable[[], t.Awaitable[Message]]
Send = t.Callable[[Message], t.Awaitable[None]]
ASGIApp = t.Callable[[Scope, Receive, Send], t.Awaitable[None]]

PREFIX = "/api/v1/system"
MAX_BODY, BODY_SECONDS = 8192, 10.0
MAX_PENDING_REQUESTS = 20
#: Where all workers count the failed tries of all clients: the last place of routes.
LAST_PLACE = 63
LARGE_LOG_BYTES = 50 * 1000 * 1000
OLD_LOG_SECONDS = 7 * 86400
#: Samples older than this many periods make a check ``warn``, and ``fail``.
STALE_WARN, STALE_FAIL = 3, 12
_WORDS = {"pass": "healthy", "warn": "warning", "fail": "critical"}
_SEVERITY = ("pass", "warn", "fail")


def state_directory() -> Path:
    """Where the host and this process exchange history and requests."""
    return Path(os.environ.get("WHEELS_OPS_STATE_DIR") or "/var/lib/wheels-ops")


def helper(name: str) -> t.Any:
    """A module of ``app.wheels_ops``, or None where only the files of the incident report were copied."""
    try:
        return importlib.import_module(f"app.wheels_ops.{name}")
    except ImportError:
        return None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


# -- what is known about health --------------------------------------------------------------------------------------


@dataclass
class CheckState:
    """The last sample of one check. ``status`` is pass, warn or fail; ``output`` is shown to token holders only."""

    status: str
    output: str = ""
    value: t.Any = None
    unit: str = ""
    kind: str = "component"
    at: float = field(default_factory=time.monotonic)
    time: str = field(default_factory=_now)
    #: Seconds between two samples; 0: the check is not sampled and never goes stale.
    period: float = 0.0
    #: Since when it has this status; empty where that is not known.
    since: str = ""

    def current(self) -> str:
        """The status, worse where the sample is old: what is not known is not healthy."""
        if self.period:
            periods = (time.monotonic() - self.at) / self.period
            if periods > STALE_FAIL:
                return "fail"
            if periods > STALE_WARN and self.status == "pass":
                return "warn"
        return self.status


class HealthBoard:
    """The last sample of every check, and the rendered answers made from them (at most once a second)."""

    def __init__(self) -> None:
        self.checks: t.Dict[str, CheckState] = {}
        self.notes: t.Dict[str, str] = {}
        self.sections: t.Dict[str, t.Dict[str, t.Any]] = {}
        self.stopping = False
        self._public: t.Tuple[float, int, bytes] = (0.0, 0, b"")

    def post(
        self,
        name: str,
        status: str,
        output: str = "",
        *,
        value: t.Any = None,
        unit: str = "",
        kind: str = "component",
        period: float = 0.0,
    ) -> None:
        """Stores a sample under a health+json name such as ``redis:connection``."""
        before = self.checks.get(name)
        self.notes.pop(name, None)
        since = before.since if before is not None and before.status == status else _now()
        self.checks[name] = CheckState(status, output, value, unit, kind, period=period, since=since)
        if before is None or before.status != status:
            self.forget()
            if status != "pass":
                logger.warning(f"🩺 Health check {name}: {status}: {output}")
            elif before is not None:
                logger.info(f"🩺 Health check {name}: back to pass")

    def note(self, name: str, text: str) -> None:
        """What is not checked, and why: it is neither healthy nor ill."""
        self.checks.pop(name, None)
        self.notes[name] = text

    def states(self) -> t.Dict[str, t.Tuple[str, CheckState]]:
        """name -> (status, sample): the posted checks and those of the monitor's samples and alerts."""
        states = dict(self._monitor_states())
        for name, check in list(self.checks.items()):
            states[name] = (check.current(), check)
        return states

    def _monitor_states(self) -> t.Iterable[t.Tuple[str, t.Tuple[str, CheckState]]]:
        monitor = performance_monitor
        if not monitor.is_running:
            yield "monitoring:samples", ("warn", CheckState("warn", "monitoring is not running", kind="system"))
            return
        age = time.monotonic() - monitor.last_sample_at
        stale = (
            "fail"
            if age > STALE_FAIL * monitor.check_interval + 5
            else "warn"
            if age > STALE_WARN * monitor.check_interval + 5
            else "pass"
        )
        for metric, name in MONITOR_CHECKS.items():
            sample = monitor.current.get(metric)
            alert = monitor.active_alerts.get(metric)
            if sample is None and alert is None:
                continue
            status = (
                "pass" if alert is None else "warn" if alert.level in (AlertLevel.INFO, AlertLevel.WARNING) else "fail"
            )
            if metric in NEVER_FAILS:
                status = min(status, "warn", key=_SEVERITY.index)
            status = max(status, stale, key=_SEVERITY.index)
            value = None if sample is None else round(sample.value, 2)
            stamp = sample.timestamp.isoformat() if sample is not None else _now()
            yield (
                name,
                (
                    status,
                    CheckState(
                        status,
                        alert.message if alert else "",
                        value,
                        sample.unit if sample else "",
                        "system",
                        time=stamp,
                        since=alert.timestamp.isoformat() if alert is not None else "",
                    ),
                ),
            )
        for metric, alert in list(monitor.active_alerts.items()):
            if metric not in MONITOR_CHECKS:
                mild = alert.level in (AlertLevel.INFO, AlertLevel.WARNING) or metric in NEVER_FAILS
                status = "warn" if mild else "fail"
                since = alert.timestamp.isoformat()
                yield f"{metric}:alert", (status, CheckState(status, alert.message, kind="component", since=since))

    def status(self) -> str:
        return max((status for status, _ignored in self.states().values()), key=_SEVERITY.index, default="warn")

    def ready(self) -> bool:
        """Whether this process should get traffic: it is not stopping, and reads from a database are possible."""
        return not self.stopping and all(
            check.current() != "fail" for name, check in list(self.checks.items()) if name in READINESS_CHECKS
        )

    def forget(self) -> None:
        """Has the next answer made anew."""
        self._public = (0.0, 0, b"")

    def public(self) -> t.Tuple[int, bytes]:
        """(HTTP status, body) for anonymous callers: statuses only."""
        now = time.monotonic()
        rendered, code, body = self._public
        if now - rendered < 1.0 and body:
            return code, body
        document = self.document(details=False)
        code = 503 if document["status"] == "fail" else 200
        body = json.dumps(document, separators=(",", ":")).encode()
        self._public = (now, code, body)
        return code, body

    def document(self, *, details: bool) -> t.Dict[str, t.Any]:
        """health+json (``status``, ``checks``) with the keys of the first version beside it."""
        states = self.states()
        status = max((one for one, _ignored in states.values()), key=_SEVERITY.index, default="warn")
        counts = {word: sum(one == word for one, _ignored in states.values()) for word in _SEVERITY}
        checks: t.Dict[str, t.List[t.Dict[str, t.Any]]] = {}
        for name, (one, check) in sorted(states.items()):
            entry: t.Dict[str, t.Any] = {"status": one}
            if details:
                entry.update(componentType=check.kind, time=check.time)
                if check.value is not None:
                    entry.update(observedValue=check.value, observedUnit=check.unit)
                if check.since:
                    entry["since"] = check.since
                if one != "pass" and check.output:
                    entry["output"] = check.output
            checks[name] = [entry]
        alerts = [alert.as_dict() for alert in list(performance_monitor.active_alerts.values())] if details else []
        document: t.Dict[str, t.Any] = {
            "status": status,
            "timestamp": _now(),
            "overall_status": _WORDS[status],
            "status_message": {
                "pass": "All systems operational",
                "warn": "Some checks need attention",
                "fail": "Something that users need is broken",
            }[status],
            "system_metrics": {"performance": {}, "memory": {}, "cache": {}},
            "alerts_summary": {
                "total_alerts": counts["warn"] + counts["fail"],
                "critical_alerts": counts["fail"],
                "warning_alerts": counts["warn"],
                "active_alerts": alerts,
            },
            "checks": checks,
        }
        if details:
            document["notes"] = [f"{name}: {text}" for name, text in sorted(self.notes.items())]
            document["sections"] = dict(self.sections)
            document["scores"] = self.scores()
            if workers is not None:
                document["worker"] = workers.describe()
        return document

    def scores(self) -> t.Dict[str, t.Any]:
        """overall, performance, stability, user_experience; None where something is not known."""
        formulas = helper("scores")
        if formulas is None:
            return {"overall": _WORDS[self.status()], "performance": None, "stability": None, "user_experience": None}
        value = {name: sample.value for name, sample in performance_monitor.current.items()}
        return {
            "overall": formulas.overall(state for state, _ignored in self.states().values()),
            "performance": formulas.performance(
                memory_percent=value.get("memory_percent"),
                cpu_percent=value.get("cpu_percent"),
                disk_percent=value.get("disk_percent"),
                loop_lag_ms=value.get("loop_lag_ms"),
            ),
            "stability": formulas.stability(**self.sections.get("stability", {})),
            "user_experience": formulas.user_experience(
                response_time_ms=value.get("response_p95_ms"), error_rate=value.get("error_rate")
            ),
        }


#: metric of the monitor -> name in health+json (``component:measurement``).
MONITOR_CHECKS = {
    "memory_percent": "memory:utilization",
    "cpu_percent": "cpu:utilization",
    "disk_percent": "disk:utilization",
    "disk_inodes_percent": "disk:inodes",
    "process_memory_mb": "process:memory",
    "response_time_ms": "http:responseTime",
    "error_rate": "http:errorRate",
    "active_connections": "websocket:connections",
    "loop_lag_ms": "eventloop:lag",
    "loop_blocked_percent": "eventloop:blocked",
}
#: Says of a host that it has much to do, not that anything is broken: a load balancer must not take it out for that.
NEVER_FAILS = frozenset({"cpu_percent", "process_cpu_percent", "load_1m"})
READINESS_CHECKS = ("database:connection",)
board = HealthBoard()


# -- who may ---------------------------------------------------------------------------------------------------------


class OpsTokens:
    """The tokens that are valid now. A token file is read again when it changes, so rotation needs no restart.

    One that is too short is as good as none; that is logged once for each state of its place, not for each request.
    """

    MIN_LENGTH = 16
    MAX_BYTES = 65_536

    def __init__(self) -> None:
        #: Path, what tells its states apart (a copy may keep the time of its original), tokens.
        self._file: t.Tuple[str, t.Tuple[int, ...], t.Tuple[str, ...]] = ("", (), ())
        self._looked = -1.0
        self._variable: t.Tuple[str, t.Tuple[str, ...]] = ("", ())

    def all(self) -> t.Tuple[str, ...]:
        value = os.environ.get("WHEELS_OPS_TOKEN", "")
        if value != self._variable[0]:
            self._variable = (value, self._long_enough([word.strip() for word in value.split(",")], "WHEELS_OPS_TOKEN"))
        return (*self._variable[1], *self._from_file(os.environ.get("WHEELS_OPS_TOKEN_FILE", "")))

    def _long_enough(self, words: t.Iterable[str], place: str) -> t.Tuple[str, ...]:
        words = [word for word in words if word]
        short = sum(len(word) < self.MIN_LENGTH for word in words)
        if short:
            logger.error(f"🛡️ {short} ops token(s) in {place} refused: fewer than {self.MIN_LENGTH} characters")
        return tuple(word for word in words if len(word) >= self.MIN_LENGTH)

    def _from_file(self, path: str) -> t.Tuple[str, ...]:
        if not path:
            return ()
        now = time.monotonic()
        if self._file[0] == path and 0 <= now - self._looked < 1.0:
            return self._file[2]
        self._looked = now
        try:
            facts = os.stat(path)
            changed = (facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino)
            if self._file[0] != path or self._file[1] != changed:
                # Not to wait for the other end of a named pipe.
                with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as source:
                    text = source.read(self.MAX_BYTES + 1)
                if len(text) > self.MAX_BYTES:
                    raise OSError("too large")
                lines = (line.strip() for line in text.decode("utf-8").lstrip("\ufeff").splitlines())
                self._file = (
                    path,
                    changed,
                    self._long_enough((line for line in lines if not line.startswith("#")), path),
                )
        except (OSError, UnicodeError):
            self._file = (path, (), ())
        return self._file[2]

    def match(self, presented: str) -> str:
        """The digest of the valid token that was presented, or an empty string. In constant time for every token."""
        expected = hashlib.sha256(presented.encode()).digest()
        match = ""
        for token in self.all():
            digest = hashlib.sha256(token.encode())
            if hmac.compare_digest(expected, digest.digest()):
                match = digest.hexdigest()
        return match if presented else ""


def limiter(burst: int, seconds: float, place: int = -1) -> t.Callable[[], float]:
    """Allows ``burst`` at once, then one every ``seconds``; a call gives the seconds to wait, 0 where it is allowed.

    ``place``: where all workers of the service count this one together.
    """
    alone = _limiter(burst, seconds)

    def take() -> float:
        group = workers.group() if workers is not None and place >= 0 else None
        if group is not None:
            try:
                return t.cast(float, group.take(place, float(burst), seconds))
            except OSError as error:  # the directory is gone: this worker counts for itself
                logger.warning(f"🛡️ This limit is not shared with the other workers: {type(error).__name__}")
        return alone()

    return take


def _limiter(burst: int, seconds: float) -> t.Callable[[], float]:
    if rate_limit is not None:
        return t.cast(t.Callable[[], float], rate_limit.TokenBucket(1.0 / seconds, float(burst)).take)
    times: t.Deque[float] = deque(maxlen=burst)

    def take() -> float:
        now = time.monotonic()
        if len(times) == burst and now - times[0] < burst * seconds:
            return burst * seconds - (now - times[0])
        times.append(now)
        return 0.0

    return take


tokens = OpsTokens()


# -- requests and answers ----------------------------------------------------------------------------------------------


class Answer(Response):
    """JSON of whatever is no text and no bytes. Kept by no cache unless its headers say so."""

    def __init__(
        self,
        status: int,
        body: t.Any,
        headers: t.Optional[t.Mapping[str, str]] = None,
        content_type: str = "application/json",
    ) -> None:
        content = (
            body if isinstance(body, (str, bytes)) else json.dumps(body, default=str, separators=(",", ":")).encode()
        )
        always = {"content-type": content_type, "x-content-type-options": "nosniff", "cache-control": "no-store"}
        super().__init__(content, status, {**always, **{name.lower(): text for name, text in (headers or {}).items()}})


def refuse(status: int, detail: str, headers: t.Optional[t.Mapping[str, str]] = None) -> Answer:
    return Answer(status, {"detail": detail}, headers)


def _too_many(seconds: float) -> HTTPException:
    return HTTPException(429, "Too many requests", {"Retry-After": str(max(1, int(seconds + 0.999)))})


class HealthApi:
    """What one request leaves for the next: the application, failed tries, and answers that may be asked for again."""

    def __init__(self) -> None:
        self.application: t.Any = None
        self._failures: OrderedDict[str, t.Callable[[], float]] = OrderedDict()
        self._all_failures = limiter(200, 0.3, LAST_PLACE)
        self._done: OrderedDict[t.Tuple[str, str, str], t.Tuple[float, Response]] = OrderedDict()
        self._turns: t.Dict[t.Tuple[str, str, str], asyncio.Lock] = {}

    def limited(self, client: str) -> bool:
        """Counts one failed try of a client: twenty, then one every three seconds; and of all clients together, as an
        address can be forged: ten times as many. Who presents a valid token is not counted."""
        if self._all_failures() > 0:
            return True
        place = workers.place_of(client) if workers is not None else -1
        take = self._failures.pop(client, None) or limiter(20, 3.0, place)
        self._failures[client] = take
        while len(self._failures) > 1024:
            self._failures.popitem(last=False)
        return take() > 0

    async def once(self, caller: str, request: Request, act: t.Callable[[], t.Awaitable[Response]]) -> Response:
        """Does what changes something; a repetition with the same ``Idempotency-Key`` gets the answer of the first."""
        key = (caller, f"{request.method} {request.url.path}", request.headers.get("idempotency-key", "")[:128])
        if not key[2]:
            return await act()
        turn = self._turns.setdefault(key, asyncio.Lock())
        try:
            async with turn:  # a repetition may come while the first one is still at work
                group = workers.group() if workers is not None else None
                if group is not None:
                    return await self._once_of_all(group, key, act)
                if key in self._done and time.monotonic() - self._done[key][0] < 600:
                    return self._done[key][1]
                answer = await act()
                if answer.status_code < 300:
                    self._done[key] = (time.monotonic(), answer)
                    while len(self._done) > 64:
                        self._done.popitem(last=False)
                return answer
        finally:
            if not turn.locked():
                self._turns.pop(key, None)

    @staticmethod
    async def _once_of_all(
        group: t.Any, key: t.Tuple[str, str, str], act: t.Callable[[], t.Awaitable[Response]]
    ) -> Response:
        """The same, where the repetition may reach another worker."""
        name = hashlib.sha256("\0".join(key).encode("utf-8", "replace")).hexdigest()
        async with group.answer_of(name) as file:
            kept = file.read()
            if kept is not None:
                status, headers, body = kept
                return Response(body, status, headers)
            answer = await act()
            if answer.status_code < 300:
                headers = {key: value for key, value in answer.headers.items() if key != "content-length"}
                file.write(answer.status_code, headers, bytes(answer.body))
            return answer


api = HealthApi()


def client_of(request: Request) -> str:
    """For the limits and the log: a proxy passes on what its caller calls himself."""
    name = request.client.host if request.client else ""
    return name if len(name) <= 64 and name.isprintable() else ascii(name[:64])


def is_secure(request: Request) -> bool:
    """Whether the browser came by https, also where a proxy in front of us ended it."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"


async def read_body(request: Request) -> bytes:
    """A small body; empty where it is too large, or not sent to its end. Waits ten seconds, then refuses (408)."""

    async def read() -> bytes:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return b""
        return body

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except ClientDisconnect:
        return b""
    except asyncio.TimeoutError:
        raise HTTPException(408, "The body did not come in time", {"Connection": "close"}) from None


# -- who may, and how often --------------------------------------------------------------------------------------------


def _presented(request: Request) -> str:
    """The ops token of a request, valid or not."""
    kind, _ignored, value = request.headers.get("authorization", "").partition(" ")
    return request.headers.get("x-ops-token", "") or (value.strip() if kind.lower() == "bearer" else "")


async def identify(request: Request) -> str:
    """The first twelve hex digits of the digest of the valid token that was sent; empty for anonymous callers."""
    presented = _presented(request)
    return tokens.match(presented)[:12] if presented else ""


async def operator(
    request: Request,
    caller: t.Annotated[str, Depends(identify)],
    # For the OpenAPI document: ``identify`` reads both.
    _key: t.Annotated[t.Optional[str], Security(APIKeyHeader(name="X-Ops-Token", auto_error=False))],
    _bearer: t.Annotated[t.Optional[HTTPAuthorizationCredentials], Security(HTTPBearer(auto_error=False))],
) -> str:
    """As ``identify``; refuses callers without a valid token."""
    if caller:
        return caller
    if not tokens.all():
        raise HTTPException(
            403,
            "No ops token is configured on this server: set WHEELS_OPS_TOKEN or WHEELS_OPS_TOKEN_FILE. Until then"
            " this is refused.",
        )
    if api.limited(client_of(request)):
        raise _too_many(60)
    if _presented(request):
        logger.warning(
            f"🛡️ audit: {request.method} {request.url.path} refused, wrong ops token, from {client_of(request)}"
        )
    raise HTTPException(401, "An ops token is needed (X-Ops-Token)", {"WWW-Authenticate": 'Bearer realm="ops"'})


class Limit:
    """A dependency that refuses what comes more often than ``burst`` at once, then one every ``seconds``."""

    places = 0

    def __init__(self, burst: int, seconds: float) -> None:
        # In the order of the routes, which is the same in every worker.
        self._take = limiter(burst, seconds, Limit.places)
        Limit.places += 1

    async def __call__(self) -> None:
        wait = self._take()
        if wait:
            raise _too_many(wait)


def privileged(burst: int = 0, seconds: float = 10.0) -> t.List[t.Any]:
    """The dependencies of a route that needs the ops token; ``burst`` 0: as often as its caller likes."""
    return [Depends(operator), *([Depends(Limit(burst, seconds))] if burst else [])]


Endpoint = t.TypeVar("Endpoint", bound=t.Callable[..., t.Awaitable[Answer]])
_AUDITED: t.Set[t.Callable[..., t.Any]] = set()


def audited(endpoint: Endpoint) -> Endpoint:
    """Marks an endpoint that changes something: it is logged, and repeatable with ``Idempotency-Key``."""
    _AUDITED.add(endpoint)
    return endpoint


def _digits(value: t.Any) -> t.Any:
    """Whole numbers in decimal digits, and nothing else that a number could be written as."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) <= 6):
        raise ValueError("not a whole number")
    return value


#: What is answered to an argument that its type refuses.
_WRONG_ARGUMENT = {
    "hours": "Hours must be between 1 and 24",
    "days": "Days must be between 1 and 35",
    "limit": "limit must be a number between 1 and 500",
    "force_aggressive": "force_aggressive must be true or false",
    "cache_type": "cache_type must be redis, memory or all",
}
MAX_ARGUMENTS = 20


Documented = t.Dict[t.Union[int, str], t.Dict[str, t.Any]]


def _content(kind: str, schema: t.Optional[t.Dict[str, t.Any]] = None) -> t.Dict[str, t.Any]:
    return {"content": {kind: {"schema": schema or {"type": "string"}}}}


_DETAIL = _content(
    "application/json", {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
)
_STATUS = {"type": "object", "properties": {"status": {"enum": ["pass", "warn", "fail"]}}, "required": ["status"]}
_HEALTH = _content("application/health+json", _STATUS)
_PAGE = _content("text/html")
#: What the OpenAPI document says of answers other than the ordinary one.
REFUSED: Documented = {"4XX": {"description": "Refused", **_DETAIL}}
OF_OPERATORS: Documented = {
    401: {"description": "No valid ops token", **_DETAIL},
    403: {"description": "No ops token is configured on this server", **_DETAIL},
    429: {"description": "Too often; see Retry-After", **_DETAIL},
}
HEALTH: Documented = {
    200: {"description": "Healthy, or with warnings", **_HEALTH},
    503: {"description": "A check fails", **_HEALTH},
}
NOT_DONE: Documented = {503: {"description": "It could not be done", "content": {"application/json": {}}}}
PAGE: Documented = {
    200: {"description": "The page, or its sign-in", **_PAGE},
    401: {"description": "No valid token", **_PAGE},
    403: {"description": "Refused", **_PAGE},
    429: {"description": "Too many tries", **_PAGE},
    503: {"description": "The dashboard is not installed", **_DETAIL},
}
METRICS: Documented = {
    200: {"description": "In the text format of Prometheus", **_content("text/plain")},
    503: {"description": "The package prometheus-client is missing, and how to install it", **_DETAIL},
}
SIGNED: Documented = {303: {"description": "To the page", "content": {"text/plain": {}}}, **PAGE}


class SystemRoute(APIRoute):
    """A route that answers refusals and failures itself, the same in every application. No exception text leaves."""

    def __init__(self, path: str, endpoint: t.Callable[..., t.Any], **options: t.Any) -> None:
        needs_token = any(one.dependency is operator for one in options.get("dependencies") or ())
        documented = {**REFUSED, **(OF_OPERATORS if needs_token else {}), **(options.get("responses") or {})}
        super().__init__(path, endpoint, **{**options, "responses": documented})

    def get_route_handler(self) -> t.Callable[[Request], t.Coroutine[t.Any, t.Any, Response]]:
        handle = super().get_route_handler()
        changes_something = self.endpoint in _AUDITED

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException as error:
                return refuse(error.status_code, error.detail, error.headers)
            except RequestValidationError as error:
                name = str(error.errors()[0]["loc"][-1])
                return refuse(400, _WRONG_ARGUMENT.get(name, f"{name} is not valid"))
            except Exception as error:
                logger.error(f"🩺 {request.method} {request.url.path} failed: {type(error).__name__}: {error}")
                return refuse(500, "Internal error; the server's log has the details")

        async def audited_answer(request: Request) -> Response:
            caller = await identify(request)

            async def act() -> Response:
                response = await answer(request)
                logger.info(
                    f"🛡️ audit: {request.method} {request.url.path} by token {caller} from {client_of(request)}:"
                    f" {response.status_code}"
                )
                return response

            return await (api.once(caller, request, act) if caller else answer(request))

        return audited_answer if changes_something else answer

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if api.application is None and scope.get("app") is not outside:
            api.application = scope.get("app")
        method, methods = scope["method"], self.methods or set()
        allowed = [*sorted(methods), *["HEAD"] * ("GET" in methods), "OPTIONS"]
        response: t.Optional[Response] = None
        if scope.get("query_string", b"").count(b"&") >= MAX_ARGUMENTS:
            response = refuse(400, "Too many query parameters")
        elif method not in allowed or _is_preflight(scope):
            response = refuse(405, "Method Not Allowed", {"Allow": ", ".join(allowed)})
        elif method == "OPTIONS":
            response = Answer(200, b"", {"Allow": ", ".join(allowed)}, "text/plain")
        if response is None:
            await self.app(scope, receive, _without_body(send) if method == "HEAD" else send)
        else:
            await response(scope, receive, _without_body(send) if method == "HEAD" else send)


def _without_body(send: Send) -> Send:
    async def sending(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return sending


def _is_preflight(scope: Scope) -> bool:
    """A browser's question to whoever holds the CORS policy, which is not us."""
    return scope["method"] == "OPTIONS" and any(
        name.lower() == b"access-control-request-method" for name, _ignored in scope["headers"]
    )


@contextlib.asynccontextmanager
async def _monitored(application: t.Any) -> t.AsyncIterator[None]:
    """Part of the lifespan of whoever includes ``router`` and nothing else of ours: without samples there would be no
    health to show."""
    try:
        await performance_monitor.start()
        await memory_optimizer.start()
    except Exception as error:  # the application starts without its monitoring, and health says that it does not run
        logger.error(f"🩺 The monitoring does not start: {type(error).__name__}: {error}")
    yield
    await memory_optimizer.stop()
    await performance_monitor.stop()


router = APIRouter(prefix="/system", tags=["System Health"], route_class=SystemRoute, lifespan=_monitored)
#: The routes of ``SystemHealthMiddleware``: those of ``router``, and those at the root of the server.
outside = FastAPI(title="System health", openapi_url=None, redirect_slashes=False)
outside.router.route_class = SystemRoute


# -- the endpoints -----------------------------------------------------------------------------------------------------


@outside.get("/livez", tags=["System Health"], responses={200: HEALTH[200]}, response_class=Response)
async def livez() -> Answer:
    """The process runs and its loop turns; knows of no dependency."""
    return Answer(200, b'{"status":"pass"}', content_type="application/health+json")


def readiness() -> Answer:
    ready = board.ready()
    body = b'{"status":"pass"}' if ready else b'{"status":"fail"}'
    return Answer(200 if ready else 503, body, content_type="application/health+json")


@outside.get("/readyz", tags=["System Health"], responses=HEALTH, response_class=Response)
async def readyz() -> Answer:
    """Whether this process should get traffic; 503 while it stops or its database is gone."""
    return readiness()


def public_health() -> Answer:
    """For anonymous callers; once a second made anew."""
    code, body = board.public()
    return Answer(code, body, {"Cache-Control": "max-age=1"}, "application/health+json")


@router.get("/health", responses=HEALTH, response_class=Response)
async def health(caller: t.Annotated[str, Depends(identify)]) -> Answer:
    """Statuses, 503 when a check fails. With the ops token also values, alerts and scores."""
    if not caller:
        return public_health()
    document = board.document(details=True)
    document["system_metrics"] = {
        "performance": performance_monitor.status(),
        "memory": await memory_optimizer.get_memory_stats(),
        "cache": await _cache_stats(),
    }
    return Answer(503 if document["status"] == "fail" else 200, document, content_type="application/health+json")


async def _cache_stats() -> t.Dict[str, t.Any]:
    """The last sample; the cache itself is not asked, it may hang."""
    return dict(board.sections.get("cache") or {"error": "no sample yet"})


@router.get("/performance/report", dependencies=privileged(20, 0.5))
async def performance_report(
    hours: t.Annotated[int, Field(ge=1, le=24), BeforeValidator(_digits)] = 1,
    days: t.Annotated[t.Optional[int], Field(ge=1, le=35), BeforeValidator(_digits)] = None,
) -> Answer:
    """Lowest, highest and mean of every metric over hours or days, also from before a restart."""
    if days is not None:
        hours = 24 * days
    report = await performance_monitor.get_performance_report(hours)
    report["scores"] = board.scores()
    return Answer(200, report)


@router.post(
    "/memory/optimize",
    dependencies=privileged(5),
    responses={409: {"description": "Nothing was done, and why", "content": {"application/json": {}}}},
)
@audited
async def memory_optimize(force_aggressive: bool = False) -> Answer:
    """Gives memory back to the system; ``force_aggressive`` empties caches first."""
    level = "aggressive" if force_aggressive else "standard"
    started = _now()
    result, others = await _everywhere("memory/optimize", {"level": level})
    results = [result, *(other for other in others.values() if "error" not in other)]
    freed = sum(one["freed_bytes"] for one in results) / (1 << 20)
    done = [one for one in results if not one["skipped"]]
    of = f" by {len(done)} of {1 + len(others)} workers" if others else ""
    message = (
        f"Memory optimization done: {freed:.1f} MB given back{of}"
        if done
        else f"Memory optimization: nothing done, {result['skipped']}"
    )
    return Answer(
        200 if any(not one["skipped"] or one["trimmed"] or one["shrunk"] for one in results) else 409,
        {
            "message": message,
            "type": level,
            "started_at": started,
            **{key: value for key, value in result.items() if key != "level"},
            **_of_workers(others),
        },
    )


async def _optimize(arguments: t.Dict[str, t.Any]) -> t.Dict[str, t.Any]:
    return dict(await memory_optimizer.optimize(str(arguments["level"]), reason="asked for over the API"))


async def _clear_own(_arguments: t.Dict[str, t.Any]) -> t.Dict[str, t.Any]:
    return {"memory": await memory_optimizer._clear_all_caches()}


async def _everywhere(
    action: str, arguments: t.Optional[t.Dict[str, t.Any]] = None
) -> t.Tuple[t.Dict[str, t.Any], t.Dict[int, t.Dict[str, t.Any]]]:
    """Does an action here and in every other worker; (the result here, pid -> the result there)."""
    if workers is None:
        return await _ACTIONS[action](arguments or {}), {}
    here, there = await asyncio.gather(_ACTIONS[action](arguments or {}), workers.tell(action, arguments))
    return here, t.cast(t.Dict[int, t.Dict[str, t.Any]], there)


def _of_workers(others: t.Mapping[int, t.Mapping[str, t.Any]]) -> t.Dict[str, t.Any]:
    """What an answer says of the other workers, where there are any."""
    if not others:
        return {}
    return {
        "worker": workers.describe(),
        "other_workers": {str(pid): dict(result) for pid, result in others.items()},
        "workers_reached": 1 + sum("error" not in result for result in others.values()),
    }


@router.post("/cache/clear", dependencies=privileged(5), responses=NOT_DONE)
@audited
async def cache_clear(
    cache_type: t.Annotated[
        t.Literal["redis", "memory", "all"], BeforeValidator(lambda text: text.lower() or "all")
    ] = "all",
) -> Answer:
    """Removes what has expired in Redis, and empties this process's own caches."""
    started = _now()
    cleared: t.List[str] = []
    removed: t.Dict[str, t.Any] = {}
    failed: t.List[str] = []
    others: t.Dict[int, t.Dict[str, t.Any]] = {}
    if cache_type in ("redis", "all"):
        try:
            from app.services.cache_service import cache_service

            await asyncio.wait_for(cache_service.initialize(), 2)
            if cache_service.redis is None:
                raise ConnectionError("not connected")
            await asyncio.wait_for(cache_service.redis.ping(), 2)
            removed["redis"] = await asyncio.wait_for(cache_service.clear_expired(), 30)
            cleared.append("redis")
        except Exception as error:  # whatever a cache client raises: it was not cleared, and that is said
            logger.warning(f"🗑️ The Redis cache was not cleared: {type(error).__name__}")
            failed.append("redis")
    if cache_type in ("memory", "all"):
        own, others = await _everywhere("cache/clear")
        removed.update(own)
        cleared.append("memory")
    logger.info(
        f"🗑️ Cache clear asked for: {', '.join(cleared) or 'nothing'} cleared, {', '.join(failed) or 'nothing'} failed"
    )
    return Answer(
        200 if cleared else 503,
        {
            "message": f"Cleared: {', '.join(cleared) or 'nothing'}",
            "cleared_caches": cleared,
            "failed_caches": failed,
            "removed": removed,
            "started_at": started,
            **_of_workers(others),
        },
    )


@router.get("/monitoring/status", dependencies=privileged(20, 0.5))
async def monitoring_status() -> Answer:
    """What runs."""
    return Answer(
        200,
        {
            "timestamp": _now(),
            **({"worker": workers.describe()} if workers is not None else {}),
            "services": {
                "performance_monitor": {
                    "active": performance_monitor.is_running,
                    "check_interval": performance_monitor.check_interval,
                    "active_alerts": len(performance_monitor.active_alerts),
                },
                "memory_optimizer": {
                    "active": memory_optimizer.is_running,
                    "optimization_interval": memory_optimizer.optimization_interval,
                    "optimization_count": memory_optimizer.optimization_count,
                },
                "memory_management": {"type": "memory_optimizer", "note": "trims where a prediction says that it pays"},
                "cache_service": {"initialized": _cache_initialized()},
            },
        },
    )


def _cache_initialized() -> bool:
    module = sys.modules.get("app.services.cache_service")
    return getattr(getattr(module, "cache_service", None), "redis", None) is not None


async def _switch(start: bool) -> t.Dict[str, str]:
    results: t.Dict[str, str] = {}
    for name, service in (("performance_monitor", performance_monitor), ("memory_optimizer", memory_optimizer)):
        if service.is_running == start:
            results[name] = "already_running" if start else "already_stopped"
            continue
        await (service.start() if start else service.stop())
        results[name] = ("started" if service.is_running else "switched_off") if start else "stopped"
    results["memory_management"] = results["memory_optimizer"]
    board.forget()
    return results


async def _connect_cache() -> str:
    """``initialized``, or ``not_connected`` where Redis or the cache service is not there."""
    with contextlib.suppress(Exception):  # whatever a cache client raises: it is not connected, and that is said
        from app.services.cache_service import cache_service

        await asyncio.wait_for(cache_service.initialize(), 2)
    return "initialized" if _cache_initialized() else "not_connected"


@router.post("/monitoring/start", dependencies=privileged(5))
@audited
async def monitoring_start() -> Answer:
    """Starts monitor and memory optimizer, connects the cache."""
    results, others = await _everywhere("monitoring/start")
    results["cache_service"] = "already_initialized" if _cache_initialized() else await _connect_cache()
    return Answer(
        200,
        {"message": "Monitoring services started", "results": results, "started_at": _now(), **_of_workers(others)},
    )


@router.post("/monitoring/stop", dependencies=privileged(5))
@audited
async def monitoring_stop() -> Answer:
    """Stops monitor and memory optimizer; health is a warning until they run again."""
    results, others = await _everywhere("monitoring/stop")
    results["cache_service"] = "left_open"  # the pool belongs to the application, not to the monitoring
    return Answer(
        200,
        {"message": "Monitoring services stopped", "results": results, "stopped_at": _now(), **_of_workers(others)},
    )


async def _start_monitoring(_arguments: t.Dict[str, t.Any]) -> t.Dict[str, t.Any]:
    return dict(await _switch(True))


async def _stop_monitoring(_arguments: t.Dict[str, t.Any]) -> t.Dict[str, t.Any]:
    return dict(await _switch(False))


#: What one worker has all of them do.
_ACTIONS: t.Dict[str, t.Callable[[t.Dict[str, t.Any]], t.Awaitable[t.Dict[str, t.Any]]]] = {
    "memory/optimize": _optimize,
    "cache/clear": _clear_own,
    "monitoring/start": _start_monitoring,
    "monitoring/stop": _stop_monitoring,
}


@router.get("/recovery/history", dependencies=privileged(10, 1.0))
async def recovery_history(limit: t.Annotated[int, Field(ge=1, le=500), BeforeValidator(_digits)] = 50) -> Answer:
    """What the host's recovery did, newest first."""
    entries = await asyncio.to_thread(read_history, limit)
    note = (
        "Newest first, as the host's recovery wrote them."
        if entries
        else "The host's recovery has not written anything yet."
    )
    if not entries and not await asyncio.to_thread(_can_read_history):
        note = "This process cannot read the host's history; its user is the deployment's wheels_ops_backend_user."
    return Answer(
        200, {"message": "Recovery history", "note": note, "limit": limit, "timestamp": _now(), "history": entries}
    )


def read_history(limit: int) -> t.List[t.Dict[str, t.Any]]:
    """The newest ``limit`` entries of ``history.jsonl``, newest first; a broken line is left out."""
    try:
        with open(state_directory() / "history.jsonl", "rb") as source:
            size = source.seek(0, os.SEEK_END)
            begin = max(0, size - max(256 * 1024, 8192 * limit))
            source.seek(begin)
            lines = source.read().split(b"\n")
            if begin:
                lines = lines[1:]  # the first one is cut
    except OSError:
        return []
    entries: t.List[t.Dict[str, t.Any]] = []
    for line in reversed(lines):
        try:
            entry = json.loads(line) if line.strip() else None
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
            if len(entries) == limit:
                break
    return entries


def _can_read_history() -> bool:
    try:
        with open(state_directory() / "history.jsonl", "rb"):
            return True
    except OSError as error:
        return isinstance(error, FileNotFoundError)


@router.post("/recovery/trigger", dependencies=privileged(2, 30.0), responses=NOT_DONE)
@audited
async def recovery_trigger(caller: t.Annotated[str, Depends(operator)]) -> Answer:
    """Leaves a request for the host's recovery."""
    started = _now()
    identifier = await asyncio.to_thread(
        write_request, "recover", "asked for over the API", requested_by=f"token {caller}"
    )
    if not identifier:
        return refuse(
            503,
            "The request could not be handed to the host: its directory is missing, full of pending requests, or not"
            " writable",
        )
    return Answer(
        200,
        {
            "message": "Recovery requested",
            "started_at": started,
            "request_id": identifier,
            "note": "The host's recovery picks it up; see recovery/history for what it did.",
        },
    )


def write_request(
    kind: str, reason: str, *, requested_by: str, details: t.Optional[t.Mapping[str, t.Any]] = None
) -> str:
    """Hands a request (``recover``, ``restart``, ``alert``) to the host: one JSON file, written whole or not at all.

    Gives its id, or an empty string where it could not be written. Blocking.
    """
    directory = state_directory() / "requests"
    identifier = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"
    entry = {
        "id": identifier,
        "time": _now(),
        "kind": kind,
        "reason": reason,
        "requested_by": requested_by,
        "service": "pam-backend",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "details": dict(details or {}),
    }
    temporary = directory / f".{identifier}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if sum(name.endswith(".json") for name in os.listdir(directory)) >= MAX_PENDING_REQUESTS:
            logger.error(
                f"🛡️ {MAX_PENDING_REQUESTS} requests wait for the host's recovery already: is its timer running?"
            )
            return ""
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
        with os.fdopen(descriptor, "w", encoding="utf-8") as target:
            json.dump(entry, target)
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, directory / f"{identifier}.json")
    except OSError as error:
        logger.error(f"🛡️ The {kind} request could not be written: {type(error).__name__}")
        with contextlib.suppress(OSError):
            temporary.unlink()
        return ""
    logger.warning(f"🛡️ Request to the host: {kind} ({reason})")
    return identifier


@router.get("/logs/health", dependencies=privileged(3, 3.0))
async def logs_health() -> Answer:
    """Logs that are large or old."""
    files, unread = await asyncio.wait_for(asyncio.to_thread(_log_files), 5)
    large = [file for file in files if file["size_mb"] * 1e6 > LARGE_LOG_BYTES]
    old = [file for file in files if file["age_days"] * 86400 > OLD_LOG_SECONDS]
    issues = [f"{path} cannot be read" for path in unread]
    issues += [f"{len(large)} log files over 50 MB"] * bool(large) + [f"{len(old)} log files older than 7 days"] * bool(
        old
    )
    advice = ["Rotate the large log files: the playbook recover does it, so does the module log_rotate"] * bool(large)
    advice += ["Remove or archive the old log files"] * bool(old)
    advice += ["Let the backend's user read the directories of LOG_DIRS"] * bool(unread)
    return Answer(
        200,
        {
            "timestamp": _now(),
            "healthy": not large and not unread,
            "issues": issues,
            "log_info": {
                "log_files": files,
                "total_size_mb": round(sum(file["size_mb"] for file in files), 2),
                "large_files": large,
                "old_files": old,
            },
            "recommendations": advice or ["Nothing to do"],
        },
    )


def _log_files(most: int = 200) -> t.Tuple[t.List[t.Dict[str, t.Any]], t.List[str]]:
    """Log files directly in the directories of LOG_DIRS (default: the working directory, its logs/, /var/log), and
    those of LOG_DIRS that cannot be read."""
    configured = env_paths("LOG_DIRS")
    directories = configured or [os.getcwd(), os.path.join(os.getcwd(), "logs"), "/var/log"]
    files: t.List[t.Dict[str, t.Any]] = []
    unread: t.List[str] = []
    for directory in directories:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not entry.name.endswith(".log") or not entry.is_file(follow_symlinks=False):
                        continue
                    info = entry.stat(follow_symlinks=False)
                    files.append(
                        {
                            "path": entry.path,
                            "size_mb": round(info.st_size / 1e6, 3),
                            "age_days": round((time.time() - info.st_mtime) / 86400, 2),
                            "modified": datetime.fromtimestamp(info.st_mtime, timezone.utc).isoformat(),
                        }
                    )
        except OSError:
            if configured:
                unread.append(directory)
    return sorted(files, key=lambda file: -file["size_mb"])[:most], unread


_debug: t.Tuple[float, t.Dict[str, t.Any]] = (-60.0, {})


@router.get("/admin/debug", dependencies=privileged(5, 2.0))
async def admin_debug() -> Answer:
    """Process, host, network, routes, CORS policy."""
    global _debug
    if time.monotonic() - _debug[0] > 5:
        _debug = (time.monotonic(), await asyncio.wait_for(asyncio.to_thread(_debug_facts), 10))
    return Answer(
        200,
        {
            "timestamp": _now(),
            **({"worker": workers.describe()} if workers is not None else {}),
            **_debug[1],
            # Asked here and not in the thread: the cache has a connection for each event loop.
            "monitoring_services": {
                "performance_monitor_running": performance_monitor.is_running,
                "memory_optimizer_running": memory_optimizer.is_running,
                "cache_service_connected": _cache_initialized(),
            },
            "routes": request_stats.by_route()[:50],
            "loop_lag_worst_ms": round(1000 * performance_monitor.loop_lag.worst(60), 1),
            "loop_blockers": [
                {
                    "frame": stall.frame,
                    "stalls": stall.count,
                    "blocked_ms": round(1000 * stall.seconds),
                    "longest_ms": round(1000 * stall.worst),
                    "last": datetime.fromtimestamp(stall.last, timezone.utc).isoformat(),
                }
                for stall in sorted(performance_monitor.loop_lag.stalls.values(), key=lambda stall: -stall.seconds)
            ][:20],
            "cors": _cors_facts(),
        },
    )


def _cors_facts() -> t.Dict[str, t.Any]:
    """The CORS policy, its counters, and the last refused origins with the reason; empty without our CORS file."""
    config = getattr(sys.modules.get("app.core.cors_config"), "cors_config", None)
    snapshot = getattr(config, "debug_snapshot", None)
    return snapshot() if callable(snapshot) else {}


_own_process: t.Any = None


def _debug_facts() -> t.Dict[str, t.Any]:
    global _own_process
    try:
        import psutil
    except ImportError:
        missing = {"error": "psutil is not installed"}
        system = {
            "platform": platform.platform(),
            "python_version": platform.python_version(),
            "cpu_count": os.cpu_count(),
        }
        return {
            "system": {**system, **missing},
            "process": {"pid": os.getpid(), "parent_pid": os.getppid(), **missing},
            "network": missing,
        }

    if _own_process is None or _own_process.pid != os.getpid():
        _own_process = psutil.Process()  # kept: it measures the CPU since it was asked last
    process = _own_process
    with process.oneshot():
        own = {
            "pid": process.pid,
            "parent_pid": process.ppid(),
            "name": process.name(),
            "status": process.status(),
            "create_time": process.create_time(),
            "cpu_percent": process.cpu_percent(interval=None),
            "memory_percent": process.memory_percent(),
            "num_threads": process.num_threads(),
            "num_fds": process.num_fds(),
        }
    try:
        connections = (
            process.net_connections(kind="inet")
            if hasattr(process, "net_connections")
            else process.connections(kind="inet")
        )
        network: t.Dict[str, t.Any] = {
            "connections": len(connections),
            "listening_ports": sorted(
                {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
            ),
        }
    except (psutil.Error, OSError) as error:
        network = {"error": type(error).__name__}
    return {
        "system": {
            "platform": platform.platform(),
            "python_version": platform.python_version(),
            "cpu_count": os.cpu_count(),
            "memory_total_gb": psutil.virtual_memory().total / 1024**3,
            "disk_total_gb": psutil.disk_usage("/").total / 1024**3,
            "boot_time": datetime.fromtimestamp(psutil.boot_time(), timezone.utc).isoformat(),
        },
        "process": own,
        "network": network,
    }


@outside.get(
    "/metrics", tags=["System Health"], dependencies=privileged(20, 0.5), responses=METRICS, response_class=Response
)
@router.get("/metrics", dependencies=privileged(20, 0.5), responses=METRICS, response_class=Response)
async def metrics() -> Answer:
    """For Prometheus."""
    exposition = helper("exposition")
    if exposition is None:
        return refuse(503, "The metrics renderer is not installed (app/wheels_ops)")
    reason = exposition.unavailable()
    if reason:
        return refuse(503, reason)
    exposition.update(performance_monitor, request_stats, board, memory_optimizer)
    return Answer(200, await asyncio.to_thread(exposition.text), content_type=exposition.content_type())


# -- the dashboard -----------------------------------------------------------------------------------------------------


@router.get("/dashboard", responses=PAGE, response_class=Response)
async def dashboard(request: Request, caller: t.Annotated[str, Depends(identify)]) -> Answer:
    """The page for people; asks for the ops token by a form."""
    page = helper("dashboard")
    if page is None:
        return refuse(503, "The dashboard is not installed (app/wheels_ops)")
    return t.cast(Answer, await page.show(request, caller, sys.modules[__name__]))


@router.post("/dashboard/login", status_code=303, responses=SIGNED, response_class=Response)
async def dashboard_login(request: Request) -> Answer:
    """Takes the ops token, gives a session that opens the page and nothing else."""
    page = helper("dashboard")
    if page is None:
        return refuse(503, "The dashboard is not installed (app/wheels_ops)")
    return t.cast(Answer, await page.login(request, sys.modules[__name__]))


@router.post("/dashboard/logout", status_code=303, responses=SIGNED, response_class=Response)
async def dashboard_logout(request: Request) -> Answer:
    """Ends the session in this browser."""
    page = helper("dashboard")
    if page is None:
        return refuse(503, "The dashboard is not installed (app/wheels_ops)")
    return t.cast(Answer, await page.logout(request, sys.modules[__name__]))


# -- outside of the application ----------------------------------------------------------------------------------------

outside.include_router(router, prefix="/api/v1")
_OUTSIDE = [route for route in outside.routes if isinstance(route, SystemRoute)]
_PATHS = frozenset(route.path for route in _OUTSIDE)
#: What monitors and load balancers ask every few seconds, for ever: without a token and arguments it needs no router,
#: which costs five times as much as these answers.
_PROBES: t.Dict[str, t.Callable[[], Answer]] = {"/readyz": readiness, f"{PREFIX}/health": public_health}
_LIVE = [
    (b"content-type", b"application/health+json"),
    (b"content-length", b"17"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]


class SystemHealthMiddleware:
    """The ASGI layer that answers what ``outside`` has a route for and passes everything else to the application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._documented: t.Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        application = scope.get("app")
        if application is not None and application is not self._documented:
            self._documented = application
            api.application = application
            _document(application)
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path == "/livez" and scope["method"] == "GET":  # the shortest way of all
            await send({"type": "http.response.start", "status": 200, "headers": _LIVE})
            await send({"type": "http.response.body", "body": b'{"status":"pass"}'})
            return
        if path in _PROBES and _is_anonymous_get(scope):
            await _PROBES[path]()(scope, receive, send)
            return
        if path.startswith(f"{PREFIX}/") and path.endswith("/"):
            path = path.rstrip("/")
        if _is_preflight(scope) or not _is_ours(path):
            await self.app(scope, receive, send)
        else:
            await outside({**scope, "path": path}, receive, send)


def _is_anonymous_get(scope: Scope) -> bool:
    return (
        scope["method"] == "GET"
        and not scope.get("query_string")
        and not any(name.lower() in (b"x-ops-token", b"authorization") for name, _ignored in scope["headers"])
    )


def _is_ours(path: str) -> bool:
    """/metrics stays the application's own where it has one, also one that it adds while it starts."""
    if path == "/metrics":
        routes = getattr(api.application, "routes", ())
        return helper("exposition") is not None and not any(getattr(route, "path", None) == path for route in routes)
    return path in _PATHS


def _document(application: t.Any) -> None:
    """Adds the routes to the application, which shows them in its OpenAPI document; they are answered before it."""
    if not isinstance(application, FastAPI):
        return
    present = {getattr(route, "path", None) for route in application.routes}
    # Not those at the root: the application may add a /metrics of its own while it starts.
    application.router.routes += [
        route for route in _OUTSIDE if route.path.startswith(PREFIX) and route.path not in present
    ]
    application.openapi_schema = None


if helper("exposition") is not None:
    helper("exposition").observe(performance_monitor, request_stats, board, memory_optimizer)


async def startup() -> None:
    """Starts monitor and optimizer where nobody has, then the checks; waits for their first round, bounded."""
    board.stopping = False
    await performance_monitor.start()
    await memory_optimizer.start()
    memory_optimizer.request_restart = _restart_request
    cache: t.Any = getattr(sys.modules.get("app.services.cache_service"), "cache_service", None)
    if hasattr(cache, "trim_local"):
        memory_optimizer.register_shrinker("local cache", cache.trim_local)
    memory_budget = helper("memory_budget")
    if memory_budget is not None:
        for member in memory_budget.budget.members:
            shrink = functools.partial(member.shrink, memory_budget.budget.limit)
            memory_optimizer.register_shrinker(member.name, shrink, cost=1.0 + member.order)
    if workers is not None:
        await workers.open_group(_ACTIONS)
    checks = helper("health_checks")
    if checks is not None:
        await checks.start(sys.modules[__name__])


def _restart_request(reason: str, details: t.Dict[str, t.Any]) -> None:
    asyncio.get_running_loop().run_in_executor(
        None, lambda: write_request("restart", reason, requested_by="memory optimizer", details=details)
    )


async def shutdown() -> None:
    board.stopping = True
    if workers is not None:
        workers.close_group()
    checks = helper("health_checks")
    if checks is not None:
        await checks.stop()
    await memory_optimizer.stop()
    await performance_monitor.stop()
