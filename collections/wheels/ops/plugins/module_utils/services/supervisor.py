# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""supervisord through its XML-RPC interface, over its unix socket or TCP, with the standard library alone."""

from __future__ import annotations

import base64
import glob
import http.client
import os
import re
import shlex
import socket
import stat
import threading
import time
import typing as t
import urllib.parse
import xmlrpc.client
from dataclasses import replace

from ..core import options
from ..core.results import OpsError
from ..host import processes
from .model import Configuration, ServiceState

SOCKETS: t.Tuple[str, ...] = ("/run/supervisor.sock", "/var/run/supervisor.sock", "/run/supervisor/supervisor.sock")
#: Where supervisord looks for its configuration where its command line names none.
CONFIGURATIONS: t.Tuple[str, ...] = ("/etc/supervisor/supervisord.conf", "/etc/supervisord.conf")
#: Fault codes of supervisor/xmlrpc.py.
SHUTDOWN_STATE, BAD_NAME, NO_FILE, ABNORMAL_TERMINATION, SPAWN_ERROR, ALREADY_STARTED, NOT_RUNNING = (
    6,
    10,
    20,
    40,
    50,
    60,
    70,
)
#: The same two names are options of every module, keys of ``checks`` in the configuration of the programs, and, with
#: ``wheels_ops_`` before them, variables of the inventory.
_PASSWORD_HINT = (
    "Set supervisor_username and supervisor_password to those of [unix_http_server] (in the inventory:"
    " wheels_ops_supervisor_username and wheels_ops_supervisor_password)."
)
_FAULTS = {
    SHUTDOWN_STATE: "supervisord itself is shutting down. Start it again first.",
    BAD_NAME: (
        "supervisord has no such program. Look at supervisorctl status; after a new configuration: supervisorctl"
        " update."
    ),
    NO_FILE: "The command of the program does not exist on this host.",
    ABNORMAL_TERMINATION: "It ended sooner than startsecs. Its log says why.",
    SPAWN_ERROR: "It could not be spawned: look at its command, user and directory.",
}
#: ``spawnerr`` of supervisor/process.py for a program that ended before ``startsecs``; the other ones say why nothing
#: was begun.
_TOO_QUICKLY = "Exited too quickly (process log may have details)"
#: statecode of supervisor/states.py: what is on its way to somewhere else.
_MOVING = ("STARTING", "STOPPING")
#: Seconds beyond ``stopwaitsecs`` until supervisord has killed a program and seen its end.
_STOP_MARGIN = 5.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    """To a unix socket, or with ``host:port`` to an ``[inet_http_server]``."""

    def __init__(self, path: str, timeout: float, headers: t.Sequence[t.Tuple[str, str]], address: str = "") -> None:
        super().__init__(headers=list(headers))
        self._path, self._timeout, self._address = path, timeout, address

    def make_connection(self, host: t.Any) -> http.client.HTTPConnection:
        if self._address:
            return http.client.HTTPConnection(self._address, timeout=self._timeout)
        return _UnixConnection(self._path, self._timeout)


def address_of(where: str) -> str:
    """``host:port`` of a supervisord that is given by its URL; empty for a path. ``unix://`` before one is left out by
    the caller.

    Raises ``OpsError`` for a host that is not this one: processes are looked at here.
    """
    if "://" not in where:
        return ""
    options.url("supervisor_socket", where)
    parts = urllib.parse.urlsplit(where)
    host = parts.hostname or ""
    if parts.scheme != "http":
        raise OpsError(
            f"supervisor_socket must begin with http://, got {parts.scheme}://.",
            hint="supervisord itself has no TLS. Give the address of its [inet_http_server] on this host.",
        )
    if parts.username or parts.password:
        raise OpsError(
            "supervisor_socket must not hold a user or a password: it is shown in results.", hint=_PASSWORD_HINT
        )
    if not parts.port:
        raise OpsError(f"supervisor_socket must name a port, got {where}.", hint="For example http://127.0.0.1:9001.")
    if not _is_here(host):
        raise OpsError(
            f"supervisor_socket must be on this host, got {host}.",
            hint="Run this on the host of the services: their processes and sockets are looked at as well.",
        )
    return f"[{host}]:{parts.port}" if ":" in host else f"{host}:{parts.port}"


def _is_here(host: str) -> bool:
    """Whether an address is one of this host's: only then it can be bound."""
    try:
        entries = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _name, address in entries:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
        except OSError:
            continue
    return False


def _logged_at(line: str) -> float:
    """When supervisord wrote a line of its log (``2026-11-23 20:00:01,123 WARN exited: ...``), in seconds since the
    epoch; 0 for another.
    """
    try:
        return time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))
    except ValueError:
        return 0.0


