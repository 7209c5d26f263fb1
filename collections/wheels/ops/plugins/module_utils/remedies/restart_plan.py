# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which services are restarted, and in which order: a pure function of the graph, the states and what was asked for."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..core.results import OpsError
from ..services.model import Service, ServiceState

#: Reasons that a run may be limited to.
REASONS: t.Tuple[str, ...] = ("failed", "stopped", "stale", "unhealthy")


@dataclass(frozen=True)
class Step:
    """One thing to do.

    ``action``: ``pause`` (stop now, a later step starts it), ``restart``, ``start`` or ``verify`` (its gate only).
    """

    action: str
    service: Service
    reason: str


def order(services: t.Sequence[Service]) -> t.List[Service]:
    """Dependencies first; services that do not depend on each other keep the caller's order.

    Raises ``OpsError`` for a circle.
    """
    by_name = {service.name: service for service in services}
    placed: t.List[Service] = []
    done: t.Set[str] = set()

    def place(name: str, path: t.Tuple[str, ...]) -> None:
        if name in path:
            raise OpsError(
                f"The services depend on each other in a circle: {' -> '.join([*path[path.index(name) :], name])}.",
                hint="Break it in depends_on.",
            )
        if name in done:
            return
        for dependency in by_name[name].depends_on:
            place(dependency, (*path, name))
        done.add(name)
        placed.append(by_name[name])

    for service in services:
        place(service.name, ())
    return placed


def dependents(services: t.Sequence[Service], names: t.Collection[str]) -> t.Set[str]:
    """Everything that depends on one of ``names``, directly or through others; without ``names`` themselves."""
    result = set(names)
    grew = True
    while grew:
        more = {service.name for service in services if service.name not in result and result & set(service.depends_on)}
        grew = bool(more)
        result |= more
    return result - set(names)


def plan(
    services: t.Sequence[Service],
    states: t.Mapping[str, ServiceState],
    *,
    state: str = "restarted",
    targets: t.Sequence[str] = (),
    only_if: t.Sequence[str] = (),
    unhealthy: t.Optional[t.Mapping[str, str]] = None,
    stale: t.Optional[t.Mapping[str, str]] = None,
    with_dependents: bool = True,
) -> t.List[Step]:
    """The steps of a run; empty where there is nothing to do.

    ``states`` are by unit. ``targets`` narrows the services that are looked at (all where empty). With ``only_if`` a
    service is restarted only for one of these reasons: it ``failed``, it is ``stopped``, it is ``stale`` (a watched
    file is newer than its process) or it is ``unhealthy`` (its gate does not hold); ``stale`` and ``unhealthy`` say for
    which services that is so, and why. What depends on a restarted service is restarted after it, each once.
    ``state=started`` starts what does not run and leaves the rest alone.
    """
    ordered = order(services)
    unknown = sorted(set(targets) - {service.name for service in ordered})
    if unknown:
        raise OpsError(
            f"{', '.join(unknown)} in only is not among the services.",
            hint=f"Listed are: {', '.join(service.name for service in ordered)}.",
        )
    missing = [service for service in ordered if not states[service.unit].exists]
    if missing:
        names = ", ".join(
            f"{service.name} ({service.unit})" if service.unit != service.name else service.name for service in missing
        )
        raise OpsError(f"The service manager does not know {names}.", hint="Install the unit, or name it with unit.")
    selected = [service for service in ordered if not targets or service.name in targets]
    reasons: t.Dict[str, str] = {}
    for service in selected:
        reason = _reason(
            service, states[service.unit], state=state, only_if=only_if, unhealthy=unhealthy or {}, stale=stale or {}
        )
        if reason:
            reasons[service.name] = reason
    if with_dependents and state == "restarted":
        for name in sorted(dependents(ordered, list(reasons))):
            service = next(entry for entry in ordered if entry.name == name)
            if states[service.unit].running or name in {target.name for target in selected}:
                causes = [
                    entry.name
                    for entry in ordered
                    if entry.name in reasons and name in dependents(ordered, [entry.name])
                ]
                reasons[name] = f"depends on {', '.join(causes)}"
    return _steps(ordered, states, reasons)


def _reason(
    service: Service,
    now: ServiceState,
    *,
    state: str,
    only_if: t.Sequence[str],
    unhealthy: t.Mapping[str, str],
    stale: t.Mapping[str, str],
) -> str:
    """Why a service has to be acted on; empty where it has not."""
    if state == "started":
        return "" if now.running or now.at_rest else _down(now)[1]
    if not only_if:
        return "asked for"
    if "failed" in only_if and now.failed:
        return _down(now)[0]
    if "stopped" in only_if and not now.running and not now.at_rest:
        return _down(now)[1]
    if "stale" in only_if and service.name in stale:
        return stale[service.name]
    if "unhealthy" in only_if and service.name in unhealthy:
        return unhealthy[service.name]
    return ""


def _down(now: ServiceState) -> t.Tuple[str, str]:
    """What is said of one that failed, and of one that only does not run."""
    return f"it failed: {now.state}", f"it is {now.state}"


def _steps(
    ordered: t.Sequence[Service], states: t.Mapping[str, ServiceState], reasons: t.Mapping[str, str]
) -> t.List[Step]:
    """Who takes tasks or sends them is stopped before the Redis below it, so that what waits there can be counted and
    kept.
    """
    selected = [service for service in ordered if service.name in reasons]
    stores = [service.name for service in selected if service.gate.type == "redis" and states[service.unit].up]
    below = dependents(ordered, stores)
    paused = [
        service
        for service in selected
        if service.gate.type in ("celery", "beat") and service.name in below and states[service.unit].up
    ]
    steps = [Step("pause", service, f"its broker {', '.join(stores)} is restarted") for service in reversed(paused)]
    for service in selected:
        now = states[service.unit]
        fills = now.partly_up and reasons[service.name] in _down(now)  # what runs of it may go on
        starts = service in paused or not now.up or fills
        steps.append(Step("start" if starts else "restart", service, reasons[service.name]))
    return steps
