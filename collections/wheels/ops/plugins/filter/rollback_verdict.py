# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the health check after a rollback says."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rollback_verdict
short_description: Judge the health check after a rollback
version_added: 1.1.0
description:
  - A backend that answers passes. A warning is no reason to doubt that, as restarts by systemd while the deployment
    failed are one for
    the next hour.
positional: failing_before, restart_error, check_mode
options:
  _input:
    description: The checks after the rollback.
    type: list
    required: true
  failing_before:
    description: Names of the checks that failed before the deployment.
    type: list
    elements: str
    required: true
  restart_error:
    description: Why the services could not be restarted; empty where they were.
    type: str
    default: ""
  check_mode:
    description: Whether nothing was changed.
    type: bool
    default: false
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Judge the restored backend
  ansible.builtin.set_fact:
    verdict: "{{ health.checks | wheels.ops.rollback_verdict(journal.failing_before) }}"
"""

RETURN = r"""
_value:
  description: C(healthy), and C(message) for a person.
  type: dict
"""

import typing as t


def _sentence(text: t.Any) -> str:
    """One that another may follow."""
    words = str(text).strip()
    return words if words.endswith((".", "!", "?", ":")) else f"{words}."


def rollback_verdict(
    checks: t.Iterable[t.Mapping[str, t.Any]],
    failing_before: t.Collection[str],
    restart_error: str = "",
    check_mode: bool = False,
) -> t.Dict[str, t.Any]:
    checks = list(checks)
    bad = [check for check in checks if check["status"] not in ("ok", "skipped", "warning")]
    warnings = [_sentence(check["message"]) for check in checks if check["status"] == "warning"]
    sentences = ["The backend answers again."]
    if bad and not check_mode:
        sentences = ["But it is not healthy: " + " ".join(_sentence(check["message"]) for check in bad)]
    sentences += [_sentence(check["message"]) for check in checks if check["status"] == "skipped"]
    if warnings and not check_mode:
        sentences.append(f"Warnings: {' '.join(warnings)}")
    if restart_error:
        sentences.append(f"The restart with the original files failed: {_sentence(restart_error)}")
    bad_before = [str(check["name"]) for check in bad if check["name"] in failing_before]
    if bad_before and not check_mode:
        sentences.append(f"It was not healthy before that deployment either ({', '.join(bad_before)}).")
    return {"healthy": check_mode or not (bad or restart_error), "message": " ".join(sentences)}


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"rollback_verdict": rollback_verdict}
