# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What runs on a host, as the variables of an inventory, and what could not be found.

Services are recognised by what they execute. Addresses with passwords are referred to where they lie
(``host/environment_files.py``) and are in no result. Nothing is changed and nothing of the backend is executed; its
health path is asked for by HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import re
import ssl
import typing as t
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..core import options
from ..core.results import OpsError
from ..host import environment_files, files, preflight, processes
from . import manager as managers
from . import recognition, supervisor
from .model import Configuration, Manager, ServiceState
from .recognition import API, BEAT, FRONT_END, REDIS, WORKER
from .websocket_routes import websocket_paths

#: In this order: the first that answers 200 is the readiness check of the backend.
HEALTH_PATHS: t.Tuple[str, ...] = (
    "/health",
    "/healthz",
    "/api/health",
    "/api/v1/health",
    "/health/live",
    "/ready",
    "/readyz",
    "/livez",
    "/status",
    "/ping",
)
_DATABASE = ("DATABASE_URL", "SUPABASE_DB_URL", "POSTGRES_URL", "DATABASE_DSN", "POSTGRES_DSN", "DB_URL")
_REDIS = ("REDIS_URL", "CELERY_BROKER_URL", "BROKER_URL", "CACHE_URL")
_BROKER = ("CELERY_BROKER_URL", "BROKER_URL", "REDIS_URL", "CACHE_URL")
_RELEASES = ("RELEASE", "APP_VERSION", "GIT_COMMIT", "GIT_SHA", "RENDER_GIT_COMMIT", "SENTRY_RELEASE")
_LOGS, _TEMPORARY = ("LOG_DIR", "LOG_DIRECTORY", "LOGS_DIR"), ("TMPDIR", "TEMP_DIR", "TMP_DIR")
#: Places that belong to the whole system and not to the application.
_SYSTEM = frozenset({"/", "/tmp", "/var/tmp", "/var/log", "/dev", "/dev/shm", "/run", "/root", "/home"})
#: Seconds for the backend to answer at one path.
_PROBE = 3.0
#: Bytes of a start script; anything larger is a program.
_SCRIPT = 65_536
_ORDER = (REDIS, API, WORKER, BEAT)
#: All that is shown of what git keeps; whoever owns the directory may have put anything there.
_COMMIT, _BRANCH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?"), re.compile(r"ref: (refs/\S+)")


@dataclass
class Unit:
    """A service of a manager and what it was recognised as."""

    name: str
    kind: str
    state: ServiceState
    command: t.Sequence[str] = ()
    directory: str = ""
    pids: t.Sequence[int] = ()
    configuration: Configuration = field(default_factory=Configuration)

    @property
    def main(self) -> int:
        """The process that is looked at: the first that executes what the service was recognised by, or 0."""
        matching = [pid for pid in self.pids if recognition.kind_of(processes.command_line(pid)) == self.kind]
        return min(matching or self.pids, default=0)

    def commands(self) -> t.Iterator[t.Sequence[str]]:
        """What it executes: as its manager was told, as a script of it says, then as its processes do."""
        yield self.command
        yield from script_commands(self.command)
        for pid in self.pids:
            yield processes.command_line(pid)

    def option(self, *names: str) -> str:
        """The value of an option of its command; empty where it is not given."""
        return next(filter(None, (recognition.option_of(words, *names) for words in self.commands())), "")


@dataclass
class Discovery:
    """``variables`` for the inventory, in the order in which they are written; ``evidence`` says for a variable where
    it comes from; ``missing`` has ``what``, ``variable`` and ``advice`` of what was not found; ``notes`` is what a
    person should know besides.
    """

    variables: t.Dict[str, t.Any] = field(default_factory=dict)
    evidence: t.Dict[str, str] = field(default_factory=dict)
    missing: t.List[t.Dict[str, str]] = field(default_factory=list)
    notes: t.List[str] = field(default_factory=list)
    services: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    front_ends: t.List[str] = field(default_factory=list)
    release: str = ""
    websocket_paths: t.List[str] = field(default_factory=list)

    def put(self, name: str, value: t.Any, evidence: str) -> None:
        self.variables[name], self.evidence[name] = value, evidence

    def as_dict(self) -> t.Dict[str, t.Any]:
        """As a module returns it. Variables are a list: no name of one hides its value, which is a reference."""
        return {
            "variables": [
                {"name": name, "value": value, "evidence": self.evidence[name]}
                for name, value in self.variables.items()
            ],
            "missing": self.missing,
            "notes": self.notes,
            "services": self.services,
            "front_ends": self.front_ends,
            "release": self.release,
            "websocket_paths": self.websocket_paths,
        }

    def lacks(self, what: str, variable: str, advice: str) -> None:
        self.missing.append({"what": what, "variable": variable, "advice": advice})


