#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: log_rotate
short_description: Rotate logs that are being written without losing lines
version_added: 1.0.0
description:
  - Rotates every log whose bytes on disk are over O(max_size), in the way that those who have it open can bear.
  - A log that nobody writes is renamed. The kernel says so by a lease, which also holds off whoever comes in between.
  - Where O(reopen) says how the writers are told to reopen, C(logrotate) renames and tells them. The old file is
    compressed when nobody
    writes it any more.
  - Where every writer appends (C(O_APPEND)) and the filesystem can (ext4, xfs), the head is archived and then taken out
    of the file in place.
  - Where a writer does not append, or the log has holes already, the archived head becomes a hole. The length of the file goes on growing, the disk
    does not fill.
  - C(copytruncate), which loses lines, is used with O(allow_loss) only.
  - A run that was killed is finished by the next one. No line is lost or doubled by it.
  - A log that cannot be rotated (an attribute, a read-only mount, a full disk, a missing right) is named in RV(refused)
    with what is in its way. The others are rotated.
  - Fresh logs and rotated parts keep owner, mode, access list, extended attributes and security label of the log.
options:
  state:
    description:
      - V(rotated) rotates now what is too large.
      - V(present) installs a permanent policy O(name) for C(logrotate), which has to read it without an error first. It
        needs O(reopen). A log that another policy covers, also by a wildcard, is refused.
      - V(absent) removes that policy.
    type: str
    choices: [rotated, present, absent]
    default: rotated
  name:
    description: The name of the policy in C(/etc/logrotate.d), letters, digits, C(-) and C(_), at most 64. logrotate
      passes over names with a dot.
    type: str
    default: wheels-ops
  frequency:
    description: How often the policy rotates, even a log that is not too large. With V(hourly), a warning says where
      logrotate itself runs less often on this host.
    type: str
    choices: [hourly, daily, weekly, monthly]
    default: daily
  paths:
    description:
      - Logs, absolute, with wildcards, not in C(/) nor among the files of the system. Not needed for O(state=absent).
      - Links and our own rotated parts are passed over. What matches no log is warned of.
      - Logs of containers (Docker, Podman, Kubernetes) are refused with what to set instead, as their engine reads them
        back.
    type: list
    elements: path
    default: []
  max_size:
    description: Rotate above so many bytes on disk. V(50MB) is a power of 1000, V(50M) of 1024. At least 4096.
    type: str
    default: 50MB
  strategy:
    description:
      - How to rotate.
      - V(auto) chooses by who has the log open.
      - V(rename) renames a log that nobody writes, V(logrotate) has C(logrotate) rename it and tells the writers by
        O(reopen).
      - V(collapse) takes the head out in place, V(punch) makes a hole of it.
      - V(copytruncate) copies and truncates, and needs O(allow_loss).
    type: str
    choices: [auto, rename, logrotate, collapse, punch, copytruncate]
    default: auto
  reopen:
    description:
      - The command, as a list of words, that tells the writers to open their logs again, for example C(systemctl kill
        -s HUP nginx).
      - It is run without a shell. Its first word has to be a program of this host.
    type: list
    elements: str
    default: []
  reopen_timeout:
    description: Seconds for the writers to let go of the renamed log, 1 to 600.
    type: float
    default: 30
  keep:
    description: So many rotated parts of each log stay, 1 to 1000.
    type: int
    default: 7
  compress:
    description: Compress rotated parts with gzip.
    type: bool
    default: true
  allow_loss:
    description: Use C(copytruncate) where nothing else is possible. Lines that are written while it cuts are lost.
    type: bool
    default: false
  owner:
    description: User of the rotated parts. By default that of the log.
    type: str
  group:
    description: Group of the rotated parts. By default that of the log.
    type: str
  mode:
    description: Permissions of the rotated parts, octal, at most V(0777). By default those of the log.
    type: str
notes:
  - A name that is not UTF-8 is shown with its bytes escaped, C(caf\xe9.log).
  - Run it as root, or as the owner of the logs where no other user writes them.
  - Readers that follow a log (C(tail -F), log shippers) see it become shorter. What they had not read yet is in the
    rotated part.
  - Rotated parts are called C(NAME.20250730T021107Z.gz) and sort as their lines do.
