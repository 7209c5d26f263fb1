# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names the run that asks, and tells whether an earlier run still lives."""

from __future__ import annotations

DOCUMENTATION = r"""
name: controller_process
short_description: Name this run of Ansible, or say which earlier runs are dead
version_added: 1.0.0
description:
  - Without terms, gives one string that names the process of C(ansible-playbook) on this controller.
  - With terms, each such a string from an earlier run, gives those of them whose process has ended.
    A run of another controller cannot be asked and is not given.
options:
  _terms:
    description: Names of earlier runs.
    type: list
    elements: str
    required: false
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
  description: The name of this run, or the names of those that are dead.
  type: list
  elements: str
"""

import os
import socket
import typing as t
from pathlib import Path

from ansible.plugins.lookup import LookupBase


def started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty when there is none. Guards against reused ids."""
    try:
        # The second field is the command in parentheses and may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def name_of(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{started(pid)}"


def this_run() -> str:
    """The outermost ancestor that is still Ansible: workers come and go, it stays."""
    pid = found = os.getpid()
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            break
        if b"ansible" not in words:
            break
        found, pid = pid, parent
    return name_of(found)


def dead(holder: str) -> bool:
    host, _ignored, rest = holder.partition(":")
    pid, _ignored, when = rest.partition(":")
    return host == socket.gethostname() and pid.isdigit() and started(int(pid)) != when


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms: t.Sequence[str], variables: t.Any = None, **kwargs: t.Any) -> t.List[str]:
        if not terms:
            return [this_run()]
        return [term for term in terms if dead(term)]