def discover(
    service_manager: str = "auto", supervisor_socket: str = "", *, username: str = "", password: str = ""
) -> Discovery:
    """Looks at this host.

    Raises ``OpsError`` where no service manager answers. What only root may see is missing for another user, and
    ``notes`` says so.
    """
    result = Discovery()
    if os.geteuid():
        result.notes.append(
            "This did not run as root: what belongs to other users may be missing. Run it again as root, or as a user"
            " with sudo (ansible_become: true)."
        )
    manager, units = _units(service_manager, supervisor_socket, username, password, result)
    chosen = [unit for kind in _ORDER for unit in units if unit.kind == kind]
    result.services = [_row(unit) for unit in chosen]
    backends = [unit for unit in chosen if unit.kind == API]
    if backends:
        _backend(backends[0], result)
        if len(backends) > 1:
            names = ", ".join(unit.name for unit in backends[1:])
            result.notes.append(
                f"Several services serve HTTP: {backends[0].name} is taken for the backend, not {names}."
            )
    else:
        result.lacks(
            "a service that executes uvicorn, gunicorn, hypercorn, daphne or granian",
            "wheels_ops_services",
            "List the services of the backend, and set wheels_ops_backend_dir and wheels_ops_base_url.",
        )
    _addresses(chosen, result)
    _manager(manager, result)
    _services(chosen, result)
    _places(chosen, result)
    result.front_ends = _front_ends(units)
    return result


def _row(unit: Unit) -> t.Dict[str, t.Any]:
    return {
        "name": unit.name,
        "kind": unit.kind,
        "state": unit.state.state,
        "running": unit.state.running,
        "user": _user(unit),
        "ports": sorted({listener.port for listener in _listeners(unit)}),
        "memory_limit_mb": round(unit.configuration.memory_limit / (1 << 20), 1),
    }


# The service manager and its units


def _units(
    kind: str, socket: str, username: str, password: str, result: Discovery
) -> t.Tuple[t.Optional[Manager], t.List[Unit]]:
    """The manager that runs the backend, with its units that were recognised, and the front ends of any."""
    every: t.List[t.Tuple[Manager, t.List[Unit]]] = []
    reasons: t.List[str] = []
    for name, place in _candidates(kind, socket):
        try:
            manager = managers.open_manager(name, place, username=username, password=password)
            every.append((manager, _recognised(manager)))
        except OpsError as error:
            reasons.append(str(error))
    if not every:
        raise OpsError(
            "No service manager answers on this host.",
            hint=" ".join(reasons) or "Neither systemd nor supervisord runs here. Set wheels_ops_service_manager.",
        )
    result.notes += reasons
    with_backend = [entry for entry in every if any(unit.kind == API for unit in entry[1])]
    if len(with_backend) > 1:
        places = [
            f"{', '.join(unit.name for unit in units if unit.kind == API)} of {_called(manager)}"
            for manager, units in with_backend
        ]
        raise OpsError(
            f"Several service managers run a backend: {'; '.join(places)}.",
            hint="Name the right one: -e wheels_ops_service_manager=systemd, or -e wheels_ops_supervisor_socket=PATH.",
        )
    manager, units = (with_backend or every)[0]
    for other, strangers in every:
        if other is manager:
            continue
        names = [unit.name for unit in strangers if unit.kind in _ORDER]
        if names:
            result.notes.append(
                f"{', '.join(names)} of {_called(other)} are left out: the backend runs under {_called(manager)}, and a"
                " run restarts services of one manager."
            )
    return manager, units + [
        unit for other, strangers in every if other is not manager for unit in strangers if unit.kind == FRONT_END
    ]


def _called(manager: Manager) -> str:
    place = getattr(manager, "path", "")
    return f"supervisord ({place})" if place else manager.name