def find_socket() -> str:
    """The socket of this host's supervisord, empty where there is none in the usual places."""
    for path in SOCKETS:
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                return path
        except OSError:
            continue
    return ""


def state_of(unit: str, info: t.Mapping[str, t.Any]) -> ServiceState:
    """The state that an entry of ``getAllProcessInfo`` tells."""
    name = str(info["statename"])
    running = name == "RUNNING"
    alive = running or name == "STARTING"
    return ServiceState(
        unit=unit,
        exists=True,
        running=running,
        settled=name not in _MOVING,
        state=name,
        pid=int(info["pid"]),
        instance=f"{info['pid']}@{info['start']}" if alive and info["pid"] else "",
        uptime_s=float(max(0, info["now"] - info["start"])) if running else None,
        result=str(info.get("spawnerr") or ""),
        exit_status=int(info["exitstatus"]),
        details={
            "group": info["group"],
            "program": info["name"],
            "programs": [f"{info['group']}:{info['name']}"],
            "pids": [int(info["pid"])] if info["pid"] else [],
            "logfile": info.get("stdout_logfile", ""),
            "description": info.get("description", ""),
        },
    )


def combined(unit: str, parts: t.Sequence[ServiceState]) -> ServiceState:
    """The state of a group (``numprocs``, ``[group:x]``): it runs where every program of it does, and is as the first
    one is that does not.
    """
    if len(parts) == 1:
        return replace(parts[0], unit=unit)
    first = next((part for part in parts if not part.running), parts[0])
    return replace(
        first,
        unit=unit,
        running=all(part.running for part in parts),
        settled=all(part.settled for part in parts),
        pid=next((part.pid for part in parts if part.pid), 0),
        instance="+".join(part.instance for part in parts if part.instance),
        uptime_s=min(part.uptime_s or 0.0 for part in parts) if first.running else None,
        details={
            **first.details,
            "running_parts": sum(part.running for part in parts),
            "programs": [name for part in parts for name in part.details["programs"]],
            "pids": [pid for part in parts for pid in part.details["pids"]],
        },
    )


