# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The thresholds of the incident report, and how a value becomes a status."""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass

from ..core.results import OpsError

Status = str
#: Worst last, the one order of severity: ``report``, the exit status of the programs and the exposition follow it. ``skipped`` was not asked
#: for. ``unknown`` could not be measured: it may be anything, so that it is worse than a warning, of which one knows how bad it is.
STATUSES: t.Tuple[Status, ...] = ("skipped", "ok", "warning", "unknown", "critical", "emergency")


@dataclass(frozen=True)
class Thresholds:
    """Limits in the unit of the value; a value *above* a limit has that status. ``None``: no such limit."""

    warning: t.Optional[float] = None
    critical: t.Optional[float] = None
    emergency: t.Optional[float] = None

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.warning, self.critical, self.emergency) if limit is not None]
        if limits != sorted(limits):
            raise OpsError(
                f"The thresholds {limits} do not rise.",
                hint="Give them as warning <= critical <= emergency.",
            )

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


#: "Automated Alerts" and "Key Performance Indicators" of the incident report. The last two are judgement: two workers finish a thousand short
#: tasks in seconds, and a round trip over a socket that is open takes a second only where the event loop stalls.
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
    found = list(statuses)
    return max(found, key=STATUSES.index) if found else "unknown"


def parse(given: t.Mapping[str, t.Any]) -> t.Dict[str, Thresholds]:
    """Thresholds from a caller's dictionaries; what is not given keeps its default. Raises ``OpsError`` for nonsense."""
    parsed = {}
    for name, limits in given.items():
        if name not in DEFAULTS:
            raise OpsError(f"There is no threshold {name!r}.", hint=f"Known are: {', '.join(DEFAULTS)}.")
        if not isinstance(limits, t.Mapping):
            raise OpsError(
                f"The limits of {name} are no dictionary: {limits}.", hint="Give them as {warning: ..., critical: ...}."
            )
        values = {**DEFAULTS[name].as_dict(), **limits}
        strange = sorted(set(values) - {"warning", "critical", "emergency"})
        if strange:
            raise OpsError(
                f"The threshold {name} has no limit {', '.join(strange)}.",
                hint="Known are: warning, critical, emergency.",
            )
        if any(isinstance(value, bool) for value in values.values()):
            raise OpsError(f"The limits of {name} are not numbers: {limits}.")
        try:
            numbers = {key: None if value is None else float(value) for key, value in values.items()}
        except (TypeError, ValueError) as error:
            raise OpsError(f"The limits of {name} are not numbers: {limits}.") from error
        top = 100 if name in ("memory", "cpu", "disk", "error_rate") else float("inf")
        if any(number is not None and not 0 <= number <= top for number in numbers.values()):
            raise OpsError(f"The limits of {name} are out of range: {limits}.", hint=f"They go from 0 to {top:g}.")
        parsed[name] = Thresholds(**numbers)
    return parsed