def _candidates(kind: str, socket: str) -> t.List[t.Tuple[str, str]]:
    if kind != "auto" or socket:
        return [("supervisor" if socket else kind, socket)]
    sockets = supervisor_sockets()
    return [*([("systemd", "")] if managers.available() else []), *(("supervisor", each) for each in sockets)]


def supervisor_sockets() -> t.List[str]:
    """The sockets of every supervisord that runs here: those of their configurations, or where systems keep it."""
    sockets = set()
    for pid in processes.pids():
        words = processes.command_line(pid)
        if any(os.path.basename(word) == "supervisord" for word in words[:2]):
            path = recognition.option_of(words, "-c", "--configuration")
            sockets.add(supervisor.socket_of(path) if os.path.isabs(path) else supervisor.find_socket())
    return sorted(sockets - {""})


def _recognised(manager: Manager) -> t.List[Unit]:
    names = manager.units()
    states = manager.states(names)
    units = []
    for name in names:
        state = states[name]
        command, directory = manager.definition(state)
        pids = sorted(manager.pids(state)) if state.running else []
        lines = [*script_commands(command), *(processes.command_line(pid) for pid in pids)]
        kind = next(filter(None, (recognition.kind_of(words) for words in [command, *lines])), "")
        if kind:
            configuration = manager.configuration(state) if kind in _ORDER else Configuration()
            units.append(Unit(name, kind, state, command, directory, pids, configuration))
    return [unit for unit in units if not unit.state.details.get("parts")]