class Supervisor:
    """A running supervisord. Whoever may open its socket may do everything."""

    name = "supervisor"

    @property
    def path(self) -> str:
        """Its socket, or its URL."""
        return self._path

    def __init__(
        self, path: str = "", *, username: str = "", password: str = "", wait_sleep: float = 0.1, timeout: float = 10.0
    ) -> None:
        address = address_of(path[len("unix://") :] if path.startswith("unix://") else path)
        self._path = (path[len("unix://") :] if path.startswith("unix://") else path) or find_socket()
        if not self._path:
            raise OpsError(
                "No socket of supervisord was found.", hint=f"Set supervisor_socket; looked for {', '.join(SOCKETS)}."
            )
        self._wait_sleep = wait_sleep
        word = base64.b64encode(f"{username}:{password}".encode()).decode()
        headers = [("Authorization", f"Basic {word}")] if username else []
        self._lock = threading.Lock()  # one connection, and checks ask from several threads
        self._rpc = xmlrpc.client.ServerProxy(
            "http://localhost", transport=_Transport(self._path, timeout, headers, address), allow_none=True
        )

    def _call(self, method: str, *words: t.Any) -> t.Any:
        try:
            with self._lock:
                return getattr(self._rpc.supervisor, method)(*words)
        except xmlrpc.client.Fault as error:
            if error.faultCode in (ALREADY_STARTED, NOT_RUNNING):
                raise
            hint = _FAULTS.get(error.faultCode, "Look at supervisorctl status and at supervisord's own log.")
            raise OpsError(
                f"supervisord refuses {method}({', '.join(map(str, words))}): {error.faultString}.",
                hint=hint,
                fault=error.faultCode,
            ) from None
        except xmlrpc.client.ProtocolError as error:
            hint = _PASSWORD_HINT if error.errcode == 401 else ""
            raise OpsError(f"supervisord answers {error.errcode} {error.errmsg}.", hint=hint) from None
        except (OSError, http.client.HTTPException) as error:
            hint = f"Is it running, and may this user open {self._path}? (become: true for a socket of root)"
            raise OpsError(f"supervisord does not answer on {self._path}: {error}.", hint=hint) from None

    def states(self, units: t.Sequence[str]) -> t.Dict[str, ServiceState]:
        every = self._call("getAllProcessInfo")
        result = {}
        for unit in units:
            match = [info for info in every if unit in (f"{info['group']}:{info['name']}", info["name"])]
            exact = [info for info in match if info["group"] == info["name"]] or match
            group = [info for info in every if unit in (info["group"], f"{info['group']}:*")]
            if group and not match:
                result[unit] = combined(unit, [state_of(unit, info) for info in group])
                continue
            if len(exact) > 1:
                names = ", ".join(f"{info['group']}:{info['name']}" for info in exact)
                raise OpsError(
                    f"{unit} names several programs of supervisord: {names}.", hint="Give unit as group:program."
                )
            result[unit] = state_of(unit, exact[0]) if exact else ServiceState(unit=unit, state="not-found")
        return result

    def _names(self, unit: str) -> t.List[str]:
        """Its programs as ``group:program``: several for a group."""
        state = self.states([unit])[unit]
        if not state.exists:
            raise OpsError(
                f"supervisord has no program {unit}.", hint=_FAULTS[BAD_NAME], service=unit, last_state=state.as_dict()
            )
        return list(state.details["programs"])

    def _wait(
        self,
        unit: str,
        verb: str,
        deadline: float,
        done: t.Callable[[ServiceState], bool],
        failed: t.Callable[[ServiceState], bool],
    ) -> ServiceState:
        while True:
            state = self.states([unit])[unit]
            if done(state):
                return state
            if failed(state):
                outcome = f"exit status {state.exit_status}{', ' + state.result if state.result else ''}"
                raise OpsError(
                    f"{unit} did not {verb}: supervisord gave up, {state.state} ({outcome}).",
                    hint="Its log says why.",
                    service=unit,
                    last_state=state.as_dict(),
                )
            if time.monotonic() > deadline:
                raise OpsError(
                    f"{unit} did not {verb} in time; it is {state.state}.",
                    hint=(
                        "Raise wait_timeout if it is only slow; it must be more than the program's startsecs or"
                        " stopwaitsecs."
                    ),
                    service=unit,
                    last_state=state.as_dict(),
                )
            time.sleep(self._wait_sleep)

    def start(self, unit: str, timeout: float) -> ServiceState:
        deadline = time.monotonic() + timeout
        names = self._names(unit)
        for name in names:
            self._begin(unit if len(names) == 1 else name, name, deadline)
        for name in names:
            state = self._wait(
                unit if len(names) == 1 else name,
                "start",
                deadline,
                lambda state: state.running,
                lambda state: state.state in ("FATAL", "EXITED", "STOPPED"),
            )
        return state if len(names) == 1 else self.states([unit])[unit]

    def _begin(self, unit: str, name: str, deadline: float) -> None:
        # A program on its way down refuses a start: "Process in state STOPPING".
        self._wait(unit, "stop", deadline, lambda state: state.state != "STOPPING", lambda state: False)
        try:
            self._call("startProcess", name, False)
        except xmlrpc.client.Fault as error:
            if error.faultCode != ALREADY_STARTED:
                raise
        except OpsError as error:
            # supervisord looks once more before it answers: a program that has ended by then is a SPAWN_ERROR as well,
            # though it was spawned and is begun again (startretries). Whether it gives up is to be waited for, as where
            # the program ends a moment later.
            if error.details.get("fault") != SPAWN_ERROR or self.states([unit])[unit].result not in ("", _TOO_QUICKLY):
                raise

    def stop(self, unit: str, timeout: float) -> ServiceState:
        names = self._names(unit)
        # A stop cannot be called off: it is followed for as long as the program has until it is killed.
        deadline = time.monotonic() + max(timeout, self._longest_stop(names))
        before = self.states([unit])[unit]
        members = self.pids(before)
        for name in names:
            try:
                self._call("stopProcess", name, False)
            except xmlrpc.client.Fault as error:
                if error.faultCode != NOT_RUNNING:
                    raise
        for name in names:
            state = self._wait(
                unit if len(names) == 1 else name,
                "stop",
                deadline,
                lambda now: now.state in ("STOPPED", "EXITED", "FATAL"),
                lambda now: False,
            )
        if len(names) > 1:
            state = self.states([unit])[unit]
        # supervisord signals and watches the first process only: what it had started may live on and hold the port.
        while members & set(processes.parents()) and time.monotonic() < deadline:
            time.sleep(self._wait_sleep)
        survivors = members & set(processes.parents())
        if survivors:
            raise OpsError(
                f"{unit} was stopped, but its processes {sorted(survivors)} live on.",
                hint="Set stopasgroup=true and killasgroup=true in its program section.",
                service=unit,
                last_state=state.as_dict(),
            )
        return state

    def _longest_stop(self, names: t.Collection[str]) -> float:
        """Seconds that these programs have to end (``stopwaitsecs``), and a few; 0 where supervisord does not say."""
        try:
            every = self._call("getAllConfigInfo")
        except OpsError:
            return 0.0  # before 4.2
        waits = [
            float(entry.get("stopwaitsecs") or 0) for entry in every if f"{entry['group']}:{entry['name']}" in names
        ]
        return max(waits, default=0.0) + _STOP_MARGIN

    def restart(self, unit: str, timeout: float) -> ServiceState:
        self.stop(unit, timeout)
        return self.start(unit, timeout)

    def pids(self, state: ServiceState) -> t.Set[int]:
        return set().union(*(processes.tree(pid) for pid in state.details.get("pids") or ()))

    def log_tail(self, unit: str, lines: int) -> t.List[str]:
        names = self._names(unit)
        parts = self.states(names)
        # The lines of those that do not run are the ones that are looked for: they come last.
        ordered = sorted(names, key=lambda name: not parts[name].running)
        return [line for name in ordered for line in self._tail(name, lines)][-lines:]

    def _tail(self, name: str, lines: int) -> t.List[str]:
        found: t.List[str] = []
        # Without redirect_stderr the reason stands in the other file.
        for method in ("tailProcessStderrLog", "tailProcessStdoutLog"):
            try:
                text, _offset, _overflow = self._call(method, name, 0, 200 * lines)
            except OpsError:
                continue  # it has no such log
            found = (
                text.splitlines()[-lines:] + found
                if method.endswith("StderrLog")
                else text.splitlines()[-lines:] + found
            )
            if len(found) >= lines:
                break
        return found[-lines:]

    def definition(self, state: ServiceState) -> t.Tuple[t.List[str], str]:
        try:
            every = self._call("getAllConfigInfo")
            names = state.details.get("programs") or ()
            entry = next(entry for entry in every if f"{entry['group']}:{entry['name']}" in names)
            return shlex.split(str(entry.get("command") or "")), str(entry.get("directory") or "")
        except (OpsError, StopIteration, ValueError):
            return [], ""

    def units(self) -> t.List[str]:
        # A program of a group is group:program, as several groups may have one of the same name.
        return sorted(
            str(entry["name"]) if entry["group"] == entry["name"] else f"{entry['group']}:{entry['name']}"
            for entry in self._call("getAllProcessInfo")
        )

    def configuration(self, state: ServiceState) -> Configuration:
        words = processes.command_line(int(self._call("getPID")))
        path = next((following for word, following in zip(words, words[1:]) if word in ("-c", "--configuration")), "")
        path = path or next((each for each in CONFIGURATIONS if os.path.exists(each)), "")
        return Configuration(files=tuple(configuration_files(path)) if os.path.isabs(path) else ())

    def reload(self) -> None:
        return  # a changed program section counts from ``supervisorctl update`` on, which restarts it by itself

    def automatic_restarts(self, unit: str, seconds: float) -> int:
        """From supervisord's own log, which is the only place that tells an exit that nobody asked for."""
        try:
            text = str(self._call("readLog", -65536, 0))
        except OpsError:
            return 0
        since = time.time() - seconds
        return sum(_exits(text, name.partition(":")[2], since) for name in self._names(unit))

    def start_delay(self, unit: str) -> float:
        return 0.0  # its limit (startretries) concerns its own attempts only

    def require_right(self) -> None:
        return  # whoever may open its socket may do everything


