# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Thresholds as variables of the backend's environment."""

from __future__ import annotations

DOCUMENTATION = r"""
name: threshold_variables
short_description: Give thresholds as variables of the backend's environment
version_added: 1.1.0
description:
  - Takes what the option O(wheels.ops.health_info#module:thresholds) takes, and gives the variables by which the
    backend grades itself,
    such as C(CPU_WARNING_THRESHOLD). A limit that is not given is that of the incident report.
options:
  _input:
    description: Limits by measure.
    type: dict
    required: true
  beside:
    description: Variables that are set beside these. One of them that says otherwise is refused.
    type: dict
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Show by what the backend grades itself
  ansible.builtin.debug:
    msg: "{{ {'cpu': {'warning': 80}} | wheels.ops.threshold_variables }}"
"""

RETURN = r"""
_value:
  description: Values by the names of their variables.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.wheels.ops.plugins.module_utils.core.results import OpsError
from ansible_collections.wheels.ops.plugins.module_utils.health.backend_settings import threshold_variables


def variables(thresholds: t.Mapping[str, t.Any], beside: t.Optional[t.Mapping[str, t.Any]] = None) -> t.Dict[str, str]:
    try:
        return threshold_variables(thresholds, beside)
    except OpsError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"threshold_variables": variables}
