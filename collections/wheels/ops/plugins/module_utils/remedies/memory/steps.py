# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The rungs of ``memory_trim``: what each is for, what it may give back at most, and how it is done.

Nothing is injected into a process: a debugger that called malloc_trim deadlocked 10 of 310 targets.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import signal
import time
import typing as t
from dataclasses import dataclass, field

from ...checks.memory import resident_bytes
from ...core import options, units
from ...core.results import OpsError, Result
from ...host import heap, memory_pressure, processes
from ...services import broker, redis_errors
from ...services.model import Manager, Service
from .. import service_restart
from .notes import Note


@dataclass
class Context:
    """What there is on the host."""

    services: t.Sequence[Service]
    control: t.Optional[Manager]
    base_url: str = ""
    token: str = ""
    application: str = ""
    redis_url: str = ""
    protect: t.AbstractSet[str] = frozenset()
    timeout: float = 30.0
    max_restarts: int = 3
    state_dir: str = ""

    @property
    def names(self) -> t.List[str]:
        return [service.name for service in self.services]

    def pids(self, name: str) -> t.Set[int]:
        """The processes of a service now; none while it does not run."""
        service = next(service for service in self.services if service.name == name)
        if self.control is None:
            return set()
        state = self.control.states([service.unit])[service.unit]
        return self.control.pids(state) if state.pid else set()  # one that is starting uses memory as well

    def of_type(self, kind: str, among: t.Sequence[str]) -> t.List[str]:
        return [service.name for service in self.services if service.gate.type == kind and service.name in among]

    def protected(self, name: str) -> bool:
        """Whether a service, by its name, its unit or one of its programs, is to be left alone."""
        service = next(service for service in self.services if service.name == name)
        words = {name, service.unit, service.unit.rpartition(".")[0]}
        return bool(words & self.protect) or any(processes.program(pid) in self.protect for pid in self.pids(name))


@dataclass
class Outcome:
    """What a rung says of itself. ``given_back``: bytes that the subject's share does not show. ``replaced``: a process
    was. ``whole``: all that could be replaced.
    """

    details: t.Dict[str, t.Any] = field(default_factory=dict)
    given_back: int = 0
    replaced: bool = False
    whole: bool = True


class Rung(abc.ABC):
    """One step of the ladder. ``bounded``: the prediction is an upper bound, so that a small one makes the step
    pointless. ``replaces``: it ends processes, so that it is a change even where it gives nothing back.
    """

    bounded = False
    replaces = False

    @abc.abstractmethod
    def targets(self, context: Context, among: t.Sequence[str]) -> t.List[str]:
        """What it can be applied to, of the services ``among``."""

    def predict(self, context: Context, target: str) -> int:
        """Bytes that it may give back; 0 where that cannot be known.

        Raises ``OpsError`` where the right to look is missing.
        """
        return 0

    def beside(self, context: Context, target: str) -> int:
        """Bytes that it may give back beside, which the subject's share does not show."""
        return 0

    def foresee(self, context: Context, target: str) -> None:
        """Raises ``OpsError`` where ``act`` would, as far as that shows without touching anything."""
        return

    def spent(self, note: Note, predicted: int, min_gain: int) -> str:
        """Why it is not taken again after the outcome ``note``, which is recent or from which the service has not
        grown; empty where it is.
        """
        return ""

    @abc.abstractmethod
    def act(self, context: Context, target: str, emergency: bool) -> Outcome:
        """Does it. Raises ``OpsError`` where it cannot be done; the next rung is tried then."""


def _heaps(pids: t.Iterable[int]) -> t.List[heap.Heap]:
    heaps = []
    for pid in pids:
        with contextlib.suppress(OSError):
            heaps.append(heap.look(pid))
    return heaps


def _cause(error: BaseException) -> str:
    """What lies at the bottom of an error of requests: its own text names objects in memory."""
    cause: t.Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


