# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a Celery worker does that answers no remote control: at work, without remote control, stopped, or hung.

A worker that waits for tasks has a connection that is blocked in BRPOP, which it asks anew every second or so; one that
runs a task in its own process (pool solo) has not, and answers nobody until the task has ended. Seen from the server by
CLIENT LIST, from the host by /proc.
"""

from __future__ import annotations

import time
import typing as t
from dataclasses import dataclass

from ..core.results import OpsError
from ..host import processes
from . import broker, redis_errors

#: Share of one CPU, used or waited for, from which a process is at work. A worker that waits for tasks asks for 0.002
#: (measured
#: over 15 s, Celery 5.6 with the pool solo, on two cores with a load of 17).
AT_WORK = 0.1

#: Seconds that one task may take where the command line of its worker gives no ``--time-limit`` (a worker with the pool
#: solo keeps none itself). The default of kombu's ``visibility_timeout``: after that Redis hands the task to another
#: worker, and it runs twice.
TASK_LIMIT = 3600.0

#: Moments at which clients are looked at, and the seconds between them.
_MOMENTS, _BETWEEN = 4, 0.2

CONSUMING, BUSY, STOPPED, HUNG, UNCLEAR = "consuming", "busy", "stopped", "hung", "unclear"


@dataclass(frozen=True)
class Silence:
    """One worker that did not answer. ``verdict``: ``consuming`` (it takes tasks: remote control is off), ``busy`` (it
    works on a delivery), ``unclear`` (it may be at work, which cannot be seen), ``stopped`` (by a signal) or ``hung``.
    ``begun``: it has asked for tasks before. ``since``: seconds since it turned from the queue to a task, where that is
    seen; ``limit``: seconds that a task may take.
    """

    verdict: str
    why: str
    pid: int = 0
    begun: bool = False
    since: t.Optional[float] = None
    limit: float = TASK_LIMIT

    @property
    def overdue(self) -> bool:
        """Whether it is at one task for longer than a task may take."""
        return self.verdict == BUSY and self.since is not None and self.since > self.limit

    @property
    def at_work(self) -> bool:
        """Whether it is seen to take tasks, or to be at one that may still take its time."""
        return self.verdict == CONSUMING or (self.verdict == BUSY and self.since is not None and not self.overdue)

    @property
    def works(self) -> bool:
        """Whether it is known to do its work."""
        return self.verdict == CONSUMING or (self.verdict == BUSY and self.begun and not self.overdue)

    @property
    def unfinished(self) -> bool:
        """Whether ending it may kill a task."""
        return self.verdict in (CONSUMING, BUSY, UNCLEAR)


class Watch:
    """Watches workers while they are pinged: how much CPU they use meanwhile tells those at work.

    ``members`` are the processes of one service; None watches whatever is connected to the broker.
    """

    def __init__(self, client: t.Any, port: int, members: t.Optional[t.Collection[int]] = None) -> None:
        self.client, self.port, self.members = client, port, members
        self.owners, self.hidden = self._owners()
        self.started = time.monotonic()
        self.before = {pid: processes.cpu_demand(pid) for pid in self._watched()}

    def _watched(self) -> t.Set[int]:
        return set(self.owners.values()) if self.members is None else set(self.members)

    def _owners(self) -> t.Tuple[t.Dict[int, int], bool]:
        """The processes that are connected to the broker by their local port, and whether that could not be seen of
        all.
        """
        if not self.port:
            return {}, True  # a unix socket has no port to know its two ends by
        try:
            return processes.connected(self.port, self.members), False
        except OpsError:
            return {}, True

    def wait(self, seconds: float) -> None:
        """Watches for that long in all: where nobody listens a ping ends at once, before CPU could be measured or BRPOP
        asked anew.
        """
        time.sleep(max(0.0, self.started + seconds - time.monotonic()))

    def silent(self) -> t.List[Silence]:
        """One entry for each worker that is seen, and one for a service none of whose connections are. Raises what
        redis-py raises, but for the right to CLIENT LIST: without it workers are unclear.
        """
        import redis

        share = self._share()
        unacked = broker.waiting_tasks(self.client, ())["unacked"]
        owners, hidden = self._owners()
        silences: t.List[Silence] = []
        if self.members is not None:
            stopped = processes.all_stopped(self.members)
            if stopped:
                return [Silence(STOPPED, f"process {stopped} is stopped (by SIGSTOP or a debugger)", stopped)]
        try:
            polls = self._polls()
        except redis.exceptions.NoPermissionError as error:
            evidence = self._evidence(share, unacked)
            right = redis_errors.missing_right(error)
            return [
                Silence(
                    BUSY if evidence else UNCLEAR,
                    evidence or f"whether it is at work cannot be seen without the right {right}",
                )
            ]
        for entry in polls:
            pid = owners.get(_port(entry), 0)
            if self.members is not None and not pid and not hidden:
                continue  # of another service, or another host
            silences.append(self._judge(entry, pid, share, unacked))
        if not silences and self.members is not None:
            evidence = self._evidence(share, unacked)
            silences.append(Silence(BUSY, evidence) if evidence else Silence(HUNG, "it asks the broker for nothing"))
        return silences

    def _polls(self) -> t.List[t.Mapping[str, str]]:
        """The clients of this database that last asked for a task; blocked where they were so in one of a few moments:
        on a busy host some time passes between two of a worker's questions.
        """
        database = str(broker.database(self.client))
        blocked: t.Set[str] = set()
        for attempt in range(_MOMENTS):
            time.sleep(_BETWEEN if attempt else 0.0)
            entries = [
                entry
                for entry in self.client.client_list()
                if entry.get("cmd") == "brpop" and entry.get("db") == database
            ]
            blocked |= {entry["addr"] for entry in entries if "b" in entry.get("flags", "")}
            if blocked >= {entry["addr"] for entry in entries}:
                break
        return [{**entry, "flags": "b" if entry["addr"] in blocked else ""} for entry in entries]

    def _judge(self, entry: t.Mapping[str, str], pid: int, share: float, unacked: int) -> Silence:
        if pid and processes.all_stopped([pid]):
            return Silence(STOPPED, f"process {pid} is stopped (by SIGSTOP or a debugger)", pid)
        if "b" in entry.get("flags", ""):
            return Silence(
                CONSUMING, "it takes tasks, but its remote control is off (worker_enable_remote_control)", pid, True
            )
        if pid and _in_process(pid):
            return _at_a_task(pid, float(entry.get("idle") or 0), unacked)
        evidence = self._evidence(share, unacked)
        if evidence:
            return Silence(BUSY, evidence, pid, True)
        if not pid:
            return Silence(
                UNCLEAR, "it has turned from the queue; whether it is at work or hung cannot be seen from here", 0, True
            )
        return Silence(HUNG, "its main process asks for no tasks, and nothing of it is at work", pid, True)

    def _share(self) -> float:
        """CPUs that the watched processes asked for since the start."""
        seconds = sum(max(0.0, processes.cpu_demand(pid) - self.before.get(pid, 0.0)) for pid in self._watched())
        return seconds / max(0.01, time.monotonic() - self.started)

    def _evidence(self, share: float, unacked: int) -> str:
        if unacked:
            return f"{unacked} deliveries are unfinished"
        if share >= AT_WORK:
            return f"it asks for {100 * share:.0f} % of a CPU"
        return ""


def _at_a_task(pid: int, since: float, unacked: int) -> Silence:
    """A worker that runs tasks itself and asks for none meanwhile: busy, for as long as one task may take."""
    reason = (
        f"{unacked} deliveries are unfinished"
        if unacked
        else "it runs tasks in its own process (pool solo) and has turned from the queue, as it does during a task"
    )
    limit = task_limit(pid)
    over = f", longer than a task may take ({limit:g} s)" if since > limit else ""
    return Silence(BUSY, f"busy since {since:.0f} s{over}: {reason}", pid, True, since, limit)


def task_limit(pid: int) -> float:
    """Seconds that a task of this worker may take: its ``--time-limit``, else ``TASK_LIMIT``."""
    words = processes.command_line(pid)
    for word, following in zip(words, [*words[1:], ""]):
        name, sign, value = word.partition("=")
        if name == "--time-limit":
            try:
                return max(1.0, float(value if sign else following))
            except ValueError:
                return TASK_LIMIT
    return TASK_LIMIT


def _port(entry: t.Mapping[str, str]) -> int:
    port = entry.get("addr", "").rpartition(":")[2]
    return int(port) if port.isdigit() else 0


def _in_process(pid: int) -> bool:
    """Whether a worker runs its tasks itself: it has no children, or says so on its command line (beat with -B is a
    child too).
    """
    return pid not in processes.parents().values() or any("solo" in word for word in processes.command_line(pid))
