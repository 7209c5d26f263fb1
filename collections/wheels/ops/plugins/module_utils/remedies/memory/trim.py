# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Gives memory back, rung by rung of the incident report's ladder, and measures each rung. Never drops the page cache,
never kills.

The lower rungs cost a pause, the upper ones a process. A rung is tried when the share of memory in use is above its
tier, and the ladder ends as soon as the target is reached.
"""

from __future__ import annotations

import contextlib
import functools
import time
import typing as t
from dataclasses import dataclass, field, replace

from ...checks.memory import MEBIBYTE, resident_bytes
from ...core import units
from ...core.options import REDIS, choice, choices, got, in_range, no_empty_entry, url
from ...core.results import OpsError, Result
from ...health.thresholds import DEFAULTS, MEMORY_RESTART, Thresholds, parse
from ...host import memory_pressure
from ...services import broker, manager
from ...services.model import Manager, Service, parse_services
from ...state import restarts
from ...state.ops_token import token_of
from . import steps
from .notes import REGROWTH, Note, Notes
from .steps import Context, Outcome

_NOT_WORTH = "not worth it"
#: So long events are counted where the kernel has no PSI.
_WATCHED = 2.0
#: Rungs that end a process which serves: a percentage alone is no reason for them, the kernel has to report pressure.
_ENDING = ("recycle", "restart")
_MACHINE, _CONTAINER = "the host", "the container"
#: Services and programs that are never recycled, restarted or reclaimed from, whatever they use.
PROTECTED: t.Tuple[str, ...] = (
    "redis",
    "redis-server",
    "postgres",
    "postgresql",
    "sshd",
    "systemd",
    "dockerd",
    "containerd",
    "supervisord",
)
#: Every rung with its tier, in the order in which they are tried.
LADDER: t.Tuple[t.Tuple[str, str], ...] = (
    ("application", "warning"),
    ("redis", "warning"),
    ("celery", "critical"),
    ("reclaim", "critical"),
    ("recycle", "emergency"),
    ("restart", "restart"),
)


@dataclass(frozen=True)
class Options:
    """How a run behaves.

    ``target`` and ``tiers`` in percent; ``min_gain`` in bytes: less than that was not worth a rung. Times in seconds.
    """

    scope: str = "host"
    target: float = 0.0
    thresholds: Thresholds = DEFAULTS["memory"]
    restart_above: float = MEMORY_RESTART
    actions: t.Tuple[str, ...] = tuple(name for name, _tier in LADDER)
    base_url: str = ""
    token: str = ""
    application: str = ""
    redis_url: str = ""
    allow_restart: bool = False
    protect: t.Tuple[str, ...] = ()
    min_gain: int = 32 * MEBIBYTE
    timeout: float = 30.0
    verify_after: float = 0.0
    max_restarts: int = 3
    state_dir: str = ""

    def tier(self, name: str) -> float:
        """The percentage above which a tier begins; above 100 where there is none."""
        limit = self.restart_above if name == "restart" else getattr(self.thresholds, name)
        return 101.0 if limit is None else float(limit)

    @property
    def goal(self) -> float:
        return self.target or self.tier("warning")


@dataclass
class Subject:
    """What has a share of memory: the host, the container around us, or a service with a limit."""

    name: str
    limit: int
    measure: t.Callable[[], int]
    services: t.Sequence[str] = ()
    used: int = 0
    #: What the kernel bounds and watches; None for a limit that somebody gave, which the kernel does not know.
    scope: t.Optional[t.Callable[[], t.Optional[memory_pressure.Scope]]] = None

    def look(self) -> float:
        """Measures, and gives the percentage."""
        self.used = self.measure()
        return self.percent

    def pressed(self, seconds: float) -> str:
        """What the kernel says of pressure; watches for so many seconds where it has no PSI.

        Empty where it reports none.
        """
        first = self.scope() if self.scope else None
        if first is None or first.stalled is not None or not seconds:
            return "" if first is None else memory_pressure.pressed(first)
        time.sleep(seconds)
        second = self.scope() if self.scope else None
        return "" if second is None else memory_pressure.pressed(second, first)

    @property
    def percent(self) -> float:
        return 100.0 * self.used / max(1, self.limit)

    @property
    def shared(self) -> bool:
        """Whether others than our services have a part in it."""
        return self.name in (_MACHINE, _CONTAINER)

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {"percent": round(self.percent, 1), "used_bytes": self.used, "limit_bytes": self.limit}


@dataclass
class _Run:
    context: Context
    options: Options
    check_mode: bool
    every: t.Sequence[Subject]
    notes: Notes
    replaced: t.Set[t.Tuple[str, str]] = field(default_factory=set)
    actions: t.List[t.Dict[str, t.Any]] = field(default_factory=list)

    def climb(self, subject: Subject) -> None:
        """Tries the rungs for one subject, lowest first."""
        for name, tier in LADDER:
            if subject.percent <= self.options.goal:
                return
            if name not in self.options.actions or subject.percent <= self.options.tier(tier):
                continue
            if name == "restart" and not self.options.allow_restart:
                continue
            rung = steps.RUNGS[name]
            for target in rung.targets(self.context, subject.services):
                self._take(subject, name, target)
                if subject.percent <= self.options.goal:
                    return

    def _take(self, subject: Subject, name: str, target: str) -> None:
        rung = steps.RUNGS[name]
        emergency = subject.percent > self.options.tier("emergency")
        forced = subject.percent > self.options.tier("critical")
        unseen = ""
        try:
            predicted = rung.predict(self.context, target)
        except OpsError as error:
            predicted, unseen = 0, str(error)
        before, percent = subject.used, subject.percent
        entry: t.Dict[str, t.Any] = {
            "action": name,
            "target": target,
            "subject": subject.name,
            "changed": False,
            "predicted_bytes": predicted,
            "bytes_freed": 0,
            "percent_before": round(percent, 1),
            "percent_after": round(percent, 1),
            "effective": False,
            "duration_ms": 0.0,
        }
        self.actions.append(entry)
        if rung.bounded and predicted < self.options.min_gain and not forced:
            entry["skipped"] = unseen or f"{_NOT_WORTH}: no more than {units.readable(predicted)} could come back"
            return
        note = self.notes.last(name, target, subject.name)
        share = self._share(subject, target)
        why = self._in_vain(subject, name, target, note, share, predicted) if rung.replaces else ""
        if why:
            entry["skipped"] = f"{_NOT_WORTH}: {why}"
            if name == "restart" and note is not None:
                entry["needed_bytes"] = note.used_after
            return
        if name in _ENDING and subject.scope is not None and not subject.pressed(_WATCHED):
            entry["skipped"] = (
                f"{subject.name} is at {percent:.1f} %, but the kernel reports no memory pressure, and a percentage"
                " alone restarts nothing."
            )
            return
        start = time.monotonic()
        try:
            if rung.replaces:
                self.notes.require_writable()
            if self.check_mode:
                rung.foresee(self.context, target)
                self._foretell(subject, entry, note, share, rung.beside(self.context, target))
                return
            outcome: Outcome = rung.act(self.context, target, emergency)
        except OpsError as error:
            entry.update(skipped=str(error), duration_ms=round((time.monotonic() - start) * 1000, 1))
            return
        subject.look()
        freed = before - subject.used
        entry.update(
            changed=outcome.replaced or freed >= self.options.min_gain or outcome.given_back >= self.options.min_gain,
            bytes_freed=freed,
            percent_after=round(subject.percent, 1),
            effective=freed >= self.options.min_gain,
            duration_ms=round((time.monotonic() - start) * 1000, 1),
            **outcome.details,
        )
        self._remember(subject, name, target, share, outcome)

    def _share(self, subject: Subject, target: str) -> int:
        """Bytes to compare with those of an earlier run: of the subject, or of the service alone where others have a
        part in the subject.
        """
        if subject.shared and target in self.context.names:
            return resident_bytes(self.context.pids(target))
        return subject.used

    def _in_vain(
        self, subject: Subject, name: str, target: str, note: t.Optional[Note], share: int, predicted: int
    ) -> str:
        """Why ending processes of ``target`` would not help, by what earlier runs measured; empty where it may."""
        if (name, target) in self.replaced:
            return f"this run did so already for another limit of {target}"
        if note is None:
            return ""
        grown = note.grown(share, self.options.min_gain)
        if grown and note.age >= REGROWTH:
            return ""
        why = steps.RUNGS[name].spent(note, predicted, self.options.min_gain)
        if why and grown:
            return f"it grew back to {units.readable(share)} within {note.age:.0f} s: {why}"
        if why and name == "restart" and not subject.shared:
            return f"the limit of {units.readable(subject.limit)} is too low for what {target} needs: {why}"
        return why

    def _foretell(
        self, subject: Subject, entry: t.Dict[str, t.Any], note: t.Optional[Note], share: int, beside: int
    ) -> None:
        """Enters what a rung is expected to do: at best its bound, or what it did to the same processes at the same
        size.
        """
        name, target, predicted = entry["action"], entry["target"], entry["predicted_bytes"]
        rung = steps.RUNGS[name]
        if (
            note is not None
            and not rung.replaces
            and note.processes == self._processes(target)
            and not note.grown(share, self.options.min_gain)
        ):
            predicted = min(predicted, max(0, note.freed))
        if note is not None and name == "restart":
            predicted = max(0, share - note.used_after)
        for other in self.every:
            if other is subject or target in other.services:
                other.used = max(0, other.used - predicted)
        enough = self.options.min_gain
        entry.update(
            changed=rung.replaces or max(predicted, beside) >= enough,
            predicted_bytes=predicted,
            bytes_freed=predicted,
            percent_after=round(subject.percent, 1),
            effective=predicted >= enough,
        )
        if rung.replaces:
            self.replaced.add((name, target))

    def _remember(self, subject: Subject, name: str, target: str, share: int, outcome: Outcome) -> None:
        freed = max(share - self._share(subject, target), outcome.given_back)
        for other in self.every:
            # What replaced a process did so for every limit that the process is under.
            if other is not subject and not (outcome.replaced and target in other.services):
                continue
            if other is not subject:
                other.look()
            note = Note(time.time(), freed, self._share(other, target), self._processes(target), outcome.whole)
            with contextlib.suppress(OpsError):  # where it matters, that it can be written was looked at before
                self.notes.keep(name, target, other.name, note)
        if outcome.replaced:
            self.replaced.add((name, target))

    def _processes(self, target: str) -> t.Tuple[int, ...]:
        return tuple(sorted(self.context.pids(target))) if target in self.context.names else ()


def validate(options: Options) -> None:
    """Refuses nonsense before anything is touched."""
    choices("actions", options.actions, [name for name, _tier in LADDER])
    if options.base_url:
        url("base_url", options.base_url)
    if options.redis_url:
        url("redis_url", options.redis_url, REDIS)
    broker.require_database(options.redis_url)
    if not options.token.isascii() or not options.token.isprintable():
        raise OpsError(
            f"token must be letters, digits and signs, {got('token', options.token)}.",
            hint="It is sent in a header: use one word without a line break.",
        )
    no_empty_entry("protect", options.protect, hint="Name services or programs.")
    choice("scope", options.scope, ("host", "services"))
    in_range("restart_above", options.restart_above, 1, 100, unit="percent")
    in_range("target", options.target, 0, 100, unit="percent")
    in_range("timeout", options.timeout, 1, 600, unit="seconds")
    in_range("verify_after", options.verify_after, 0, 300, unit="seconds")
    in_range("max_restarts", options.max_restarts, 0, 1000)
    if options.thresholds.warning is None:
        raise OpsError("The warning threshold is missing.", hint="Give it in percent, for example 65.")
    if options.goal > options.tier("warning"):
        raise OpsError(
            f"The target of {options.goal:g} % lies above the warning at {options.tier('warning'):g} %.",
            hint="Give a lower target, or none.",
        )
    highest = max(
        limit
        for limit in (options.thresholds.warning, options.thresholds.critical, options.thresholds.emergency)
        if limit is not None
    )
    if options.restart_above < highest:
        raise OpsError(
            f"restart_above is {options.restart_above:g} %, below another tier at {highest:g} %.", hint="It comes last."
        )
    if not 0 <= options.min_gain <= 1 << 50:
        raise OpsError(f"min_gain is {options.min_gain} bytes.", hint="Give bytes, for example 32M.")


def subjects(context: Context, options: Options, limits_mb: t.Mapping[str, float]) -> t.List[Subject]:
    """What is measured: each service with a limit of ours or of its cgroup, and with scope ``host`` the machine and the
    container around us.
    """
    result = []
    for name, limit in limits_mb.items():
        if not 0 < limit < 1 << 40 or name not in context.names:
            names = ", ".join(context.names) or "there is none in services"
            raise OpsError(
                f"memory_limits_mb gives {limit:g} MiB for {name}.",
                hint=f"Give positive numbers for services of the list: {names}.",
            )
    for name in context.names:
        if name in limits_mb:
            result.append(
                Subject(name, int(limits_mb[name] * MEBIBYTE), functools.partial(_resident, context, name), [name])
            )
        around = _around(context, name)
        if around is not None and (options.scope == "services" or around.path != "/"):
            find = functools.partial(_around, context, name)
            result.append(
                Subject(
                    f"{name} ({around.path})", around.limit_bytes, functools.partial(_used, find), [name], scope=find
                )
            )
    if options.scope == "host":
        machine = memory_pressure.host()
        result.append(
            Subject(
                _MACHINE,
                machine.limit_bytes,
                functools.partial(_used, memory_pressure.host),
                context.names,
                scope=memory_pressure.host,
            )
        )
        own = memory_pressure.cgroup()
        if own is not None and own.path == "/":
            result.append(
                Subject(
                    _CONTAINER,
                    own.limit_bytes,
                    functools.partial(_used, memory_pressure.cgroup),
                    context.names,
                    scope=memory_pressure.cgroup,
                )
            )
    if not result:
        raise OpsError("There is no memory to measure.", hint="Give memory_limits_mb for services, or scope: host.")
    return result


def _resident(context: Context, name: str) -> int:
    return resident_bytes(context.pids(name))


def _around(context: Context, name: str) -> t.Optional[memory_pressure.Scope]:
    """The tightest cgroup around a service now."""
    first = next(iter(sorted(context.pids(name))), None)
    return None if first is None else memory_pressure.cgroup(first)


def _used(find: t.Callable[[], t.Optional[memory_pressure.Scope]]) -> int:
    scope = find()
    return 0 if scope is None else scope.used_bytes


def run(
    services: t.Sequence[Service],
    control: t.Optional[Manager],
    limits_mb: t.Mapping[str, float],
    options: Options,
    *,
    check_mode: bool = False,
) -> Result:
    """Climbs the ladder for every subject that is above the warning; see the module's documentation for the result."""
    validate(options)
    context = Context(
        services=services,
        control=control,
        base_url=options.base_url.rstrip("/"),
        token=options.token,
        application=options.application,
        redis_url=options.redis_url,
        protect=frozenset(PROTECTED) | set(options.protect),
        timeout=options.timeout,
        max_restarts=options.max_restarts,
        state_dir=options.state_dir,
    )
    every = subjects(context, options, limits_mb)
    for subject in every:
        subject.look()
    before = {subject.name: subject.as_dict() for subject in every}
    stalls = memory_pressure.stalls()
    start = time.monotonic()
    ladder = _Run(context, options, check_mode, every, Notes(restarts.state_dir(options.state_dir)))
    # The tightest first: what a service gives back, the host around it has too.
    for subject in sorted(every, key=lambda subject: -subject.percent):
        if not check_mode:
            subject.look()
        if subject.percent > options.tier("warning"):
            ladder.climb(subject)
    if not check_mode:
        for subject in every:
            subject.look()
    after = {subject.name: subject.as_dict() for subject in every}
    rebound = {}
    if options.verify_after and not check_mode and any(action["changed"] for action in ladder.actions):
        time.sleep(options.verify_after)
        rebound = {subject.name: round(subject.look(), 1) for subject in every}
    pressed = {subject.name: why for subject in every for why in [subject.pressed(0.0)] if why}
    worst = max(every, key=lambda subject: after[subject.name]["percent"])
    highest = max(before.values(), key=lambda entry: entry["percent"])["percent"]
    freed = sum(
        max(0, before[name]["used_bytes"] - after[name]["used_bytes"])
        for name in before
        if name not in (_MACHINE, _CONTAINER)
    )
    missed = [
        name
        for name, entry in after.items()
        if entry["percent"] > options.goal and before[name]["percent"] > options.tier("warning")
    ]
    return Result(
        changed=any(action["changed"] for action in ladder.actions),
        before={"subjects": before, "stalls": stalls, "tier": tier_of(highest, options)},
        after={
            "subjects": after,
            "stalls": memory_pressure.stalls(),
            "tier": tier_of(after[worst.name]["percent"], options),
        },
        actions=ladder.actions,
        msg=_message(ladder.actions, before, after, missed, options, check_mode) + _pressure(pressed, after),
        diff=[
            {
                "before_header": name,
                "after_header": name,
                "before": f"{before[name]['percent']} %\n",
                "after": f"{after[name]['percent']} %\n",
            }
            for name in before
            if before[name]["percent"] != after[name]["percent"] and any(action["changed"] for action in ladder.actions)
        ],
        extra={
            "bytes_freed": freed,
            "missed": missed,
            "rebound_percent": rebound,
            "duration_ms": round((time.monotonic() - start) * 1000, 1),
        },
    )