class Application(Rung):
    """Asks the application to trim itself: caches, garbage, malloc_trim."""

    bounded = True

    def targets(self, context: Context, among: t.Sequence[str]) -> t.List[str]:
        if not context.base_url:
            return []
        name = context.application or next(iter(context.of_type("http", context.names)), "")
        return [name or context.base_url] if not name or name in among else []

    def predict(self, context: Context, target: str) -> int:
        pids = context.pids(target) if target in context.names else set()
        heaps = _heaps(pids)
        if pids and not heaps and any(processes.hidden(pid, "smaps") for pid in pids):
            raise OpsError(
                f"What a trim of {target} could give back cannot be seen.",
                hint="Run as root, or as the user of the service.",
            )
        return sum(heap.trim_bound for heap in heaps)

    def _ask(self, context: Context, method: str, path: str) -> t.Any:
        """The answer. Raises ``OpsError`` where there is none, or where the token is refused."""
        import requests

        url = f"{context.base_url}/api/v1/system/{path}"
        options.url("base_url", context.base_url)
        try:
            answer = requests.request(method, url, headers={"X-Ops-Token": context.token}, timeout=context.timeout)
        except requests.RequestException as error:
            raise OpsError(
                f"The application does not answer at {context.base_url}: {_cause(error)}.", hint="Look whether it runs."
            ) from error
        if answer.status_code in (401, 403):
            raise OpsError(
                "The application refuses the ops token.",
                hint="Give the one that it was deployed with in token or token_file.",
            )
        return answer

    def foresee(self, context: Context, target: str) -> None:
        """Asks for what only the ops token shows, and changes nothing by it."""
        self._ask(context, "GET", "monitoring/status")

    def act(self, context: Context, target: str, emergency: bool) -> Outcome:
        answer = self._ask(context, "POST", "memory/optimize" + ("?force_aggressive=true" if emergency else ""))
        if answer.status_code >= 400:
            raise OpsError(
                f"The application answers {answer.status_code} to {answer.url}.",
                hint="Deploy the patched files, or look at its log.",
            )
        try:
            body = answer.json()
        except ValueError as error:
            raise OpsError(
                f"The application answers no JSON to {answer.url}.",
                hint="Deploy the patched files, or look at its log.",
            ) from error
        keys = ("rss_before", "rss_after", "freed_bytes", "pause_ms", "trimmed", "skipped", "type")
        return Outcome({"reported": {key: body[key] for key in keys if isinstance(body, dict) and key in body}})


class RedisPurge(Rung):
    """Has Redis give back pages that its allocator keeps: 231 to 140 MB in 23 ms after nine of ten keys
    were removed.
    """

    bounded = True

    def targets(self, context: Context, among: t.Sequence[str]) -> t.List[str]:
        names = context.of_type("redis", among)
        return names if names and context.redis_url else []

    def _memory(self, context: Context) -> t.Dict[str, t.Any]:
        import redis

        try:
            with contextlib.closing(broker.connect(context.redis_url, timeout=context.timeout)) as client:
                return t.cast(t.Dict[str, t.Any], client.info("memory"))
        except redis.exceptions.RedisError as error:
            raise redis_errors.explain(error, context.redis_url) from None

    def predict(self, context: Context, target: str) -> int:
        try:
            memory = self._memory(context)
        except OpsError:
            return 0
        return max(0, int(memory.get("used_memory_rss", 0)) - int(memory.get("used_memory", 0)))

    def act(self, context: Context, target: str, emergency: bool) -> Outcome:
        import redis

        before = int(self._memory(context)["used_memory_rss"])
        try:
            with contextlib.closing(broker.connect(context.redis_url, timeout=context.timeout)) as client:
                client.execute_command("MEMORY", "PURGE")
        except redis.exceptions.RedisError as error:
            cause = redis_errors.explain(error, context.redis_url)
            raise OpsError(f"Redis does not purge: {cause.message}", hint=cause.hint) from None
        # Redis looks at its own size ten times a second.
        after, deadline = before, time.monotonic() + 1.5
        while after >= before and time.monotonic() < deadline:
            time.sleep(0.1)
            after = int(self._memory(context)["used_memory_rss"])
        return Outcome({"rss_before": before, "rss_after": after}, given_back=before - after)


def _at_work(client: t.Any, pids: t.AbstractSet[int], timeout: float) -> t.Set[int]:
    """The children among ``pids`` that have a task now, by the word of their workers."""
    workers = broker.workers(
        client,
        timeout=min(3.0, timeout),
        wanted=lambda answers: any(stats.get("pid") in pids for stats in answers.values()),
    )
    nodes = [name for name, stats in workers.items() if stats.get("pid") in pids]
    if not nodes:
        raise OpsError("No worker of these processes answers.", hint="Look whether it runs.")
    answers = broker.workers(
        client,
        timeout=min(3.0, timeout),
        wanted=lambda answers: len(answers) == len(nodes),
        method="active",
        destination=nodes,
    )
    return {task["worker_pid"] for tasks in answers.values() for task in tasks if task.get("worker_pid") in pids}


