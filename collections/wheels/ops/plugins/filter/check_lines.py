# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks of a health report as lines."""

from __future__ import annotations

DOCUMENTATION = r"""
name: check_lines
short_description: Give checks of a health report as lines
version_added: 1.1.0
description:
  - Gives the name and the message of each check that is named, in the order of the report.
positional: names
options:
  _input:
    description: The checks, as M(wheels.ops.health_info) gives them.
    type: list
    required: true
  names:
    description: Which checks.
    type: list
    elements: str
    required: true
  status:
    description: Whether to give the status as well.
    type: bool
    default: false
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Show what fails
  ansible.builtin.debug:
    msg: "{{ health.checks | wheels.ops.check_lines(health.failing) }}"
"""

RETURN = r"""
_value:
  description: One line per check.
  type: list
"""

import typing as t


def check_lines(
    checks: t.Iterable[t.Mapping[str, t.Any]], names: t.Collection[str], status: bool = False
) -> t.List[str]:
    keys = ("name", "status", "message") if status else ("name", "message")
    return [": ".join(str(check[key]) for key in keys) for check in checks if check["name"] in names]


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"check_lines": check_lines}
