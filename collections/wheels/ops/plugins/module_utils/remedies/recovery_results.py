# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What became of the steps of a recovery plan. The playbook ``recover`` and ``automated_recovery.py`` record the
same.
"""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass, field

from ..state.problems import Attempt

#: What the history keeps of a result; the dashboard of the backend shows these keys.
_BRIEF = ("action", "success", "outcome", "message", "timestamp", "changed")


@dataclass
class RecoveryResult:
    """What became of one remedy. ``success``: no error, and the checks that asked for it pass afterwards; None in check
    mode.

    ``changed`` says whether it changed (in check mode: would change) anything, ``refused`` why it was not begun.
    ``waits``: it was refused for now and may begin later. ``advice``: what a person does where it was refused or did
    not help. ``outcome`` is one word: ``done``, ``partly``
    (it changed something, yet a check still fails), ``nothing`` (there was nothing that it could do), ``failed``,
    ``refused``, or in check mode ``would``.
    """

    action: str
    success: t.Optional[bool] = None
    message: str = ""
    timestamp: str = ""
    details: t.Dict[str, t.Any] = field(default_factory=dict)
    changed: bool = False
    refused: str = ""
    outcome: str = ""
    checks: t.List[str] = field(default_factory=list)
    advice: str = ""
    waits: bool = False

    def as_dict(self) -> t.Dict[str, t.Any]:
        return asdict(self)

    def refuse(self, reason: str, advice: str = "", *, waits: bool = False) -> None:
        """Marks the remedy as not begun; with ``waits`` it may begin later."""
        self.refused = self.message = reason
        self.waits = waits
        self.advice = advice
        self.success, self.outcome = False, "refused"

    def fail(self, message: str) -> None:
        """Marks the remedy as failed."""
        self.message, self.success, self.outcome = message, False, "failed"


def verify(
    results: t.Sequence[RecoveryResult], after: t.Sequence[t.Mapping[str, t.Any]], *, check_mode: bool = False
) -> None:
    """Sets outcome and success by the checks ``after``: a remedy succeeded where they pass, not where it returned."""
    if check_mode:
        for result in results:
            result.outcome = result.outcome or ("would" if result.changed else "nothing")
        return
    states = {check["name"]: check for check in after}
    for result in results:
        problems = [
            name for name in result.checks if name in states and states[name]["status"] not in ("ok", "skipped")
        ]
        if result.success is None:
            result.success = not problems
            result.outcome = ("partly" if problems else "done") if result.changed else "nothing"
            if problems:
                result.message += (
                    " Still: "
                    + "; ".join(
                        f"{name}: {states[name]['status']}: {str(states[name]['message']).rstrip('.')}"
                        for name in problems
                    )
                    + "."
                )


def brief(result: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    """What the history keeps of a result."""
    return {key: result[key] for key in _BRIEF}


def attempts_of(results: t.Iterable[RecoveryResult]) -> t.List[Attempt]:
    """The results as the life of a problem takes them (``state/problems.py``)."""
    return [
        Attempt(
            remedy=result.action,
            subjects=tuple(result.checks),
            outcome=result.outcome,
            waits=result.waits,
            reason=result.refused or result.message,
            advice=result.advice,
        )
        for result in results
    ]
