# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What became of the steps of a recovery plan, for the history and for a person."""

from __future__ import annotations

DOCUMENTATION = r"""
name: recovery_report
short_description: Report what became of the steps of a recovery plan
version_added: 1.1.0
description:
  - Takes one entry for each step of M(wheels.ops.recovery_plan_info) that was carried out or refused.
  - Compares the checks before and after.
options:
  _input:
    description:
      - The entries, with C(action), C(checks), C(changed), C(message) and C(timestamp).
      - C(failed), C(refused) and C(advice) where they apply.
    type: list
    elements: dict
    required: true
  before:
    description: The checks before.
    type: list
    elements: dict
    required: true
  after:
    description: The checks after.
    type: list
    elements: dict
    required: true
  check_mode:
    description: Whether nothing was changed.
    type: bool
    default: false
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Show what was done
  ansible.builtin.debug:
    msg: "{{ (steps | wheels.ops.recovery_report(before.checks, after.checks)).lines }}"
"""

RETURN = r"""
_value:
  description:
    - C(results) as M(wheels.ops.recovery_history) records them, C(attempts) for M(wheels.ops.recovery_problems), and
      C(lines) for a person.
  type: dict
"""

import typing as t
from dataclasses import asdict

from ansible_collections.wheels.ops.plugins.module_utils.core.redaction import redact_value
from ansible_collections.wheels.ops.plugins.module_utils.remedies import recovery_results
from ansible_collections.wheels.ops.plugins.module_utils.report import recovery_text

Checks = t.Sequence[t.Mapping[str, t.Any]]


def recovery_report(
    entries: t.Sequence[t.Mapping[str, t.Any]], before: Checks, after: Checks, check_mode: bool = False
) -> t.Dict[str, t.Any]:
    results = []
    for entry in entries:
        result = recovery_results.RecoveryResult(
            action=str(entry["action"]),
            checks=[str(name) for name in entry.get("checks") or ()],
            changed=bool(entry.get("changed")),
            message=str(entry.get("message") or ""),
            timestamp=str(entry.get("timestamp") or ""),
            advice=str(entry.get("advice") or ""),
        )
        if entry.get("refused"):
            result.refuse(str(entry["refused"]), result.advice, waits=bool(entry.get("waits")))
        elif entry.get("failed"):
            result.fail(result.message)
        results.append(result)
    recovery_results.verify(results, after, check_mode=check_mode)
    records = [result.as_dict() for result in results]
    text = recovery_text.lines(before, after, records, check_mode=check_mode)
    return t.cast(
        "t.Dict[str, t.Any]",
        redact_value(
            {
                "results": [recovery_results.brief(each) for each in records if each["action"]],
                "attempts": [
                    {**asdict(attempt), "subjects": list(attempt.subjects)}
                    for attempt in recovery_results.attempts_of(results)
                ],
                "lines": text,
            }
        ),
    )


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"recovery_report": recovery_report}
