# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which remedies a host needs, in which order, whether each may begin, and when again: a pure function of what was
measured.

The playbook ``recover`` asks it through the module ``recovery_plan_info``, the program ``automated_recovery.py`` calls
it.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..health.subjects import with_remedy
from ..state.problems import UNSUCCESSFUL, Attempt, Problems
from .policy import Policy

Check = t.Mapping[str, t.Any]
Service = t.Mapping[str, t.Any]

LOG_ROTATION = "log_rotation"
DISK_CLEANUP = "disk_cleanup"
CPU_RELIEF = "cpu_relief"
CPU_RELIEF_END = "cpu_relief_end"
SERVICE_RESTART = "service_restart"
DATABASE_REPAIR = "database_repair"
CACHE_CLEAR = "cache_clear"
BACKGROUND_THROTTLE = "background_throttle"
SPEECH_ENGINE = "speech_engine"
MEMORY_CLEANUP = "memory_cleanup"
DEPLOY = "deploy"

#: Who asks: the names of options in a refusal are those of the caller.
PROGRAM, PLAYBOOK = "program", "playbook"
#: Statuses that ask for a remedy. What is ``unknown`` was not measured: nothing is done about it.
FAILING: t.FrozenSet[str] = frozenset({"warning", "critical", "emergency"})
#: Outcomes that count as a try: the remedy ran and changed something, or failed.
TRIED: t.FrozenSet[str] = frozenset({"done", *UNSUCCESSFUL})


@dataclass(frozen=True)
class Remedy:
    """``modules``: what carries it out; a check asks for it by their names. ``also``: further names by which it is
    asked for.

    ``counted``: whether cool-down, back-off and budget of the plan hold for it. Restarts have theirs for each service,
    in ``restarts.jsonl``; ending a relief is no try.
    """

    name: str
    modules: t.Tuple[str, ...] = ()
    also: t.Tuple[str, ...] = ()
    counted: bool = True


#: In the order in which they run: what depends on another comes after it. Space and CPU first, as every other remedy
#: needs them; services before what asks them; a throttle needs Redis; memory last, as it may restart what the others
#: have just used.
REMEDIES: t.Tuple[Remedy, ...] = (
    Remedy(LOG_ROTATION, ("log_rotate",), also=("disk_cleanup",)),
    Remedy(DISK_CLEANUP, ("disk_cleanup",), also=("log_rotate",)),
    Remedy(CPU_RELIEF, ("cpu_relief",), also=("celery_throttle",)),
    Remedy(CPU_RELIEF_END, counted=False),
    Remedy(SERVICE_RESTART, ("service_restart",), counted=False),
    Remedy(DATABASE_REPAIR, ("sql_script", "rls_repair")),
    Remedy(CACHE_CLEAR, ("cache_purge",)),
    Remedy(BACKGROUND_THROTTLE, ("celery_throttle",)),
    Remedy(SPEECH_ENGINE, ("tts_engine",)),
    Remedy(MEMORY_CLEANUP, ("memory_trim",)),
    Remedy(DEPLOY, ("managed_files",)),
)
NAMES: t.Tuple[str, ...] = tuple(remedy.name for remedy in REMEDIES)


def subjects_of(name: str) -> t.Tuple[str, ...]:
    """The subjects that a remedy is for, by the registry of subjects. Raises ``KeyError`` for a remedy that does not
    exist.
    """
    remedy = {each.name: each for each in REMEDIES}[name]
    return tuple(dict.fromkeys(subject for module in remedy.modules for subject in with_remedy(module)))


