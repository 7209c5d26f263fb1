# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a service is, how a caller describes it, and what every service manager can do."""

from __future__ import annotations

import re
import typing as t
import urllib.parse
from dataclasses import asdict, dataclass, field, replace

from ..core.results import OpsError
from .broker import require_database

GATES: t.Tuple[str, ...] = ("none", "state", "tcp", "http", "redis", "celery", "beat")
#: Unit and program names: what systemd allows, plus supervisord's ``group:program``. Never an option (no leading dash).
_NAME = re.compile(r"[A-Za-z0-9_@:.\\][A-Za-z0-9_@:.\\-]*")


_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_KEYS: t.FrozenSet[str] = frozenset({"name", "unit", "depends_on", "watch_files", "gate"})


@dataclass(frozen=True)
class ServiceState:
    """What the service manager says of one service in one moment.

    ``instance`` is a word that changes with every start (systemd's InvocationID, supervisord's ``pid@start``), empty where nothing
    runs; ``uptime_s`` is None where nothing runs; ``restarts`` counts automatic restarts where the manager does so.
    """

    unit: str
    exists: bool = False
    running: bool = False
    settled: bool = True  # no start or stop is under way
    state: str = ""
    pid: int = 0
    instance: str = ""
    uptime_s: t.Optional[float] = None
    restarts: t.Optional[int] = None
    result: str = ""
    exit_status: t.Optional[int] = None
    details: t.Dict[str, t.Any] = field(default_factory=dict)

    @property
    def up(self) -> bool:
        """Whether something of it runs or is about to: starting it would leave that in place, only a restart replaces it."""
        return self.running or bool(self.instance) or not self.settled or self.state == "BACKOFF"

    @property
    def failed(self) -> bool:
        """Whether it ended in a way that its manager calls a failure, or does not try to start it any more."""
        return (
            not self.running
            and self.settled
            and (self.state.startswith("failed") or self.state in ("FATAL", "BACKOFF", "UNKNOWN"))
        )

    def as_dict(self) -> t.Dict[str, t.Any]:
        return asdict(self)


class Manager(t.Protocol):
    """A service manager. Every call has its own deadline in seconds and raises ``OpsError`` with the last state seen."""

    name: str

    def states(self, units: t.Sequence[str]) -> t.Dict[str, ServiceState]:
        """All of them in one round trip."""

    def start(self, unit: str, timeout: float) -> ServiceState:
        """Starts a stopped service; returns as soon as its manager calls it running."""

    def stop(self, unit: str, timeout: float) -> ServiceState:
        """Stops a running service; returns when no process of it is left."""

    def restart(self, unit: str, timeout: float) -> ServiceState:
        """Stops and starts; returns as soon as its manager calls the new instance running."""

    def pids(self, state: ServiceState) -> t.Set[int]:
        """The processes that belong to a running service."""

    def log_tail(self, unit: str, lines: int) -> t.List[str]:
        """The last lines that it wrote, newest last; empty where they cannot be read."""

    def automatic_restarts(self, unit: str, seconds: float) -> int:
        """How often the manager itself had to start it again in the last seconds."""

    def start_delay(self, unit: str) -> float:
        """Seconds until the manager's own start limit allows one more start; 0 where it does now."""

    def require_right(self) -> None:
        """Raises ``OpsError`` where this user is known to have no right to start and stop services; sometimes only trying shows it."""


@dataclass(frozen=True)
class Gate:
    """When a service counts as ready. Times are seconds; None takes the value of the whole run."""

    type: str = "state"
    url: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    status: t.Tuple[int, ...] = (200,)
    body_regex: str = ""
    body_json: t.Mapping[str, t.Any] = field(default_factory=dict)
    headers: t.Mapping[str, str] = field(default_factory=dict)
    validate_certs: bool = True
    timeout: float = 5.0
    verify_owner: bool = True
    node: str = ""
    app: str = ""
    schedule_file: str = ""
    min_healthy_time: t.Optional[float] = None
    healthy_deadline: t.Optional[float] = None


