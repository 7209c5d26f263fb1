# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The least free space that ``df`` reports."""

from __future__ import annotations

DOCUMENTATION = r"""
name: free_space
short_description: Read the least free space from the output of df
version_added: 1.1.0
description:
  - Reads the output of C(df --output=avail,size,target -B1).
  - What has no size at all, such as C(/proc), cannot be full and does not count.
options:
  _input:
    description: The lines, with the heading.
    type: list
    required: true
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Show where there is the least space
  ansible.builtin.debug:
    msg: "{{ df.stdout_lines | wheels.ops.free_space }}"
"""

RETURN = r"""
_value:
  description: C(bytes) that are free, and C(path) of the mount point.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError


def free_space(lines: t.Sequence[str]) -> t.Dict[str, t.Any]:
    rows = [line.split(None, 2) for line in lines[1:]]
    sized = [(int(row[0]), row[2]) for row in rows if len(row) == 3 and row[1] != "0"]
    if not sized:
        raise AnsibleFilterError("df reports no file system with a size.")
    free, path = min(sized)
    return {"bytes": free, "path": path}


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"free_space": free_space}