requirements:
  - logrotate, for O(strategy=logrotate) and O(state=present) only
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
seealso:
  - module: wheels.ops.disk_cleanup
"""

EXAMPLES = r"""
- name: Rotate what is over 50 MB, whoever writes it
  wheels.ops.log_rotate:
    paths: [/opt/backend/log/*.log]

- name: Rotate a log whose writer reopens on SIGHUP
  wheels.ops.log_rotate:
    paths: [/var/log/pam/access.log]
    reopen: [systemctl, kill, --kill-whom=main, --signal=HUP, pam-backend]
    keep: 14

- name: Have the same done every night
  wheels.ops.log_rotate:
    state: present
    name: pam-backend
    paths: [/var/log/pam/*.log]
    reopen: [systemctl, kill, --kill-whom=main, --signal=HUP, pam-backend]
"""

RETURN = r"""
before:
  description: C(bytes) on disk of every log before; or C(policy), its text.
  returned: success
  type: dict
  sample: {bytes: {/opt/backend/log/access.log: 66000000}}
after:
  description: The same afterwards; in check mode what is to be expected.
  returned: success
  type: dict
actions:
  description:
    - What was done, or would be. V(rotate), V(finish) (of a run that was killed), V(compress), V(delete) (beyond
      O(keep)).
    - For a policy V(install) or V(remove).
  returned: always
  type: list
  elements: dict
  contains:
    action:
      description: The verb.
      type: str
    target:
      description: The log, or the rotated part.
      type: str
    changed:
      description: Whether it changes anything.
      type: bool
    strategy:
      description: How it was rotated.
      type: str
    rotated_to:
      description: The rotated part.
      type: str
    holders:
      description: Who has the log open. C(pid), C(command), C(fd), C(append), C(writes).
      type: list
      elements: dict
    size_before:
      description: Length in bytes before.
      type: int
    size_after:
      description: Length in bytes afterwards.
      type: int
    disk_before:
      description: Bytes on disk before.
      type: int
    disk_after:
      description: Bytes on disk afterwards.
      type: int
    stall_ms:
      description: How long writers were held off, at most, when the head was taken out in place.
      type: float
    whole_lines:
      description: Whether the part ends with a whole line. If not, its last line goes on in the log.
      type: bool
    note:
      description: What is special about this way.
      type: str
    duration_ms:
      description: How long it took.
      type: float
rotated:
  description: How many logs were rotated, or would be.
  returned: success
  type: int
refused:
  description: Logs that could not be rotated safely, or were renamed but not compressed, and why. The module fails
    then, after the others were rotated. RV(actions) and RV(after) say what was done.
  returned: failure
  type: dict
duration_ms:
  description: How long it took.
  returned: success
  type: float
diff:
  description: Bytes of every log before and after.
  returned: success
  type: list
  elements: dict
msg:
  description: One sentence for people.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.remedies.logs import rotate


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["rotated", "present", "absent"], "default": "rotated"},
            "name": {"type": "str", "default": "wheels-ops"},
            "frequency": {"type": "str", "choices": ["hourly", "daily", "weekly", "monthly"], "default": "daily"},
            "paths": {"type": "list", "elements": "path", "default": []},
            "max_size": {"type": "str", "default": "50MB"},
            "strategy": {
                "type": "str",
                "choices": ["auto", "rename", "logrotate", "collapse", "punch", "copytruncate"],
                "default": "auto",
            },
            "reopen": {"type": "list", "elements": "str", "default": []},
            "reopen_timeout": {"type": "float", "default": 30},
            "keep": {"type": "int", "default": 7},
            "compress": {"type": "bool", "default": True},
            "allow_loss": {"type": "bool", "default": False},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "str"},
        },
        supports_check_mode=True,
    )
    run(module, lambda: rotate.run_with(module.params, check_mode=module.check_mode, want_diff=module._diff))


if __name__ == "__main__":
    main()