@dataclass(frozen=True)
class Service:
    """One service of the caller's graph: ``depends_on`` names services of the same graph."""

    name: str
    unit: str
    gate: Gate = field(default_factory=Gate)
    depends_on: t.Tuple[str, ...] = ()
    watch_files: t.Tuple[str, ...] = ()


def parse_services(raw: t.Sequence[t.Mapping[str, t.Any]]) -> t.List[Service]:
    """The caller's dictionaries as services, in their order.

    Raises ``OpsError`` for a name given twice, a dependency that is not in the list or runs in a circle, and for a gate that lacks what
    its type needs; nothing was touched by then.
    """
    services = []
    for entry in raw:
        strange = sorted(map(str, set(entry) - _KEYS))
        if strange:
            raise OpsError(
                f"An entry in services has unknown keys: {', '.join(strange)}.",
                hint=f"Known are: {', '.join(sorted(_KEYS))}.",
            )
        name = str(entry.get("name") or "")
        unit = str(entry.get("unit") or name)
        for word in (name, unit):
            if not _NAME.fullmatch(word):
                raise OpsError(
                    f"{word!r} is not a name of a service.", hint="Use letters, digits and @ _ . : - (not first)."
                )
        services.append(
            Service(
                name=name,
                unit=unit,
                gate=parse_gate(name, entry.get("gate") or {}),
                depends_on=tuple(dict.fromkeys(entry.get("depends_on") or ())),
                watch_files=tuple(entry.get("watch_files") or ()),
            )
        )
    if not services:
        raise OpsError("No service is named.", hint="Give at least one entry in services.")
    for service in services:
        for path in (*service.watch_files, service.gate.schedule_file):
            if path and not path.startswith("/"):
                raise OpsError(
                    f"The file {path!r} of {service.name} is not absolute.",
                    hint="Give its full path in watch_files or schedule_file.",
                )
    names = [service.name for service in services]
    for name in names:
        if names.count(name) > 1:
            raise OpsError(
                f"The service {name} is listed twice.",
                hint="Name each service once; what depends on it goes into depends_on.",
            )
    for service in services:
        for dependency in service.depends_on:
            if dependency not in names:
                raise OpsError(
                    f"{service.name} depends on {dependency}, which is not listed.",
                    hint=f"Listed are: {', '.join(names)}.",
                )
    return [_with_broker(service, services) for service in services]


def _with_broker(service: Service, services: t.Sequence[Service]) -> Service:
    """A beat whose gate names no broker has that of the worker or the Redis below it."""
    if service.gate.type != "beat" or service.gate.url:
        return service
    by_name = {other.name: other for other in services}
    waiting, seen = list(service.depends_on), {service.name}
    while waiting:
        other = by_name[waiting.pop(0)]
        if other.gate.type in ("redis", "celery"):
            return replace(service, gate=replace(service.gate, url=other.gate.url))
        if other.name not in seen:
            seen.add(other.name)
            waiting.extend(other.depends_on)
    return service