def script_commands(command: t.Sequence[str]) -> t.List[t.List[str]]:
    """The lines of a shell script that a command starts, if they execute a service: what a stopped one will be."""
    for word in command[:3]:
        try:
            if not os.path.isabs(word) or not os.path.isfile(word) or os.path.getsize(word) > _SCRIPT:
                continue
            # What lies in a directory of another user may be a named pipe by now, for which one would wait.
            content = files.read_regular(Path(os.path.realpath(word)))
        except (OSError, OpsError):
            continue
        text = content[0].decode("utf-8", errors="replace") if content else ""
        if re.match(r"#!\s*\S*(?:/|env )(?:ba|da|z)?sh\b", text):
            commands = [line.split() for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
            return [words for words in commands if recognition.kind_of(words)]
    return []


# The backend itself


def _backend(unit: Unit, result: Discovery) -> None:
    _directory(unit, result)
    pid = unit.main
    if pid:
        with contextlib.suppress(OpsError):
            interpreter = processes.interpreter_of(pid)
            if interpreter:
                result.put("wheels_ops_backend_python", interpreter, f"the interpreter of {unit.name}")
    user = _user(unit)
    if user:
        result.put("wheels_ops_backend_user", user, f"the user of {unit.name}")
    else:
        result.lacks("the user of the backend", "wheels_ops_backend_user", f"Start {unit.name}, or name its user.")
    _base_url(unit, result)
    application = next(filter(None, (recognition.application_of(words) for words in unit.commands())), "")
    if application and application != "app.main:app":
        result.put("services_application", application, f"what {unit.name} serves")


def _directory(unit: Unit, result: Discovery) -> None:
    """Where the package ``app`` is: the application is found from the working directory as Python finds it."""
    application = next(filter(None, (recognition.application_of(words) for words in unit.commands())), "app.main:app")
    parts = application.partition(":")[0].split(".")
    package = parts[: parts.index("app")] if "app" in parts else []
    where = _working_directory(unit)
    starts = [unit.option("--app-dir", "--chdir"), where, *_environment(unit).get("PYTHONPATH", "").split(":")]
    candidates = [os.path.join(where or "/", start, *package) for start in starts if start]
    directory = next((each for each in candidates if os.path.isfile(os.path.join(each, "app/main.py"))), "")
    if not directory:
        looked = ", ".join(dict.fromkeys(candidates)) or "no directory"
        result.lacks(
            f"app/main.py of the backend (looked into {looked})",
            "wheels_ops_backend_dir",
            "Name the directory that holds the backend's app.",
        )
        return
    result.put("wheels_ops_backend_dir", os.path.normpath(directory), f"the working directory of {unit.name}")
    result.release = _release(directory, unit)
    result.websocket_paths = websocket_paths(directory)
    paths = sorted(result.websocket_paths, key=lambda path: ("pam" not in path, "chat" not in path, -len(path)))
    if paths:
        result.put("monitoring_websocket_path", paths[0], f"the routes below {directory}/app")
    else:
        result.lacks(
            "a WebSocket route below app", "monitoring_websocket_path", "Name the path, or leave the check out."
        )


def _working_directory(unit: Unit) -> str:
    """As its manager names it where that is where it is: the process itself knows no links, such as ``current``."""
    where = processes.directory_of(unit.main) if unit.main else ""
    if unit.directory and (not where or os.path.realpath(unit.directory) == where):
        return unit.directory
    return where


def _release(directory: str, unit: Unit) -> str:
    """A commit, or what the backend is told that it is; empty where nothing says so. Reads files alone."""
    for place in (directory, os.path.dirname(directory)):
        head = _line(f"{place}/.git/HEAD")
        if _COMMIT.fullmatch(head):
            return head
        branch = _BRANCH.fullmatch(head)
        commit = _line(f"{place}/.git/{branch[1]}") if branch and ".." not in head else ""
        if branch and _COMMIT.fullmatch(commit):
            return f"{commit} ({branch[1].rpartition('/')[2]})"
    environment = _environment(unit)
    named = next((environment[name] for name in _RELEASES if environment.get(name)), "")
    match = re.search(r"/releases/([^/]+)", os.path.realpath(directory))
    return named or (match[1] if match else "")


def _line(path: str) -> str:
    """The text of a small file below a directory that may belong to another user: no link of theirs is followed."""
    with contextlib.suppress(OpsError):
        content = files.read_regular(Path(path))
        if content:
            return content[0].decode("ascii", errors="replace").strip()
    return ""


def _base_url(unit: Unit, result: Discovery) -> None:
    listeners = _listeners(unit)
    bound = unit.option("-b", "--bind")
    told = unit.option("--port", "-p") or bound.rpartition(":")[2]
    port = int(told) if told.isdigit() else 0
    exact = [listener for listener in listeners if listener.port == port] or listeners
    if exact:
        listener = min(exact, key=lambda each: (each.address not in ("0.0.0.0", "::", "127.0.0.1"), each.port))
        address, port = listener.address, listener.port
    else:
        address = unit.option("--host") or bound.rpartition(":")[0]
    if not port:
        socket = f" It listens on {bound}." if bound.startswith("unix:") else ""
        result.lacks(
            f"the port of {unit.name}.{socket}",
            "wheels_ops_base_url",
            "Set the URL at which the host itself reaches the backend, that of its proxy for example.",
        )
        return
    host = "127.0.0.1" if address in ("", "0.0.0.0", "::", "localhost") else address
    scheme = "https" if unit.option("--ssl-certfile", "--certfile") else "http"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    result.put("wheels_ops_base_url", url, f"where {unit.name} listens" if exact else f"the command of {unit.name}")
    path = health_path(url) if exact else ""
    if path:
        result.put("monitoring_http_paths", [path], "the first health path that answers 200")
    elif exact:
        result.lacks(
            f"a health path: none of {', '.join(HEALTH_PATHS)} answers 200",
            "monitoring_http_paths",
            "Name a path that answers 200 where the backend works, also in the gate of wheels_ops_services.",
        )
    else:
        reason = "its sockets are hidden from this user" if unit.state.running else "it does not run"
        result.notes.append(f"The health path of {unit.name} is taken to be /health: {reason}.")


def health_path(url: str) -> str:
    """The first of ``HEALTH_PATHS`` at which a backend answers 200; empty for none."""
    parts = urlsplit(url)
    for path in HEALTH_PATHS:
        try:
            connection: http.client.HTTPConnection = (
                http.client.HTTPSConnection(
                    parts.hostname or "",
                    parts.port,
                    timeout=_PROBE,
                    context=_unverified(),
                )
                if parts.scheme == "https"
                else http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PROBE)
            )
            with contextlib.closing(connection):
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return path
        except (OSError, http.client.HTTPException):
            continue
    return ""