class CeleryPool(Rung):
    """Replaces the idle child processes of a worker by fresh ones, by its own remote control.

    A child at work is left alone; no task is lost.
    """

    replaces = True

    def targets(self, context: Context, among: t.Sequence[str]) -> t.List[str]:
        return [
            name
            for name in context.of_type("celery", among)
            if not context.protected(name) and len(context.pids(name)) > 1
        ]

    def predict(self, context: Context, target: str) -> int:
        """Of the children without a task: those at work stay."""
        try:
            idle = self._idle(context, target)
        except OpsError:
            return 0  # nobody can be asked to replace them either
        return sum(heap.trim_bound + heap.other_anonymous for heap in _heaps(idle))

    def _idle(self, context: Context, target: str) -> t.Set[int]:
        """The children without a task. Raises ``OpsError`` where neither broker nor worker answers."""
        import redis

        parents = processes.parents()
        pids = context.pids(target)
        try:
            with contextlib.closing(self._connect(context, target)) as client:
                busy = _at_work(client, pids, context.timeout)
        except redis.exceptions.RedisError as error:
            raise redis_errors.explain(error, self._url(context, target)) from None
        except OpsError:
            raise OpsError(
                f"The worker {target} does not answer to remote control.", hint="Restart it: service_restart."
            ) from None
        return {pid for pid in pids - busy if parents.get(pid) in pids}

    def foresee(self, context: Context, target: str) -> None:
        if not self._idle(context, target):
            raise OpsError(
                f"No child of {target} could be replaced: all are at work.", hint="Run it again when tasks have ended."
            )

    def spent(self, note: Note, predicted: int, min_gain: int) -> str:
        if note.freed < min_gain or note.whole:
            return f"its idle children were replaced {note.when}, {units.readable(note.used_after)} measured after that"
        return ""

    def _connect(self, context: Context, target: str) -> t.Any:
        return broker.connect(self._url(context, target), timeout=context.timeout)

    def _url(self, context: Context, target: str) -> str:
        return next(service for service in context.services if service.name == target).gate.url or context.redis_url

    def act(self, context: Context, target: str, emergency: bool) -> Outcome:
        import redis

        try:
            with contextlib.closing(self._connect(context, target)) as client:
                return self._recycle(client, context, target)
        except redis.exceptions.RedisError as error:
            raise redis_errors.explain(error, self._url(context, target)) from None

    def _recycle(self, client: t.Any, context: Context, target: str) -> Outcome:
        pids = context.pids(target)

        def nodes() -> t.Dict[str, t.Dict[str, t.Any]]:
            answers = broker.workers(
                client,
                timeout=min(3.0, context.timeout),
                wanted=lambda found: any(s.get("pid") in pids for s in found.values()),
            )
            return {name: stats for name, stats in answers.items() if stats.get("pid") in pids}

        found = nodes()
        if not found:
            raise OpsError(
                f"The worker {target} does not answer to remote control.", hint="Restart it: service_restart."
            )
        busy = _at_work(client, pids, context.timeout)
        replaced: t.List[int] = []
        children = 0
        reason = ""
        for node, stats in found.items():
            before = set(stats.get("pool", {}).get("processes") or ())
            children += len(before)
            ended_pids: t.Set[int] = set()
            # One turn for each child without a task: a further one would only replace a new child.
            for _child in before - busy:
                for method in ("pool_grow", "pool_shrink"):
                    answer = broker.workers(
                        client,
                        timeout=min(5.0, context.timeout),
                        wanted=bool,
                        method=method,
                        arguments={"n": 1},
                        destination=[node],
                    )
                    reason = str(answer.get(node, {}).get("error", "")) or reason
                # The pool would choose the same child again until it has seen it end.
                count, deadline = len(ended_pids), time.monotonic() + min(10.0, context.timeout)
                while len(ended_pids) == count and not reason and time.monotonic() < deadline:
                    time.sleep(0.1)
                    ended_pids = {pid for pid in before if not os.path.exists(f"/proc/{pid}")}
                if len(ended_pids) == count:
                    break  # the others are at work
            settle(context.pids(target), min(_SETTLE, context.timeout))
            replaced += sorted(ended_pids)
        if not replaced:
            raise OpsError(
                f"No child of {target} could be replaced: {reason or 'all are at work'}.",
                hint="Run it again when tasks have ended.",
            )
        return Outcome({"replaced": replaced}, replaced=True, whole=len(replaced) == children)


