# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Why a task failed, also one with a loop."""

from __future__ import annotations

DOCUMENTATION = r"""
name: failure_reason
short_description: Give the reason why a task failed
version_added: 1.1.0
description:
  - Gives the message of a failed result. Of a loop, where the message of Ansible says only that an item failed, gives
    those of the items.
positional: fallback
options:
  _input:
    description: The result, C(ansible_failed_result).
    type: dict
    required: true
  fallback:
    description: What to give where the result has no message.
    type: str
    default: unknown
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Record the error
  ansible.builtin.set_fact:
    failure: "{{ ansible_failed_result | wheels.ops.failure_reason }}"
"""

RETURN = r"""
_value:
  description: The reason.
  type: str
"""

import typing as t


def failure_reason(result: t.Any, fallback: str = "unknown") -> str:
    if not isinstance(result, t.Mapping):
        return str(result or fallback)
    items = [item for item in result.get("results") or () if isinstance(item, t.Mapping) and item.get("failed")]
    messages = dict.fromkeys(str(item["msg"]) for item in items if item.get("msg"))
    return " ".join(messages) or str(result.get("msg") or fallback)


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"failure_reason": failure_reason}
