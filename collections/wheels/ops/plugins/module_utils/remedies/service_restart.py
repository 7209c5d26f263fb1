# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Restarts services in order: each waits until the one below it does its work, nothing that waits in a
queue is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import typing as t
from dataclasses import dataclass, field, replace

from ..core.options import choice, choices, in_range, no_empty_entry
from ..core.results import OpsError, Result
from ..host import processes
from ..services import broker, failure_causes, gates, redis_config, redis_errors
from ..services.model import Manager, Service, ServiceState
from ..state import deployments, restarts
from .restart_plan import REASONS, Step, dependents, plan

#: Programs that keep queues in memory, by the kernel's name of them.
_SERVERS = frozenset({"redis-server", "valkey-server", "keydb-server"})


@dataclass(frozen=True)
class Options:
    """How a run behaves; times are seconds.

    ``wait_timeout``: for the manager to stop or start one service. ``wait_sleep``: between two probes of a gate.
    ``min_healthy_time``: a gate has to hold this long without a break. ``healthy_deadline``: from the start of a
    service until it did. ``max_restarts`` in ``window`` and ``cooldown`` bound restarts of one service over all runs; 0
    turns either off. ``daemon_reload``: definitions that were changed on disk are read before a service of theirs is
    restarted; without it such a restart is refused.
    """

    state: str = "restarted"
    only: t.Tuple[str, ...] = ()
    only_if: t.Tuple[str, ...] = ()
    with_dependents: bool = True
    daemon_reload: bool = True
    wait_timeout: float = 120.0
    wait_sleep: float = 0.5
    min_healthy_time: float = 3.0
    healthy_deadline: float = 60.0
    max_restarts: int = 3
    window: float = 3600.0
    cooldown: float = 0.0
    allow_task_loss: bool = False
    queues: t.Tuple[str, ...] = broker.QUEUES
    log_lines: int = 20
    reason: str = ""
    state_dir: str = ""


def options_of(params: t.Mapping[str, t.Any]) -> Options:
    """The options among a caller's parameters; what is None keeps its default, lists become tuples."""
    values: t.Dict[str, t.Any] = {
        key: params[key] for key in Options.__dataclass_fields__ if params.get(key) is not None
    }
    values.update({key: tuple(value) for key, value in values.items() if isinstance(value, list)})
    return Options(**values)


_RANGES: t.Tuple[t.Tuple[str, float, float], ...] = (
    ("wait_timeout", 1, 3600),
    ("wait_sleep", 0.01, 60),
    ("min_healthy_time", 0, 600),
    ("healthy_deadline", 1, 3600),
    ("max_restarts", 0, 1000),
    ("window", 1, 30 * 86400),
    ("cooldown", 0, 86400),
    ("log_lines", 0, 1000),
)
_COUNTS = ("max_restarts", "log_lines")


def run(services: t.Sequence[Service], control: Manager, options: Options, *, check_mode: bool = False) -> Result:
    """Plans and carries out one run; see ``restart_plan.plan`` for the order and the module's documentation for the
    result.

    Raises ``OpsError`` before anything was touched where the plan is not allowed, and after it where a service does not
    get healthy; then what was paused and can run runs again, and ``details`` carries ``actions``, ``last_state``,
    ``last_probe`` and ``log``.
    """
    _validate(options, services)
    book = restarts.Ledger(restarts.state_dir(options.state_dir))
    if check_mode:
        restarts.require_writable(restarts.state_dir(options.state_dir))
    with contextlib.nullcontext() if check_mode else book.locked():
        result = _Run(services, control, options, book).carry_out(check_mode)
    if book.damaged:
        result.warnings.append(
            f"{book.damaged} lines of {book.path} are damaged and were passed over: a restart in one of them is not"
            " counted."
        )
    return result


def _validate(options: Options, services: t.Sequence[Service] = ()) -> None:
    for name, low, high in _RANGES:
        in_range(name, getattr(options, name), low, high, unit="" if name in _COUNTS else "seconds")
    if options.healthy_deadline < options.min_healthy_time:
        raise OpsError("healthy_deadline is shorter than min_healthy_time.", hint="No service could ever pass.")
    for service in services:
        holds = options.min_healthy_time if service.gate.min_healthy_time is None else service.gate.min_healthy_time
        within = options.healthy_deadline if service.gate.healthy_deadline is None else service.gate.healthy_deadline
        if within < holds:
            raise OpsError(
                f"{service.name} has {within:g} s (healthy_deadline) for a gate that has to hold for {holds:g} s"
                " (min_healthy_time).",
                hint="It could never pass: give it a longer healthy_deadline.",
            )
    no_empty_entry("queues", options.queues, hint="Name Celery queues, for example celery.")
    choice("state", options.state, ("restarted", "started"))
    if options.only_if:
        choices("only_if", options.only_if, REASONS)


