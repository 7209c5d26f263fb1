# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The thresholds of the incident report, and how a value becomes a status."""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass

from ..core import options
from ..core.results import OpsError

Status = str
#: Worst last, the one order of severity: ``report``, the exit status of the programs and the exposition follow it.
#: ``skipped`` was not asked for. ``unknown`` could not be measured: it may be anything, so that it is worse than a
#: warning, of which one knows how bad it is.
STATUSES: t.Tuple[Status, ...] = ("skipped", "ok", "warning", "unknown", "critical", "emergency")


@dataclass(frozen=True)
class Thresholds:
    """Limits in the unit of the value; a value *above* a limit has that status. ``None``: no such limit."""

    warning: t.Optional[float] = None
    critical: t.Optional[float] = None
    emergency: t.Optional[float] = None

    def __post_init__(self) -> None:
        options.ascending("Thresholds", self.as_dict())

    def status(self, value: t.Optional[float]) -> Status:
        """The status of a value; ``unknown`` for None."""
        if value is None:
            return "unknown"
        for name in ("emergency", "critical", "warning"):
            limit = getattr(self, name)
            if limit is not None and value > limit:
                return name
        return "ok"

    def crossed(self, value: float) -> float:
        """The highest limit below a value; 0 where it is above none."""
        return max(
            (limit for limit in (self.warning, self.critical, self.emergency) if limit is not None and value > limit),
            default=0.0,
        )

    def as_dict(self) -> t.Dict[str, t.Optional[float]]:
        return asdict(self)


#: "Automated Alerts" and "Key Performance Indicators" of the incident report. The last two are judgement: two workers
#: finish a thousand short tasks in seconds, and a round trip over a socket that is open takes a second only where the
#: event loop stalls.
DEFAULTS: t.Dict[str, Thresholds] = {
    "memory": Thresholds(65, 75, 85),
    "cpu": Thresholds(70, 85),
    "disk": Thresholds(75, 85),
    "response_time_ms": Thresholds(500, 1000),
    "error_rate": Thresholds(1, 5),
    "waiting_tasks": Thresholds(1000, 10_000),
    "websocket_ms": Thresholds(1000),
}
#: "Critical Memory Situation (>90%)": above it a restart is in order where cleaning up was not enough.
MEMORY_RESTART = 90.0
#: "Log rotation for files >50MB".
LOG_MAX_BYTES = 50 * 1000 * 1000


def worst(statuses: t.Iterable[Status]) -> Status:
    """The worst of several; ``unknown`` for none at all."""
    names = list(statuses)
    return max(names, key=STATUSES.index) if names else "unknown"


def parse(overrides: t.Mapping[str, t.Any]) -> t.Dict[str, Thresholds]:
    """Thresholds from a caller's dictionaries; what is not given keeps its default.

    Raises ``OpsError`` for nonsense.
    """
    thresholds = {}
    for name, limits in overrides.items():
        if name not in DEFAULTS:
            raise OpsError(f"Unknown threshold {name!r}.", hint=f"Choose one of {', '.join(DEFAULTS)}.")
        if not isinstance(limits, t.Mapping):
            raise OpsError(
                f"The threshold {name} must be a dictionary, {options.got(name, limits)}.",
                hint="Give it as {warning: ..., critical: ...}.",
            )
        values = {**DEFAULTS[name].as_dict(), **limits}
        options.known_keys(f"The threshold {name}", values, ("warning", "critical", "emergency"))
        top = 100 if name in ("memory", "cpu", "disk", "error_rate") else None
        numbers: t.Dict[str, t.Optional[float]] = {}
        for level, value in values.items():
            numbers[level] = None
            if value is not None:
                number = numbers[level] = options.number(f"The threshold {name}.{level}", value)
                options.in_range(f"The threshold {name}.{level}", number, 0, top)
        options.ascending(f"Thresholds of {name}", numbers)
        thresholds[name] = Thresholds(**numbers)
    return thresholds
