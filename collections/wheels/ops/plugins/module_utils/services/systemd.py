# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""systemd through its own commands: one ``systemctl show`` for all units, jobs without blocking, the journal for what
happened.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import typing as t
from dataclasses import replace

from ..core.results import OpsError
from ..host import processes, subprocesses
from .model import Configuration, ServiceState

_PROPERTIES = (
    "Id",
    "Names",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "MainPID",
    "InvocationID",
    "NRestarts",
    "ExecMainStatus",
    "Job",
    "ControlGroup",
    "ActiveEnterTimestampMonotonic",
    "StartLimitIntervalUSec",
    "StartLimitBurst",
    "Type",
    "TriggeredBy",
    "NeedDaemonReload",
    "TimeoutStopUSec",
    "RemainAfterExit",
    "ConsistsOf",
    "ExecStart",
    "WorkingDirectory",
)
#: systemd's catalogue (``journalctl --catalog``): "A start job for unit UNIT has finished successfully".
STARTED = "39f53479d3a045ac8e11786248231fbf"
#: "Automatic restarting of a unit has been scheduled".
AUTOMATIC_RESTART = "5eb03494b6584870a536b337290809b3"
#: "Unit failed".
FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
#: Seconds that a stage of a stop is followed for where its unit sets no limit, and beyond the limit that it sets.
_LONGEST_STOP, _STOP_MARGIN = 3600.0, 5.0
_SPANS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def span(text: str) -> float:
    """Seconds of a time span as ``systemctl show`` prints it (``1min 30s``); infinity is ``inf``."""
    if text in ("infinity", ""):
        return float("inf") if text else 0.0
    return sum(float(number) * _SPANS.get(unit, 0.0) for number, unit in re.findall(r"([0-9.]+)([a-z]+)", text))


def parse_show(output: str, units: t.Sequence[str], *, uptime: float) -> t.Dict[str, ServiceState]:
    """The states in the output of ``systemctl show`` for ``units``; ``uptime`` is that of the host in seconds.

    The blocks come in the order of the arguments, so an alias (``redis`` for ``redis-server``) is found although its Id
    differs.
    """
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in output.strip("\n").split("\n\n")
    ]
    if len(blocks) != len(units):
        raise OpsError(
            f"systemctl show gave {len(blocks)} answers for {len(units)} units.",
            hint="Run it by hand to see what it says.",
            output=output[:2000],
        )
    return {unit: _state(unit, block, uptime) for unit, block in zip(units, blocks)}