@dataclass
class _Run:
    services: t.Sequence[Service]
    control: Manager
    options: Options
    book: restarts.Ledger
    actions: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    paused: t.List[Service] = field(default_factory=list)
    tasks: t.Dict[str, t.Any] = field(default_factory=dict)
    outlooks: t.Dict[str, redis_config.Outlook] = field(default_factory=dict)
    warnings: t.List[str] = field(default_factory=list)
    #: unit -> instance before anything was done, and, by the service, at the moment when a step on it began.
    first: t.Dict[str, str] = field(default_factory=dict)
    marks: t.Dict[str, t.Dict[str, str]] = field(default_factory=dict)

    def states(self) -> t.Dict[str, ServiceState]:
        return self.control.states(list(dict.fromkeys(service.unit for service in self.services)))

    def carry_out(self, check_mode: bool) -> Result:
        before = self.states()
        steps = self.plan(before)
        self.allowed(steps)
        stores = [step for step in steps if step.service.gate.type == "redis" and step.action == "restart"]
        for step in stores:
            self.foresee_loss(step.service, before[step.service.unit])
        for step in steps:
            self.name_uncounted(step, before[step.service.unit])
        self.reload(steps, before, check_mode)
        if check_mode:
            for step in steps:
                self.resume_stopped(step, before[step.service.unit], check_mode=True)
                self.actions.append(self.describe(step, before[step.service.unit], changed=True))
            return self.result(before, self.predicted(before, steps), bool(steps), check_mode)
        self.first = {unit: state.instance for unit, state in before.items()}
        try:
            for step in steps:
                self.take(step)
        except OpsError as error:
            restored = self.resume()
            after = self.states()
            details = {
                **error.details,
                **self.result(before, after, any(entry["changed"] for entry in self.actions), check_mode).as_dict(),
                "resumed": restored,
            }
            details.pop("msg")
            raise OpsError(error.message, hint=error.hint, **details) from error
        return self.result(before, self.states(), bool(steps), check_mode)

    def plan(self, states: t.Mapping[str, ServiceState]) -> t.List[Step]:
        options = self.options
        return plan(
            self.services,
            states,
            state=options.state,
            targets=options.only,
            only_if=options.only_if,
            unhealthy=self.unhealthy(states) if "unhealthy" in options.only_if else {},
            stale=self.stale(states) if "stale" in options.only_if else {},
            with_dependents=options.with_dependents,
        )

    def reload(self, steps: t.Sequence[Step], states: t.Mapping[str, ServiceState], check_mode: bool) -> None:
        """Lets the manager read definitions that were changed on disk, before a service is started by one of them."""
        acted = {step.service.name for step in steps}
        outdated = [service for service in self.services if states[service.unit].outdated]
        if not acted & {service.name for service in outdated}:
            for service in outdated:
                self.warnings.append(
                    f"The definition of {service.name} was changed on disk; {self.control.name} still goes by the old"
                    " one, until it is restarted."
                )
            return
        names = ", ".join(service.name for service in outdated)
        if not self.options.daemon_reload:
            first = next(service for service in outdated if service.name in acted)
            raise OpsError(
                f"{first.name} would be restarted by its old definition: the one on disk was changed since"
                f" {self.control.name} read it.",
                hint="Set daemon_reload to true, or run systemctl daemon-reload.",
                service=first.name,
                blocked_reason="its definition was changed on disk",
                changed=False,
            )
        self.actions.append(
            {
                "action": "daemon_reload",
                "target": self.control.name,
                "changed": True,
                "reason": f"the definition of {names} was changed on disk",
            }
        )
        if not check_mode:
            self.control.reload()

    def unhealthy(self, states: t.Mapping[str, ServiceState]) -> t.Dict[str, str]:
        """Services whose gate does not hold now: two probes, so that one dropped packet restarts nothing."""
        reasons = {}
        for service in self.services:
            state = states[service.unit]
            if not state.exists:
                continue
            observation = gates.probe(service, state, self.control)
            if not observation.ready:
                time.sleep(self.options.wait_sleep)
                observation = gates.probe(service, self.control.states([service.unit])[service.unit], self.control)
            if observation.unfinished:
                self.warnings.append(f"{service.name} is not restarted for its silence: {observation.why}.")
            elif not observation.ready:
                reasons[service.name] = f"its gate does not hold: {observation.why}"
        return reasons

    def stale(self, states: t.Mapping[str, ServiceState]) -> t.Dict[str, str]:
        """Services that run on older files than there are now."""
        reasons = {}
        for service in self.services:
            if states[service.unit].outdated and states[service.unit].up:
                reasons[service.name] = f"its definition was changed on disk since {self.control.name} read it"
                continue
            begun = processes.start_time(states[service.unit].pid) if states[service.unit].pid else None
            if begun is None:
                continue
            for path in service.watch_files:
                with contextlib.suppress(OSError):
                    # ctime: a file that is copied with its old mtime is new here all the same.
                    if max(os.stat(path).st_mtime, os.stat(path).st_ctime) > begun:
                        reasons[service.name] = f"{path} is newer than its process"
        return reasons

    def allowed(self, steps: t.Sequence[Step]) -> None:
        """A missing right, budget, cool-down and a second beat stop a run before it touches anything."""
        if steps:
            self.control.require_right()
        for step in steps:
            if step.action in ("restart", "start"):
                why = self.book.blocked(
                    step.service.name,
                    max_restarts=self.options.max_restarts,
                    window=self.options.window,
                    cooldown=self.options.cooldown,
                )
                if why and self.options.state == "restarted":
                    raise OpsError(
                        f"{step.service.name} is not restarted: {why}.",
                        hint="Find out why it needs restarts. To go on all the same: max_restarts=0 and cooldown=0.",
                        service=step.service.name,
                        blocked_reason=why,
                        changed=False,
                    )
                self.start_delay(step.service)
                if step.service.gate.type == "beat":
                    self.refuse_second_beat(step.service)

    def refuse_second_beat(self, service: Service) -> None:
        state = self.control.states([service.unit])[service.unit]
        members = self.control.pids(state) if state.pid else set()
        others = gates.foreign_beats(service, members, self.control.definition(state))
        if others:
            names = ", ".join(f"process {pid} ({' '.join(words)[:120]})" for pid, words in others.items())
            raise OpsError(
                f"A beat runs already outside of {service.name}: {names}.",
                hint=(
                    "Stop it, or give app in the gate where it belongs to another application. Two beats send every"
                    " periodic task twice."
                ),
                service=service.name,
                blocked_reason="a second beat",
                changed=False,
            )

    def foresee_loss(self, service: Service, state: ServiceState) -> None:
        """Refuses to restart a Redis that would forget tasks."""
        import redis

        try:
            with contextlib.closing(broker.connect(service.gate.url, timeout=service.gate.timeout)) as client:
                client.ping()  # the gate will ask the same
                waiting = broker.count_tasks(client)
                why = broker.why_not_kept(broker.persistence(client))
                self.outlooks[service.name] = redis_config.outlook(
                    client, self.control.pids(state) if state.pid else set()
                )
        except redis.exceptions.RedisError as error:
            cause = redis_errors.explain(error, service.gate.url)
            if self.options.allow_task_loss:
                self.tasks[service.name] = {"before": None, "after": None, "unknown": cause.message}
                return
            hint = cause.hint
            if not redis_errors.answered(error):
                hint = (
                    "Find out why (its log, the url of its gate). Where it is past saving, allow_task_loss restarts it;"
                    " what is not on disk is lost then."
                )
            raise OpsError(
                f"{service.name} is not restarted, as what waits in it cannot be counted: {cause.message}",
                hint=hint,
                service=service.name,
                blocked_reason="tasks cannot be counted",
                changed=False,
                **cause.details,
            ) from None
        self.tasks[service.name] = {"before": waiting, "after": None}
        outlook = self.outlooks[service.name]
        if outlook.unknown and sum(waiting.values()):
            self.warnings.append(
                f"What {service.name} runs with could not be compared with what it will start with: {outlook.unknown}."
            )
        for name, (now, then) in outlook.differences.items():
            self.warnings.append(
                f"{service.name} runs with {name} {now!r}; its configuration file says {then!r}, which counts from its"
                " restart on."
            )
        why = why or outlook.why_lost()
        if why and sum(waiting.values()) and not self.options.allow_task_loss:
            raise self.loss(service, waiting, why)

    def name_uncounted(self, step: Step, state: ServiceState) -> None:
        """Warns of a Redis whose gate is of another type: nobody can ask it what waits in it."""
        if step.action != "restart" or step.service.gate.type == "redis" or not state.pid:
            return
        names = {processes.program(pid) for pid in self.control.pids(state)} & _SERVERS
        if names:
            self.warnings.append(
                f"{step.service.name} runs {', '.join(sorted(names))} behind a gate of type {step.service.gate.type}:"
                " what waits in it is not counted before its restart. Give it a gate of type redis."
            )

    def loss(self, service: Service, waiting: t.Mapping[str, int], why: str) -> OpsError:
        """The refusal, with what would be lost: database, key and count, never what is in it."""
        largest = sorted(
            ((name, count) for name, count in waiting.items() if count), key=lambda entry: (-entry[1], entry[0])
        )
        names = ", ".join(f"{name}: {count}" for name, count in largest[:10]) + (
            f" and {len(largest) - 10} more" if len(largest) > 10 else ""
        )
        return OpsError(
            f"Restarting {service.name} would lose {sum(waiting.values())} queued tasks ({names}): {why}.",
            hint=(
                "Turn on appendonly or save by CONFIG SET and in its file, let the workers empty the queues, or set"
                " allow_task_loss."
            ),
            service=service.name,
            blocked_reason=why,
            queued_tasks=dict(waiting),
            changed=False,
        )

    def describe(self, step: Step, state: ServiceState, *, changed: bool) -> t.Dict[str, t.Any]:
        return {
            "action": step.action,
            "target": step.service.name,
            "unit": step.service.unit,
            "changed": changed,
            "reason": step.reason,
            "gate": step.service.gate.type,
            "instance_before": state.instance,
            "instance_after": None,
            "propagated": None,
            "duration_ms": None,
            "ms_to_ready": None,
            "gate_attempts": None,
        }

    def take(self, step: Step) -> None:
        """One step, and its gate."""
        service, options = step.service, self.options
        state = self.control.states([service.unit])[service.unit]
        self.resume_stopped(step, state, check_mode=False)
        entry = self.describe(step, state, changed=False)
        self.actions.append(entry)
        start = time.monotonic()
        if step.action == "pause":
            self.paused.append(service)
            entry["changed"] = True
            self.control.stop(service.unit, options.wait_timeout)
            entry["duration_ms"] = round((time.monotonic() - start) * 1000, 1)
            return
        state, old = self.propagated(step, state)
        propagated = entry["propagated"] = old != state.instance
        entry["instance_before"] = old
        if service.gate.type == "beat":
            self.refuse_second_beat(service)
        self.marks[service.name] = {unit: other.instance for unit, other in self.states().items()}
        time.sleep(0.0 if propagated else self.start_delay(service))
        if service.gate.type == "redis" and step.action == "restart":
            entry["persisted"] = self.persist(service)
        self.book.add(
            event="begin",
            service=service.name,
            unit=service.unit,
            action=step.action,
            reason=options.reason or step.reason,
            instance_before=old,
            planned=True,
        )
        entry["changed"] = True
        start = time.monotonic()
        try:
            if propagated:
                pass  # only its gate is waited for
            elif step.action == "restart":
                self.control.restart(service.unit, options.wait_timeout)
            else:
                self.control.start(service.unit, options.wait_timeout)
            self.paused = [other for other in self.paused if other is not service]
            passed = gates.wait_healthy(
                service,
                self.control,
                wait_sleep=options.wait_sleep,
                log_lines=options.log_lines,
                min_healthy_time=options.min_healthy_time,
                healthy_deadline=options.healthy_deadline,
            )
        except OpsError as error:
            entry["failed"] = error.message
            with contextlib.suppress(OpsError):  # its manager may be what went away
                now = self.control.states([service.unit])[service.unit]
                # What its manager refused to do changed nothing. One that was down may have been started and have died:
                # that counts.
                entry["changed"] = not old or now.instance != old
            outcome = "failed" if entry["changed"] else restarts.REFUSED
            self.book.add(event="end", service=service.name, outcome=outcome, message=error.message)
            error.details.setdefault("service", service.name)
            error.details.setdefault("log", gates.tail(self.control, service.unit, options.log_lines))
            if not isinstance(error, gates.NotHealthy):  # its manager gave up before its gate was asked
                cause = failure_causes.explain(error.details["log"], port=gates.port_of(service.gate))
                error.message = f"{error.message} {cause}".rstrip()
                error.hint = f"{error.hint} {failure_causes.last_lines(error.details['log'])}".strip()
            self._name_drift(error)
            raise
        entry.update(
            instance_after=passed.state.instance,
            duration_ms=round((time.monotonic() - start) * 1000, 1),
            ms_to_ready=passed.ms_to_ready,
            gate_attempts=passed.attempts,
            answer=passed.seen.answer,
        )
        self.book.add(
            event="end",
            service=service.name,
            outcome="healthy",
            instance_after=passed.state.instance,
            ms_to_ready=passed.ms_to_ready,
        )
        if passed.state.outdated:
            raise OpsError(
                f"{service.name} runs by an old definition: the one on disk was changed while it was restarted.",
                hint="Wait until the host is not changed any more, and run it again.",
                service=service.name,
            )
        if step.action == "restart" and old and passed.state.instance == old:
            raise OpsError(
                f"{service.name} still runs as the old instance.",
                hint="Its manager did not restart it; look at its log.",
                service=service.name,
            )
        if service.name in self.tasks and service.gate.type == "redis":
            self.count_again(service)
        elif service.name in self.tasks:
            self.tasks[service.name]["after"] = self.count_of(service)

    def _name_drift(self, error: OpsError) -> None:
        """Says which files of a deployment were changed or deleted since, as one of them may be the reason."""
        try:
            changed = deployments.drifted(deployments.Journal(str(restarts.state_dir(self.options.state_dir))))
        except (OpsError, OSError):
            return  # the failure itself matters more
        if changed:
            missing = sum(not os.path.lexists(path) for path in changed)
            words = f"{len(changed)} files of the deployment were changed since, {missing} of them deleted"
            error.hint = (
                f"{error.hint} {words}: {', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}."
                " deploy installs them again, with wheels_ops_force=true those that somebody changed."
            ).strip()
            error.details.setdefault("drifted", changed)

    def resume_stopped(self, step: Step, state: ServiceState, *, check_mode: bool) -> None:
        """Continues a worker that a signal has stopped, and waits until it answers, before it is ended.

        Redis has given a task to a worker that was waiting for one, though it cannot read it: ended as it is, that task
        is nowhere. What it reads when it goes on it finishes in its warm shutdown.
        """
        service = step.service
        if service.gate.type != "celery" or step.action not in ("pause", "restart") or not state.pid:
            return
        stopped = [pid for pid in sorted(self.control.pids(state)) if processes.is_stopped(pid)]
        if not stopped:
            return
        names = ", ".join(map(str, stopped))
        reason = f"{'processes' if len(stopped) > 1 else 'process'} {names} stopped by a signal (SIGSTOP)"
        self.actions.append(
            {
                "action": "continue",
                "target": service.name,
                "unit": service.unit,
                "changed": True,
                "reason": reason,
            }
        )
        loss = "A task that Redis has given it and that it has not read is counted nowhere, and is lost if it does not."
        if check_mode:
            self.warnings.append(f"{service.name} would be continued before it is ended: {reason}. {loss}")
            return
        self.tasks[service.name] = {"before": self.count_of(service), "after": None}
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                try:
                    os.kill(pid, signal.SIGCONT)
                except PermissionError:
                    raise OpsError(
                        f"{service.name} is not restarted, as process {pid} may not be continued before.",
                        hint=f"Run as root (become: true). {loss}",
                        service=service.name,
                    ) from None
        deadline = time.monotonic() + min(self.options.wait_timeout, self.options.healthy_deadline)
        while True:
            probe = gates.probe(service, self.control.states([service.unit])[service.unit], self.control)
            if probe.ready:
                return
            if time.monotonic() > deadline:
                self.warnings.append(f"{service.name} was continued, but does not answer: {probe.why}. {loss}")
                return
            time.sleep(self.options.wait_sleep)

    def count_of(self, service: Service) -> t.Optional[t.Dict[str, int]]:
        """What waits in the broker of a worker; None where it does not say."""
        import redis

        try:
            with contextlib.closing(broker.connect(service.gate.url, timeout=service.gate.timeout)) as client:
                return broker.waiting_tasks(client, broker.queues(client, self.options.queues))
        except redis.exceptions.RedisError:
            return None

    def propagated(self, step: Step, state: ServiceState) -> t.Tuple[ServiceState, str]:
        """The state of a service, and the instance that this run has to replace.

        They differ where systemd has restarted it by itself, with something that this run acted on before (``PartOf``,
        ``Requires``, ``BindsTo``): a second restart would end what has just begun.
        """
        service = step.service
        if step.action != "restart" or not self.marks or not self.control.name.startswith("systemd"):
            return state, state.instance
        deadline = time.monotonic() + self.options.wait_timeout
        while not state.settled and not state.state.endswith("auto-restart") and time.monotonic() < deadline:
            time.sleep(self.options.wait_sleep)
            state = self.control.states([service.unit])[service.unit]
        below = [name for name in self.marks if service.name in dependents(self.services, [name])]
        old = (self.marks[below[-1]] if below else self.first).get(service.unit, "")
        return state, old if state.instance and old else state.instance

    def start_delay(self, service: Service) -> float:
        """Seconds until its manager allows a start; refuses where waiting would take too long.

        At the limit of systemd a service stays down.
        """
        delay = self.control.start_delay(service.unit)
        if delay > self.options.wait_timeout:
            raise OpsError(
                f"{service.name} was started so often that its manager would refuse; it is free again in"
                f" {delay:.0f} s.",
                hint="Find out why it needs restarts, or raise wait_timeout.",
                service=service.name,
                blocked_reason="start limit of systemd",
                changed=False,
            )
        return delay

    def persist(self, service: Service) -> t.Dict[str, t.Any]:
        """Counts what waits, now that nobody takes from it, brings it to disk, and sets the dump aside: a start that
        reads something else replaces it at its next save.
        """
        import redis

        outlook = self.outlooks.get(service.name, redis_config.Outlook(unknown="it could not be asked"))
        try:
            with contextlib.closing(broker.connect(service.gate.url, timeout=max(5.0, service.gate.timeout))) as client:
                self.tasks[service.name]["before"] = broker.count_tasks(client)
                outcome = broker.persist(client, timeout=self.options.wait_timeout, dump=not outlook.certain)
        except (OpsError, redis.exceptions.RedisError) as error:
            cause = error if isinstance(error, OpsError) else redis_errors.explain(error, service.gate.url)
            waiting = self.tasks[service.name].get("before")
            if not self.options.allow_task_loss and (waiting is None or sum(waiting.values())):
                raise OpsError(
                    f"{service.name} is not restarted, as its data could not be brought to disk first: {cause.message}",
                    hint=cause.hint,
                    service=service.name,
                    blocked_reason="not persisted",
                    queued_tasks=waiting,
                ) from None
            outcome = {"method": "none", "why": cause.message}
        return {**outcome, **outlook.as_dict(), **self.set_aside(service, outlook, needed="rdb" in outcome["method"])}

    def set_aside(self, service: Service, outlook: redis_config.Outlook, *, needed: bool) -> t.Dict[str, str]:
        """The copy of the dump (``dump_copy``), or why there is none (``not_copied``, a warning where
        there is a dump).
        """
        directory, name = outlook.running.get("dir", ""), outlook.running.get("dbfilename", "")
        if not directory or not (needed or os.path.lexists(f"{outlook.root}{directory}/{name}")):
            return {"dump_copy": ""}
        try:
            return {"dump_copy": redis_config.set_aside(directory, name, root=outlook.root)}
        except OpsError as error:
            self.warnings.append(f"The dump of {service.name} was not set aside before its restart: {error.message}")
            return {"dump_copy": "", "not_copied": error.message}

    def count_again(self, service: Service) -> None:
        import redis

        counts = self.tasks[service.name]
        try:
            with contextlib.closing(broker.connect(service.gate.url, timeout=max(5.0, service.gate.timeout))) as client:
                counts["after"] = broker.count_tasks(client)
                queues = {broker.printable(name) for name in broker.queues(client, self.options.queues)}
        except redis.exceptions.RedisError as error:
            cause = redis_errors.explain(error, service.gate.url)
            raise OpsError(
                f"What waits in {service.name} could not be counted after its restart: {cause.message}",
                hint=cause.hint,
                service=service.name,
            ) from None
        if counts["before"] is None:
            return
        lost = count_lost(counts["before"], counts["after"], queues)
        if lost > 0 and not self.options.allow_task_loss:
            copy = next(
                (
                    entry["persisted"].get("dump_copy")
                    for entry in self.actions
                    if entry["target"] == service.name and "persisted" in entry
                ),
                "",
            )
            raise OpsError(
                f"{service.name} came back with {lost} tasks less than it had.",
                hint=(
                    "Its data file was not read: look at its dir and dbfilename, and at the dump that was written"
                    " before the restart"
                )
                + (f" ({copy})." if copy else "."),
                service=service.name,
                queued_tasks=dict(counts),
            )

    def resume(self) -> t.List[str]:
        """After a failure: what was paused and is still down is started again, without its gate.

        A forgotten beat is worse than a failing one.
        """
        resumed = []
        for service in reversed(self.paused):
            try:
                if service.gate.type == "beat":
                    self.refuse_second_beat(service)
                self.control.start(service.unit, self.options.wait_timeout)
                resumed.append(service.name)
                self.actions.append(
                    {
                        "action": "resume",
                        "target": service.name,
                        "unit": service.unit,
                        "changed": True,
                        "reason": "it was paused",
                    }
                )
            except OpsError as error:
                self.actions.append(
                    {
                        "action": "resume",
                        "target": service.name,
                        "unit": service.unit,
                        "changed": False,
                        "failed": error.message,
                    }
                )
        return resumed

    def predicted(self, before: t.Mapping[str, ServiceState], steps: t.Sequence[Step]) -> t.Dict[str, ServiceState]:
        """The states that a real run would leave: what is acted on runs as a new instance, which has no name yet."""
        units = {step.service.unit for step in steps}
        reloaded = any(entry["action"] == "daemon_reload" for entry in self.actions)
        now = {unit: replace(state, outdated=state.outdated and not reloaded) for unit, state in before.items()}
        return {
            unit: (
                replace(state, running=True, state="running", instance="(new)", pid=0, uptime_s=0.0)
                if unit in units
                else state
            )
            for unit, state in now.items()
        }

    def result(
        self, before: t.Mapping[str, ServiceState], after: t.Mapping[str, ServiceState], changed: bool, check_mode: bool
    ) -> Result:
        acted = [entry for entry in self.actions if entry["action"] in ("restart", "start")]
        names = ", ".join(f"{entry['target']} ({entry['action']})" for entry in acted)
        would = "would be acted on" if check_mode else "healthy"
        return Result(
            changed=changed,
            before={service.name: before[service.unit].as_dict() for service in self.services},
            after={service.name: after[service.unit].as_dict() for service in self.services},
            actions=self.actions,
            msg=(
                f"{len(acted)} services {would}: {names}."
                if acted
                else "Nothing to do: no service needs to be acted on."
            ),
            diff=[
                {
                    "before_header": "services",
                    "after_header": "services",
                    "before": _text(self.services, before),
                    "after": _text(self.services, after),
                }
            ],
            extra={
                "manager": self.control.name,
                "queued_tasks": self.tasks,
                "order": [entry["target"] for entry in acted],
            },
            warnings=self.warnings,
        )


def count_lost(before: t.Mapping[str, int], after: t.Mapping[str, int], queues: t.Collection[str]) -> int:
    """Entries that a restart lost. Celery moves tasks between its queues and ``unacked`` by itself, so that their sum
    counts; another list, which its application may have taken from meanwhile, is lost where nothing is left of it.
    """
    moving = {
        name for name in {*before, *after} if name in queues or name.partition(" (database ")[0].endswith("unacked")
    }
    lost = sum(before.get(name, 0) for name in moving) - sum(after.get(name, 0) for name in moving)
    return max(0, lost) + sum(count for name, count in before.items() if name not in moving and not after.get(name))


def _text(services: t.Sequence[Service], states: t.Mapping[str, ServiceState]) -> str:
    return "".join(
        f"{service.name}: {states[service.unit].state} {states[service.unit].instance or '(no instance)'}\n"
        for service in services
    )
