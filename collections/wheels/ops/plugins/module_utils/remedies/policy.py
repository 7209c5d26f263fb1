# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a recovery behaves, as data: which remedy for which check, how often, and what waits for a person.

The defaults are those of the incident report. ``parse`` reads ``wheels_ops_recovery_policy``.
"""

from __future__ import annotations

import dataclasses
import typing as t
from dataclasses import dataclass, field

from ..core.options import choices, in_range, known_keys, number
from ..core.results import OpsError
from ..state.problems import MAX_FAILURES

#: Options that are numbers, with the least and the largest value.
RANGES: t.Mapping[str, t.Tuple[float, float]] = {
    "confirm_after": (0, 3600),
    "cooldown": (0, 604_800),
    "max_cooldown": (0, 604_800),
    "budget": (0, 1000),
    "max_restarts": (0, 1000),
    "max_failures": (0, 1000),
}
_WHOLE = ("budget", "max_restarts", "max_failures")
#: Those that one remedy may have of its own.
_OF_REMEDY = ("cooldown", "max_cooldown", "budget")


@dataclass(frozen=True)
class Policy:
    """Limits, in seconds. ``cooldown`` follows a try and doubles with every further one that did not help, up to
    ``max_cooldown``.

    A remedy that did not help ``max_failures`` times is not tried again before its problem has ended, 0 for any number.
    ``budget`` tries of one remedy are made within ``window``. ``confirm_after``: what fails is measured again after it;
    0 believes the first measurement. ``max_restarts`` of one service within ``window``, 0 for any number.

    ``remedies``: by check, the remedies that it may ask for, instead of those that the check itself names; an empty
    list leaves the check to a person. ``ask_person``: remedies that never begin by themselves. ``limits``: by remedy,
    its own ``cooldown``, ``max_cooldown`` and ``budget``.
    """

    confirm_after: float = 5.0
    cooldown: float = 600.0
    max_cooldown: float = 14_400.0
    budget: int = 6
    window: float = 3600.0
    max_restarts: int = 3
    max_failures: int = MAX_FAILURES
    remedies: t.Mapping[str, t.Tuple[str, ...]] = field(default_factory=dict)
    ask_person: t.Collection[str] = ()
    limits: t.Mapping[str, t.Mapping[str, float]] = field(default_factory=dict)

    def pause(self, failures: int) -> float:
        """Seconds to wait after a try, the last ``failures`` of which did not help."""
        return min(max(self.cooldown, self.max_cooldown), self.cooldown * 2.0 ** min(max(0, failures - 1), 30))

    def of(self, remedy: str) -> Policy:
        """The policy with the limits that one remedy has of its own."""
        own: t.Dict[str, t.Any] = {**self.limits.get(remedy, {})}
        return dataclasses.replace(self, **own) if own else self


def parse(
    values: t.Mapping[str, t.Any],
    base: Policy,
    *,
    remedies: t.Sequence[str],
    subjects: t.Sequence[str],
    name: str = "policy",
) -> Policy:
    """``base`` with the values of a configuration. Raises ``OpsError`` for what no policy can be.

    ``remedies`` and ``subjects`` are the names that exist.
    """
    known_keys(name, values, (*RANGES, "remedies", "ask_person", "limits"))
    own: t.Dict[str, t.Any] = _numbers(name, values, tuple(RANGES))
    if "remedies" in values:
        table = _mapping(f"{name}.remedies", values["remedies"])
        known_keys(f"{name}.remedies", table, subjects)
        own["remedies"] = {check: _names(f"{name}.remedies.{check}", entry, remedies) for check, entry in table.items()}
    if "ask_person" in values:
        own["ask_person"] = frozenset(_names(f"{name}.ask_person", values["ask_person"], remedies))
    if "limits" in values:
        table = _mapping(f"{name}.limits", values["limits"])
        known_keys(f"{name}.limits", table, remedies)
        own["limits"] = {}
        for remedy, entry in table.items():
            place = f"{name}.limits.{remedy}"
            known_keys(place, _mapping(place, entry), _OF_REMEDY)
            own["limits"][remedy] = _numbers(place, entry, _OF_REMEDY)
    return dataclasses.replace(base, **own)


def check_ranges(values: t.Mapping[str, t.Any]) -> None:
    """Require that the numbers of a policy are in their ranges."""
    _numbers("", values, [key for key in RANGES if key in values])


def _numbers(name: str, values: t.Mapping[str, t.Any], keys: t.Sequence[str]) -> t.Dict[str, t.Any]:
    result = {}
    for key in keys:
        if key in values:
            place = f"{name}.{key}" if name else key
            result[key] = number(place, values[key], int if key in _WHOLE else float)
            in_range(place, result[key], *RANGES[key])
    return result


def _mapping(name: str, value: t.Any) -> t.Mapping[str, t.Any]:
    if not isinstance(value, dict):
        raise OpsError(f"{name} must be an object.", hint="docs/recovery.md has an example.")
    return value


def _names(name: str, value: t.Any, options: t.Sequence[str]) -> t.Tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise OpsError(f"{name} must be a list.", hint=f"Choose from {', '.join(options)}.")
    if value:
        choices(name, map(str, value), options)
    return tuple(map(str, value))