def configuration_files(path: str) -> t.List[str]:
    """A configuration file of supervisord with those that its ``[include]`` names."""
    found = [path]
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return found
    section = re.search(r"^\[include\]\s*$(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    patterns = re.search(r"^files\s*=\s*(.*?)(?=^\S|\Z)", section[1], re.MULTILINE | re.DOTALL) if section else None
    for pattern in patterns[1].split() if patterns else ():
        found += sorted(glob.glob(os.path.join(os.path.dirname(path), pattern)))
    return found


def socket_of(configuration: str) -> str:
    """The unix socket that a configuration file names; empty where it names none or cannot be read."""
    try:
        with open(configuration, encoding="utf-8", errors="replace") as file:
            match = re.search(r"^\[unix_http_server\]\s*$[^\[]*?^file\s*=\s*(\S+)", file.read(), re.MULTILINE)
    except OSError:
        return ""
    path = match[1].replace("%(here)s", os.path.dirname(configuration)) if match else ""
    return path if path and os.path.exists(path) else ""


def _exits(text: str, program: str, since: float) -> int:
    """Exits of a program that nobody asked for, in supervisord's log."""
    found = 0
    for line in text.splitlines():
        # Somebody stopped it, or supervisord gave up and somebody started it: systemd begins to count anew there,
        # too.
        if f"stopped: {program} (" in line or f"gave up: {program} " in line:
            found = 0
        elif f"exited: {program} (" in line and _logged_at(line) >= since:
            found += 1
    return found
