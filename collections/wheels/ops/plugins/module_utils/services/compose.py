# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Services of ``docker compose`` and ``podman compose``: the containers with Compose's labels, through the commands of
their engine. The Compose file is not read, and no container is created or removed.
"""

from __future__ import annotations

import calendar
import json
import re
import shutil
import subprocess
import time
import typing as t
from dataclasses import replace

from ..core.results import OpsError
from ..host import processes, subprocesses
from .model import Configuration, ServiceState

#: In the order in which they are asked. ``podman compose`` and ``podman-compose`` write Compose's labels, too.
ENGINES = ("docker", "podman")
PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"
#: ``docker compose run``: a container of a task, not of the service.
_ONE_OFF = "com.docker.compose.oneoff"
#: What containers are called that are neither up nor down.
_MOVING = ("restarting", "removing", "stopping")
#: With which a program ends that was asked to: by itself, SIGINT, SIGTERM.
_ASKED = (0, 130, 143)
#: Seconds that an engine gives a container to end where the container does not say, and a few more.
_STOP_TIMEOUT, _STOP_MARGIN = 10.0, 5.0
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)?")

Container = t.Mapping[str, t.Any]


def moment(text: str) -> t.Optional[float]:
    """Seconds since the epoch of a time as the engines write it; None for another text, and for the year 1 of a
    container that never ran.
    """
    match = _MOMENT.match(text)
    if match is None or text.startswith("0001"):
        return None
    zone = match[3] or "Z"
    offset = 0 if zone == "Z" else int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
    whole = calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S"))
    return whole + float(match[2] or 0) - (-offset if zone.startswith("-") else offset)


def state_of(unit: str, engine: str, container: Container, now: float) -> ServiceState:
    """The state that ``inspect`` tells of one container.

    One whose own health check fails does not run, whatever its process does; its state says so.
    """
    said = container["State"]
    status = str(said.get("Status", ""))
    health = str((said.get("Health") or said.get("Healthcheck") or {}).get("Status") or "")
    code = int(said.get("ExitCode") or 0)
    alive = status == "running" and bool(said.get("Pid"))
    began = moment(str(said.get("StartedAt") or ""))
    ended_badly = status in ("exited", "dead", "stopped") and (code not in _ASKED or bool(said.get("OOMKilled")))
    state = f"{status} (unhealthy)" if alive and health == "unhealthy" else status
    configuration, ports = container.get("Config") or {}, (container.get("NetworkSettings") or {}).get("Ports") or {}
    command: t.List[str] = []
    for name in ("Entrypoint", "Cmd"):
        value = configuration.get(name) or []
        command += value.split() if isinstance(value, str) else value
    timeout = configuration.get("StopTimeout")
    return ServiceState(
        unit=unit,
        exists=True,
        running=alive and health != "unhealthy",
        settled=status not in _MOVING,
        state=f"failed/{status}, exit status {code}" if ended_badly else state,
        pid=int(said.get("Pid") or 0) if alive else 0,
        instance=f"{str(container['Id'])[:12]}@{said.get('StartedAt')}" if alive else "",
        uptime_s=round(max(0.0, now - began), 3) if alive and began is not None else None,
        restarts=int(container.get("RestartCount") or 0),
        result="out of memory" if said.get("OOMKilled") else str(said.get("Error") or ""),
        exit_status=code,
        details={
            "engine": engine,
            "containers": [str(container["Id"])],
            "names": [str(container.get("Name", "")).lstrip("/")],
            "pids": [int(said["Pid"])] if alive else [],
            "health": health,
            "hostnames": [str(configuration.get("Hostname") or "")],
            "published_ports": sorted(
                {int(entry["HostPort"]) for entries in ports.values() for entry in entries or () if entry["HostPort"]}
            ),
            "stop_timeout_s": _STOP_TIMEOUT if timeout is None else float(timeout),
            "command": command,
        },
    )


def combined(unit: str, parts: t.Sequence[ServiceState]) -> ServiceState:
    """The state of a service with several containers (``--scale``): it runs where all of them do, and is as the first
    one is that does not.
    """
    if len(parts) == 1:
        return parts[0]
    first = next((part for part in parts if not part.running), parts[0])
    lists = {
        name: [word for part in parts for word in part.details[name]]
        for name in ("containers", "names", "pids", "hostnames")
    }
    return replace(
        first,
        unit=unit,
        running=all(part.running for part in parts),
        settled=all(part.settled for part in parts),
        pid=next((part.pid for part in parts if part.pid), 0),
        instance="+".join(part.instance for part in parts if part.instance),
        uptime_s=min(part.uptime_s or 0.0 for part in parts) if first.running else None,
        restarts=sum(part.restarts or 0 for part in parts),
        details={
            **first.details,
            **lists,
            "running_parts": sum(part.running for part in parts),
            "published_ports": sorted({port for part in parts for port in part.details["published_ports"]}),
            "stop_timeout_s": max(part.details["stop_timeout_s"] for part in parts),
        },
    )


def available() -> bool:
    """Whether an engine of this host has a container of Compose, as far as this user may see."""
    try:
        return bool(Compose().containers())
    except OpsError:
        return False


class Compose:
    """The containers of Compose on this host. A unit is ``service``, or ``project:service`` where several projects have
    a service of that name.
    """

    name = "compose"

    def __init__(self, *, wait_sleep: float = 0.2, timeout: float = 20.0) -> None:
        self._engines = [engine for engine in ENGINES if shutil.which(engine)]
        if not self._engines:
            raise OpsError(
                "Neither docker nor podman is installed for this user.",
                hint="Install the engine of your Compose project, or set service_manager to another.",
            )
        self._wait_sleep, self._timeout = wait_sleep, timeout

    def _run(self, engine: str, *words: str, timeout: t.Optional[float] = None) -> subprocess.CompletedProcess[str]:
        limit = timeout or self._timeout
        try:
            completed = subprocesses.run([engine, *words], timeout=limit)
        except subprocess.TimeoutExpired:
            raise OpsError(
                f"{engine} {words[0]} did not end within {limit:.0f} s.", hint="Is its daemon well?"
            ) from None
        except OSError as error:
            raise OpsError(f"{engine} cannot be started: {error.strerror}.") from error
        if completed.returncode:
            lines = completed.stderr.strip().splitlines()
            raise OpsError(
                f"{engine} {words[0]} ended with {completed.returncode}: {lines[-1] if lines else 'no message'}.",
                hint="May this user talk to it (become: true, or the group docker)?",
            )
        return completed

    def containers(self) -> t.List[t.Tuple[str, Container]]:
        """(engine, what ``inspect`` says) of every container of Compose. An engine that does not answer is passed over
        where the other one has such containers.
        """
        result: t.List[t.Tuple[str, Container]] = []
        errors: t.List[OpsError] = []
        for engine in self._engines:
            try:
                listing = self._run(engine, "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={SERVICE}")
                names = listing.stdout.split()
                text = self._run(engine, "inspect", "--type=container", *names).stdout if names else "[]"
                result += [(engine, container) for container in json.loads(text) if not _is_one_off(container)]
            except OpsError as error:
                errors.append(error)
            except ValueError as error:
                errors.append(OpsError(f"{engine} inspect gave no JSON: {error}."))
        if errors and not result:
            raise errors[0]
        return result

    def states(self, units: t.Sequence[str]) -> t.Dict[str, ServiceState]:
        every, now = self.containers(), time.time()
        result = {}
        for unit in units:
            project, _colon, service = unit.rpartition(":")
            match = [
                (engine, container)
                for engine, container in every
                if _label(container, SERVICE) == service and project in ("", _label(container, PROJECT))
            ]
            places = sorted({f"{_label(container, PROJECT)}:{service} ({engine})" for engine, container in match})
            if len(places) > 1:
                raise OpsError(
                    f"{unit} names several services of Compose: {', '.join(places)}.",
                    hint="Give unit as project:service.",
                )
            parts = [state_of(unit, engine, container, now) for engine, container in match]
            result[unit] = combined(unit, parts) if parts else ServiceState(unit=unit, state="not-found")
        return result

    def _existing(self, unit: str) -> ServiceState:
        state = self.states([unit])[unit]
        if not state.exists:
            raise OpsError(
                f"No container of the Compose service {unit} is there.",
                hint="Create it: docker compose up --detach, or podman compose up --detach.",
                service=unit,
                last_state=state.as_dict(),
            )
        return state

    def start(self, unit: str, timeout: float) -> ServiceState:
        deadline = time.monotonic() + timeout
        before = self._existing(unit)
        self._run(before.details["engine"], "start", *before.details["containers"], timeout=max(1.0, timeout))
        while True:
            state = self._existing(unit)
            if state.running:
                return state
            if state.settled and not state.instance:
                raise OpsError(
                    f"{unit} did not start: {state.state}{', ' + state.result if state.result else ''}.",
                    hint=f"See {state.details['engine']} logs {' '.join(state.details['names'])}.",
                    service=unit,
                    last_state=state.as_dict(),
                )
            if time.monotonic() > deadline:
                raise OpsError(
                    f"{unit} did not start in time; it is {state.state}.",
                    hint="Raise wait_timeout if it is only slow.",
                    service=unit,
                    last_state=state.as_dict(),
                )
            time.sleep(self._wait_sleep)

    def stop(self, unit: str, timeout: float) -> ServiceState:
        before = self._existing(unit)
        # A stop cannot be called off: it is followed for as long as the containers have until they are killed.
        limit = max(timeout, before.details["stop_timeout_s"] * len(before.details["containers"]) + _STOP_MARGIN)
        self._run(before.details["engine"], "stop", *before.details["containers"], timeout=limit)
        return self._existing(unit)

    def restart(self, unit: str, timeout: float) -> ServiceState:
        self.stop(unit, timeout)
        return self.start(unit, timeout)

    def pids(self, state: ServiceState) -> t.Set[int]:
        return set().union(*(processes.tree(pid) for pid in state.details.get("pids") or ()))

    def log_tail(self, unit: str, lines: int) -> t.List[str]:
        state = self._existing(unit)
        entries: t.List[t.Tuple[str, str]] = []
        for container in state.details["containers"]:
            try:
                logs = self._run(state.details["engine"], "logs", "--timestamps", f"--tail={lines}", container)
            except OpsError:
                continue  # its log driver keeps nothing that can be read
            # The two streams of the container come on two streams: their times put them together again.
            for line in f"{logs.stdout}\n{logs.stderr}".splitlines():
                at, _space, text = line.partition(" ")
                if _MOMENT.match(at):
                    entries.append((at, text))
        return [text for _at, text in sorted(entries, key=lambda entry: entry[0])][-lines:]

    def definition(self, state: ServiceState) -> t.Tuple[t.List[str], str]:
        return list(state.details.get("command") or ()), ""  # its directory is one of the container's

    def units(self) -> t.List[str]:
        raise OpsError(
            "The services of Compose are not discovered.",
            hint="List them in wheels_ops_services, with wheels_ops_service_manager: compose.",
        )

    def configuration(self, state: ServiceState) -> Configuration:
        return Configuration()

    def reload(self) -> None:
        return  # a changed Compose file counts from ``compose up`` on, which replaces the containers

    def automatic_restarts(self, unit: str, seconds: float) -> int:
        """Of those that its engine counts it keeps the time of the last one alone: 1 where that is so recent."""
        state = self._existing(unit)
        recent = state.uptime_s is None or state.uptime_s < seconds
        return 1 if state.restarts and recent else 0

    def start_delay(self, unit: str) -> float:
        return 0.0  # their waits concern their own attempts only

    def require_right(self) -> None:
        self.containers()  # whoever may ask an engine may do everything with it


def _label(container: Container, name: str) -> str:
    return str(((container.get("Config") or {}).get("Labels") or {}).get(name, ""))


def _is_one_off(container: Container) -> bool:
    return _label(container, _ONE_OFF).lower() == "true"
