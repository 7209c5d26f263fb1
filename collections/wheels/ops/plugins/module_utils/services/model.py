# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a service is, how a caller describes it, and what every service manager can do."""

from __future__ import annotations

import re
import typing as t
from dataclasses import asdict, dataclass, field, replace

from ..core import options
from ..core.results import OpsError
from .broker import require_database, require_redis

GATES: t.Tuple[str, ...] = ("none", "state", "tcp", "http", "redis", "celery", "beat")
#: Unit and program names: what systemd allows, plus supervisord's ``group:program`` and ``group:*``. Never an option (no
#: leading dash).
_NAME = re.compile(r"[A-Za-z0-9_@:.\\][A-Za-z0-9_@:.\\-]*(?::\*)?")


_KEYS: t.FrozenSet[str] = frozenset({"name", "unit", "depends_on", "watch_files", "gate"})


@dataclass(frozen=True)
class ServiceState:
    """What the service manager says of one service in one moment.

    ``instance`` is a word that changes with every start (systemd's InvocationID, supervisord's ``pid@start``), empty
    where nothing runs; ``uptime_s`` is None where nothing runs; ``restarts`` counts automatic restarts where the
    manager does so.
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
    at_rest: str = ""  # why nothing of it has to run: it ended as it should, or waits for its socket or timer
    outdated: bool = False  # its definition was changed on disk since its manager read it
    details: t.Dict[str, t.Any] = field(default_factory=dict)

    @property
    def up(self) -> bool:
        """Whether something of it runs or is about to: starting it would leave that in place, only a restart replaces
        it.
        """
        return self.running or bool(self.instance and not self.at_rest) or not self.settled or self.state == "BACKOFF"

    @property
    def partly_up(self) -> bool:
        """Whether it has several parts, of which only some run: starting it starts the others."""
        return not self.running and bool(self.details.get("running_parts"))

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


@dataclass(frozen=True)
class Configuration:
    """How a service is set up. ``files``: where the variables of its environment may lie, those that count last at the
    end. ``user`` is empty and ``memory_limit`` (bytes) 0 where its manager sets none.
    """

    user: str = ""
    files: t.Tuple[str, ...] = ()
    memory_limit: int = 0


class Manager(t.Protocol):
    """A service manager.

    Every call has its own deadline in seconds and raises ``OpsError`` with the last state seen.
    """

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

    def definition(self, state: ServiceState) -> t.Tuple[t.List[str], str]:
        """The command that it is started with, and in which directory; empty where that is not known."""

    def units(self) -> t.List[str]:
        """Every service that it knows, running or not."""

    def configuration(self, state: ServiceState) -> Configuration:
        """How a service is set up, as far as its manager says."""

    def reload(self) -> None:
        """Reads every definition anew; nothing is restarted by it."""

    def automatic_restarts(self, unit: str, seconds: float) -> int:
        """How often the manager itself had to start it again in the last seconds."""

    def start_delay(self, unit: str) -> float:
        """Seconds until the manager's own start limit allows one more start; 0 where it does now."""

    def require_right(self) -> None:
        """Raises ``OpsError`` where this user is known to have no right to start and stop services; sometimes only
        trying shows it.
        """


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

    Raises ``OpsError`` for a name given twice, a dependency that is not in the list or runs in a circle, and for a gate
    that lacks what its type needs; nothing was touched by then.
    """
    services = []
    for entry in raw:
        options.known_keys("An entry in services", entry, _KEYS)
        name = str(entry.get("name") or "")
        unit = str(entry.get("unit") or name)
        for word in (name, unit):
            options.matching("The name of a service", word, _NAME, "letters, digits and @ _ . : - (not first)")
        services.append(
            Service(
                name=name,
                unit=unit,
                gate=parse_gate(name, entry.get("gate") or {}),
                depends_on=tuple(dict.fromkeys(entry.get("depends_on") or ())),
                watch_files=tuple(entry.get("watch_files") or ()),
            )
        )
    options.not_empty("services", services, hint="Give at least one entry in services.")
    for service in services:
        for path in service.watch_files:
            options.absolute_path(f"watch_files of {service.name}", path)
        if service.gate.schedule_file:
            options.absolute_path(f"schedule_file of {service.name}", service.gate.schedule_file)
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
    waiting, visited = list(service.depends_on), {service.name}
    while waiting:
        other = by_name[waiting.pop(0)]
        if other.gate.type in ("redis", "celery"):
            return replace(service, gate=replace(service.gate, url=other.gate.url))
        if other.name not in visited:
            visited.add(other.name)
            waiting.extend(other.depends_on)
    return service


def parse_gate(service: str, raw: t.Mapping[str, t.Any]) -> Gate:
    """A gate with its defaults; see ``parse_services`` for the errors."""
    values = {key: value for key, value in raw.items() if value is not None}
    options.known_keys(f"The gate of {service}", values, Gate.__dataclass_fields__)
    if "status" in values:
        codes = values["status"] if isinstance(values["status"], (list, tuple)) else [values["status"]]
        values["status"] = tuple(options.number(f"status in the gate of {service}", code, int) for code in codes)
    # A dictionary of an inventory comes as it was written: a templated port is a string.
    for key, kind in (("port", int), ("timeout", float), ("min_healthy_time", float), ("healthy_deadline", float)):
        if key in values:
            values[key] = options.number(f"{key} in the gate of {service}", values[key], kind)
    for key in ("headers", "body_json"):
        if not isinstance(values.get(key, {}), dict):
            raise OpsError(
                f"{key} in the gate of {service} must be a dictionary.", hint=f"For example {key}: {{NAME: VALUE}}."
            )
    gate = Gate(**values)
    options.choice(f"type in the gate of {service}", gate.type, GATES)
    if gate.type in ("http", "redis", "celery") and not gate.url:
        raise OpsError(
            f"The {gate.type} gate of {service} needs a url.",
            hint="For example http://127.0.0.1:8000/readyz or redis://127.0.0.1:6379/0.",
        )
    if gate.type == "tcp":
        options.in_range(f"port in the gate of {service}", gate.port, 1, 65535)
    if gate.type == "tcp" and not gate.host:
        raise OpsError(f"The tcp gate of {service} needs a host.", hint="For example 127.0.0.1.")
    if gate.url:
        if gate.type != "http":
            require_redis(gate.url)
        schemes = {"http": options.HTTP, "redis": options.REDIS, "celery": options.REDIS, "beat": options.REDIS}
        options.url(f"url in the gate of {service}", gate.url, schemes.get(gate.type, options.ADDRESS))
        require_database(gate.url)
    options.headers(f"headers in the gate of {service}", gate.headers)
    options.not_empty(f"status in the gate of {service}", gate.status, hint="For example [200].")
    for code in gate.status:
        options.in_range(f"status in the gate of {service}", code, 100, 599)
    options.regular_expression(f"body_regex in the gate of {service}", gate.body_regex)
    options.regular_expression(f"node in the gate of {service}", gate.node)
    for key in ("timeout", "min_healthy_time", "healthy_deadline"):
        value = getattr(gate, key)
        if value is not None:
            # Nothing answers in no time; a gate need not hold for any.
            above = key != "min_healthy_time"
            options.in_range(f"{key} in the gate of {service}", value, 0, 3600, unit="seconds", above=above)
    if (
        gate.healthy_deadline is not None
        and gate.min_healthy_time is not None
        and gate.healthy_deadline < gate.min_healthy_time
    ):
        raise OpsError(
            f"healthy_deadline in the gate of {service} is shorter than min_healthy_time.", hint="It could never pass."
        )
    return gate
