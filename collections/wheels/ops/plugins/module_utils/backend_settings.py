# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The thresholds of a host as the variables of the backend's environment, so that both grade by the same limits."""

from __future__ import annotations

import typing as t

from .results import OpsError
from .thresholds import DEFAULTS, parse

#: threshold -> how the names of the backend's variables begin. The limits of the disk are those of its bytes and of its inodes.
PREFIXES: t.Mapping[str, t.Tuple[str, ...]] = {
    "memory": ("MEMORY",),
    "cpu": ("CPU",),
    "disk": ("DISK", "DISK_INODES"),
    "response_time_ms": ("RESPONSE_TIME",),
    "error_rate": ("ERROR_RATE",),
}
#: The backend has no word for "no such limit": what no value is above. A day is longer than any answer.
_NEVER = {"response_time_ms": 86_400_000.0}
#: The only one that the backend has a third limit for.
_EMERGENCY = ("memory",)


def threshold_variables(thresholds: t.Mapping[str, t.Any], beside: t.Optional[t.Mapping[str, t.Any]] = None) -> t.Dict[str, str]:
    """Every limit as a variable: the given ones, the incident report's for the others.

    Raises ``OpsError`` for nonsense, and where one of the variables ``beside`` them says otherwise: one host would have two truths.
    """
    limits = {**DEFAULTS, **parse(thresholds)}
    variables = {}
    for name, prefixes in PREFIXES.items():
        for level in ("warning", "critical", *(("emergency",) if name in _EMERGENCY else ())):
            limit = getattr(limits[name], level)
            for prefix in prefixes:
                variable = f"{prefix}_{level.upper()}_THRESHOLD"
                variables[variable] = f"{_NEVER.get(name, 100.0) if limit is None else limit:.12g}"
                if variable in (beside or {}) and not _is_equal((beside or {})[variable], variables[variable]):
                    raise OpsError(
                        f"The variable {variable} of the backend differs from the threshold {name}.{level} of its host ({variables[variable]}).",
                        hint=f"Take it out, and set wheels_ops_thresholds ({name}: {{{level}: ...}}), which both follow.",
                    )
    return variables


def _is_equal(value: t.Any, limit: str) -> bool:
    try:
        return float(value) == float(limit)
    except (TypeError, ValueError):
        return False