def _unverified() -> ssl.SSLContext:
    """Any certificate will do: who answers on this host is known by its process."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _listeners(unit: Unit) -> t.List[processes.Listener]:
    try:
        return processes.listening(unit.pids)
    except OpsError:
        return []


def _user(unit: Unit) -> str:
    if unit.main:
        with contextlib.suppress(OpsError, KeyError):
            return pwd.getpwuid(processes.user_of(unit.main)).pw_name
    return unit.configuration.user


# Addresses of the database and of Redis


def _environment(unit: Unit) -> t.Dict[str, str]:
    if not unit.main:
        return {}
    try:
        return processes.environment_of(unit.main)
    except OpsError:
        return {}


@dataclass(frozen=True)
class Place:
    """A variable in a file, with its value, which is shown nowhere."""

    path: str
    name: str
    value: str = field(repr=False)

    @property
    def reference(self) -> str:
        return environment_files.reference(self.path, self.name)


def _files(unit: Unit, directory: str) -> t.List[str]:
    """Where the variables of a service may lie, the one that counts first at the beginning."""
    files = [*unit.configuration.files, *recognition.sourced_files(unit.command)]
    places = [directory, _working_directory(unit)]
    dotenv = [f"{place}/.env" for place in places if place]
    dotenv += [os.path.join(os.path.dirname(directory), ".env")] if directory else []
    return [path for path in dict.fromkeys([*reversed(files), *dotenv]) if os.path.isfile(path)]


def find_variable(
    files: t.Sequence[str], environment: t.Mapping[str, str], names: t.Sequence[str], schemes: t.Sequence[str]
) -> t.Tuple[t.Optional[Place], str]:
    """The first variable whose value is an address of one of ``schemes``, by the order of ``names`` and then of any
    name. A value of the running process must be the same as that of its file. In place of none there is a reason.
    """
    reason = ""
    read: t.List[Place] = []
    for path in files:
        try:
            for name in sorted(environment_files.names_of(path)):
                with contextlib.suppress(OpsError):
                    value = environment_files.value_of(path, name)
                    if value.partition("://")[0].partition("+")[0] in schemes:
                        read.append(Place(path, name, value))
        except OpsError as error:
            reason = str(error)
    order = {name: index for index, name in enumerate(names)}
    read.sort(key=lambda place: order.get(place.name, len(names)))
    for place in read:
        if place.name not in environment or environment[place.name] == place.value:
            return place, ""
        reason = f"{place.name} of {place.path} is not what the running process has: restart it, or name another file."
    live = [
        name for name, value in sorted(environment.items()) if value.partition("://")[0].partition("+")[0] in schemes
    ]
    if live and not reason:
        reason = f"{live[0]} is in the environment of the process, and in no file that was read."
    return None, reason


def _addresses(units: t.Sequence[Unit], result: Discovery) -> None:
    directory = str(result.variables.get("wheels_ops_backend_dir", ""))
    users = [unit for unit in units if unit.kind in (API, WORKER, BEAT)]
    wanted = (
        ("wheels_ops_database_dsn", "the database", _DATABASE, ("postgresql", "postgres")),
        ("wheels_ops_redis_url", "Redis", _REDIS, ("redis", "rediss", "unix")),
    )
    for variable, what, names, schemes in wanted:
        reasons = []
        for unit in users:
            place, reason = find_variable(_files(unit, directory), _environment(unit), names, schemes)
            if place:
                result.put(variable, place.reference, f"what {unit.name} reads; the value stays there")
                if variable == "wheels_ops_redis_url":
                    _redis_unit(units, place.value, result)
                break
            reasons.append(reason)
        else:
            if variable == "wheels_ops_redis_url" and _assumed_redis(units, result):
                continue
            reason = next(filter(None, reasons), "No file of its services has one.").rstrip(".")
            result.lacks(
                f"the address of {what}. {reason}",
                variable,
                f"Set it to a reference file://PATH#VARIABLE, or to the address itself in a vault ({variable}).",
            )


def _redis_unit(units: t.Sequence[Unit], url: str, result: Discovery) -> None:
    """Which service of this host answers at the address of Redis."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 6379
    except ValueError:
        return
    if host not in ("localhost", "127.0.0.1", "::1", "0.0.0.0"):
        result.notes.append("Redis runs on another host: it is checked, and never restarted from here.")
        return
    for unit in units:
        ports = {listener.port for listener in _listeners(unit)} if unit.kind == REDIS else set()
        if unit.kind == REDIS and (not ports or port in ports or parts.scheme == "unix"):
            result.put("wheels_ops_redis_unit", unit.name, "the service that listens at the address of Redis")
            return
    result.notes.append("No service of this host's manager is the Redis that the backend uses: it is never restarted.")


