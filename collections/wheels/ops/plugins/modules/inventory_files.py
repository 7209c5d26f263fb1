#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: inventory_files
short_description: Write what was found on a host as files of an inventory
version_added: 1.1.0
description:
  - Runs on the controller. Writes the file of a host with its address, where no other file of the inventory has the
    host, and C(host_vars/HOST/00-discovered.yml) with its variables.
  - Leaves out every variable that another file of the inventory sets for the host, so that what a person set stays in
    force.
  - Refuses to replace one of its files that somebody edited.
  - Needs PyYAML, which ansible-core needs as well.
extends_documentation_fragment:
  - wheels.ops.attributes
options:
  directory:
    description: The directory of the inventory. It need not be there yet.
    type: path
    required: true
  host:
    description: The name of the host in the inventory.
    type: str
    required: true
  connection:
    description: How to reach the host, such as C(ansible_host) and C(ansible_user).
    type: dict
    default: {}
  variables:
    description: Variables as M(wheels.ops.backend_info) gives them.
    type: list
    elements: dict
    required: true
  missing:
    description: What was not found, as M(wheels.ops.backend_info) gives it.
    type: list
    elements: dict
    default: []
  notes:
    description: Sentences for the head of the file of variables.
    type: list
    elements: str
    default: []
  groups:
    description: The groups of the host.
    type: list
    elements: str
    default: [backend]
  complete:
    description: Whether everything ran on the host. Otherwise variables that an earlier run found are kept.
    type: bool
    default: true
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Find the backend
  wheels.ops.backend_info:
  register: backend

- name: Write the inventory
  wheels.ops.inventory_files:
    directory: /srv/wheels-ops/inventories/production
    host: "{{ inventory_hostname }}"
    connection:
      ansible_user: deploy
      ansible_become: true
    variables: "{{ backend.variables }}"
    missing: "{{ backend.missing }}"
  delegate_to: localhost
"""

RETURN = r"""
directory:
  description: The directory of the inventory.
  returned: success
  type: str
files:
  description: The files of this host that the module writes.
  returned: success
  type: list
  elements: str
kept:
  description: Which variables a person set, and in which file.
  returned: success
  type: list
  elements: str
missing:
  description: What was not found and is set nowhere, one sentence each.
  returned: success
  type: list
  elements: str
before:
  description: Empty.
  returned: success
  type: dict
after:
  description: Empty.
  returned: success
  type: dict
actions:
  description: "For each file: C(action), C(target) and C(changed)."
  returned: success
  type: list
  elements: dict
diff:
  description: For each file that changes its text before and after; with C(--diff).
  returned: success
  type: list
  elements: dict
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.report import inventory


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "host": {"type": "str", "required": True},
            "connection": {"type": "dict", "default": {}},
            "variables": {"type": "list", "elements": "dict", "required": True},
            "missing": {"type": "list", "elements": "dict", "default": []},
            "notes": {"type": "list", "elements": "str", "default": []},
            "groups": {"type": "list", "elements": "str", "default": ["backend"]},
            "complete": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    options = dict(module.params)
    directory, host = options.pop("directory"), options.pop("host")
    # What the variables refer to is on another machine.
    run(
        module,
        lambda: inventory.write(directory, host, **options, check_mode=module.check_mode, want_diff=module._diff),
        renews_lock=False,
        references=False,
    )


if __name__ == "__main__":
    main()
