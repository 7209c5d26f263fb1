# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the services of the host run and do their work."""

from __future__ import annotations

import typing as t

from ..health import Check, unknown
from ..results import OpsError
from ..services import gates
from ..services.manager import open_manager
from ..services.model import Manager, Service, parse_services


def check(
    services: t.Sequence[t.Mapping[str, t.Any]],
    *,
    manager: str = "auto",
    supervisor_socket: str = "",
    supervisor_username: str = "",
    supervisor_password: str = "",
    min_uptime: float = 0.0,
) -> Check:
    """One probe of every service's gate; ``services`` are dictionaries as ``service_restart`` takes them.

    ``value`` is the share of healthy services in percent. ``critical`` where one is down or does not do its work, ``warning`` where one
    runs for less than ``min_uptime`` seconds or was restarted by its manager. ``unknown`` where the manager cannot be asked.
    """
    parsed = parse_services(services)
    try:
        control = open_manager(manager, supervisor_socket, username=supervisor_username, password=supervisor_password)
    except OpsError as error:
        return unknown("services", str(error))
    states = control.states([service.unit for service in parsed])
    details: t.Dict[str, t.Any] = {}
    bad: t.List[str] = []
    weak: t.List[str] = []
    for service in parsed:
        state = states[service.unit]
        why = _why(service, state, control)
        details[service.name] = {"state": state.state, "pid": state.pid, "uptime_s": state.uptime_s, "restarts": state.restarts, "healthy": not why, "why": why}
        if why:
            bad.append(f"{service.name}: {why}")
        elif min_uptime and state.uptime_s is not None and state.uptime_s < min_uptime:
            weak.append(f"{service.name} runs for {state.uptime_s:.0f} s only")
        elif state.restarts:
            weak.append(f"{service.name} was restarted {state.restarts} times by {control.name}")
    healthy = 100.0 * (len(parsed) - len(bad)) / len(parsed)
    status = "critical" if bad else "warning" if weak else "ok"
    return Check(
        name="services",
        status=status,
        value=round(healthy, 1),
        unit="percent",
        message="; ".join(bad or weak) or f"All {len(parsed)} services are healthy.",
        remedy="service_restart" if bad else "",
        details={"manager": control.name, "services": details},
    )


def _why(service: Service, state: t.Any, control: Manager) -> str:
    """Why a service is not healthy; empty where it is."""
    if not state.exists:
        return f"{control.name} does not know it"
    try:
        seen = gates.probe(service, state, control)
    except OpsError as error:
        return str(error)
    return "" if seen.ready else seen.why