def _assumed_redis(units: t.Sequence[Unit], result: Discovery) -> bool:
    """A Redis of this host where no file names one."""
    local = [unit for unit in units if unit.kind == REDIS]
    if not local:
        return False
    ports = sorted({listener.port for listener in _listeners(local[0])}) or [6379]
    result.put("wheels_ops_redis_unit", local[0].name, "the Redis of this host")
    result.put("wheels_ops_redis_url", f"redis://127.0.0.1:{ports[0]}/0", "assumed: no file of a service names one")
    return True


# What the playbooks do with it


def _manager(manager: t.Optional[Manager], result: Discovery) -> None:
    if manager is None:
        return
    result.put("wheels_ops_service_manager", manager.name, "what runs the backend")
    place = getattr(manager, "path", "")
    if place:
        result.put("wheels_ops_supervisor_socket", place, "the socket of supervisord")


def _services(units: t.Sequence[Unit], result: Discovery) -> None:
    redis_unit = result.variables.get("wheels_ops_redis_unit", "")
    has_redis = "wheels_ops_redis_url" in result.variables
    redis_url = "{{ wheels_ops_redis_url }}"
    below = [redis_unit] if redis_unit else []
    services: t.List[t.Dict[str, t.Any]] = []
    for unit in units:
        entry: t.Dict[str, t.Any] = {"name": unit.name}
        if unit.kind == REDIS:
            if unit.name != redis_unit:
                continue
            services.append({**entry, "gate": {"type": "redis", "url": redis_url}})
            continue
        if below:
            entry["depends_on"] = below
        if unit.kind == API:
            gate = _http_gate(unit, result)
        elif not has_redis:
            gate = {"type": "state"}
        else:
            url = _broker(unit, result) or redis_url
            gate = {"type": "celery" if unit.kind == WORKER else "beat", "url": url}
            schedule = _schedule_file(unit)
            if schedule:
                gate["schedule_file"] = schedule
                result.put("wheels_ops_schedule_file", schedule, f"the schedule of {unit.name}")
        services.append({**entry, "gate": gate})
    if not services:
        return
    result.put("wheels_ops_services", services, "recognised by what they execute, in the order of a restart")
    for kind, what in ((WORKER, "a Celery worker"), (BEAT, "a Celery beat")):
        if not any(unit.kind == kind for unit in units):
            embedded = kind == BEAT and any(recognition.with_beat(words) for unit in units for words in unit.commands())
            if not embedded:
                result.lacks(what, "wheels_ops_services", "Add it if this host has one.")
    users = [unit.name for unit in units if unit.kind in (API, WORKER, BEAT)]
    result.put("environment_units", users, "the services that get the environment of a deployment")
    backend = next((unit.name for unit in units if unit.kind == API), "")
    if backend:
        for name in ("environment_backend_unit", "backend_patches_service", "services_backend_unit"):
            result.put(name, backend, "the service of the backend")
    limits = {
        unit.name: round(unit.configuration.memory_limit / (1 << 20), 1)
        for unit in units
        if unit.configuration.memory_limit and unit.kind in (API, WORKER, BEAT)
    }
    if limits:
        result.put("wheels_ops_memory_limits_mb", limits, "MemoryMax of the units")
    else:
        result.lacks(
            "a memory limit of the services", "wheels_ops_memory_limits_mb", "Set MiB by service to grade each of them."
        )


def _http_gate(unit: Unit, result: Discovery) -> t.Dict[str, t.Any]:
    if "wheels_ops_base_url" not in result.variables:
        return {"type": "state"}
    path = (result.variables.get("monitoring_http_paths") or ["/health"])[0]
    own = Discovery()
    _base_url(unit, own)
    url = own.variables.get("wheels_ops_base_url", "")
    base = "{{ wheels_ops_base_url }}" if url in ("", result.variables["wheels_ops_base_url"]) else url
    return {"type": "http", "url": f"{base}{path}"}