class Reclaim(Rung):
    """Has a cgroup v2 give up file cache, and only that; it is counted apart, as MemAvailable and our percentage count
    such cache as free.
    """

    def _directory(self, context: Context, name: str) -> str:
        first = next(iter(sorted(context.pids(name))), None)
        return "" if first is None else memory_pressure.own_directory(first)

    def targets(self, context: Context, among: t.Sequence[str]) -> t.List[str]:
        usable = (name for name in among if not context.protected(name))
        return [
            name for name in usable if os.path.exists(f"{self._directory(context, name) or '/nowhere'}/memory.reclaim")
        ]

    def beside(self, context: Context, target: str) -> int:
        return memory_pressure.file_cache(self._directory(context, target))

    def foresee(self, context: Context, target: str) -> None:
        directory = self._directory(context, target)
        _require_cache(directory)
        if not os.access(f"{directory}/memory.reclaim", os.W_OK):
            raise OpsError(
                f"{directory}/memory.reclaim cannot be written: Permission denied.", hint="Run as root (become: true)."
            )

    def act(self, context: Context, target: str, emergency: bool) -> Outcome:
        return reclaim(self._directory(context, target))


def _require_cache(directory: str) -> int:
    """The clean file cache of a cgroup in bytes. Raises ``OpsError`` where it is not worth a call."""
    amount = memory_pressure.file_cache(directory)
    if amount < 1 << 20:
        raise OpsError(f"{directory} holds no file cache.", hint="There is nothing to reclaim.")
    return amount


