# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The thresholds of a host as the variables of the backend's environment, so that both grade by the same limits."""

from __future__ import annotations

import typing as t

from ..core.results import OpsError
from .thresholds import DEFAULTS, parse


def _variables(prefix: str, *levels: str) -> t.Dict[str, str]:
    return {level: f"{prefix}_{level.upper()}_THRESHOLD" for level in ("warning", "critical", *levels)}


#: threshold -> variables of the backend by limit. The limits of the disk are those of its bytes and of its inodes. Of
#: waiting tasks the backend only warns; a WebSocket's round trip is measured from outside, and by the host alone.
VARIABLES: t.Mapping[str, t.Sequence[t.Mapping[str, str]]] = {
    "memory": (_variables("MEMORY", "emergency"),),
    "cpu": (_variables("CPU"),),
    "disk": (_variables("DISK"), _variables("DISK_INODES")),
    "response_time_ms": (_variables("RESPONSE_TIME"),),
    "error_rate": (_variables("ERROR_RATE"),),
    "waiting_tasks": ({"warning": "CELERY_QUEUE_DEPTH_WARNING"},),
    "websocket_ms": (),
}
_LEVELS = ("warning", "critical", "emergency")
#: The backend has no word for "no such limit": what no value is above. Of milliseconds a day; of tasks more than a
#: Redis can hold.
_NEVER = {"response_time_ms": 86_400_000.0, "waiting_tasks": 1e12}


def threshold_variables(
    thresholds: t.Mapping[str, t.Any], beside: t.Optional[t.Mapping[str, t.Any]] = None
) -> t.Dict[str, str]:
    """Every limit as a variable: the given ones, the incident report's for the others. A limit that a host has not is
    the next higher one, as the backend lets none of its limits lie below the one before.

    Raises ``OpsError`` for nonsense, and where one of the variables ``beside`` them says otherwise: one host would have
    two truths.
    """
    limits = {**DEFAULTS, **parse(thresholds)}
    variables = {}
    for name, sets in VARIABLES.items():
        for level, variable in (pair for levels in sets for pair in levels.items()):
            higher = _LEVELS[_LEVELS.index(level) :]
            limit = next(
                (value for value in (getattr(limits[name], each) for each in higher) if value is not None), float("inf")
            )
            variables[variable] = f"{min(limit, _NEVER.get(name, 100.0)):.12g}"
            if variable in (beside or {}) and not _is_equal((beside or {})[variable], variables[variable]):
                raise OpsError(
                    f"The variable {variable} of the backend differs from the threshold {name}.{level} of its host"
                    f" ({variables[variable]}).",
                    hint=f"Take it out, and set wheels_ops_thresholds ({name}: {{{level}: ...}}), which both follow.",
                )
    return variables


def _is_equal(value: t.Any, limit: str) -> bool:
    try:
        return float(value) == float(limit)
    except (TypeError, ValueError):
        return False
