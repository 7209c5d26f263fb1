# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The services that a step of a recovery plan may touch."""

from __future__ import annotations

DOCUMENTATION = r"""
name: remaining_services
short_description: Leave services out of a list
version_added: 1.1.0
description:
  - Gives the services but those that are named, on which the others no longer depend.
options:
  _input:
    description: The services, as M(wheels.ops.service_restart) takes them.
    type: list
    elements: dict
    required: true
  without:
    description: The names of services to leave out, such as RV(wheels.ops.recovery_plan_info#module:steps[].without).
    type: list
    elements: str
    required: true
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Restart everything but the broker
  wheels.ops.service_restart:
    services: "{{ services_list | wheels.ops.remaining_services(['redis']) }}"
"""

RETURN = r"""
_value:
  description: The services that remain, in their order.
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.wheels.ops.plugins.module_utils.remedies import plan


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"remaining_services": plan.remaining_services}