def _state(unit: str, block: t.Mapping[str, str], uptime: float) -> ServiceState:
    active, sub = block.get("ActiveState", ""), block.get("SubState", "")
    command = re.search(r"argv\[\]=(.*?) ; ignore_errors=", block.get("ExecStart", ""))
    entered = int(block.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
    # A oneshot unit that stays (postgresql.service of Debian) is active/exited and as up as it will be.
    running = active in ("active", "reloading") and (sub not in ("exited", "dead") or block.get("Type") == "oneshot")
    return ServiceState(
        unit=unit,
        exists=block.get("LoadState") not in ("not-found", "", None),
        running=running,
        settled=block.get("Job") in ("0", "", None) and active not in ("activating", "deactivating"),
        state=f"{active}/{sub}",
        pid=int(block.get("MainPID") or 0),
        instance=block.get("InvocationID", "") if running else "",
        uptime_s=round(uptime - entered, 3) if running and entered else None,
        restarts=int(block.get("NRestarts") or 0),
        result=block.get("Result", ""),
        exit_status=int(block.get("ExecMainStatus") or 0),
        outdated=block.get("NeedDaemonReload") == "yes",
        details={
            "id": block.get("Id", unit),
            "load_state": block.get("LoadState", ""),
            "control_group": block.get("ControlGroup", ""),
            "start_limit_interval_s": span(block.get("StartLimitIntervalUSec", "")),
            "start_limit_burst": int(block.get("StartLimitBurst") or 0),
            "type": block.get("Type", ""),
            "stop_timeout_s": span(block.get("TimeoutStopUSec", "")),
            "triggered_by": block.get("TriggeredBy", "").split(),
            "remains": block.get("RemainAfterExit") == "yes",
            "invocation": block.get("InvocationID", ""),
            "command": command[1].split() if command else [],
            "directory": block.get("WorkingDirectory", ""),
            "parts": [name for name in block.get("ConsistsOf", "").split() if name.endswith(".service")],
        },
    )


def _stands_for_parts(state: ServiceState) -> bool:
    """Whether a unit does nothing itself and stands for others, as Debian's postgresql.service does for each
    postgresql@VERSION-CLUSTER: it is active whatever becomes of them.
    """
    does_nothing = state.details["command"] in ([], ["/bin/true"], ["/usr/bin/true"])
    return bool(state.details["parts"]) and does_nothing and state.details["type"] == "oneshot"


def combined(unit: str, parts: t.Sequence[ServiceState]) -> ServiceState:
    """The state of a service that has several: it runs where all of them do, and is as the first one is that does not.

    ``details`` has their units under ``parts`` and their control groups.
    """
    first = next((part for part in parts if not part.running), parts[0])
    uptimes = [part.uptime_s for part in parts if part.uptime_s is not None]
    return replace(
        first,
        unit=unit,
        running=all(part.running for part in parts),
        settled=all(part.settled for part in parts),
        pid=next((part.pid for part in parts if part.pid), 0),
        instance="+".join(part.instance for part in parts if part.instance),
        uptime_s=min(uptimes) if len(uptimes) == len(parts) else None,
        restarts=sum(part.restarts or 0 for part in parts),
        outdated=any(part.outdated for part in parts),
        details={
            **first.details,
            "running_parts": sum(part.running for part in parts),
            "parts": [part.details["id"] for part in parts],
            "control_groups": [part.details["control_group"] for part in parts],
            "stop_timeout_s": max(part.details["stop_timeout_s"] for part in parts),
        },
    )


def _acting(state: ServiceState) -> t.List[str]:
    return list(state.details["parts"]) if "control_groups" in state.details else [state.details["id"]]


def _ended_well(state: ServiceState) -> bool:
    return state.exists and state.settled and state.state.startswith("inactive") and state.result == "success"


#: Where polkit tells D-Bus that it can be started. Without it systemd refuses everybody but root.
_POLKIT = "/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service"


def available() -> bool:
    """Whether systemd is the init of this host (its own test: sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


class Systemd:
    """The system manager, or with ``user`` that of the user who runs this.

    Starting and stopping units of the system needs root, or a rule of polkit for
    ``org.freedesktop.systemd1.manage-units``. Raises ``OpsError`` where there is no such manager.
    """

    def __init__(self, *, wait_sleep: float = 0.2, user: bool = False) -> None:
        self._wait_sleep = wait_sleep
        self.name = "systemd_user" if user else "systemd"
        self._scope = ["--user"] if user else []
        self._environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"}
        #: In the journal: the field with the unit's name, what else tells its manager's entries, and the invocation.
        self._unit_field, self._sender, self._invocation = "UNIT", "_PID=1", "INVOCATION_ID"
        if user:
            runtime = f"/run/user/{os.geteuid()}"  # become_user leaves the variable out
            self._environment["XDG_RUNTIME_DIR"] = runtime
            self._unit_field, self._invocation = "USER_UNIT", "USER_INVOCATION_ID"
            self._sender = f"_UID={os.geteuid()}"
            if not os.path.exists(f"{runtime}/systemd/private"):
                raise OpsError(
                    f"No systemd runs for the user with the number {os.geteuid()}.",
                    hint="Run this as the user of the services (become_user), and let its systemd run without a login:"
                    " loginctl enable-linger USER.",
                )
        if not available():
            raise OpsError(
                "systemd does not run on this host.",
                hint=(
                    "Set service_manager to supervisor and supervisor_socket to its socket, or run this on a host whose init is"
                    " systemd."
                ),
            )
        program = shutil.which("systemctl")
        if not program:
            raise OpsError("systemctl is missing.", hint="Install the package systemd.")
        self._systemctl = program

    def _run(self, words: t.Sequence[str], timeout: float = 30.0) -> str:
        try:
            command = [self._systemctl, *self._scope, "--no-pager", "--no-ask-password", *words]
            process = subprocesses.run(command, timeout=timeout, environment=self._environment)
        except subprocess.TimeoutExpired:
            raise OpsError(
                f"systemctl {words[0]} did not answer within {timeout:g} s.",
                hint="See whether systemd is alive: systemctl status.",
            ) from None
        if process.returncode:
            error = (process.stderr or process.stdout).strip()
            denied = os.geteuid() and re.search(r"denied|authenticat|Permission", error, re.I)
            hint = "Run as root (become: true), or allow it by a rule of polkit." if denied else ""
            raise OpsError(f"systemctl {' '.join(words)} failed: {error}", hint=hint, rc=process.returncode)
        return process.stdout

    def states(self, units: t.Sequence[str]) -> t.Dict[str, ServiceState]:
        if not units:
            return {}
        names = [unit if re.search(r"\.(service|socket|target|timer)$", unit) else f"{unit}.service" for unit in units]
        states = self._show(units, names)
        for unit, state in states.items():
            if _stands_for_parts(state):
                parts = state.details["parts"]
                states[unit] = combined(unit, list(self._show(parts, parts).values()))
        return {**states, **self._at_rest({unit: state for unit, state in states.items() if _ended_well(state)})}

    def _show(self, units: t.Sequence[str], names: t.Sequence[str]) -> t.Dict[str, ServiceState]:
        output = self._run(["show", f"--property={','.join(_PROPERTIES)}", "--", *names])
        return parse_show(output, units, uptime=processes.uptime())

    def _names(self, unit: str) -> t.List[str]:
        """The units that a job for this one has to name, and the journal."""
        return _acting(self.states([unit])[unit])

    def _at_rest(self, ended: t.Mapping[str, ServiceState]) -> t.Dict[str, ServiceState]:
        """Which of these services, of which nothing runs, are as they should be: a oneshot that has done its work, and
        one whose socket, timer or path starts it when there is something to do.
        """
        names = sorted({name for state in ended.values() for name in state.details["triggered_by"]})
        active: t.Set[str] = set()
        if names:
            shown = self._run(["show", "--property=ActiveState", "--value", "--", *names]).split()
            active = {name for name, word in zip(names, shown) if word == "active"}
        found = {}
        for unit, state in ended.items():
            triggers = [name for name in state.details["triggered_by"] if name in active]
            invocation, reason = state.details["invocation"], ""
            if state.details["type"] == "oneshot" and not state.details["remains"]:
                # systemd forgets a unit that nothing refers to as soon as it has ended.
                invocation = invocation or self._last_start(state.details["id"])
                reason = "it has done its work and ended successfully" if invocation else ""
            reason = reason or (f"it waits for {' and '.join(triggers)}" if triggers else "")
            if reason:
                found[unit] = replace(state, at_rest=reason, instance=invocation)
        return found

    def _last_start(self, name: str) -> str:
        """The invocation of the last start that succeeded since the boot, by the journal; empty for none."""
        unit = f"{self._unit_field}={name}"
        entries = self._journal(["--boot", "--lines=1", self._sender, f"MESSAGE_ID={STARTED}", unit])
        return str(entries[-1].get(self._invocation, "")) if entries else ""

    def _job(self, verb: str, unit: str, timeout: float, done: t.Callable[[ServiceState], bool]) -> ServiceState:
        """Queues a job and polls until it is done: ``systemctl`` itself would wait as long as the unit's own time
        limits say.

        A stop that takes longer is followed to its end, as it cannot be called off: the unit's own limit for each of
        its stages (``TimeoutStopSec``) counts then, and the start after it has all of ``timeout``.
        """
        names = self._names(unit)
        started = time.monotonic()
        self._run([verb, "--no-block", "--", *names])
        deadline = started + timeout
        stage, begun = "", 0.0
        while True:
            state = self.states([unit])[unit]
            if state.settled and done(state):
                return state
            if state.state != stage:
                if stage.startswith("deactivating"):
                    deadline = max(deadline, time.monotonic() + timeout)
                stage, begun = state.state, time.monotonic()
            if stage.startswith("deactivating"):
                limit = min(_LONGEST_STOP, state.details["stop_timeout_s"] or _LONGEST_STOP) + _STOP_MARGIN
                deadline = max(deadline, begun + limit)
            if verb != "stop" and _ended_well(state) and state.details["type"] == "oneshot":
                return state  # nothing refers to it: what it was is forgotten already
            if state.settled and not state.running and verb != "stop":
                raise OpsError(
                    f"{unit} did not {verb}: {state.state}, result {state.result}.",
                    hint=self._advice(state, unit),
                    service=unit,
                    last_state=state.as_dict(),
                )
            if time.monotonic() > deadline:
                raise OpsError(
                    f"{unit} did not {verb} within {time.monotonic() - started:.0f} s; it is {state.state}.",
                    hint=f"See systemctl status {' '.join(names)}; raise wait_timeout if it is only slow.",
                    service=unit,
                    last_state=state.as_dict(),
                )
            time.sleep(self._wait_sleep)

    def _advice(self, state: ServiceState, unit: str) -> str:
        if state.result == "start-limit-hit":
            return f"It was started too often. When the cause is gone: systemctl reset-failed {unit}."
        return f"See journalctl -u {unit}."

    def start(self, unit: str, timeout: float) -> ServiceState:
        before = self.states([unit])[unit].instance
        return self._job(
            "start", unit, timeout, lambda state: state.running or bool(state.at_rest and state.instance != before)
        )

    def stop(self, unit: str, timeout: float) -> ServiceState:
        return self._job("stop", unit, timeout, lambda state: not state.running)

    def restart(self, unit: str, timeout: float) -> ServiceState:
        before = self.states([unit])[unit].instance
        return self._job(
            "restart",
            unit,
            timeout,
            lambda state: (state.running or bool(state.at_rest)) and state.instance != before,
        )

    def definition(self, state: ServiceState) -> t.Tuple[t.List[str], str]:
        # A dash, an at sign or others before the directory or the program are orders to systemd.
        return list(state.details.get("command") or ()), str(state.details.get("directory") or "").lstrip("!-")

    def units(self) -> t.List[str]:
        words = ["list-units", "--type=service", "--all", "--plain", "--no-legend", "--full"]
        names = [line.split()[0] for line in self._run(words).splitlines() if line.strip()]
        return [name[: -len(".service")] for name in names if name.endswith(".service")]

    def configuration(self, state: ServiceState) -> Configuration:
        names = ("User", "EnvironmentFiles", "FragmentPath", "DropInPaths", "MemoryMax")
        unit = str(state.details.get("id") or state.unit)
        lines = self._run(["show", f"--property={','.join(names)}", "--", unit]).splitlines()
        values: t.Dict[str, t.List[str]] = {}
        for name, _sign, value in (line.partition("=") for line in lines):
            values.setdefault(name, []).append(value)
        # Files of variables count after the variables of the unit itself (systemd.exec(5)).
        files = [*values.get("FragmentPath", ()), *" ".join(values.get("DropInPaths", ())).split()]
        files += [value.rpartition(" (")[0] for value in values.get("EnvironmentFiles", ())]
        limit = next(iter(values.get("MemoryMax", ())), "")
        return Configuration(
            user=next(iter(values.get("User", ())), ""),
            files=tuple(file.lstrip("-") for file in files if file.lstrip("-").startswith("/")),
            memory_limit=int(limit) if limit.isdigit() and int(limit) < 1 << 60 else 0,
        )

    def reload(self) -> None:
        self._run(["daemon-reload"], timeout=90.0)  # generators run, and every unit file is read

    def pids(self, state: ServiceState) -> t.Set[int]:
        """The processes of its control group, in whichever hierarchy systemd keeps it."""
        groups = state.details.get("control_groups") or [state.details.get("control_group")]
        members = set().union(*(self._members(group) for group in groups if group))
        return members or (processes.tree(state.pid) if state.pid else set())

    def _members(self, group: str) -> t.Set[int]:
        for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
            found: t.Set[int] = set()
            for directory, _folders, files in os.walk(root + group):
                if "cgroup.procs" in files:
                    with open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as file:
                        found.update(int(line) for line in file)
            if found:
                return found
        return set()

    def log_tail(self, unit: str, lines: int) -> t.List[str]:
        kind = "user-unit" if self._scope else "unit"
        return [
            str(entry.get("MESSAGE", ""))
            for entry in self._journal([f"--lines={lines}", *(f"--{kind}={name}" for name in self._names(unit))])
        ]

    def _journal(self, words: t.Sequence[str]) -> t.List[t.Dict[str, t.Any]]:
        program = shutil.which("journalctl")
        if not program:
            return []
        try:
            process = subprocesses.run([program, "--no-pager", "--quiet", "--output=json", *words], timeout=15)
        except subprocess.TimeoutExpired:
            return []
        entries = []
        for line in process.stdout.splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue  # a line cut short by rotation
        return entries

    def events(self, unit: str, seconds: float, message_id: str = STARTED) -> t.List[t.Dict[str, t.Any]]:
        """What systemd itself logged about a unit in the last seconds: ``time`` (epoch), ``invocation``.

        NRestarts counts automatic restarts only and is reset by a manual one: the journal is the only witness of
        starts.
        """
        units = [f"{self._unit_field}={name}" for name in self._names(unit)]
        entries = self._journal([f"--since=-{int(seconds) + 1}s", self._sender, f"MESSAGE_ID={message_id}", *units])
        since = time.time() - seconds
        result = [
            {"time": int(entry.get("__REALTIME_TIMESTAMP", 0)) / 1e6, "invocation": entry.get(self._invocation, "")}
            for entry in entries
        ]
        return [event for event in result if event["time"] >= since]

    def automatic_restarts(self, unit: str, seconds: float) -> int:
        return len(self.events(unit, seconds, AUTOMATIC_RESTART))

    def start_delay(self, unit: str) -> float:
        """systemd counts manual starts too and leaves the service down at the limit: the last free
        start is not spent.
        """
        state = self.states([unit])[unit]
        interval, burst = state.details["start_limit_interval_s"], state.details["start_limit_burst"]
        if not burst or not interval or interval == float("inf"):
            return 0.0
        # Parts of one service are started together: each has a limit of its own.
        parts = len(_acting(state))
        times = sorted(event["time"] for event in self.events(unit, interval))[parts - 1 :: parts]
        if len(times) < max(1, burst - 1):
            return 0.0
        # It is allowed again when so many have left the window that one start less than the limit remains.
        return max(0.0, times[-max(1, burst - 1)] + interval - time.time() + 0.1)

    def require_right(self) -> None:
        if not self._scope and os.geteuid() and not os.path.exists(_POLKIT):
            raise OpsError(
                "systemd starts and stops services for root alone on this host: polkit, which could let others, is not"
                " installed.",
                hint=(
                    "Run as root (become: true), or install the package polkitd and allow this user"
                    " org.freedesktop.systemd1.manage-units."
                ),
            )