def tier_of(percent: float, options: Options) -> str:
    """The highest tier that a percentage is above; ``ok`` below all."""
    return next(
        (name for name in ("restart", "emergency", "critical", "warning") if percent > options.tier(name)), "ok"
    )


def _pressure(pressed: t.Mapping[str, str], after: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    """What the kernel still says, also of what uses little: its file cache is what it works with, or its memory.high is
    too low.
    """
    return "".join(
        f" {name}, at {after[name]['percent']} %, is under pressure: {why}. Raise its limit (memory.high too), or find"
        " what it loads."
        for name, why in pressed.items()
    )


def _message(
    actions: t.Sequence[t.Mapping[str, t.Any]],
    before: t.Mapping[str, t.Mapping[str, t.Any]],
    after: t.Mapping[str, t.Mapping[str, t.Any]],
    missed: t.Sequence[str],
    options: Options,
    check_mode: bool,
) -> str:
    over = [name for name, entry in before.items() if entry["percent"] > options.tier("warning")]
    if not over:
        return "Memory is below the warning; nothing was done."
    pressures = ", ".join(f"{name} from {before[name]['percent']} to {after[name]['percent']} %" for name in over)
    text = f"{'At best: ' if check_mode else ''}{pressures}."
    if missed:
        tried = {action["action"] for action in actions}
        further = [
            name
            for name, _tier in LADDER
            if name not in tried and name in options.actions and (name != "restart" or options.allow_restart)
        ]
        text += f" Not at {options.goal:g} %: {', '.join(missed)}."
        if not options.allow_restart and any(after[name]["percent"] > options.restart_above for name in missed):
            text += " A restart is in order: allow_restart: true."
        elif further:
            text += f" Not tried, as there is nothing of that kind or the tier is not reached: {', '.join(further)}."
        for action in actions:
            if not check_mode and action["action"] == "restart" and action["changed"] and not action["effective"]:
                text += (
                    f" The restart of {action['target']} gave nothing back: it needs that much, so raise its limit or"
                    " find what it loads."
                )
            if action.get("needed_bytes"):
                text += (
                    f" {action['target']} was not restarted: {action['skipped'].partition(': ')[2]}. Raise its limit,"
                    " or find what it loads."
                )
    # What failed has a reason that somebody can act on; it must not be looked for among the actions.
    failed = [action for action in actions if action.get("skipped") and not action["skipped"].startswith(_NOT_WORTH)]
    return text + "".join(
        f" {action['action']} on {action['target']} was not done: {action['skipped']}" for action in failed
    )


def run_with(values: t.Mapping[str, t.Any], *, check_mode: bool = False) -> Result:
    """``run`` for a caller's parameters: sizes and thresholds as people write them, the services' manager opened.

    Raises ``OpsError`` for nonsense.
    """
    services = parse_services(values["services"]) if values.get("services") else []
    known_options: t.Dict[str, t.Any] = {
        key: values[key] for key in Options.__dataclass_fields__ if key != "thresholds" and values.get(key) is not None
    }
    known_options.update({key: tuple(value) for key, value in known_options.items() if isinstance(value, list)})
    if "min_gain" in known_options:
        known_options["min_gain"] = units.size(known_options["min_gain"], "min_gain")
    if values.get("thresholds"):
        known_options["thresholds"] = parse({"memory": values["thresholds"]})["memory"]
    try:
        if any(isinstance(limit, bool) for limit in (values.get("memory_limits_mb") or {}).values()):
            raise TypeError("a truth value is no number of MiB")
        limits = {str(name): float(limit) for name, limit in (values.get("memory_limits_mb") or {}).items()}
    except (TypeError, ValueError) as error:
        raise OpsError(
            "memory_limits_mb must be a number of MiB for each service.", hint="For example {pam-backend: 512}."
        ) from error
    options = Options(**known_options)
    validate(options)
    if options.application and options.application not in [service.name for service in services]:
        raise OpsError(
            f"application must be one of services, {got('application', options.application)}.",
            hint="Name one of its entries.",
        )
    if options.base_url and "application" in options.actions:
        options = replace(options, token=token_of(options.token, values.get("token_file") or ""))
        validate(options)
    control = manager.from_params(values) if services else None
    states = control.states([service.unit for service in services]) if control else {}
    strange = [unit for unit, state in states.items() if not state.exists]
    if strange:
        raise OpsError(
            f"Unknown units in services: {', '.join(strange)}.",
            hint="Install the unit, or name it with unit.",
        )
    return run(services, control, limits, options, check_mode=check_mode)