def reclaim(directory: str, *, proc: str = "/proc") -> Outcome:
    """Reclaims the clean file cache of one cgroup directory.

    Raises ``OpsError`` where the kernel would swap out instead.
    """
    amount, anonymous = _require_cache(directory), memory_pressure.anonymous(directory)
    requests = [f"{amount} swappiness=0"]
    if not memory_pressure.swap_total(proc):
        requests.append(
            str(amount)
        )  # without swap nothing else than cache can go, and older kernels do not know swappiness here
    reason = ""
    for text in requests:
        try:
            descriptor = os.open(f"{directory}/memory.reclaim", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OpsError(
                f"{directory}/memory.reclaim cannot be written: {error.strerror}.", hint="Run as root (become: true)."
            ) from None
        try:
            # A buffered write would swallow the kernel's answer.
            os.write(descriptor, text.encode())
            reason = ""
            break
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            if error.errno == errno.EAGAIN:
                reason = ""  # it could not reclaim all of it: what it did is measured
                break
            if error.errno != errno.EINVAL:
                break
        finally:
            os.close(descriptor)
    if reason:
        raise OpsError(
            f"The kernel does not reclaim from {directory}: {reason}.",
            hint="Where there is swap, a kernel is needed that takes swappiness in memory.reclaim.",
        )
    freed = amount - memory_pressure.file_cache(directory)
    return Outcome(
        {"cache_bytes_freed": freed, "anonymous_bytes": anonymous - memory_pressure.anonymous(directory)},
        given_back=freed,
    )


class Recycle(Rung):
    """Ends the largest worker of a server that replaces its workers (gunicorn, uvicorn --workers), gracefully and one
    at a time.

    It is the only cure for memory that small objects hold in part: a trim gives back 0 to 1 % of that.
    """

    replaces = True

    def _workers(self, context: Context, name: str) -> t.List[int]:
        pids = context.pids(name)
        parents = processes.parents()
        masters = {
            pid
            for pid in pids
            if any(os.path.basename(word) in ("gunicorn", "uvicorn") for word in processes.command_line(pid)[:3])
        }
        children = [
            pid
            for pid in pids
            if parents.get(pid) in masters
            and not any("resource_tracker" in word for word in processes.command_line(pid))
        ]
        return children if len(children) > 1 else []  # the only one is not ended: nobody would serve meanwhile

    def targets(self, context: Context, among: t.Sequence[str]) -> t.List[str]:
        return [name for name in among if not context.protected(name) and self._workers(context, name)]

    def _worst(self, context: Context, target: str) -> int:
        return max(self._workers(context, target), key=lambda pid: resident_bytes([pid]), default=0)

    def predict(self, context: Context, target: str) -> int:
        sizes = sorted(resident_bytes([pid]) for pid in self._workers(context, target))
        return sizes[-1] - sizes[0] if sizes else 0

    def foresee(self, context: Context, target: str) -> None:
        worst = self._worst(context, target)
        try:
            if worst:
                os.kill(worst, 0)  # no signal: only whether one could be sent
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise _not_ours(worst) from error

    def spent(self, note: Note, predicted: int, min_gain: int) -> str:
        # The smallest worker is a fresh one since then: no other would give back more than what it is larger.
        if note.freed < min_gain or predicted < min_gain:
            return f"its largest worker was replaced {note.when}, {units.readable(note.used_after)} measured after that"
        return ""

    def act(self, context: Context, target: str, emergency: bool) -> Outcome:
        worst = self._worst(context, target)
        if not worst:
            raise OpsError(
                f"{target} has no worker that its server would replace.", hint="Restart it: allow_restart: true."
            )
        before = set(self._workers(context, target))
        size = resident_bytes([worst])
        end_gracefully(worst, context.timeout)
        deadline = time.monotonic() + context.timeout
        while len(self._workers(context, target)) < len(before):
            if time.monotonic() > deadline:
                raise OpsError(
                    f"{target} did not replace worker {worst} within {context.timeout:g} s.", hint="Look at its log."
                )
            time.sleep(0.1)
        new = sorted(set(self._workers(context, target)) - before)
        settle(new, min(_SETTLE, context.timeout))
        return Outcome({"worker": worst, "worker_bytes": size, "new": new}, replaced=True)


#: At most so many seconds are waited until a new process has loaded its program; before, it looks smaller than it is.
_SETTLE = 10.0


def settle(pids: t.Collection[int], timeout: float) -> None:
    """Waits until the memory of new processes has stayed within 256 KiB for a second, at most ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    size, since = resident_bytes(pids), time.monotonic()
    while time.monotonic() < min(deadline, since + 1.0):
        time.sleep(0.1)
        now = resident_bytes(pids)
        if abs(now - size) > 256 * 1024:
            size, since = now, time.monotonic()


def end_gracefully(pid: int, timeout: float) -> None:
    """SIGTERM to one process by a handle that cannot mean another; waits until it is gone.

    Raises ``OpsError`` where it stays.
    """
    import select

    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not select.select([handle], [], [], timeout)[0]:
            raise OpsError(
                f"Process {pid} did not end within {timeout:g} s of SIGTERM.",
                hint="It is finishing its work. It is not killed.",
            )
    except PermissionError as error:
        raise _not_ours(pid) from error
    finally:
        os.close(handle)


def _not_ours(pid: int) -> OpsError:
    return OpsError(f"Process {pid} is not ours to end.", hint="Run as root or as its user.")


class Restart(Rung):
    """Restarts a service behind its gate, within the budget of restarts. The last rung."""

    replaces = True

    def targets(self, context: Context, among: t.Sequence[str]) -> t.List[str]:
        usable = [name for name in among if not context.protected(name) and context.pids(name)]
        return sorted(usable, key=lambda name: -resident_bytes(context.pids(name)))[:1]

    def predict(self, context: Context, target: str) -> int:
        return sum(heap.trim_bound + heap.other_anonymous for heap in _heaps(context.pids(target)))

    def _restart(self, context: Context, target: str, *, check_mode: bool) -> Result:
        if context.control is None:
            raise OpsError("There is no service manager.", hint="Give service_manager.")
        options = service_restart.Options(
            only=(target,),
            with_dependents=False,
            max_restarts=context.max_restarts,
            reason="memory above the last tier",
            state_dir=context.state_dir,
        )
        return service_restart.run(context.services, context.control, options, check_mode=check_mode)

    def foresee(self, context: Context, target: str) -> None:
        """Its budget, a start limit, tasks that would be lost: what refuses a restart refuses its prediction."""
        self._restart(context, target, check_mode=True)

    def spent(self, note: Note, predicted: int, min_gain: int) -> str:
        return f"{units.readable(note.used_after)} measured after its restart {note.when}"

    def act(self, context: Context, target: str, emergency: bool) -> Outcome:
        result = self._restart(context, target, check_mode=False)
        return Outcome(
            {"restarted": [action["target"] for action in result.actions if action.get("changed")]}, replaced=True
        )


RUNGS: t.Dict[str, Rung] = {
    "application": Application(),
    "redis": RedisPurge(),
    "celery": CeleryPool(),
    "reclaim": Reclaim(),
    "recycle": Recycle(),
    "restart": Restart(),
}