#: Why a remedy is refused that has nothing to work with here, and the option that gives it to program and playbook.
_UNAVAILABLE: t.Mapping[str, t.Tuple[str, str, str]] = {
    LOG_ROTATION: ("No directory of logs is configured", "recovery.log_directories", "wheels_ops_log_directories"),
    DISK_CLEANUP: (
        "No directory is configured from which old files may be deleted",
        "recovery.disk_sources",
        "wheels_ops_temporary_directories",
    ),
    SERVICE_RESTART: ("No service is configured", "checks.services", "wheels_ops_services"),
    DATABASE_REPAIR: ("No database is configured", "checks.database_dsn", "wheels_ops_database_dsn"),
    CACHE_CLEAR: (
        "There is no ops token, so this backend has no health API that clears the cache; the playbook deploy adds it",
        "recovery.token_file, or recovery.cache_prefixes for what may be deleted without it",
        "wheels_ops_token_file",
    ),
    BACKGROUND_THROTTLE: ("No Redis is configured", "checks.redis_url", "wheels_ops_redis_url"),
}
#: The same for a remedy that is switched off.
_FORBIDDEN: t.Mapping[str, t.Tuple[str, str, str]] = {
    DATABASE_REPAIR: (
        "The database is not changed unless that is asked for",
        "--repair-database, first with --dry-run; always: recovery.repair_database",
        "recovery_repair_database",
    ),
    BACKGROUND_THROTTLE: ("Throttling is switched off", "recovery.throttle", "recovery_throttle"),
    CPU_RELIEF: ("Lowering the priority of processes is switched off", "recovery.relieve_cpu", "recovery_relieve_cpu"),
    SPEECH_ENGINE: (
        "Installing speech engines is not allowed here; the playbook deploy installs them with the repaired files",
        "recovery.install_speech",
        "recovery_install_speech",
    ),
}
#: What a person does where a remedy did not help.
_NEXT: t.Mapping[str, str] = {
    LOG_ROTATION: "Find what fills the disk: du -xh / | sort -h | tail -20.",
    DISK_CLEANUP: "Find what fills the disk: du -xh / | sort -h | tail -20.",
    CPU_RELIEF: "Find what uses the CPU: top -o %CPU.",
    SERVICE_RESTART: "Read the log of the service that is not healthy: journalctl -u UNIT, or supervisorctl tail NAME.",
    DATABASE_REPAIR: "Read the message of the check: what it names has to be repaired by hand.",
    CACHE_CLEAR: "Raise maxmemory of Redis, or give the keys that fill it an expiry.",
    BACKGROUND_THROTTLE: "Start more workers if the queue does not get shorter; celery status lists those that run.",
    MEMORY_CLEANUP: "Find what uses the memory: ps aux --sort=-rss | head; raise its limit, or restart it.",
    DEPLOY: "Run ansible-playbook -i INVENTORY playbooks/deploy.yml -v, and read where it ends.",
}
#: Remedies in whose place a deployment is, where they have nothing to work with or are switched off.
_DEPLOY_INSTEAD: t.FrozenSet[str] = frozenset({CACHE_CLEAR, SPEECH_ENGINE})
_IGNORE_COOLDOWN = ("--now", "-e recovery_ignore_cooldown=true")
_NO_SERVICES = "No service is configured, so that the backend itself could be slowed down"
_DEPLOY = "ansible-playbook -i INVENTORY playbooks/deploy.yml"


@dataclass(frozen=True)
class Allowed:
    """What may be done on a host. ``unavailable``: remedies with nothing to work with; ``forbidden``: those that are
    switched off.

    ``services`` are dictionaries as ``service_restart`` takes them. ``only``: no other remedy is planned, any where it
    is empty. ``deploys``: whether a deployment may be begun, which takes a controller.
    """

    services: t.Sequence[Service] = ()
    unavailable: t.Collection[str] = ()
    forbidden: t.Collection[str] = ()
    only: t.Collection[str] = ()
    deploys: bool = False
    ignore_cooldown: bool = False
    policy: Policy = field(default_factory=Policy)
    caller: str = PROGRAM


@dataclass(frozen=True)
class Try:
    """A remedy that ran: when, in seconds since the epoch, and with which outcome."""

    remedy: str
    at: float
    outcome: str


@dataclass(frozen=True)
class Blocked:
    """Why a service may not be restarted now, and until when, in seconds since the epoch."""

    reason: str
    until: float


