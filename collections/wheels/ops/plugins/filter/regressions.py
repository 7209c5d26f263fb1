# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
name: regressions
short_description: Name the checks that got worse
version_added: 1.1.0
description:
  - Names the checks that were healthy before and are not healthy now.
  - A number that crossed its warning limit without having risen by more than a quarter is not worse than before.
options:
  _input:
    description: The checks after the change.
    type: list
    elements: dict
    required: true
  before:
    description: The checks before it.
    type: list
    elements: dict
    required: true
  without:
    description: Checks that cannot be compared.
    type: list
    elements: str
    default: []
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Require no regression
  ansible.builtin.assert:
    that: after.checks | wheels.ops.regressions(before.checks) | length == 0
"""

RETURN = r"""
_value:
  description: The names of the checks.
  type: list
  elements: str
"""

import typing as t

#: A value that rose by no more than this is the same on a busy host.
_RISE = 1.25
_HEALTHY = ("ok", "skipped")
Check = t.Mapping[str, t.Any]


def _value(check: Check) -> t.Optional[float]:
    value = check.get("value")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_as_before(before: Check, after: Check) -> bool:
    old, new = _value(before), _value(after)
    if after["status"] != "warning" or old is None or new is None or before.get("unit") != after.get("unit"):
        return False
    return new <= _RISE * old


def regressions(after: t.Iterable[Check], before: t.Iterable[Check], without: t.Collection[str] = ()) -> t.List[str]:
    healthy = {check["name"]: check for check in before if check["status"] == "ok" and check["name"] not in without}
    return [
        str(check["name"])
        for check in after
        if check["status"] not in _HEALTHY
        and check["name"] in healthy
        and not _is_as_before(healthy[check["name"]], check)
    ]


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"regressions": regressions}
