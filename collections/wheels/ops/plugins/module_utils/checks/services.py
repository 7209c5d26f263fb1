# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the services of the host run and do their work."""

from __future__ import annotations

import typing as t

from ..core.results import OpsError
from ..health.check import Check, unknown
from ..services import gates
from ..services.manager import open_manager
from ..services.model import Manager, Service, ServiceState, parse_services
from .context import HostContext, Options

#: An automatic restart of the last hour is worth a look; one of last month is not.
RECENT = 3600.0


def check(
    services: t.Sequence[t.Mapping[str, t.Any]],
    *,
    manager: str = "auto",
    supervisor_socket: str = "",
    supervisor_username: str = "",
    supervisor_password: str = "",
    min_uptime: float = 0.0,
    context: t.Optional[HostContext] = None,
) -> Check:
    """One probe of every service's gate; ``services`` are dictionaries as ``service_restart`` takes them.

    ``value`` is the share of healthy services in percent. ``critical`` where one is down or does not do its work,
    ``warning`` where one runs for less than ``min_uptime`` seconds or its manager had to start it again within the last
    hour, ``unknown`` where the manager cannot be asked or a gate cannot be judged (a right is missing). ``context`` has
    the services and their manager where a run has looked them up already.
    """
    if context is None:
        context = HostContext(
            parse_services(services),
            lambda: open_manager(
                manager, supervisor_socket, username=supervisor_username, password=supervisor_password
            ),
        )
    try:
        control = context.manager()
    except OpsError as error:
        return unknown("services", str(error))
    parsed, states = context.services, context.states()
    details: t.Dict[str, t.Any] = {}
    by_status: t.Dict[str, t.List[str]] = {"critical": [], "unknown": [], "warning": [], "ok": []}
    member_pids: t.Set[str] = set()
    for service in parsed:
        state = states[service.unit]
        status, why = _judge(service, state, control)
        again = control.automatic_restarts(service.unit, RECENT) if status == "ok" else 0
        if status == "ok" and min_uptime and state.uptime_s is not None and state.uptime_s < min_uptime:
            status, why = "warning", f"runs for {state.uptime_s:.0f} s only"
        elif status == "ok" and state.outdated:
            status, why = "warning", f"its definition was changed on disk since {control.name} read it; restart it"
        elif again:
            status, why = "warning", f"{control.name} had to start it again {again} times within the last hour"
        if why:
            member_pids.add(service.name)  # said of one that does its work, too, though not every question is answered
        by_status[status].append(f"{service.name}: {why}")
        details[service.name] = {
            "state": state.state,
            "pid": state.pid,
            "uptime_s": state.uptime_s,
            "restarts": state.restarts,
            "status": status,
            "why": why,
            "healthy": status in ("ok", "warning"),
        }
    status = next(name for name in ("critical", "unknown", "warning", "ok") if by_status[name])
    healthy = 100.0 * (len(by_status["ok"]) + len(by_status["warning"])) / len(parsed)
    bad = [*by_status["critical"], *by_status["unknown"], *by_status["warning"]]
    notes = [f" {service.name}: {details[service.name]['why']}." for service in parsed if service.name in member_pids]
    return Check(
        name="services",
        status=status,
        value=round(healthy, 1),
        unit="percent",
        message="; ".join(bad) or f"All {len(parsed)} services are healthy." + "".join(notes),
        remedy="service_restart" if status == "critical" else "",
        details={"manager": control.name, "services": details},
    )


def _judge(service: Service, state: ServiceState, control: Manager) -> t.Tuple[str, str]:
    """Status and reason of one service."""
    if not state.exists:
        return "critical", f"{control.name} does not know it"
    try:
        observation = gates.probe(service, state, control)
    except OpsError as error:
        return "unknown", str(error)
    if observation.ready:
        return "ok", observation.why
    return ("warning" if observation.unfinished else "critical"), observation.why


def measure(context: HostContext, options: Options) -> Check:
    return check(
        options.services,
        manager=options.service_manager,
        supervisor_socket=options.supervisor_socket,
        context=context,
    )
