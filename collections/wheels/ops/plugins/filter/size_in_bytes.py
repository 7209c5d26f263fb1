# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A size as people write it, in bytes."""

from __future__ import annotations

DOCUMENTATION = r"""
name: size_in_bytes
short_description: Convert a size such as 50MB to bytes
version_added: 1.1.0
description:
  - Reads sizes as the modules of this collection do. C(K), C(M) and C(G) are powers of 1024; C(KB), C(MB) and C(GB) are
    powers of 1000.
positional: name
options:
  _input:
    description: The size.
    type: raw
    required: true
  name:
    description: Name of the variable, for the error message.
    type: str
    default: The size
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Show the size in bytes
  ansible.builtin.debug:
    msg: "{{ '50MB' | wheels.ops.size_in_bytes }}"
"""

RETURN = r"""
_value:
  description: Bytes.
  type: int
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.wheels.ops.plugins.module_utils.core.results import OpsError
from ansible_collections.wheels.ops.plugins.module_utils.core.units import size


def size_in_bytes(value: t.Union[str, int, float], name: str = "The size") -> int:
    try:
        return size(value, name)
    except OpsError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"size_in_bytes": size_in_bytes}