def parse_gate(service: str, raw: t.Mapping[str, t.Any]) -> Gate:
    """A gate with its defaults; see ``parse_services`` for the errors."""
    given = {key: value for key, value in raw.items() if value is not None}
    unknown = sorted(set(given) - set(Gate.__dataclass_fields__))
    if unknown:
        raise OpsError(
            f"The gate of {service} has unknown keys: {', '.join(unknown)}.",
            hint=f"Known are: {', '.join(Gate.__dataclass_fields__)}.",
        )
    if "status" in given:
        codes = given["status"] if isinstance(given["status"], (list, tuple)) else [given["status"]]
        given["status"] = tuple(_number(service, "status", code, int) for code in codes)
    # A dictionary of an inventory comes as it was written: a templated port is a string.
    for key, kind in (("port", int), ("timeout", float), ("min_healthy_time", float), ("healthy_deadline", float)):
        if key in given:
            given[key] = _number(service, key, given[key], kind)
    for key in ("headers", "body_json"):
        if not isinstance(given.get(key, {}), dict):
            raise OpsError(
                f"{key} in the gate of {service} is no dictionary.", hint=f"For example {key}: {{NAME: VALUE}}."
            )
    gate = Gate(**given)
    if gate.type not in GATES:
        raise OpsError(
            f"The gate of {service} has the unknown type {gate.type!r}.", hint=f"Choose one of {', '.join(GATES)}."
        )
    if gate.type in ("http", "redis", "celery") and not gate.url:
        raise OpsError(
            f"The {gate.type} gate of {service} needs a url.",
            hint="For example http://127.0.0.1:8000/readyz or redis://127.0.0.1:6379/0.",
        )
    schemes = {
        "http": ("http", "https"),
        "redis": ("redis", "rediss", "unix"),
        "celery": ("redis", "rediss", "unix"),
    }.get(gate.type)
    if schemes and urllib.parse.urlsplit(gate.url).scheme not in schemes:
        # The URL itself may hold a password: it is not repeated.
        raise OpsError(
            f"The url in the {gate.type} gate of {service} has the wrong scheme.",
            hint=f"It begins with one of {', '.join(schemes)}.",
        )
    if gate.type == "tcp" and not 0 < gate.port < 65536:
        raise OpsError(f"The tcp gate of {service} needs a port from 1 to 65535.")
    if gate.type == "tcp" and not gate.host:
        raise OpsError(f"The tcp gate of {service} needs a host.", hint="For example 127.0.0.1.")
    if gate.url:
        _require_address(service, gate)
    for name, header in gate.headers.items():
        if not _HEADER.fullmatch(str(name)) or re.search(r"[\r\n\0]", str(header)):
            raise OpsError(
                f"The gate of {service} has a header that cannot be sent: {str(name)!r}.",
                hint="A name of letters, digits and -, a value of one line.",
            )
    if not all(100 <= code <= 599 for code in gate.status) or not gate.status:
        raise OpsError(
            f"The gate of {service} expects the impossible status {list(gate.status)}.",
            hint="HTTP codes go from 100 to 599.",
        )
    try:
        re.compile(gate.body_regex)
        re.compile(gate.node)
    except re.error as error:
        raise OpsError(f"The gate of {service} has a regular expression that cannot be read: {error}.") from None
    for key in ("timeout", "min_healthy_time", "healthy_deadline"):
        value = getattr(gate, key)
        if value is not None and not 0 <= value <= 3600:
            raise OpsError(f"{key} in the gate of {service} is {value:g} s.", hint="It goes from 0 to 3600.")
    for key in ("timeout", "healthy_deadline"):
        if getattr(gate, key) == 0:
            raise OpsError(
                f"{key} in the gate of {service} is 0 s.",
                hint="It goes from above 0 to 3600: nothing answers in no time.",
            )
    if (
        gate.healthy_deadline is not None
        and gate.min_healthy_time is not None
        and gate.healthy_deadline < gate.min_healthy_time
    ):
        raise OpsError(
            f"healthy_deadline in the gate of {service} is shorter than min_healthy_time.", hint="It could never pass."
        )
    return gate


def _number(service: str, key: str, value: t.Any, kind: t.Callable[[t.Any], t.Any]) -> t.Any:
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value is no number")
        return kind(value)
    except (TypeError, ValueError):
        raise OpsError(
            f"{key} in the gate of {service} is {value!r}, which is no number.", hint="Give a number."
        ) from None


def _require_address(service: str, gate: Gate) -> None:
    """Raises ``OpsError`` where nothing can be asked at the gate's url. The url itself may hold a password: it is not repeated."""
    try:
        parts = urllib.parse.urlsplit(gate.url)
        usable = parts.scheme == "unix" or (bool(parts.hostname) and parts.port != 0)
    except ValueError:
        usable = False
    if not usable:
        raise OpsError(
            f"The url in the gate of {service} has no host, or no port from 1 to 65535.",
            hint="For example http://127.0.0.1:8000/readyz.",
        )
    if parts.scheme in ("redis", "rediss"):
        require_database(gate.url)
