# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The processes of a list of services."""

from __future__ import annotations

import typing as t

from ..core.results import OpsError
from .model import Manager, parse_services


def service_pids(services: t.Sequence[t.Mapping[str, t.Any]], manager: t.Callable[[], Manager]) -> t.FrozenSet[int]:
    """Every process of every running service; empty, without asking a manager, where none is listed.

    Raises ``OpsError`` for a service that the manager does not know: its processes would be left unprotected.
    """
    if not services:
        return frozenset()
    model, control = parse_services(services), manager()
    states = control.states([service.unit for service in model])
    strange = [service.unit for service in model if not states[service.unit].exists]
    if strange:
        raise OpsError(
            f"Unknown units in services: {', '.join(strange)}.",
            hint="Install the unit, or name it with unit.",
        )
    return frozenset(pid for service in model for pid in control.pids(states[service.unit]))