def _broker(unit: Unit, result: Discovery) -> str:
    """The reference to the broker of a worker where it is another one than Redis is otherwise."""
    directory = str(result.variables.get("wheels_ops_backend_dir", ""))
    redis = str(result.variables.get("wheels_ops_redis_url", ""))
    place, _reason = find_variable(_files(unit, directory), _environment(unit), _BROKER, ("redis", "rediss", "unix"))
    if place is None or place.reference == redis:
        return ""
    with contextlib.suppress(OpsError):
        if environment_files.resolve(redis, "url") == place.value:
            return ""
    return place.reference


def _schedule_file(unit: Unit) -> str:
    path = unit.option("-s", "--schedule") or "celerybeat-schedule"
    path = os.path.join(_working_directory(unit) or "/", path)
    # Other formats of dbm have an ending of their own.
    here = any(os.path.exists(path + ending) for ending in ("", ".db", ".dat"))
    return os.path.normpath(path) if unit.kind == BEAT and here else ""


def _places(units: t.Sequence[Unit], result: Discovery) -> None:
    """Directories of logs and temporary files, file systems, origins of front ends."""
    ours = [unit for unit in units if unit.kind in (API, WORKER, BEAT)]
    environments = [_environment(unit) for unit in ours]
    logs = {env[name] for env in environments for name in _LOGS if env.get(name)}
    logs |= {os.path.dirname(unit.state.details.get("logfile") or "") for unit in ours}
    logs |= {
        os.path.dirname(path)
        for unit in ours
        for pid in unit.pids
        for path in processes.open_paths(pid)
        if path.endswith(".log")
    }
    temporary = {env[name] for env in environments for name in _TEMPORARY if env.get(name)}
    for variable, what, directories in (
        ("wheels_ops_log_directories", "a directory of logs", logs),
        ("wheels_ops_temporary_directories", "a directory of temporary files", temporary),
    ):
        usable = sorted(
            {path.rstrip("/") for path in directories if os.path.isabs(path) and os.path.isdir(path)} - _SYSTEM
        )
        if usable:
            result.put(variable, usable, "the environment and the open files of the services")
        else:
            result.lacks(f"{what} of the application", variable, "Name it, or leave it to the system's own.")
    paths = ["/", str(result.variables.get("wheels_ops_backend_dir", "/"))]
    paths += [
        path for name in list(result.variables) if name.endswith("_directories") for path in result.variables[name]
    ]
    mounts: t.Dict[int, str] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            mounts.setdefault(os.stat(path).st_dev, preflight.mount_point(path))
    result.put("wheels_ops_filesystems", sorted(mounts.values()), "the file systems of all that is named here")
    origins = next(filter(None, map(_origins, environments)), [])
    if origins:
        result.put("wheels_ops_cors_origins", origins, "the environment of the backend")
    else:
        result.lacks(
            "the origins of the front ends", "wheels_ops_cors_origins", "List them; the check asks for each of them."
        )


def _origins(environment: t.Mapping[str, str]) -> t.List[str]:
    """The origins in a variable such as ``BACKEND_CORS_ORIGINS``: a list in JSON, or with commas."""
    for name in sorted(environment):
        if not re.search(r"ORIGINS?$", name):
            continue
        text = environment[name]
        try:
            value = json.loads(text)
        except ValueError:
            value = text.split(",")
        words = [str(word).strip() for word in (value if isinstance(value, list) else [value])]
        try:
            for word in words:
                options.origin(name, word)
        except OpsError:
            continue
        return words
    return []


def _front_ends(units: t.Sequence[Unit]) -> t.List[str]:
    """What stands before the backend: services, and processes that no manager of ours started."""
    front_ends = {
        f"{os.path.basename(unit.command[0]) if unit.command else unit.name} ({unit.name})"
        for unit in units
        if unit.kind == FRONT_END and unit.state.running
    }
    own = {pid for unit in units for pid in unit.pids}
    for pid in processes.pids():
        words = processes.command_line(pid)
        if pid not in own and recognition.kind_of(words) == FRONT_END and processes.program(pid):
            front_ends.add(f"{processes.program(pid)} (no service of this host's manager)")
    return sorted(front_ends)