@dataclass(frozen=True)
class State:
    """What is known of earlier runs. ``now`` and every other time is in seconds since the epoch.

    ``confirmed``: subjects that failed in two measurements, None where every failure counts. ``restarts``: services
    that may not be restarted now. ``relief_ends``: when the first lowered priority is due to be restored,
    0 where there is none. ``problems``: those that earlier runs left open. ``drifted``: files that are no longer as the
    deployment in force left them.
    """

    now: float
    tries: t.Sequence[Try] = ()
    confirmed: t.Optional[t.Collection[str]] = None
    restarts: t.Mapping[str, Blocked] = field(default_factory=dict)
    relief_ends: float = 0.0
    problems: Problems = field(default_factory=Problems)
    drifted: t.Tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One remedy for ``subjects``. With ``refused`` it is not begun; ``advice`` says what a person does then, or where
    it did not help; ``waits_until`` (seconds since the epoch, 0 where waiting does not help) when it may begin.
    ``without``: services that it leaves alone.

    ``remedy`` is empty for what no remedy is known for.
    """

    remedy: str
    subjects: t.Tuple[str, ...]
    refused: str = ""
    advice: str = ""
    waits_until: float = 0.0
    without: t.Tuple[str, ...] = ()


def attempt_of(step: Step) -> Attempt:
    """A step that was refused, as the life of a problem takes it (``state/problems.py``)."""
    return Attempt(step.remedy, step.subjects, "refused", bool(step.waits_until), step.refused, step.advice)


def plan(checks: t.Sequence[Check], allowed: Allowed, state: State) -> t.List[Step]:
    """The steps of a run in their order, each remedy at most once. Without ``only``, every check that fails or could
    not be measured is among the subjects of a step.

    ``checks`` are those of a health run. Only what fails asks for a remedy, and only for one that its check names.
    """
    steps: t.List[Step] = []
    asking = [check for check in checks if check["status"] in FAILING]
    for remedy in REMEDIES:
        if allowed.only and remedy.name not in allowed.only:
            continue
        askers = [check for check in asking if _asks(check, remedy, allowed, state)]
        if remedy.name == CPU_RELIEF_END:
            steps += _relief_end(checks, steps, state)
        elif askers:
            steps.append(_step(remedy, askers, checks, allowed, state))
    planned = {subject for step in steps for subject in step.subjects}
    for check in checks:
        if check["status"] == "unknown":
            steps.append(_unmeasured(check))
        elif check["status"] in FAILING and check["name"] not in planned and not allowed.only:
            steps.append(_unknown_remedy(check))
    return steps


def to_confirm(checks: t.Sequence[Check], policy: Policy) -> t.List[str]:
    """The subjects to measure once more, ``policy.confirm_after`` seconds later, before anything is changed."""
    return failing(checks) if policy.confirm_after else []


def confirm(first: t.Sequence[Check], second: t.Sequence[Check]) -> t.List[t.Dict[str, t.Any]]:
    """The checks with those of the second measurement in the place of the first. One answer that came too late on a
    busy host is no reason to change anything.
    """
    newer = {check["name"]: check for check in second}
    return [dict(newer.get(check["name"], check)) for check in first]


def failing(checks: t.Sequence[Check]) -> t.List[str]:
    """The names of checks that fail or could not be measured."""
    return [check["name"] for check in checks if check["status"] not in ("ok", "skipped")]


def remaining_services(services: t.Sequence[Service], without: t.Collection[str]) -> t.List[t.Dict[str, t.Any]]:
    """The services that a step may touch. They do not wait for those that it leaves alone."""
    return [
        {**service, "depends_on": [name for name in service.get("depends_on") or () if name not in without]}
        for service in services
        if service["name"] not in without
    ]


def _asks(check: Check, remedy: Remedy, allowed: Allowed, state: State) -> bool:
    if check["name"] in allowed.policy.remedies:
        return remedy.name in allowed.policy.remedies[check["name"]]
    if remedy.name == DEPLOY:
        return _asks_for_deployment(check, state) or any(
            each.name in _DEPLOY_INSTEAD and _deploys_instead(each, allowed) and _names(check, each)
            for each in REMEDIES
        )
    return _names(check, remedy) and not _deploys_instead(remedy, allowed)


def _names(check: Check, remedy: Remedy) -> bool:
    return check["name"] in subjects_of(remedy.name) and check.get("remedy") in (*remedy.modules, *remedy.also)


def _asks_for_deployment(check: Check, state: State) -> bool:
    """Whether files are missing, or what a restart may not help for may fail for a file that is not as deployed."""
    (deploy,) = (each for each in REMEDIES if each.name == DEPLOY)
    return _names(check, deploy) or (bool(state.drifted) and check.get("remedy") == "service_restart")


def _deploys_instead(remedy: Remedy, allowed: Allowed) -> bool:
    return (
        remedy.name in _DEPLOY_INSTEAD
        and allowed.deploys
        and not allowed.only
        and remedy.name in {*allowed.unavailable, *allowed.forbidden}
    )


def _step(remedy: Remedy, askers: t.Sequence[Check], checks: t.Sequence[Check], allowed: Allowed, state: State) -> Step:
    """The step of a remedy, refused for the first reason that holds."""
    confirmed = [check for check in askers if state.confirmed is None or check["name"] in state.confirmed]
    subjects = tuple(check["name"] for check in confirmed or askers)

    def refused(reason: str, *, advice: str = "", until: float = 0.0) -> Step:
        return Step(remedy.name, subjects, refused=reason, advice=advice, waits_until=until)

    if not confirmed:
        return refused(
            f"It failed in one measurement; a second one after {allowed.policy.confirm_after:g} s has to confirm it.",
            until=state.now + allowed.policy.confirm_after,
        )
    if remedy.name in allowed.policy.ask_person and remedy.name not in allowed.only:
        return refused(
            "The policy leaves this remedy to a person.",
            advice=f"If it is right now: {_option(allowed, f'--only {remedy.name}', 'take it out of ask_person')}.",
        )
    if remedy.name == DEPLOY and not allowed.deploys:
        return refused(_needs_deployment(state, allowed), advice=_advice(DEPLOY))
    for names, reasons in ((allowed.unavailable, _UNAVAILABLE), (allowed.forbidden, _FORBIDDEN)):
        if remedy.name in names:
            reason, *options = reasons.get(remedy.name, ("It is not available here", "", ""))
            option = options[allowed.caller == PLAYBOOK]
            return refused(f"{reason}{f' ({option})' if option else ''}.", advice=_advice(remedy.name))
    reason = _ended_for_now(remedy, subjects, checks, allowed, state)
    if reason:
        return refused(reason, advice=next_step(remedy.name))
    writes = refused_writes(checks)
    worse, without = _harm(remedy.name, confirmed, checks, allowed, state, writes)
    if worse:
        return refused(worse, advice=_harm_advice(remedy.name, checks))
    if remedy.name == SERVICE_RESTART:
        return _restart(subjects, checks, allowed, state, without, writes)
    if remedy.counted:
        reason, until = _waits(remedy.name, allowed, state)
        if reason:
            return refused(reason, advice=_NEXT.get(remedy.name, ""), until=until)
    return Step(remedy.name, subjects, advice=next_step(remedy.name), without=without)


def _ended_for_now(
    remedy: Remedy, subjects: t.Tuple[str, ...], checks: t.Sequence[Check], allowed: Allowed, state: State
) -> str:
    """Why nothing is tried before a person has had a look, whatever time passes; empty where it may be."""
    if allowed.ignore_cooldown:
        return ""
    option = _option(allowed, *_IGNORE_COOLDOWN)
    if state.problems.stopped:
        return f"{state.problems.stopped} Nothing more is changed before everything passes again ({option})."
    limit = allowed.policy.max_failures
    if not state.problems.exhausted(remedy.name, subjects, limit):
        return ""
    # A service that has gone down since was not restarted yet.
    if remedy.name == SERVICE_RESTART and set(_down(checks)) - set(exhausted_services(state.problems, limit)):
        return ""
    return f"It did not help {_times(limit)}, so it is not tried again before the problem has ended ({option})."


def exhausted_services(problems: Problems, limit: int) -> t.List[str]:
    """The services for which a restart did not help as often; none where ``limit`` is 0."""
    head = f"{SERVICE_RESTART} "
    return [
        key[len(head) :]
        for problem in problems.problems
        for key, count in problem.failures.items()
        if limit and key.startswith(head) and count >= limit
    ]


def refused_writes(checks: t.Sequence[Check]) -> str:
    """The error code with which Redis refuses writes; empty where it takes them, or where that is not known."""
    words = next((str((check.get("details") or {}).get("writes")) for check in checks if check["name"] == "redis"), "")
    return words.partition(": ")[2] if words.startswith("refused: ") else ""


def _harm(
    name: str,
    askers: t.Sequence[Check],
    checks: t.Sequence[Check],
    allowed: Allowed,
    state: State,
    writes: str,
) -> t.Tuple[str, t.Tuple[str, ...]]:
    """(why a remedy would not help or make it worse, the services that it must leave alone)."""
    broker = broker_services(allowed.services) if writes else ()
    if name == BACKGROUND_THROTTLE and writes:
        return f"Redis takes no writes (refused: {writes}), and the throttle is a key in it.", ()
    if name == CACHE_CLEAR:
        if writes and writes != "OOM":  # DEL and EXPIRE are refused as any other write
            return f"Redis takes no writes (refused: {writes}): nothing in it can be removed.", ()
        if not next((check.get("value") for check in checks if check["name"] == "redis"), 0):
            return "No cache key is without an expiry: what fills Redis is kept on purpose or expires by itself.", ()
    if name == CPU_RELIEF:
        if not allowed.services:
            return f"{_NO_SERVICES} ({_option(allowed, *_UNAVAILABLE[SERVICE_RESTART][1:])}).", ()
        details = askers[0].get("details") or {}
        host, services = (float(details.get(key) or 0) for key in ("host_percent", "services_percent"))
        if services and services >= host / 2:
            return (
                f"The services themselves use {services:.0f} of {host:.0f} % CPU: other processes that yield do not"
                " help them.",
                (),
            )
    return "", broker if name in (SERVICE_RESTART, MEMORY_CLEANUP) else ()


def _option(allowed: Allowed, program: str, playbook: str) -> str:
    return playbook if allowed.caller == PLAYBOOK else program


def next_step(name: str) -> str:
    """What a person does where a remedy did not help; empty where nothing can be said of every host."""
    return _NEXT.get(name) or _advice(name)


def _needs_deployment(state: State, allowed: Allowed) -> str:
    option = " (wheels_ops_recover_deploys)" if allowed.caller == PLAYBOOK else ""
    if not state.drifted:
        return f"Only a deployment installs the files that it needs{option}."
    names = ", ".join([*state.drifted[:5], *(["..."] if len(state.drifted) > 5 else [])])
    return (
        f"{names}: not as the deployment left them; only a deployment installs them again{option},"
        " with -e wheels_ops_force=true those that somebody changed."
    )


def _advice(name: str) -> str:
    return f"Run {_DEPLOY}." if name in (*_DEPLOY_INSTEAD, DEPLOY) else ""


def _harm_advice(name: str, checks: t.Sequence[Check]) -> str:
    if name == CPU_RELIEF:
        return "Find the request or task that is busy; the message of the check says more."
    message = next((check.get("message", "") for check in checks if check["name"] == "redis"), "")
    return f"Make Redis take writes first: {message}" if message else ""


def broker_services(services: t.Sequence[Service]) -> t.Tuple[str, ...]:
    """The names of the services that are the broker or live from it: nothing of it comes up while Redis takes no
    writes, and Redis itself might lose what it cannot save.
    """
    return tuple(
        str(service["name"])
        for service in services
        if (service.get("gate") or {}).get("type") in ("redis", "celery", "beat") or "celery" in str(service["name"])
    )


def _restart(
    subjects: t.Tuple[str, ...],
    checks: t.Sequence[Check],
    allowed: Allowed,
    state: State,
    without: t.Tuple[str, ...],
    writes: str,
) -> Step:
    """A restart leaves alone what may not be restarted now, and what depends on it."""
    down = _down(checks)
    blocked = [name for name in down if name in state.restarts and name not in without]
    remaining = _with_dependents(allowed.services, blocked) - set(without)
    leaves = (*without, *sorted(remaining))
    names = [str(service["name"]) for service in allowed.services]
    waiting = [name for name in names if name not in leaves]
    # Where nothing that is down may be started, the rest of what fails is no reason to touch the others. The other
    # subjects may fail for a service whose own readiness check passes.
    only_down = bool(down) and (bool(blocked) or set(subjects) <= {"services", "redis", "celery"})
    reasons = "; ".join(f"{name} is not restarted: {state.restarts[name].reason}" for name in blocked)
    if waiting and not (only_down and not set(down) & set(waiting)):
        advice = f"{reasons}. {_NEXT[SERVICE_RESTART]}" if blocked else _NEXT[SERVICE_RESTART]
        return Step(SERVICE_RESTART, subjects, advice=advice, without=leaves)
    if blocked:
        first = min(blocked, key=lambda name: (state.restarts[name].until, name))
        return Step(
            SERVICE_RESTART,
            subjects,
            refused=f"{reasons}.",
            advice="Find out why it needs restarts: its log says why it ends.",
            waits_until=state.restarts[first].until,
        )
    return Step(
        SERVICE_RESTART,
        subjects,
        refused=(
            f"Redis takes no writes (refused: {writes}): restarting it, its workers or its beat would make it worse."
        ),
        advice=_harm_advice(SERVICE_RESTART, checks),
    )


def _down(checks: t.Sequence[Check]) -> t.List[str]:
    """The services that do not run or do not do their work, by the check ``services``."""
    details = next((check.get("details") or {} for check in checks if check["name"] == "services"), {})
    return [name for name, facts in (details.get("services") or {}).items() if facts.get("status") == "critical"]


def _with_dependents(services: t.Sequence[Service], names: t.Collection[str]) -> t.Set[str]:
    every = set(names)
    while True:
        more = {
            str(service["name"])
            for service in services
            if service["name"] not in every and every & set(service.get("depends_on") or ())
        }
        if not more:
            return every
        every |= more


def _waits(name: str, allowed: Allowed, state: State) -> t.Tuple[str, float]:
    """(why a remedy is not tried again yet, until when); empty where it may be."""
    policy = allowed.policy.of(name)
    tries = sorted(
        (
            # A clock that was put back leaves tries of the future; they count as of now.
            Try(each.remedy, min(each.at, state.now), each.outcome)
            for each in state.tries
            if each.remedy == name and each.outcome in TRIED
        ),
        key=lambda each: -each.at,
    )
    if not tries:
        return "", 0.0
    inside = [each for each in tries if each.at > state.now - policy.window]
    if policy.budget and len(inside) >= policy.budget:
        until = inside[policy.budget - 1].at + policy.window
        return (
            f"Its budget of {policy.budget} tries in {policy.window:g} s is spent; one is free again in"
            f" {until - state.now:.0f} s. It comes back: find out why.",
            until,
        )
    failures = next((at for at, each in enumerate(tries) if each.outcome not in UNSUCCESSFUL), len(tries))
    pause = policy.pause(failures)
    until = tries[0].at + pause
    if allowed.ignore_cooldown or until <= state.now:
        return "", 0.0
    times = f", for the {_ordinal(failures)} time without success" if failures > 1 else ""
    return (
        f"It was tried {state.now - tries[0].at:.0f} s ago{times}; the cool-down of {pause:g} s lasts"
        f" {until - state.now:.0f} s more ({_option(allowed, *_IGNORE_COOLDOWN)}).",
        until,
    )


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _relief_end(checks: t.Sequence[Check], steps: t.Sequence[Step], state: State) -> t.List[Step]:
    """A lowered priority is restored when its time is over. A relief that is begun again does that itself."""
    if not state.relief_ends or state.relief_ends > state.now:
        return []
    again = any(step.remedy == CPU_RELIEF and not step.refused for step in steps)
    return [] if again else [Step(CPU_RELIEF_END, ("cpu",) if any(each["name"] == "cpu" for each in checks) else ())]


def _unmeasured(check: Check) -> Step:
    return Step(
        "",
        (check["name"],),
        refused="It could not be measured, so nothing is changed for it.",
        advice=str(check.get("message") or "Find out why."),
    )


def _unknown_remedy(check: Check) -> Step:
    return Step(
        "", (check["name"],), refused="No remedy is known for it.", advice=str(check.get("message") or "Look at it.")
    )
