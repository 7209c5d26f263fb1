# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A recovery for the person on call: what was wrong, what was done, what was refused and why, what to do next."""

from __future__ import annotations

import time
import typing as t

from . import report

Result = t.Mapping[str, t.Any]
#: What a person does about a failure for which nothing better is known.
_DEPLOY = "Run ansible-playbook -i INVENTORY playbooks/deploy.yml: it fixes what a restart or a clean-up cannot."


class PlannedStep(t.Protocol):
    """A step of ``remedies.plan``, of which this room knows nothing."""

    @property
    def remedy(self) -> str: ...
    @property
    def subjects(self) -> t.Sequence[str]: ...
    @property
    def refused(self) -> str: ...
    @property
    def advice(self) -> str: ...


def plan_lines(checks: t.Sequence[t.Mapping[str, t.Any]], steps: t.Sequence[PlannedStep]) -> t.List[str]:
    """A plan that was not carried out yet."""
    results = [
        {
            "action": step.remedy,
            "checks": list(step.subjects),
            "refused": step.refused,
            "advice": step.advice,
            "outcome": "planned",
            "message": "may begin",
        }
        for step in steps
    ]
    begun = [f"{_name(result)}" for result in results if not result["refused"]]
    return [
        *_section("What is wrong", report.remaining({"checks": checks})),
        *_section("Remedies, in this order", begun),
        *_section("Refused", _refused(results)),
        *_section("What to do next", _advice([each for each in results if each["refused"]], checks)),
    ]


def lines(
    before: t.Sequence[t.Mapping[str, t.Any]],
    after: t.Sequence[t.Mapping[str, t.Any]],
    results: t.Sequence[Result],
    *,
    check_mode: bool = False,
) -> t.List[str]:
    """The text, line by line. ``before`` and ``after`` are the checks of health runs, ``results`` what
    ``RecoveryResult.as_dict`` gives.
    """
    wrong = report.remaining({"checks": before})
    if not wrong and not results:
        return []
    text = _section("What was wrong" if not check_mode else "What is wrong", wrong or ["nothing"])
    begun = [result for result in results if not result["refused"]]
    text += _section(
        "What was done" if not check_mode else "What would be done",
        [f"{result['outcome']:8} {_name(result)}: {result['message']}" for result in begun] or ["nothing"],
    )
    text += _section("What was refused" if not check_mode else "What would be refused", _refused(results))
    if check_mode:
        refused = [result for result in results if result["refused"]]
        return [*text, *_section("What to do next", _advice(refused, before))]
    problems = report.remaining({"checks": after})
    text += _section("What is left", problems)
    return [*text, *_section("What to do next", (_advice(results, after) or [_DEPLOY]) if problems else [])]


def waiting(until: float) -> str:
    """A time (seconds since the epoch) as a person reads it, empty for 0."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until)) if until else ""


def _section(title: str, entries: t.Sequence[str]) -> t.List[str]:
    return [title, *(f"  {entry}" for entry in entries)] if entries else []


def _refused(results: t.Sequence[Result]) -> t.List[str]:
    return [f"{_name(result)}: {result['refused']}" for result in results if result["refused"]]


def _name(result: Result) -> str:
    return (
        f"{result['action'] or 'no remedy'} ({', '.join(result['checks'])})" if result["checks"] else result["action"]
    )


def _advice(results: t.Sequence[Result], after: t.Sequence[t.Mapping[str, t.Any]]) -> t.List[str]:
    """What a person does, for the checks that still fail: once each, in the order of the results."""
    failing = {check["name"] for check in after if check["status"] not in ("ok", "skipped")}
    advice = [f"{result['advice']}" for result in results if result["advice"] and failing & set(result["checks"])]
    return list(dict.fromkeys(advice))
