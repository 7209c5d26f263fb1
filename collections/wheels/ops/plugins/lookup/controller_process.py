# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names the run that asks, and tells whether an earlier run still lives."""

from __future__ import annotations

DOCUMENTATION = r"""
name: controller_process
short_description: Identify the controller process or detect stale ones
version_added: 1.0.0
description:
  - Without terms, gives one string that names the process of C(ansible-playbook) on this controller.
  - With terms, each such a string from an earlier run, gives those of them whose process has ended.
    A run of another controller cannot be asked and is not given.
  - With O(alive=true), gives those of them whose process still runs instead.
options:
  _terms:
    description: Names of earlier runs.
    type: list
    elements: str
    required: false
  alive:
    description: Whether to give the runs that are alive, and not those that have ended.
    type: bool
    default: false
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Name this run
  ansible.builtin.set_fact:
    holder: "{{ lookup('wheels.ops.controller_process') }}"
"""

RETURN = r"""
_raw:
  description: The name of this run, or the names of those that have ended, or are alive.
  type: list
  elements: str
"""

import os
import typing as t

from ansible.plugins.lookup import LookupBase
from ansible_collections.wheels.ops.plugins.module_utils.host import processes
from ansible_collections.wheels.ops.plugins.module_utils.state import holder


def this_run() -> str:
    """The outermost ancestor that is still Ansible: workers come and go, it stays."""
    pid = outermost = os.getpid()
    while pid > 1:
        facts = processes.stat(pid)
        if facts is None or not any("ansible" in word for word in processes.command_line(pid)):
            break
        outermost, pid = pid, facts.parent
    return holder.name_of(outermost)


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms: t.Sequence[str], variables: t.Any = None, **kwargs: t.Any) -> t.List[str]:
        self.set_options(var_options=variables, direct=kwargs)
        if not terms:
            return [this_run()]
        verdict = holder.ALIVE if self.get_option("alive") else holder.DEAD
        return [term for term in terms if holder.judge(term) == verdict]
